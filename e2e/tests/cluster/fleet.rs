//! The fleet in that cluster: it serves, a release follows another and goes back under load, pods are killed and evicted, and nothing
//! that was acknowledged is lost.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use devstack::StackDir;
use devstack::supervisor::now;
use e2e::Caller;
use e2e::clients::{Client, Wishes};
use e2e::random::Random;
use e2e::tls::{Before, certificates, shown};
use reqwest::Method;
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use testkit::until_within;
use tokio::sync::watch;
use tokio::task::{JoinSet, block_in_place};

use crate::network::Watch;
use crate::{Removed, done, kubectl, machine, root, text};

const RELEASE: &str = env!("CARGO_PKG_VERSION");
const CLIENTS: usize = 6;

/// Where the test keeps its profile, beside nobody else's.
fn profiles() -> PathBuf {
    std::env::temp_dir().join(format!("flotilla-profiles-{}", std::process::id()))
}

/// Runs a script of the fleet in Kubernetes, of what `make build` has built.
fn k8s(args: &[&str]) {
    k8s_with(args, &[]);
}

/// The same with these variables.
fn k8s_with(args: &[&str], variables: &[(&str, &str)]) {
    let mut script = Command::new(root().join("scripts/k8s.sh"));
    script.args(args).env("PROFILE", "debug").env("XDG_CONFIG_HOME", profiles()).envs(variables.iter().copied());
    let output = script.output().unwrap();
    assert!(output.status.success(), "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
}

/// Begins to roll a release out, and is killed when its jobs are there.
fn interrupted(release: &str) {
    let mut script = Command::new(root().join("scripts/k8s.sh"));
    script.args(["release", release]).env("PROFILE", "debug").env("XDG_CONFIG_HOME", profiles());
    let mut script = script.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let jobs = ["get", "jobs", &format!("--selector=flotilla/release={release}"), "--output=name"];
    while in_fleet(&jobs, "").is_empty() {
        assert!(script.try_wait().unwrap().is_none(), "it ended before it had begun");
        std::thread::park_timeout(Duration::from_millis(50));
    }
    script.kill().unwrap();
    script.wait().unwrap();
    let back = Command::new(root().join("scripts/k8s.sh")).args(["back", release]).output().unwrap();
    assert!(text(&back.stderr).contains("never rolled out"), "{}", text(&back.stderr));
}

/// Runs the command on the fleet of the profile that `k8s.sh up` makes.
fn flotilla(args: &[&str]) -> String {
    let mut command = Command::new(e2e::flotilla());
    command.args(["--profile", "k8s"]).args(args).env("XDG_CONFIG_HOME", profiles());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout).trim().to_owned()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&flotilla(&[args, &["--json"]].concat())).unwrap()
}

/// The folder of the fleet's keys.
fn keys() -> PathBuf {
    root().join(".flotilla-k8s/fleet")
}

fn caller(number: usize) -> Caller {
    let gateway = json(&["profile", "list"])["k8s"]["gateway"].as_str().unwrap().to_owned();
    let (tenant, user) = (format!("tenant-{}", number % 3), format!("user-{number}"));
    Caller::of(&keys(), &gateway, &flotilla(&["token", "--tenant", &tenant, "--user", &user]))
}

