//! A stranger's client: the Python program of the docs reads the events and validates each against its schema.

use std::path::PathBuf;

use devstack::install::version;
use reqwest::Method;
use serde_json::json;
use tokio::process::Command;

use crate::with_fleet;

/// A Python with the packages that the program names; made once, in the user's cache.
async fn python() -> PathBuf {
    let (nats, schema) = (version("NATS_PY").unwrap(), version("PY_JSONSCHEMA").unwrap());
    let venv = devstack::home::cache().unwrap().join(format!("python-nats-{nats}-jsonschema-{schema}"));
    let python = venv.join("bin/python");
    if !venv.join(".complete").exists() {
        let made = Command::new("python3").args(["-m", "venv"]).arg(&venv).status().await.unwrap();
        assert!(made.success());
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet"])
            .arg(format!("nats-py=={nats}"))
            .arg(format!("jsonschema=={schema}"));
        assert!(pip.status().await.unwrap().success());
        std::fs::write(venv.join(".complete"), b"").unwrap();
    }
    python
}

#[test]
fn a_python_program_reads_the_events_and_validates_them() {
    with_fleet(|fleet, _| async {
        let ann = fleet.caller("stranger", "ann").await;
        let todo = ann.create(json!({"title": "read by a stranger"})).await;
        let path = format!("/v1/todos/{}:complete", todo["id"].as_str().unwrap());
        assert_eq!(ann.send(Method::POST, &path, None).await.status, 200);
        let python = python().await;
        let output = Command::new(python)
            .arg(e2e::workspace().join("docs/consume_events.py"))
            .arg(fleet.home.join("secrets/nats-observer.json"))
            .args(["stranger", "3"])
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let types: Vec<&str> = said.lines().filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(types, ["todo.created.v1", "todo.completed.v1", "todo.completed.v2"], "{said}");
    });
}
