//! The program `todo`: how it says how it is, and how it ends.

use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::Value;
use testkit::{TestDatabase, TestIssuer, TestNats, until};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio_util::task::TaskTracker;

use crate::harness::environment;

struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    calls: String,
    ops: String,
    issuer: TestIssuer,
    _parts: (TestDatabase, TestNats),
}

impl Process {
    /// One that serves; `change` adds to its environment.
    async fn start(change: impl FnOnce(&mut Command)) -> Self {
        let (database, nats) = tokio::join!(TestDatabase::todo(&todo::MIGRATIONS), TestNats::start());
        let issuer = TestIssuer::new();
        let mut command = Command::new(env!("CARGO_BIN_EXE_todo"));
        command.arg("serve").kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.envs(environment(&database, &nats, &issuer));
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (calls, ops) = (String::new(), String::new());
        let mut process = Self { child, lines, calls, ops, issuer, _parts: (database, nats) };
        let text = |line: &Value, field: &str| line[field].as_str().unwrap().to_owned();
        process.calls = text(&process.line("taking calls").await, "address");
        process.ops = text(&process.line("serving").await, "ops");
        process
    }

    /// The next line of the log that says so.
    async fn line(&mut self, message: &str) -> Value {
        let find = async {
            loop {
                let line = self.lines.next_line().await.unwrap().expect("the process has ended");
                let line: Value = serde_json::from_str(&line).unwrap();
                if line["message"].as_str().is_some_and(|text| text.contains(message)) {
                    return line;
                }
            }
        };
        let found = tokio::time::timeout(testkit::PATIENCE, find).await;
        found.unwrap_or_else(|_| panic!("no line says {message:?}"))
    }

    /// What `healthcheck` says, and whether it is content.
    async fn health(&self, is: &str) -> (bool, String) {
        let check = ["healthcheck", "--ops-listen", &self.ops, "--is", is];
        let output = Command::new(env!("CARGO_BIN_EXE_todo")).args(check).output().await.unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    }

    async fn metrics(&self) -> String {
        reqwest::get(format!("http://{}/metrics", self.ops)).await.unwrap().text().await.unwrap()
    }

    fn signal(&self) {
        devstack::process::signal(self.child.id().unwrap(), Signal::SIGTERM).unwrap();
    }
}

#[tokio::test]
async fn a_process_without_the_issuers_keys_is_alive_and_not_ready() {
    let process = Process::start(|command| {
        command.env("FLOTILLA_JWKS", "file:///does/not/exist");
    })
    .await;
    assert_eq!(process.health("alive").await, (true, "ok\nrelease 0.1.0\n".to_owned()));
    until("the database answers", || async { process.health("ready").await.1.contains(r#""database":true"#) }).await;
    let (ready, says) = process.health("ready").await;
    assert!(!ready && says.contains(r#""keys":false"#), "{says}");
    let metrics = process.metrics().await;
    for told in [
        r#"database_connections_max{pool="todo"} 16"#,
        r#"database_connections_max{pool="todo-relay"} 3"#,
        r#"database_connections_in_use{pool="todo-inbox"}"#,
    ] {
        assert!(metrics.contains(told), "{told} in {metrics}");
    }
}

#[tokio::test]
async fn a_process_with_all_that_it_needs_is_ready_and_ends_well() {
    let mut process = Process::start(|_| {}).await;
    until("it is ready", || async { process.health("ready").await.0 }).await;
    process.signal();
    assert!(process.child.wait().await.unwrap().success());
    assert_eq!(process.health("alive").await, (false, String::new()));
}

#[tokio::test]
async fn a_second_sigterm_ends_a_process_that_drains() {
    let mut process = Process::start(|_| {}).await;
    until("it is ready", || async { process.health("ready").await.0 }).await;
    // A call that never ends its request is waited for.
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let endless = reqwest::Body::wrap_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    let call = client
        .post(format!("http://{}/flotilla.todo.v1.TodoService/GetTodo", process.calls))
        .header("content-type", "application/grpc")
        .header("authorization", process.issuer.bearer("acme", "ann"))
        .body(endless)
        .send();
    let call = TaskTracker::new().spawn(call);
    until("the call is at work", || async { process.metrics().await.contains("rpc_server_active_calls 1") }).await;
    process.signal();
    process.line("SIGTERM: draining").await;
    process.signal();
    process.line("SIGTERM once more").await;
    assert_eq!(process.child.wait().await.unwrap().code(), Some(1));
    assert!(call.await.unwrap().is_err());
}