pub fn in_fleet(args: &[&str], input: &str) -> String {
    let output = kubectl(&[&["--namespace=flotilla"], args].concat(), input);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Waits until every workload has all its pods.
fn settled() {
    let workloads = in_fleet(&["get", "deployments,statefulsets", "--output=name"], "");
    for workload in workloads.lines() {
        in_fleet(&["rollout", "status", workload, "--timeout=180s"], "");
    }
}

/// The pods that run and stay: the workload of each, and its manifest.
fn pods() -> Vec<(String, Value)> {
    let all = in_fleet(&["get", "pods", "--selector=!flotilla/job", "--output=json"], "");
    let all: Value = serde_json::from_str(&all).unwrap();
    let stays = all["items"].as_array().unwrap().iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let name = |pod: &Value| pod["metadata"]["labels"]["app.kubernetes.io/name"].as_str().unwrap().to_owned();
    stays.map(|pod| (name(pod), pod.clone())).collect()
}

/// All pods of the services are of this release; returns the image of each, by its digest.
fn runs(release: &str) -> BTreeMap<String, String> {
    let mut images = BTreeMap::new();
    for (workload, pod) in pods().into_iter().filter(|(workload, _)| ::fleet::named(workload).is_some()) {
        let image = pod["spec"]["containers"][0]["image"].as_str().unwrap();
        assert!(image.ends_with(&format!("/{workload}:{release}")), "{image}");
        let digest = pod["status"]["containerStatuses"][0]["imageID"].as_str().unwrap().to_owned();
        assert_eq!(*images.entry(workload).or_insert(digest.clone()), digest, "all pods have one image");
    }
    images
}

/// The names of the pods of each workload.
fn of_each() -> BTreeMap<String, Vec<String>> {
    let mut named: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (workload, pod) in pods() {
        named.entry(workload).or_default().push(pod["metadata"]["name"].as_str().unwrap().to_owned());
    }
    assert_eq!(named.len(), ::fleet::SERVICES.len() + 4, "{named:?}");
    named
}

/// Asks for the eviction of a pod, as a drain of its node does; Err says why its budget refuses it.
fn evict(pod: &str) -> Result<(), String> {
    let eviction = format!(
        r#"{{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {{"name": "{pod}", "namespace": "flotilla"}}}}"#
    );
    let path = format!("--raw=/api/v1/namespaces/flotilla/pods/{pod}/eviction");
    let output = kubectl(&["--namespace=flotilla", "create", &path, "--filename=-"], &eviction);
    let said = text(&output.stderr);
    assert!(output.status.success() || said.contains("disruption budget"), "{said}");
    if output.status.success() { Ok(()) } else { Err(said) }
}

/// Evicts each pod of a workload: as soon as its budget, which learns of a new pod a moment later, admits it. While one is away, the budget
/// admits no other.
fn evicted(pods: &[String]) {
    for (number, pod) in pods.iter().enumerate() {
        let admitted = (0..300).any(|_| {
            let admitted = evict(pod).is_ok();
            if !admitted {
                std::thread::park_timeout(Duration::from_millis(100));
            }
            admitted
        });
        assert!(admitted, "the budget of {pod} admits no eviction");
        if let Some(next) = pods.get(number + 1) {
            evict(next).expect_err("a second one at once");
        }
        settled();
    }
}

fn verified() -> Value {
    let found = json(&["verify", "--patience", "180"]);
    assert_eq!(json(&["dlq", "stats"])["letters"], 0, "an outage makes no dead letters");
    found
}

/// Has both kinds of backups made now, as their schedules would.
fn back_up() {
    for kind in ["backup-streams", "backup-postgres"] {
        run_now(kind, &format!("{kind}-now"));
    }
}

/// Runs a CronJob now.
fn run_now(cron_job: &str, name: &str) {
    in_fleet(&["create", "job", name, &format!("--from=cronjob/{cron_job}")], "");
    in_fleet(&["wait", "--for=condition=complete", &format!("job/{name}"), "--timeout=120s"], "");
}

/// The certificate that a secret holds.
fn held(secret: &str) -> CertificateDer<'static> {
    let pem = in_fleet(&["get", secret, "--output=go-template={{index .data \"tls.crt\" | base64decode}}"], "");
    certificates(pem.as_bytes()).remove(0)
}

