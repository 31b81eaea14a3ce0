//! A whole fleet as processes, in a folder and on ports of its own, driven through its public endpoints only.

#![expect(clippy::unwrap_used, reason = "a test harness fails by panicking")]

pub mod clients;
pub mod load;
pub mod people;
pub mod random;
pub mod tls;

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use devstack::supervisor::{StackStatus, State, Unit, read_status};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use testkit::{backing, unique};
use tokio::process::{Child, Command};

/// How long a fleet may take to come up; on a fresh machine the backing services are fetched first.
const UP_WITHIN: Duration = Duration::from_secs(600);

/// A running fleet. It stops when dropped, and when the test process ends.
pub struct Fleet {
    /// Its folder.
    pub home: PathBuf,
    supervisor: Child,
}

/// The program under test.
#[must_use]
pub fn flotilla() -> PathBuf {
    backing::programs().join("flotilla")
}

impl Fleet {
    /// Brings a fleet up as a user would, on any free ports.
    ///
    /// # Panics
    /// It does not come up: the message shows its output.
    pub async fn start(otlp_endpoint: Option<&str>) -> Self {
        Self::start_with(otlp_endpoint, &[]).await
    }

    /// Brings a fleet up with more arguments.
    ///
    /// # Panics
    /// It does not come up: the message shows its output.
    pub async fn start_with(otlp_endpoint: Option<&str>, more: &[&str]) -> Self {
        let home = std::env::temp_dir().join(unique("flotilla-e2e-"));
        std::fs::create_dir_all(&home).unwrap();
        let said = home.join("supervisor.out");
        let output = std::fs::File::create(&said).unwrap();
        let mut command = Command::new(flotilla());
        command.arg("--home").arg(&home).args([
            "supervise",
            "--until-stdin-ends",
            "--wipe-at-end",
            "--any-ports",
            "--gateway-port",
            "0",
        ]);
        if let Some(endpoint) = otlp_endpoint {
            command.args(["--otlp-endpoint", endpoint]);
        }
        command.args(more);
        command.stdin(Stdio::piped()).stdout(output.try_clone().unwrap()).stderr(output);
        let supervisor = command.spawn().unwrap();
        let mut fleet = Self { home, supervisor };
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        let deadline = tokio::time::Instant::now() + UP_WITHIN;
        while !fleet.stack_status().is_some_and(|stack_status| stack_status.up) {
            tick.tick().await;
            let text = || std::fs::read_to_string(&said).unwrap_or_default();
            assert!(fleet.supervisor.try_wait().unwrap().is_none(), "the fleet did not come up:\n{}", text());
            assert!(tokio::time::Instant::now() < deadline, "the fleet is not up yet:\n{}", text());
        }
        fleet
    }

    fn stack_status(&self) -> Option<StackStatus> {
        read_status(&self.home.join(devstack::stack::STATUS_FILE)).ok()
    }

    /// The state of a backing service or service.
    ///
    /// # Panics
    /// There is no such unit.
    #[must_use]
    pub fn unit(&self, name: &str) -> Unit {
        self.stack_status().unwrap().units.into_iter().find(|unit| unit.name == name).unwrap()
    }

    /// The login of PostgreSQL, from its JSON file.
    ///
    /// # Panics
    /// It has none.
    #[must_use]
    pub fn login(&self, unit: &str) -> Value {
        let file = self.unit(unit).creds_file.unwrap();
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
    }

    /// A client of NATS with the rights of a login.
    ///
    /// # Panics
    /// It cannot connect.
    pub async fn nats(&self, login: &str) -> async_nats::Client {
        let home = devstack::StackDir::open(&self.home).unwrap();
        let file = devstack::nats::credentials_file(&home, login);
        devstack::nats::connect(&home, &self.unit("nats").url.unwrap(), &file).await.unwrap()
    }

