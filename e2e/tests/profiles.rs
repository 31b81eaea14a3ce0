//! `flotilla profile`: what is kept of a fleet that is elsewhere, and which fleet a command is about.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

/// A user's folder of configuration, and one with keys.
struct Configured(PathBuf);

impl Configured {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(testkit::unique("flotilla-profiles-"));
        fs::create_dir_all(folder.join("keys")).unwrap();
        Self(folder)
    }

    /// Runs the command with these variables.
    fn run(&self, variables: &[(&str, &str)], args: &[&str]) -> Output {
        let mut command = Command::new(e2e::flotilla());
        command.args(args).env_remove("FLOTILLA_HOME").env_remove("FLOTILLA_PROFILE").current_dir(&self.0);
        command.env("XDG_CONFIG_HOME", &self.0).envs(variables.iter().copied()).output().unwrap()
    }

    fn add(&self, name: &str, services: &[&str]) -> Output {
        let ops: Vec<String> =
            services.iter().flat_map(|name| ["--ops".to_owned(), format!("{name}=10.0.0.1:1")]).collect();
        let args = ["profile", "add", name, "--gateway", "http://10.0.0.1:1/", "--nats", "nats://10.0.0.1:1"];
        let args = [&args[..], &["--jwks", "https://issuer/jwks.json", "--keys", "keys"]].concat();
        self.run(&[], &[args, ops.iter().map(String::as_str).collect()].concat())
    }

    fn file(&self) -> PathBuf {
        self.0.join("flotilla/profiles/prod.json")
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn services() -> Vec<&'static str> {
    fleet::SERVICES.iter().map(|service| service.name).collect()
}

#[track_caller]
fn says(output: &Output, part: &str) {
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(part), "{part:?} is not in: {said}");
}

#[test]
fn a_profile_is_kept_for_its_user_alone() {
    let user = Configured::new();
    says(&user.add("prod", &services()[1..]), &format!("missing: {}", services()[0]));
    says(&user.add("../prod", &services()), "is no profile's name");
    says(&user.add("local", &services()), "choose another name");
    assert!(!user.file().exists());
    says(&user.add("prod", &services()), "flotilla --profile prod status");
    assert_eq!(fs::metadata(user.file()).unwrap().permissions().mode() & 0o777, 0o600);
    says(&user.run(&[], &["profile", "list"]), "http://10.0.0.1:1 ");

    // It names commands that are run: another user must not write it, nor read where the keys are.
    fs::set_permissions(user.file(), fs::Permissions::from_mode(0o640)).unwrap();
    let refused = user.run(&[], &["--profile", "prod", "status"]);
    assert!(!refused.status.success());
    says(&refused, "chmod 600");
    says(&user.run(&[], &["profile", "list"]), "chmod 600");
    says(&user.run(&[], &["profile", "remove", "prod"]), "is removed");
    assert!(!user.file().exists());
}

#[test]
fn what_is_said_now_counts_more_than_a_variable() {
    let user = Configured::new();
    user.add("prod", &services());
    let prod = [("FLOTILLA_PROFILE", "prod")];
    says(&user.run(&prod, &["--home", "here", "status"]), "no fleet runs in here");
    says(&user.run(&prod, &["--profile", "local", "status"]), "no fleet runs in .flotilla");
    says(&user.run(&[("FLOTILLA_HOME", "here")], &["--profile", "prod", "reset", "--yes"]), "the profile prod is not");
    assert_eq!(user.run(&[], &["--profile", "prod", "--home", "here", "status"]).status.code(), Some(2));
    // One that has gone is in nobody's way.
    says(&user.run(&[("FLOTILLA_PROFILE", "gone")], &["profile", "list"]), "prod");
    says(&user.run(&[("FLOTILLA_PROFILE", "gone")], &["status"]), "there is no profile gone");
}

#[test]
fn what_needs_this_machine_or_the_keys_says_so_and_makes_nothing() {
    let user = Configured::new();
    user.add("prod", &services());
    for args in [
        &["run"][..],
        &["up"],
        &["down"],
        &["reset", "--yes"],
        &["trace", "0123456789abcdef0123456789abcdef"],
        &["k8s", "secrets"],
        &["compose", "secrets", "--out", "none"],
        &["backup"],
        &["backups"],
        &["restore", "--to", "latest", "--user", "olga"],
        &["certificates", "renew"],
        &["secrets", "rotate"],
        &["secrets", "stage"],
        &["databases", "--superuser-url-file", "none"],
    ] {
        says(&user.run(&[], &[&["--profile", "prod"], args].concat()), "the profile prod is not");
    }
    for args in [&["provision"][..], &["nats-credentials", "list"]] {
        says(&user.run(&[], &[&["--profile", "prod"], args].concat()), "do this where they are");
    }
    for args in [&["demo"][..], &["token", "--operator", "--user", "olga"]] {
        says(&user.run(&[], &[&["--profile", "prod"], args].concat()), "has no issuer's key");
    }
    assert_eq!(fs::read_dir(user.0.join("keys")).unwrap().count(), 0, "nothing is made among the keys");
}
