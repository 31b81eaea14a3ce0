//! The program `todo`: how it reports its state, and how it ends.

use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::Value;
use service::{Call, Db};
use testkit::{TestDatabase, TestIssuer, TestNats, until};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;

use crate::harness::{Client, database, environment};

struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    calls: String,
    ops: String,
    issuer: TestIssuer,
    database: TestDatabase,
    _nats: TestNats,
}

impl Process {
    /// A process that serves; `change` adds to its environment.
    async fn start(change: impl FnOnce(&mut Command)) -> Self {
        let (database, nats) = tokio::join!(database(), TestNats::start());
        let issuer = TestIssuer::new();
        let mut command = Command::new(env!("CARGO_BIN_EXE_todo"));
        command.arg("serve").kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.env_remove("FLOTILLA_RELEASE").envs(environment(&database, &nats, &issuer));
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (calls, ops) = (String::new(), String::new());
        let mut process = Self { child, lines, calls, ops, issuer, database, _nats: nats };
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

    /// The output of `healthcheck`, and whether it succeeds.
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
    assert_eq!(
        process.health("alive").await,
        (true, concat!("ok\nrelease ", env!("CARGO_PKG_VERSION"), "\n").to_owned())
    );
    until("the database answers", || async { process.health("ready").await.1.contains(r#""database":true"#) }).await;
    let (ready, says) = process.health("ready").await;
    assert!(!ready && says.contains(r#""keys":false"#), "{says}");
}

#[tokio::test]
async fn a_process_with_all_that_it_needs_is_ready_and_ends_well() {
    let mut process = Process::start(|_| {}).await;
    until("it is ready", || async { process.health("ready").await.0 }).await;
    let metrics = process.metrics().await;
    for metric in [r#"database_connections_max{pool="todo"} 16"#, r#"database_connections_max{pool="todo-relay"} 3"#] {
        assert!(metrics.contains(metric), "{metric} in {metrics}");
    }
    // The relay that leads reads by one connection; the inbox is used while an event is handled.
    for metric in
        [r#"in_use{pool="todo-relay"} 1"#, r#"in_use{pool="todo-recurrence"} 0"#, r#"in_use{pool="todo-tenants"} 0"#]
    {
        until(metric, || async { process.metrics().await.contains(metric) }).await;
    }
    process.signal();
    assert!(process.child.wait().await.unwrap().success());
}

#[tokio::test]
async fn a_process_that_is_configured_wrongly_names_all_that_is_wrong_and_does_not_start() {
    let serve = Command::new(env!("CARGO_BIN_EXE_todo")).arg("serve").env_clear().env("FLOTILLA_SAMPLE", "2").output();
    let output = serve.await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("todo: 11 wrong value(s) in the configuration:\n"), "{error}");
    for variable in ["OPS_LISTEN", "SAMPLE", "LISTEN", "RELAY_DATABASE_URL", "CONSUMER_NATS_CREDS", "PAGE_TOKEN_KEY"] {
        assert!(error.contains(&format!("\n  FLOTILLA_{variable}: ")), "{variable} in {error}");
    }
}

#[tokio::test]
async fn connections_are_in_use_while_a_transaction_is_open() {
    let database = database().await;
    let db = Db::lazy(&database.app.clone().into(), "todo", 2).unwrap();
    assert_eq!(db.in_use(), 0);
    let call = || Call::of_schedule("acme".parse().unwrap(), "todo".parse().unwrap());
    let (first, second) = (db.read(&call()).await.unwrap(), db.read(&call()).await.unwrap());
    assert_eq!(db.in_use(), 2);
    first.end().await.unwrap();
    assert_eq!(db.in_use(), 1);
    drop(second);
    assert_eq!(db.in_use(), 0);
}

#[tokio::test]
async fn a_second_sigterm_ends_a_process_that_drains() {
    let mut process = Process::start(|_| {}).await;
    until("it is ready", || async { process.health("ready").await.0 }).await;
    let channel = Channel::from_shared(format!("http://{}", process.calls)).unwrap().connect().await.unwrap();
    Client::new(channel, process.issuer.bearer("acme", "ann")).titled("acknowledged").await;
    until("no call is at work", || async { process.metrics().await.contains("rpc_server_active_calls 0") }).await;
    // A call that does not end its request is waited for: ten seconds, its deadline.
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let endless = reqwest::Body::wrap_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    let call = client
        .post(format!("http://{}/flotilla.todo.v1.TodoService/GetTodo", process.calls))
        .header("content-type", "application/grpc")
        .header("authorization", process.issuer.bearer("acme", "ann"))
        .body(endless)
        .send();
    let (call, pid) = (TaskTracker::new().spawn(call), process.child.id().unwrap());
    until("the call is at work", || async { process.metrics().await.contains("rpc_server_active_calls 1") }).await;
    process.signal();
    process.line("SIGTERM: draining").await;
    // Those that come at once are of one who asks.
    process.signal();
    let ended = async {
        let mut again = tokio::time::interval(std::time::Duration::from_millis(100));
        loop {
            again.tick().await;
            devstack::process::signal(pid, Signal::SIGTERM).ok();
        }
    };
    tokio::select! {
        _ = process.line("SIGTERM while draining") => {}
        () = ended => {}
    }
    assert_eq!(process.child.wait().await.unwrap().code(), Some(1));
    assert!(call.await.unwrap().is_err());
    let mut admin = process.database.admin().await;
    let events = sqlx::query_scalar::<_, i64>("select count(*) from outbox").fetch_one(&mut admin).await.unwrap();
    assert_eq!(events, 1, "what was acknowledged is kept");
}