    /// JetStream as the administration of the todos' events.
    ///
    /// # Panics
    /// It cannot connect.
    pub async fn jetstream(&self) -> async_nats::jetstream::Context {
        async_nats::jetstream::new(self.nats("todo-admin").await)
    }

    /// Kills a unit with SIGKILL, and waits until the supervisor has it ready again.
    ///
    /// # Panics
    /// It is not running, or does not come back.
    pub async fn kill(&self, name: &str) {
        let before = self.unit(name);
        devstack::process::signal(before.pid.unwrap(), nix::sys::signal::Signal::SIGKILL).unwrap();
        testkit::until(&format!("{name} is back"), || async {
            let now = self.unit(name);
            now.restarts > before.restarts && now.state == State::Ready
        })
        .await;
    }

    /// Runs the flotilla command on this fleet.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(flotilla());
        command.arg("--home").arg(&self.home).args(args).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Runs the flotilla command to its end.
    ///
    /// # Panics
    /// It cannot be run.
    pub async fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().await.unwrap()
    }

    /// What the command prints with `--json`.
    ///
    /// # Panics
    /// It fails, or prints something else.
    pub async fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat()).await;
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// A caller of the HTTP API.
    ///
    /// # Panics
    /// No token is minted.
    pub async fn caller(&self, tenant: &str, user: &str) -> Caller {
        self.caller_as(tenant, user, &[]).await
    }

    /// A caller whose token is minted with these additional arguments: `--role`, `--scope`, `--agent`.
    ///
    /// # Panics
    /// No token is minted.
    pub async fn caller_as(&self, tenant: &str, user: &str, more: &[&str]) -> Caller {
        self.with_token(&[&["--tenant", tenant, "--user", user], more].concat()).await
    }

    /// A person of the development provider, `<name>@people.example`.
    ///
    /// # Panics
    /// No token is minted.
    pub async fn person(&self, name: &str) -> Caller {
        self.with_token(&["--person", name]).await
    }

    async fn with_token(&self, whose: &[&str]) -> Caller {
        let output = self.run(&[&["token"], whose].concat()).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let token = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        Caller { token: Some(token), ..self.stranger() }
    }

    /// A caller without a token, with connections of its own.
    ///
    /// # Panics
    /// There is no HTTP client.
    #[must_use]
    pub fn stranger(&self) -> Caller {
        let address = self.unit("gateway").address;
        let scheme = if self.home.join("tls/ca.crt").exists() { "https" } else { "http" };
        Caller { token: None, ..Caller::of(&self.home, &format!("{scheme}://{address}"), "") }
    }

    /// Stops the fleet as `flotilla down` does, and removes its folder.
    ///
    /// # Panics
    /// It does not stop.
    pub async fn stop(mut self) {
        drop(self.supervisor.stdin.take());
        assert!(self.supervisor.wait().await.unwrap().success());
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        // In order, so that nothing writes to the folder that is removed.
        while self.supervisor.try_wait().is_ok_and(|status| status.is_none()) {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        devstack::StackDir::open(&self.home).and_then(|home| home.wipe()).ok();
    }
}

/// The root of the workspace.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// An HTTP client.
#[derive(Clone)]
pub struct Caller {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

impl Caller {
    /// Its token.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// A caller of the gateway at this URL, with this token, who trusts the authorities of the fleet's folder.
    ///
    /// # Panics
    /// There is no HTTP client.
    #[must_use]
    pub fn of(home: &Path, base: &str, token: &str) -> Self {
        let mut http = reqwest::Client::builder().timeout(Duration::from_secs(20)).no_proxy();
        if let Ok(authorities) = std::fs::read(home.join("tls/ca.crt")) {
            http = http.tls_certs_only(reqwest::Certificate::from_pem_bundle(&authorities).unwrap());
        }
        Self { http: http.build().unwrap(), base: base.to_owned(), token: Some(token.to_owned()) }
    }

