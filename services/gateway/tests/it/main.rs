//! The gateway as it starts in production, with nothing behind it: what it answers by itself. With the services behind
//! it, `e2e` drives it.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod browsers;
mod frames;
mod options;
mod probe;
mod rules;

use std::num::{NonZeroU16, NonZeroU32};

use futures::future::join_all;
use gateway::{Config, Program};
use reqwest::{Client, Method, Response};
use service::addresses::Addresses;
use service::config::{Admission, Common};
use service::{Lifecycle, Process, Service as _, arguments};
use testkit::{TestIssuer, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

struct Edge {
    base: String,
    issuer: TestIssuer,
    http: Client,
    lifecycle: Lifecycle,
}

/// A client that shows answers as they come: its library would undo gzip, in a build that has that.
fn client() -> Client {
    Client::builder().no_proxy().no_gzip().no_brotli().no_zstd().build().unwrap()
}

async fn start() -> Edge {
    behind(Admission::wide()).await
}

async fn behind(admission: Admission) -> Edge {
    let issuer = TestIssuer::new();
    // A port without a listener: the services are unavailable.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let services =
        ["flotilla.todo.v1.TodoService", "flotilla.search.v1.SearchService", "flotilla.identity.v1.IdentityService"];
    let config = Config {
        common: Common {
            admission,
            ..Common::on_loopback(issuer.jwks(), devstack::issuer::ISSUER, devstack::issuer::AUDIENCE)
        },
        upstreams: Addresses(services.map(|name| (name.to_owned(), vec![format!("http://{gone}")])).into()),
        provider: devstack::issuer::PROVIDER.to_owned(),
        proxies: 0,
        cors_origins: "".parse().unwrap(),
        redis_url: None,
    };
    let process = Process::new(Program::NAME, "test");
    let address = Program::start(&config, &process).await.unwrap();
    until("the gateway is ready", || async { process.readiness.get().0 }).await;
    let http = client();
    Edge { base: format!("http://{address}"), issuer, http, lifecycle: process.lifecycle }
}

impl Edge {
    async fn send(&self, method: Method, path: &str) -> Response {
        let request = self.http.request(method, format!("{}{path}", self.base));
        request.header("authorization", self.issuer.bearer("acme", "ann")).send().await.unwrap()
    }
}

#[tokio::test]
async fn a_service_that_is_away_is_a_503_that_says_when_to_try_again() {
    let edge = start().await;
    for path in ["/v1/todos", "/v1/todos:search?query=x"] {
        let response = edge.send(Method::GET, path).await;
        assert_eq!(response.status(), 503, "{path}");
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let problem: serde_json::Value = response.json().await.unwrap();
        assert_eq!(problem["code"], "UNAVAILABLE");
        assert!(!problem.to_string().contains("127.0.0.1"), "no internals: {problem}");
    }
}

#[tokio::test]
async fn who_calls_is_asked_before_the_service_is() {
    let edge = start().await;
    let response = edge.http.get(format!("{}/v1/todos", edge.base)).send().await.unwrap();
    assert_eq!(response.status(), 401);
    let expired = edge.issuer.expired("acme", "ann");
    let request = edge.http.get(format!("{}/v1/todos", edge.base)).header("authorization", expired);
    let problem: serde_json::Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(problem["code"], "TOKEN_EXPIRED");
}

#[tokio::test]
async fn a_wrong_method_is_answered_with_the_right_ones() {
    let edge = start().await;
    let response = edge.send(Method::PUT, "/v1/todos/1").await;
    assert_eq!(response.status(), 405);
    let allow = response.headers()["allow"].to_str().unwrap().to_owned();
    assert!(["GET", "HEAD", "PATCH", "DELETE"].iter().all(|method| allow.contains(method)), "{allow}");
}

#[tokio::test]
async fn every_answer_says_who_may_keep_it_and_is_what_it_says() {
    let edge = start().await;
    for (path, kept) in [
        ("/healthz", "no-store"),
        ("/problems", "public, max-age=300"),
        ("/v1/todos", "no-store"),
        ("/nothing", "no-store"),
    ] {
        let response = edge.send(Method::GET, path).await;
        let headers = response.headers();
        assert_eq!(headers["cache-control"], kept, "{path}");
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(headers["flotilla-release"], "test", "{path}");
    }
}

#[tokio::test]
async fn who_calls_too_often_learns_when_to_call_again() {
    let (rate, at_work) = (NonZeroU32::MIN, NonZeroU16::MIN);
    let admission = Admission {
        tenant_rate: rate,
        tenant_at_work: at_work,
        principal_rate: rate,
        principal_at_work: at_work,
        ..Admission::wide()
    };
    let edge = behind(admission).await;
    let all = futures::future::join_all((0..10).map(|_| edge.send(Method::GET, "/v1/todos"))).await;
    let (refused, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|response| response.status() == 429);
    assert!(!others.is_empty() && refused.len() >= 5, "{} were let in", others.len());
    for response in refused {
        assert_eq!(response.headers()["retry-after"], "1");
        let problem: serde_json::Value = response.json().await.unwrap();
        assert_eq!(problem["code"], "TOO_MANY_REQUESTS");
    }
}

/// Whoever sends most is refused first, and what is let in is answered.
#[tokio::test]
async fn of_more_than_it_can_do_it_does_what_it_can_and_says_when_to_come_again() {
    let edge = probe::start(Admission { at_work: NonZeroU16::new(4).unwrap(), ..Admission::wide() }).await;
    let held = async |tenant: &str| {
        let request = edge.http.get(format!("{}/v1/tagged/held", edge.base));
        let answer = request.header("authorization", edge.issuer.bearer(tenant, "ann")).send().await.unwrap();
        let status = answer.status().as_u16();
        if status == 503 {
            assert_eq!(answer.headers()["retry-after"], "1");
            let problem: serde_json::Value = answer.json().await.unwrap();
            assert_eq!(problem["code"], "UNAVAILABLE");
        }
        status
    };
    let counted = |statuses: &[u16]| statuses.iter().filter(|status| **status == 503).count();
    let refused = std::sync::atomic::AtomicUsize::new(0);
    let loud = join_all((0..20).map(async |_| {
        let status = held("acme").await;
        refused.fetch_add(usize::from(status == 503), std::sync::atomic::Ordering::SeqCst);
        status
    }));
    let quiet = async {
        until("acme has all places", || async { refused.load(std::sync::atomic::Ordering::SeqCst) == 16 }).await;
        // Two wait for the half that would be theirs. One of three is refused, and then the gate opens.
        let three = (0..3).map(async |_| {
            let status = held("globex").await;
            if status == 503 {
                probe::GATE.add_permits(6);
            }
            status
        });
        join_all(three).await
    };
    let (loud, quiet) = tokio::join!(loud, quiet);
    assert_eq!((counted(&loud), counted(&quiet)), (16, 1));
    assert!(loud.iter().chain(&quiet).all(|status| [200, 503].contains(status)), "{loud:?} {quiet:?}");
}

#[tokio::test]
async fn what_readers_of_http_read_differently_is_refused() {
    let edge = start().await;
    let address = edge.base.trim_start_matches("http://").to_owned();
    let (ann, bob) = (edge.issuer.bearer("acme", "ann"), edge.issuer.bearer("globex", "bob"));
    let send = async |head: &str| {
        let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        stream.write_all(format!("{head}connection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let two = format!("GET /v1/todos HTTP/1.1\r\nhost: x\r\nauthorization: {ann}\r\nauthorization: {bob}\r\n");
    let zipped = format!(
        "POST /v1/todos HTTP/1.1\r\nhost: x\r\nauthorization: {ann}\r\ncontent-type: application/json\r\n\
         content-encoding: identity\r\ncontent-encoding: gzip\r\ncontent-length: 0\r\n"
    );
    for (head, status, code) in [
        ("GET /healthz HTTP/1.1\r\n", "400", "INVALID_ARGUMENT"),
        ("GET /healthz HTTP/1.1\r\nhost: a\r\nhost: b\r\n", "400", "INVALID_ARGUMENT"),
        (two.as_str(), "401", "TOKEN_INVALID"),
        (zipped.as_str(), "415", "UNSUPPORTED_MEDIA_TYPE"),
    ] {
        let answer = send(head).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(code), "{head}\n{answer}");
    }
    assert!(send("GET /healthz HTTP/1.0\r\n").await.contains("200 OK"), "HTTP/1.0 has no Host");
    // What is no request is answered before any rule of ours is asked.
    let long = "x".repeat(70_000);
    let (large, long) =
        (format!("GET / HTTP/1.1\r\nhost: x\r\nx-y: {long}\r\n"), format!("GET /{long} HTTP/1.1\r\nhost: x\r\n"));
    let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}", "a: b\r\n".repeat(500));
    for (head, statuses) in [
        (large.as_str(), &[431][..]),
        (many.as_str(), &[431]),
        (long.as_str(), &[414, 431]),
        ("GET HTTP/1.1\r\nhost: x\r\n", &[400]),
        ("GET / HTTP/9.9\r\nhost: x\r\n", &[400]),
        ("GET / HTTP/1.1\r\nhost: x\r\na b: c\r\n", &[400]),
        ("POST /v1/todos HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n", &[400]),
        ("POST /v1/todos HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n", &[400]),
        ("POST /v1/todos HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n", &[400]),
        ("GET / HTTP/1.1\r\nhost: x\r\nexpect: something\r\n", &[404, 417]),
        ("CONNECT x:1 HTTP/1.1\r\nhost: x\r\n", &[400, 404, 405]),
    ] {
        let answer = send(head).await;
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        assert!(status.is_some_and(|status| statuses.contains(&status)), "{head:.80}\n{answer:.200}");
    }
}

#[tokio::test]
async fn it_drains_and_then_takes_nothing_more() {
    let edge = start().await;
    assert_eq!(edge.send(Method::GET, "/healthz").await.status(), 200);
    drop(edge.http.clone());
    assert_eq!(edge.lifecycle.shut_down().await, None, "no task has died");
    let refused = Client::builder().no_proxy().build().unwrap().get(format!("{}/healthz", edge.base)).send().await;
    assert!(refused.is_err());
}

#[test]
fn every_wrong_value_of_the_configuration_is_reported_at_once() {
    let line = [
        "serve",
        "--listen",
        "here",
        "--jwks",
        "ftp://keys",
        "--upstreams",
        "flotilla.todo.v1.TodoService=todo:1,nobody=http://x:1",
    ];
    let given = arguments::command::<Config>("serve").get_matches_from(line);
    let error = arguments::parse::<Config>(&given).unwrap_err().to_string();
    for part in ["FLOTILLA_LISTEN", "FLOTILLA_JWKS", "FLOTILLA_ISSUER", "todo:1", "nobody", "SearchService"] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

/// What callers see of each, whole, so that a change of it shows in review. `INSTA_UPDATE=always` writes it anew.
#[tokio::test]
async fn the_problems_of_the_edge() {
    let edge = start().await;
    let ann = edge.issuer.bearer("acme", "ann");
    let of = |method: Method, path: &str| edge.http.request(method, format!("{}{path}", edge.base));
    let write = |path: &str| of(Method::POST, path).header("authorization", &ann).header("idempotency-key", "k");
    let json = |body: &str| write("/v1/todos").header("content-type", "application/json").body(body.to_owned());
    let mut shown = Vec::new();
    for (what, request) in [
        ("no token", of(Method::GET, "/v1/todos")),
        ("a token that is none", of(Method::GET, "/v1/todos").header("authorization", "Bearer x")),
        (
            "a token that has expired",
            of(Method::GET, "/v1/todos").header("authorization", edge.issuer.expired("acme", "ann")),
        ),
        ("no such path", of(Method::GET, "/v1/nothing").header("authorization", &ann)),
        ("a wrong method", of(Method::PUT, "/v1/todos/1").header("authorization", &ann)),
        ("no JSON by its type", write("/v1/todos").header("content-type", "text/plain").body("{}")),
        ("no JSON", json("{")),
        ("a field that is not known", json(r#"{"titel": "x"}"#)),
        ("a field of another type", json(r#"{"title": 7}"#)),
        ("a member twice", json(r#"{"title": "x", "title": "y"}"#)),
        ("a body that is too large", json(&format!(r#"{{"title": "{}"}}"#, "x".repeat(1 << 20)))),
        ("a parameter that is not known", of(Method::GET, "/v1/todos?pageSise=1").header("authorization", &ann)),
        ("a parameter of another type", of(Method::GET, "/v1/todos?pageSize=x").header("authorization", &ann)),
        ("nobody behind it", of(Method::GET, "/v1/todos").header("authorization", &ann)),
    ] {
        let response = request.send().await.unwrap();
        let headers = ["content-type", "retry-after", "www-authenticate"].map(|name| {
            let value = response.headers().get(name).map_or("", |value| value.to_str().unwrap());
            (name, value.to_owned())
        });
        let headers: std::collections::BTreeMap<_, _> =
            headers.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let status = response.status().as_u16();
        let problem: serde_json::Value = response.json().await.unwrap();
        shown.push(serde_json::json!({"when": what, "status": status, "headers": headers, "problem": problem}));
    }
    testkit::assert_snapshot!("problems", &serde_json::Value::from(shown).to_string());
}

#[tokio::test]
async fn the_token_endpoint_takes_a_form_and_answers_as_oauth_has_it() {
    let edge = start().await;
    let post = |media: &str, body: String| {
        let request = edge.http.post(format!("{}/v1/token", edge.base));
        request.header("content-type", media).body(body).send()
    };
    let form = "application/x-www-form-urlencoded";
    for (media, body, status, error) in [
        ("application/json", "{}".to_owned(), 415, "invalid_request"),
        (form, "grant_type=a&grant_type=b".to_owned(), 400, "invalid_request"),
        // A stranger sends little.
        (form, format!("subject_token={}", "x".repeat(16 * 1024)), 413, "invalid_request"),
        // Nobody is behind it.
        (form, "grant_type=a".to_owned(), 503, "temporarily_unavailable"),
    ] {
        let response = post(media, body).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["cache-control"]),
            (status, &"no-store".parse().unwrap())
        );
        assert_eq!(response.headers()["content-type"], "application/json");
        let body: serde_json::Value = response.json().await.unwrap();
        assert_eq!(body["error"], error, "{body}");
        assert!(body["error_description"].is_string() && body.as_object().unwrap().len() == 2, "{body}");
    }
}

#[tokio::test]
async fn what_is_to_be_exchanged_waits_for_identity_and_nothing_else_does() {
    let edge = start().await;
    let get = async |credential: &str| {
        let request = edge.http.get(format!("{}/v1/todos", edge.base)).bearer_auth(credential);
        let problem: serde_json::Value = request.send().await.unwrap().json().await.unwrap();
        (problem["status"].as_u64().unwrap(), problem["code"].as_str().unwrap().to_owned())
    };
    let ann = edge.issuer.person("ann", "ann@x.example");
    for credential in ["flk_x", &ann] {
        assert_eq!(get(credential).await, (503, "UNAVAILABLE".to_owned()));
    }
    // Of no issuer that is known, or of none at all.
    let (head, rest) = ann.split_once('.').unwrap();
    for credential in ["flx_x", &format!("{head}.e30.{}", rest.split_once('.').unwrap().1)] {
        assert_eq!(get(credential).await, (401, "TOKEN_INVALID".to_owned()));
    }
}

#[tokio::test]
async fn guessed_keys_are_paid_for_by_their_address_and_whoever_has_a_token_goes_on() {
    let admission = Admission { principal_rate: NonZeroU32::new(20).unwrap(), ..Admission::wide() };
    let edge = behind(admission).await;
    let guess = async |number: u32| {
        let request = edge.http.get(format!("{}/v1/todos", edge.base)).bearer_auth(format!("flk_{number}"));
        request.send().await.unwrap().status().as_u16()
    };
    let statuses = futures::future::join_all((0..60).map(guess)).await;
    assert!(statuses.contains(&429) && statuses.iter().all(|status| [429, 503].contains(status)), "{statuses:?}");
    // Of the same address, and known without identity: the service alone is away.
    assert_eq!(edge.send(Method::GET, "/v1/todos").await.status(), 503);
}
