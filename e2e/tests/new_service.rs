//! `flotilla new service`: what it writes builds, passes its own tests and the fleet's rules, and changes only what it reports.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{flotilla, workspace};

/// A copy of the repository, as git knows it; removed at the end. What is built of it stays beside it, for the next time.
struct Checkout(PathBuf);

impl Checkout {
    fn make() -> Self {
        let folder = testkit::backing::home().with_file_name("new-service");
        let copy = Self(folder.join("copy"));
        fs::remove_dir_all(&copy.0).ok();
        let tracked = tracked();
        for file in tracked.split('\0').filter(|file| !file.is_empty()) {
            let (from, to) = (workspace().join(file), copy.0.join(file));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(&from, &to).unwrap();
            // This avoids a rebuild of what has not changed.
            let changed = fs::metadata(&from).unwrap().modified().unwrap();
            fs::File::options().write(true).open(&to).unwrap().set_modified(changed).unwrap();
        }
        copy
    }

    /// Runs a program there; returns its output.
    fn run(&self, program: impl AsRef<Path>, args: &[&str]) -> String {
        let mut command = Command::new(program.as_ref());
        command.args(args).current_dir(&self.0);
        // Nothing of this test's own build; and what is built once needs no second copy for the next time.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARGO")) {
            if name != "CARGO_HOME" {
                command.env_remove(name);
            }
        }
        command.env("CARGO_TARGET_DIR", self.0.with_file_name("target")).env("CARGO_NET_OFFLINE", "true");
        let output = command.env("CARGO_INCREMENTAL", "0").output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{} {args:?}:\n{said}", program.as_ref().display());
        said
    }

    /// The files that differ from those of the repository, and those that are not in it.
    fn differing(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let (mut changed, mut new) = (BTreeSet::new(), BTreeSet::new());
        let mut folders = vec![self.0.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let name = path.strip_prefix(&self.0).unwrap().to_str().unwrap().to_owned();
                match fs::read(workspace().join(&name)) {
                    Ok(text) if text == fs::read(&path).unwrap() => {}
                    Ok(_) => drop(changed.insert(name)),
                    Err(_) => drop(new.insert(name)),
                }
            }
        }
        (changed, new)
    }
}

/// The names of the repository's files, each ended by a NUL.
fn tracked() -> String {
    let mut git = Command::new("git");
    let output = git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let output = output.current_dir(workspace()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Drop for Checkout {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

#[test]
fn a_new_service_builds_passes_its_tests_and_touches_three_files() {
    let copy = Checkout::make();
    copy.run(flotilla(), &["new", "service", "ferry", "--owner", "pilots", "--aggregates", "oar,life_policy"]);
    let (changed, new) = copy.differing();
    let by_hand = [".github/CODEOWNERS", "crates/contracts/src/events/mod.rs", "crates/fleet/src/services.rs"];
    let made_anew = ["Cargo.lock", "schemas/asyncapi.yaml", "services/gateway/openapi.json"];
    assert_eq!(changed, by_hand.into_iter().chain(made_anew).map(ToOwned::to_owned).collect());
    // Nothing of the templates' own names is left.
    for name in &new {
        let text = fs::read_to_string(copy.0.join(name)).unwrap().to_lowercase();
        for word in ["harbour", "vessel", "logbook"] {
            assert!(!text.contains(word) && !name.contains(word), "{name} has {word}");
        }
    }
    copy.run("cargo", &["fmt", "--all", "--check"]);
    // The same packages each time, so that their dependencies are built once. The command starts the backing services for tests, from the
    // table that knows the service.
    let of = |args: &[&str]| {
        let packages =
            ["cli", "ferry", "contracts", "fleet", "proto", "gateway"].map(|name| ["--package", name]).concat();
        copy.run("cargo", &[&args[..1], &["--quiet"], &packages, &args[1..]].concat())
    };
    of(&["build", "--bins", "--tests"]);
    let built = copy.0.with_file_name("target").join("debug/flotilla");
    copy.run(built.clone(), &["k8s", "render"]);
    copy.run(built, &["compose", "render"]);
    assert!(copy.0.join("k8s/base/ferry.yaml").exists());
    of(&["clippy", "--bins", "--tests", "--", "-D", "warnings"]);
    of(&["test"]);
    copy.run("scripts/buf.sh", &["lint", "proto"]);
    for code in ["OAR_NOT_FOUND", "LIFE_POLICY_NOT_FOUND", "LIFE_POLICY_EXISTS"] {
        let errors = fs::read_to_string(copy.0.join("services/ferry/errors.md")).unwrap();
        assert!(errors.contains(&format!("## {code}\n")), "{errors}");
    }
    // A command built from the old table gives the next service other ports.
    copy.run(flotilla(), &["new", "service", "tender", "--aggregates", "buoy,anchor_chain"]);
    let table = fs::read_to_string(copy.0.join("crates/fleet/src/services.rs")).unwrap();
    assert!(table.contains("17401") && table.contains("17501"), "{table}");
    // A second time it says so, and writes nothing.
    let (changed_before, new_before) = copy.differing();
    let again = Command::new(flotilla())
        .args(["new", "service", "todo", "--aggregates", "a_b,c_d"])
        .current_dir(&copy.0)
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&again.stderr).contains("or there already"));
    let args = ["new", "service", "ferry", "--aggregates", "oar,life_policy"];
    let there = Command::new(flotilla()).args(args).current_dir(&copy.0).output().unwrap();
    assert!(String::from_utf8_lossy(&there.stderr).contains("or there already"), "{there:?}");
    assert_eq!(copy.differing(), (changed_before, new_before));
}