/// Has every certificate made anew, as a month before its end, and waits until servers of each kind show theirs.
async fn renewed() {
    let secrets = in_fleet(&["get", "secrets", "--field-selector=type=kubernetes.io/tls", "--output=name"], "");
    let secrets: Vec<_> = secrets.lines().filter(|name| name.ends_with("-tls")).map(ToOwned::to_owned).collect();
    assert_eq!(secrets.len(), ::fleet::SERVICES.len() + 5, "{secrets:?}");
    let before: Vec<_> = secrets.iter().map(|secret| held(secret)).collect();
    for secret in &secrets {
        in_fleet(&["annotate", secret, "flotilla/renew=2026-01-01T00:00:00Z", "--overwrite"], "");
    }
    run_now("certificates", "certificates-now");
    assert!(secrets.iter().zip(before).all(|(secret, before)| held(secret) != before), "all are new");
    let (authorities, reloads) = (keys().join("tls/ca.crt"), AtomicUsize::new(0));
    for (workload, pod) in pods() {
        let (expected, service) = (held(&format!("secret/{workload}-tls")), ::fleet::named(&workload));
        let ports = match workload.as_str() {
            "postgres" => vec![(5432, Before::Postgres)],
            "nats" => vec![(4222, Before::Nats), (8222, Before::Nothing)],
            "opensearch" => vec![(9200, Before::Nothing)],
            "redis" => vec![(6379, Before::Nothing)],
            _ => [Some(9090), service.and_then(|service| service.port).map(|_| 8080)]
                .into_iter()
                .flatten()
                .map(|port| (port, Before::Nothing))
                .collect(),
        };
        for (port, before) in ports {
            let address = format!("{}:{port}", pod["status"]["podIP"].as_str().unwrap());
            // The node gives new files to pods within a minute and a half; PostgreSQL and NATS read them when they are asked to.
            let patience = Duration::from_secs(180);
            until_within(patience, &format!("{workload} shows its new certificate at {address}"), || async {
                let shown = shown(&authorities, (&address, &workload), before).await;
                let is_new = shown.is_ok_and(|shown| shown == expected);
                if !is_new && ["nats", "postgres"].contains(&workload.as_str()) {
                    let number = reloads.fetch_add(1, Ordering::SeqCst);
                    block_in_place(|| run_now("reload-certificates", &format!("reload-{number}")));
                }
                is_new
            })
            .await;
        }
    }
}

/// Rotates every secret; what the administration had before is refused.
async fn rotated() {
    let (keys, before) = (StackDir::given(&keys()), keys().join("before.creds"));
    let credentials = devstack::nats::credentials_file(&keys, "todo-admin");
    std::fs::copy(&credentials, &before).unwrap();
    block_in_place(|| k8s(&["rotate"]));
    let address = json(&["profile", "list"])["k8s"]["nats"].as_str().unwrap().to_owned();
    devstack::nats::connect(&keys, &address, &credentials).await.unwrap();
    let refused = devstack::nats::connect(&keys, &address, &before).await.map(drop).unwrap_err();
    assert!(format!("{refused:#}").contains("authorization violation"), "{refused:#}");
}

/// The check that is scheduled has looked at everything, and found nothing.
async fn checks_itself() {
    until_within(Duration::from_secs(600), "the scheduled check has checked", || async {
        block_in_place(|| {
            let (_, pod) = pods().into_iter().find(|(workload, _)| workload == "verify").unwrap();
            let path = format!("https:{}:9090/proxy/metrics", pod["metadata"]["name"].as_str().unwrap());
            let raw = format!("--raw=/api/v1/namespaces/flotilla/pods/{path}");
            let metrics = text(&kubectl(&["get", &raw], "").stdout);
            let value = |name: &str| {
                let of = metrics.lines().filter(|line| line.starts_with(name));
                of.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).collect::<Vec<_>>()
            };
            let found = value("verify_findings");
            assert!(found.iter().all(|number| *number == 0.0), "{metrics}");
            !found.is_empty() && value("verify_unchecked") == [0.0] && !value("verify_checked_timestamp").is_empty()
        })
    })
    .await;
}

