//! What watches a fleet: alerts reach a webhook and are taken back, the scheduled check finds what was planted, one trace runs through
//! the whole fleet, and the pages show all services. On the real programs.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::routing::post;
use axum::{Json, Router};
use e2e::{Answer, Fleet};
use reqwest::Method;
use serde_json::{Value, json};
use testkit::{until, until_within};
use tokio::net::TcpListener;
use tokio::process::Command;

/// How long what is broken may take to be seen by a check and a rule, and delivered.
const DELIVERED_WITHIN: std::time::Duration = std::time::Duration::from_secs(180);

/// What Alertmanager has delivered. Clones are the same webhook.
#[derive(Clone, Default)]
struct Webhook(Arc<Mutex<Vec<Value>>>);

impl Webhook {
    /// Serves it; its address.
    async fn serve() -> (String, Self) {
        let webhook = Self::default();
        let taken = webhook.clone();
        let take = move |Json(body): Json<Value>| async move {
            taken.0.lock().unwrap().extend(body["alerts"].as_array().unwrap().iter().cloned());
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/alerts", listener.local_addr().unwrap());
        let serving = axum::serve(listener, Router::new().route("/alerts", post(take)));
        tokio::runtime::Handle::current().spawn(serving.into_future());
        (url, webhook)
    }

    /// The last that was delivered of an alert with this label.
    fn last(&self, alert: &str, (label, value): (&str, &str)) -> Option<Value> {
        let all = self.0.lock().unwrap();
        all.iter().rfind(|said| said["labels"]["alertname"] == alert && said["labels"][label] == value).cloned()
    }

    async fn until(&self, status: &str, alert: &str, label: (&str, &str)) -> Value {
        until_within(DELIVERED_WITHIN, &format!("{alert} is {status}"), || async {
            self.last(alert, label).is_some_and(|said| said["status"] == status)
        })
        .await;
        self.last(alert, label).unwrap()
    }
}

struct Watched {
    fleet: Fleet,
    http: reqwest::Client,
}

impl Watched {
    async fn json(&self, unit: &str, path: &str) -> Value {
        let url = format!("{}{path}", self.fleet.unit(unit).url.unwrap());
        let Ok(response) = self.http.get(url).send().await else { return Value::Null };
        response.json().await.unwrap_or_default()
    }

    async fn page(&self, path: &str) -> String {
        let url = format!("{}/consoles/{path}", self.fleet.unit("prometheus").url.unwrap());
        let response = self.http.get(url).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response.text().await.unwrap()
    }

    /// Whether each target is scraped, by its job.
    async fn up(&self) -> BTreeMap<String, bool> {
        let answer = self.json("prometheus", "/api/v1/query?query=up").await;
        let all = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        all.iter().map(|one| (one["metric"]["job"].as_str().unwrap().to_owned(), one["value"][1] == "1")).collect()
    }

    async fn operate(&self, operator: &str, args: &[&str]) {
        let mut command = self.fleet.command(&[args, &["--reason", "the test says so", "--yes"]].concat());
        let output = command.env("FLOTILLA_OPERATOR_TOKEN", operator).output().await.unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test]
async fn a_fleet_is_watched() {
    // They are no condition of `make test`, which fetches none for people who want none. What a test prints is shown when it fails, this
    // always.
    if std::env::var_os("FLOTILLA_TEST_OBSERVE").is_none() && !devstack::observe::wanted() {
        let how = "`flotilla run --observe` fetches what watches a fleet; FLOTILLA_TEST_OBSERVE=1 has this test do so";
        writeln!(std::io::stderr(), "SKIPPED: nothing watches a fleet: {how}").unwrap();
        return;
    }
    if let Err(error) = devstack::observe::programs(
        &(Arc::new(|line: &str| drop(writeln!(std::io::stderr(), "{line}"))) as devstack::Reporter),
    )
    .await
    {
        writeln!(std::io::stderr(), "SKIPPED: nothing watches a fleet: {error:#}").unwrap();
        return;
    }
    let (url, webhook) = Webhook::serve().await;
    let fleet = Fleet::start_with(None, &["--observe", "--alerts-to", &url]).await;
    let watched = Watched { fleet, http: reqwest::Client::builder().no_proxy().build().unwrap() };
    let ann = watched.fleet.caller("acme", "ann").await;

    // Every service is scraped, and every watcher.
    let services = fleet::SERVICES.iter().map(|service| service.name);
    let jobs: BTreeSet<_> = services.chain(["prometheus", "alertmanager", "machine", "otelcol", "verify"]).collect();
    until("every target is scraped", || async {
        let up = watched.up().await;
        jobs.iter().all(|job| up.get(*job) == Some(&true))
    })
    .await;

    let trace = one_write_is_one_trace(&watched, &ann).await;

    let page = watched.page("fleet.html").await;
    for job in &jobs {
        assert!(page.contains(&format!("<td>{job}</td>")), "{job} is not on the page: {page}");
    }
    assert!(page.matches("1 of 1").count() == jobs.len() && page.contains("No alert fires"), "{page}");
    let page = watched.page("service.html?job=</script>todo").await;
    assert!(page.contains("HTTP calls") && !page.contains("</script>todo"), "{page}");

    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path).map(|folder| folder.join("chromium")).find(|program| program.exists()) {
        Some(browser) => {
            let zipkin = watched.fleet.unit("zipkin").url.unwrap();
            let page = seen(&watched, &browser, "trace", &format!("{zipkin}/zipkin/traces/{trace}")).await;
            assert!(page.contains("search-projector: bulk"), "{page}");
            let prometheus = watched.fleet.unit("prometheus").url.unwrap();
            let page = seen(&watched, &browser, "fleet", &format!("{prometheus}/consoles/fleet.html?minutes=5")).await;
            assert!(page.contains("<svg"), "{page}");
        }
        None => writeln!(std::io::stderr(), "SKIPPED: no picture of the pages: chromium is not installed").unwrap(),
    }

