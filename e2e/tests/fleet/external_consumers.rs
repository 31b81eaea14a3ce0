//! Strangers' clients: the programs of the docs, in three languages, read a tenant's events with durable consumers.

use std::path::PathBuf;

use devstack::install::version;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::with_fleet;
use e2e::Fleet;

/// A Python with the packages that the program names; made once, in the user's cache.
async fn python() -> PathBuf {
    let (nats, schema) = (version("NATS_PY").unwrap(), version("PY_JSONSCHEMA").unwrap());
    let venv = devstack::stack_dir::cache().unwrap().join(format!("python-nats-{nats}-nkeys-jsonschema-{schema}"));
    let python = venv.join("bin/python");
    if !venv.join(".complete").exists() {
        let made = Command::new("python3").args(["-m", "venv"]).arg(&venv).status().await.unwrap();
        assert!(made.success());
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet"])
            .arg(format!("nats-py[nkeys]=={nats}"))
            .arg(format!("jsonschema=={schema}"));
        assert!(pip.status().await.unwrap().success());
        std::fs::write(venv.join(".complete"), b"").unwrap();
    }
    python
}

/// Runs a consumer twice on a tenant with three events: it reads all, then goes on where it ended.
async fn reads_and_goes_on(fleet: &Fleet, tenant: &str, consumer: impl Fn(&[&str]) -> Command) {
    let ann = fleet.caller(tenant, "ann").await;
    let todo = ann.create(json!({"title": "read by a stranger"})).await;
    let path = format!("/v1/todos/{}:complete", todo["id"].as_str().unwrap());
    assert_eq!(ann.send(Method::POST, &path, None).await.status, 200);
    let given = fleet.json(&["nats-credentials", "create", "--tenant", tenant, "--name", "reader"]).await;
    let (login, url) = (given["credsFile"].as_str().unwrap(), given["url"].as_str().unwrap());
    let types = async |count: &str| {
        let output = consumer(&[login, url, count]).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let types = said.lines().filter_map(|line| line.split_whitespace().next()).map(ToOwned::to_owned);
        types.collect::<Vec<_>>()
    };
    assert_eq!(types("2").await, ["todo.created.v1", "todo.completed.v2"], "the older twin is passed over");
    let path = format!("/v1/todos/{}:reopen", todo["id"].as_str().unwrap());
    assert_eq!(ann.send(Method::POST, &path, None).await.status, 200);
    assert_eq!(types("1").await, ["todo.reopened.v1"]);
    let one = |all: Value| all.as_array().unwrap().iter().filter(|one| one["tenant"] == tenant).count();
    assert_eq!(one(fleet.json(&["nats-credentials", "list"]).await), 1);
    fleet.json(&["nats-credentials", "revoke", "--tenant", tenant, "--name", "reader"]).await;
    assert_eq!(one(fleet.json(&["nats-credentials", "list"]).await), 0);
    assert!(!std::path::Path::new(login).exists(), "its credentials are gone");
}

#[test]
fn a_python_program_reads_the_events_and_validates_them() {
    with_fleet(|fleet, _| async {
        let python = python().await;
        reads_and_goes_on(fleet, "stranger-python", |args| {
            let mut command = Command::new(&python);
            command.arg(e2e::workspace().join("docs/consumers/python/consume.py")).args(args);
            command
        })
        .await;
    });
}

#[test]
fn a_go_program_reads_the_events() {
    with_fleet(|fleet, _| async {
        reads_and_goes_on(fleet, "stranger-go", |args| {
            let mut command = Command::new("go");
            command.args(["run", "."]).args(args).current_dir(e2e::workspace().join("docs/consumers/go"));
            command
        })
        .await;
    });
}

#[test]
fn a_rust_program_reads_the_events() {
    with_fleet(|fleet, _| async {
        reads_and_goes_on(fleet, "stranger-rust", |args| {
            let mut command = Command::new(testkit::backing::programs().join("consume-events"));
            command.args(args);
            command
        })
        .await;
    });
}
