//! A real Kubernetes on this machine (`scripts/cluster.sh`): it runs pods as restricted as ours, two never start side by side,
//! and it leaves nothing behind, also when it or the command that starts it is killed. There is one on a machine, so these tests
//! run one after the other.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod fleet;
mod network;

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Pods as our workloads are: restricted, read-only, with limits.
const POD: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: probe, labels: {pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: probe, namespace: probe}
spec:
  replicas: 2
  selector: {matchLabels: {app: probe}}
  template:
    metadata: {labels: {app: probe}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 1
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: probe
        image: localhost/flotilla/pause:1
        imagePullPolicy: Never
        securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
        resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {cpu: 100m, memory: 32Mi}}
"#;

const PRIVILEGED: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: privileged, namespace: probe}
spec:
  containers: [{name: probe, image: "localhost/flotilla/pause:1", securityContext: {privileged: true}}]
"#;

/// A service that nothing stands behind.
const NOBODY: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: database, namespace: probe}
spec: {selector: {app: nobody}, ports: [{port: 5432}]}
"#;

/// A job of todo's image, as a release runs one: with these arguments and variables.
fn job(name: &str, args: &str, env: &str) -> String {
    format!(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {{name: {name}, namespace: probe}}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      automountServiceAccountToken: false
      securityContext: {{runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}
      containers:
      - name: {name}
        image: localhost/flotilla/todo:test
        imagePullPolicy: Never
        args: [{args}]
        env: [{env}]
        securityContext: {{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {{drop: [ALL]}}}}
"#
    )
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn cluster(verb: &str) -> Output {
    Command::new(root().join("scripts/cluster.sh")).arg(verb).output().unwrap()
}

fn done(verb: &str) {
    let output = cluster(verb);
    assert!(output.status.success(), "{verb}: {}{}", text(&output.stdout), text(&output.stderr));
}

/// What of the machine a cluster could touch, line by line.
fn machine() -> Vec<String> {
    let output = cluster("state");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut lines: Vec<String> = text(&output.stdout).lines().map(ToOwned::to_owned).collect();
    lines.sort();
    lines
}

/// Removes the cluster, whatever a test found.
struct Removed;

impl Drop for Removed {
    fn drop(&mut self) {
        cluster("down");
    }
}

fn programs() -> PathBuf {
    let output = Command::new(root().join("scripts/kube-programs.sh")).arg("--folder").output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).trim().into()
}

fn kubectl(args: &[&str], input: &str) -> Output {
    let state = root().join(".flotilla-k8s");
    let mut child = Command::new(programs().join("kubectl"))
        .args(args)
        .env("KUBECONFIG", state.join("pki/admin.conf"))
        .env("KUBECACHEDIR", state.join("kubectl"))
        .env("NO_PROXY", "10.99.0.2")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// A JSON document of an image's archive.
fn document(archive: &Path, name: &str) -> serde_json::Value {
    let document = Command::new("tar").arg("-xOf").arg(archive).arg(name).output().unwrap();
    serde_json::from_slice(&document.stdout).unwrap()
}

/// Packs todo, as `make build` has built it, and returns the digest of its manifest.
fn image(folder: &Path, umask: &str, locale: &str) -> String {
    let script = format!("umask {umask}; exec scripts/images.sh {} todo", folder.display());
    let mut pack = Command::new("bash");
    pack.current_dir(root()).args(["-c", &script]).env("LANG", locale).env("LC_ALL", locale);
    pack.env("PROFILE", "debug").env("RELEASE", "test").env("REGISTRY", "localhost/flotilla");
    let output = pack.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    document(&folder.join("todo.tar"), "index.json")["manifests"][0]["digest"].as_str().unwrap().to_owned()
}

fn applied(input: &str) -> Result<(), String> {
    let output = kubectl(&["apply", "--server-side", "--filename", "-"], input);
    if output.status.success() { Ok(()) } else { Err(text(&output.stderr)) }
}

/// Runs a job, waits until it has ended in this way, and returns what it printed.
fn logs_of(name: &str, ended: &str, manifest: &str) -> String {
    applied(manifest).unwrap();
    let (job, condition) = (format!("job/{name}"), format!("--for=condition={ended}"));
    let waited = kubectl(&["wait", "--namespace=probe", &condition, &job, "--timeout=60s"], "");
    assert!(waited.status.success(), "{}", text(&waited.stderr));
    text(&kubectl(&["logs", "--namespace=probe", &job], "").stdout)
}

#[test]
#[ignore = "needs root, and builds the programs of a cluster once: make cluster-test"]
fn a_cluster_runs_restricted_pods_and_leaves_nothing() {
    let _removed = Removed;
    done("down");
    let before = machine();
    says_at_once_that_it_needs_root();
    runs_pods(&before);
    is_started_once(&before);
    is_killed_on_its_way(&before);
}

fn says_at_once_that_it_needs_root() {
    let as_another = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).args(args).current_dir(root());
        command.output().unwrap()
    };
    if !as_another(&["test", "-x", "scripts/k8s.sh"]).status.success() {
        eprintln!("SKIPPED: nobody but root may look into this clone");
        return;
    }
    let check = as_another(&["scripts/k8s.sh", "check"]);
    assert!(!check.status.success() && text(&check.stderr).contains("needs root"), "{}", text(&check.stderr));
}