    // Somebody publishes what is no event: a consumer gives up on it, and the promise does not hold.
    let stream = watched.fleet.jetstream().await;
    stream.publish("evt.todo.created.v1.acme", "no event".into()).await.unwrap().await.unwrap();
    let letter = webhook.until("firing", "DeadLetters", ("consumer", "search-projector")).await;
    assert_eq!(letter["annotations"]["runbook"], "docs/runbooks/dead-letters.md", "{letter}");
    let foreign = webhook.until("firing", "VerifyFound", ("kind", "foreign")).await;
    assert_eq!(foreign["annotations"]["summary"], "the promise does not hold: 1 foreign", "{foreign}");
    assert!(watched.page("fleet.html").await.contains("VerifyFound"));

    // An operator repairs it, and the alerts are over.
    let operator = watched.fleet.run(&["token", "--operator", "--user", "olga"]).await;
    let operator = String::from_utf8(operator.stdout).unwrap();
    let export = watched.fleet.home.join("foreign.jsonl");
    watched.operate(operator.trim(), &["outbox", "accept", "--export", export.to_str().unwrap()]).await;
    watched.operate(operator.trim(), &["dlq", "discard", "--all"]).await;
    webhook.until("resolved", "DeadLetters", ("consumer", "search-projector")).await;
    webhook.until("resolved", "VerifyFound", ("kind", "foreign")).await;
    watched.fleet.stop().await;
}

/// HTTP → gRPC → PostgreSQL → relay → JetStream → consumer → OpenSearch, as Zipkin has it. Returns the trace id.
async fn one_write_is_one_trace(watched: &Watched, ann: &e2e::Caller) -> String {
    let request = ann.request(Method::POST, "/v1/todos").json(&json!({"title": "traced"}));
    let answer = Answer::of(request.send().await.unwrap()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let path = format!("/api/v2/trace/{}", answer.header("trace-id"));
    // From the end of the path: each has the next as an ancestor. The event carries the context of its call, so the relay's span is beside
    // the consumer's.
    let wanted = [
        ("search-projector", "CLIENT", "bulk"),
        ("search-projector", "CONSUMER", "process evt.todo.>"),
        ("todo", "SERVER", "flotilla.todo.v1.todoservice/createtodo"),
        ("gateway", "CLIENT", "flotilla.todo.v1.todoservice/createtodo"),
        ("gateway", "SERVER", "post /v1/todos"),
    ];
    let beside =
        [("todo", "CLIENT", "insert"), ("todo", "CLIENT", "commit"), ("todo", "PRODUCER", "send evt.todo.created.v1")];
    let is = |span: &Value, (service, kind, name): (&str, &str, &str)| {
        span["localEndpoint"]["serviceName"] == service && span["kind"] == kind && span["name"] == name
    };
    until("all spans are in Zipkin", || async {
        let spans = watched.json("zipkin", &path).await;
        let spans = spans.as_array().cloned().unwrap_or_default();
        wanted.iter().chain(&beside).all(|one| spans.iter().any(|span| is(span, *one)))
    })
    .await;
    let spans = watched.json("zipkin", &path).await;
    let by_id: BTreeMap<_, _> =
        spans.as_array().unwrap().iter().map(|span| (span["id"].as_str().unwrap(), span)).collect();
    for last in beside.iter().chain(&wanted[..1]) {
        let mut span = by_id.values().find(|span| is(span, *last)).copied();
        let mut rest = wanted.iter().filter(|one| last == &wanted[0] || one.0 != "search-projector").peekable();
        while let Some(of) = span {
            rest.next_if(|one| is(of, **one));
            span = of["parentId"].as_str().map(|parent| by_id[parent]);
        }
        assert_eq!(rest.peek(), None, "{last:?} is not below all of them: {spans}");
    }
    answer.header("trace-id").to_owned()
}

/// What a browser makes of a page, once its scripts have run; a picture of it is kept in the target folder.
async fn seen(watched: &Watched, browser: &Path, name: &str, url: &str) -> String {
    let folder = testkit::backing::programs().join("pictures");
    std::fs::create_dir_all(&folder).unwrap();
    let picture = folder.join(format!("{name}.png"));
    let mut command = Command::new(browser);
    command.args(["--headless", "--no-sandbox", "--window-size=1500,1700", "--virtual-time-budget=10000"]);
    command.arg(format!("--screenshot={}", picture.display())).arg("--dump-dom").arg(url).kill_on_drop(true);
    // What it keeps goes with the fleet.
    command.env("HOME", watched.fleet.home.join("browser")).env_remove("XDG_CONFIG_HOME").env_remove("XDG_CACHE_HOME");
    let output = tokio::time::timeout(DELIVERED_WITHIN, command.output()).await.unwrap().unwrap();
    assert!(std::fs::read(&picture).unwrap().starts_with(b"\x89PNG"), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