/// A moment two seconds from now, once it has passed: backups tell time in whole seconds.
fn until_later() -> String {
    let later = now() + chrono::TimeDelta::seconds(2);
    while now() <= later {
        std::thread::park_timeout(Duration::from_millis(50));
    }
    later.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root, and builds the programs of a cluster once: make cluster-test"]
async fn the_fleet_serves_in_kubernetes_through_releases_kills_evictions_new_secrets_and_a_restore() {
    let _removed = Removed;
    done("down");
    let before = machine();
    // Its last step is the demo, through the gateway.
    k8s(&["up"]);
    let status = json(&["status"]);
    assert_eq!(status["degraded"], Value::Array(Vec::new()), "{status:#}");
    assert_eq!(status["releases"]["todo"], RELEASE, "{status:#}");
    let differs = json(&["provision", "--replicas", "3"]);
    assert_eq!(
        differs["changes"],
        serde_json::json!([]),
        "each stream is on three servers, and as the table says: {differs:#}"
    );
    assert!(json(&["lag"])["stages"].as_array().is_some_and(|stages| !stages.is_empty()));
    let demos = verified()["todos"].as_u64().unwrap();

    let network = Watch::begin();
    let (wish, wishes) = watch::channel(Wishes::Write);
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let client = Client::new(number, caller(number), Random::new(number as u64));
        clients.spawn(client.run(wishes.clone(), Duration::from_millis(100)));
    }
    block_in_place(|| {
        let first = runs(RELEASE);
        interrupted("next");
        k8s(&["release", "next"]);
        let next = runs("next");
        assert!(first.iter().all(|(workload, image)| next[workload] != *image), "{first:?} {next:?}");
        k8s(&["back", RELEASE]);
        assert_eq!(runs(RELEASE), first, "what ran before runs again");
        let names = || pods().into_iter().map(|(_, pod)| pod["metadata"]["uid"].clone()).collect::<Vec<_>>();
        let before = names();
        k8s(&["back", RELEASE]);
        assert_eq!(names(), before, "what is applied twice changes nothing");
        for replicas in ["--replicas=1", "--replicas=3", "--replicas=1"] {
            in_fleet(&["scale", replicas, "deployment/gateway", "deployment/search-projector"], "");
            settled();
        }
        // To two again, over the number that was set.
        k8s(&["back", RELEASE]);
        assert_eq!(pods().len(), 2 * ::fleet::SERVICES.len() + 6);
        for pod in of_each().into_values().filter_map(|pods| pods.into_iter().next()) {
            in_fleet(&["delete", "pod", &pod, "--grace-period=0", "--force"], "");
            settled();
        }
        for pods in of_each().into_values() {
            evicted(&pods);
        }
    });
    renewed().await;
    rotated().await;
    wish.send(Wishes::Stop).unwrap();
    let written = tokio::time::timeout(Duration::from_secs(180), clients.join_all()).await.expect("the clients end");
    let (mut todos, mut writes, mut retries) = (demos, 0, 0);
    for client in &written {
        (todos, writes, retries) =
            (todos + client.todos.len() as u64, writes + client.acknowledged, retries + client.retries);
        client.finds_its_writes(&caller(client.number)).await;
    }
    // The clients do not search, and assign nobody: todo asks identity who that is.
    caller(0).search("hull").await;
    let unknown = serde_json::json!({"title": "Tar the hull", "assignee": "nobody-here"});
    let refused = caller(0).send(Method::POST, "/v1/todos", Some(unknown)).await;
    assert!((400..500).contains(&refused.status), "{refused:?}");
    network.end();
    println!("{writes} writes were acknowledged, {retries} tries were sent again");
    assert!(writes > 1_000, "only {writes} writes were acknowledged: this run shows nothing");
    assert_eq!(verified()["todos"], todos, "every create happened once");
    checks_itself().await;

    block_in_place(back_up);
    let after = until_later();
    let undone = caller(0).create(serde_json::json!({"title": "undone"})).await["id"].as_str().unwrap().to_owned();
    // To passwords that were replaced meanwhile. Nobody is at work: no pod has to have the new ones before they count.
    block_in_place(|| k8s_with(&["rotate"], &[("READ_WITHIN", "0")]));
    block_in_place(|| k8s(&["restore", &after]));
    let answer = caller(0).send(Method::GET, &format!("/v1/todos/{undone}"), None).await;
    assert_eq!(answer.status, 404, "{answer:?}");
    assert_eq!(verified()["todos"], todos, "what was there at that moment, and nothing else");

    k8s(&["down"]);
    assert_eq!(json(&["profile", "list"]), serde_json::json!({}), "the profile goes with the fleet");
    std::fs::remove_dir_all(profiles()).unwrap();
    assert_eq!(machine(), before);
}