fn runs_pods(before: &[String]) {
    done("up");
    assert_ne!(machine(), before, "what a cluster touches is looked at");
    let again = cluster("up");
    assert!(!again.status.success() && text(&again.stderr).contains("is up already"), "{}", text(&again.stderr));

    applied(POD).unwrap();
    let rolled = kubectl(&["rollout", "status", "--namespace=probe", "deployment/probe", "--timeout=60s"], "");
    assert!(rolled.status.success(), "{}", text(&rolled.stderr));
    let refused = applied(PRIVILEGED).unwrap_err();
    assert!(refused.contains("violates PodSecurity") || refused.contains("disallowed"), "{refused}");
    let refused = applied(&POD.replace("replicas:", "replicsa:")).unwrap_err();
    assert!(refused.contains("replicsa"), "{refused}");

    environments_are_taken();

    // An image of a service, as a job of a release runs it.
    let folder = std::env::temp_dir().join(format!("flotilla-images-{}", std::process::id()));
    let (digest, again) = (image(&folder, "022", "C"), image(&folder, "077", "en_US.UTF-8"));
    assert_eq!(digest, again, "what an image is made of decides what it is, not when nor where");
    let archive = folder.join("todo.tar");
    let blob = |digest: &serde_json::Value| {
        document(&archive, &format!("blobs/{}", digest.as_str().unwrap().replace(':', "/")))
    };
    let manifest = blob(&digest.into());
    let config = &blob(&manifest["config"]["digest"])["config"];
    assert_eq!(config["User"], "65532:65532", "{config}");
    let labels =
        ["title", "version", "licenses"].map(|label| &config["Labels"][format!("org.opencontainers.image.{label}")]);
    assert_eq!(labels, ["todo", "test", "Apache-2.0"], "{config}");
    let loaded = Command::new(root().join("scripts/cluster.sh")).arg("load").arg(&archive).output().unwrap();
    assert!(loaded.status.success(), "{}", text(&loaded.stderr));
    std::fs::remove_dir_all(folder).unwrap();
    let help = logs_of("help", "complete", &job("help", "--help", ""));
    assert!(help.contains("migrate") && help.contains("serve"), "{help}");

    // The name of a service leads to its address: nothing listens behind it, which is another error than no address.
    applied(NOBODY).unwrap();
    let owner = r#"{name: FLOTILLA_OWNER_DATABASE_URL, value: "postgres://todo_owner:none@database/todo"}"#;
    let said = logs_of("names", "failed", &job("names", "migrate", owner));
    assert!(said.contains("refused"), "{said}");

    // Not taken down pod by pod: its processes are killed at once.
    done("down");
    assert_eq!(machine(), before);
    done("down");
}

/// The real server takes every object of staging and of production, with what operators define; nothing of it is kept.
fn environments_are_taken() {
    let manifests = |args: &[&str]| Command::new(root().join("scripts/manifests.sh")).args(args).output().unwrap();
    let definitions = manifests(&["definitions"]);
    if !definitions.status.success() {
        println!("SKIPPED: the overlays are not applied: {}", text(&definitions.stderr));
        return;
    }
    for file in text(&definitions.stdout).lines() {
        let taken = kubectl(&["apply", "--server-side", "--filename", file], "");
        assert!(taken.status.success(), "{}", text(&taken.stderr));
        kubectl(&["wait", "--for=condition=Established", "--timeout=30s", "--filename", file], "");
    }
    applied("{apiVersion: v1, kind: Namespace, metadata: {name: flotilla}}").unwrap();
    for environment in ["staging", "prod"] {
        let folder = root().join("k8s/overlays").join(environment);
        let taken = ["apply", "--server-side", "--dry-run=server", "--kustomize"];
        let taken = kubectl(&[&taken[..], &[folder.to_str().unwrap()]].concat(), "");
        assert!(taken.status.success(), "{environment}: {}", text(&taken.stderr));
        assert!(!text(&taken.stderr).contains("would violate"), "{environment}: {}", text(&taken.stderr));
    }
}

/// Of two that start at once, one does; the other says why not, and harms nothing.
fn is_started_once(before: &[String]) {
    let start = || {
        let mut up = Command::new(root().join("scripts/cluster.sh"));
        up.arg("up").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let [first, second] = [start(), start()].map(|child| child.wait_with_output().unwrap());
    let (up, refused) = if first.status.success() { (first, second) } else { (second, first) };
    assert!(up.status.success() && !refused.status.success(), "{}{}", text(&up.stderr), text(&refused.stderr));
    let said = text(&refused.stderr);
    assert!(said.contains("at work on the machine's cluster") || said.contains("is up already"), "{said}");
    let nodes = kubectl(&["get", "nodes", "--output=name"], "");
    assert_eq!(text(&nodes.stdout).trim(), "node/node1", "{}", text(&nodes.stderr));

    // The node itself dies, as in a crash.
    let node = std::fs::read_to_string("/run/flotilla-k8s/node").unwrap();
    let pid = node.split(' ').next().unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    done("down");
    assert_eq!(machine(), before);
}

/// Killed at any step, `up` leaves what `down` finds.
fn is_killed_on_its_way(before: &[String]) {
    let steps = ["owner", "node"].map(|file| Path::new("/run/flotilla-k8s").join(file));
    let later = ["logs/etcd.log", "images/pause.tar"].map(|file| root().join(".flotilla-k8s").join(file));
    for step in steps.into_iter().chain(later) {
        let mut up = Command::new(root().join("scripts/cluster.sh"));
        let mut up = up.arg("up").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while !step.exists() && up.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        assert!(step.exists(), "up ended before {} was there", step.display());
        up.kill().unwrap();
        assert_eq!(up.wait().unwrap().signal(), Some(9), "up had ended when {} was there", step.display());
        done("down");
        assert_eq!(machine(), before, "killed when {} was there", step.display());
    }
}