    /// The same, at another gateway.
    #[must_use]
    pub fn at(&self, address: &str) -> Self {
        Self { base: format!("http://{address}"), ..self.clone() }
    }

    /// The same connections, with the token of another.
    #[must_use]
    pub fn with_the_token_of(&self, other: &Self) -> Self {
        Self { token: other.token.clone(), ..self.clone() }
    }

    /// The same connections, with this token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// A person in one of several tenants: with the fleet's token, which names it.
    ///
    /// # Panics
    /// The person is no member of it.
    pub async fn in_tenant(&self, tenant: &str) -> Self {
        let form = [
            ("subject_token_type", "urn:ietf:params:oauth:token-type:access_token"),
            ("subject_token", self.token.as_deref().unwrap_or_default()),
            ("tenant", tenant),
        ];
        let answer = self.exchange(&form).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        self.with_token(answer.body["access_token"].as_str().unwrap())
    }

    /// What the exchange of a credential is answered (RFC 8693): by the form alone, without this caller's token.
    ///
    /// # Panics
    /// There is no answer.
    pub async fn exchange(&self, form: &[(&str, &str)]) -> Answer {
        let exchange = ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange");
        let stranger = Self { token: None, ..self.clone() };
        let request = stranger.request(Method::POST, "/v1/token").form(&[&[exchange], form].concat());
        Answer::of(request.send().await.unwrap()).await
    }

    /// A request with this caller's token; POST gets a new idempotency key.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.base));
        if method == Method::POST {
            request = request.header("idempotency-key", unique("key-"));
        }
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends a request as it is.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn execute(&self, request: reqwest::Request) -> Result<Response, reqwest::Error> {
        self.http.execute(request).await
    }

    /// Sends a request and reads the answer.
    ///
    /// # Panics
    /// There is no answer.
    pub async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let request = self.request(method, path);
        let request = if let Some(body) = body { request.json(&body) } else { request };
        Answer::of(request.send().await.unwrap()).await
    }

    /// Creates a todo.
    ///
    /// # Panics
    /// It is refused.
    pub async fn create(&self, body: Value) -> Value {
        let answer = self.send(Method::POST, "/v1/todos", Some(body)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    /// Signs a tenant up: the caller is a person.
    ///
    /// # Panics
    /// It is refused.
    pub async fn sign_up(&self, tenant: &str) -> Value {
        let tenant = json!({"id": tenant, "name": "Acme Shipping", "country": "DE", "currency": "EUR"});
        let answer = self.send(Method::POST, "/v1/tenants", Some(tenant)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    /// The titles that a search finds on its first page.
    ///
    /// # Panics
    /// It is refused.
    pub async fn search(&self, words: &str) -> Vec<String> {
        let request = self.request(Method::GET, "/v1/todos:search").query(&[("query", words), ("pageSize", "100")]);
        let answer = Answer::of(request.send().await.unwrap()).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let hits = answer.body["hits"].as_array().cloned().unwrap_or_default();
        hits.into_iter().map(|hit| hit["title"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: reqwest::header::HeaderMap,
    /// The body, as JSON; null when it is none.
    pub body: Value,
}

impl Answer {
    /// Reads a response; of a stream only its head.
    ///
    /// # Panics
    /// It breaks off.
    pub async fn of(response: Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let streams = headers.get("content-type").is_some_and(|media| media == "text/event-stream");
        let bytes = if streams { Vec::new() } else { response.bytes().await.unwrap().to_vec() };
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Self { status, headers, body }
    }

    /// A header's text; empty if it is absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The stable code of a problem, after a check of its shape.
    ///
    /// # Panics
    /// It is no problem.
    #[must_use]
    pub fn code(&self) -> &str {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        assert_eq!(self.body["status"], self.status, "{self:?}");
        assert!(self.body["detail"].is_string() && self.body["title"].is_string(), "{self:?}");
        self.body["code"].as_str().unwrap()
    }
}
