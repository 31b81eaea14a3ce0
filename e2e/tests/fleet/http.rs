//! The HTTP contract.

use base64::Engine as _;
use e2e::{Answer, Fleet};
use reqwest::Method;
use serde_json::{Value, json};
use service::policy::Policy;

use crate::with_fleet;

fn path(todo: &Value) -> String {
    format!("/v1/todos/{}", todo["id"].as_str().unwrap())
}

#[test]
fn a_todo_lives_over_http() {
    with_fleet(|fleet, _| async {
        let ann = fleet.caller("http-life", "ann").await;
        let body = json!({"title": "Caulk the deck", "labels": ["hull"], "dueTime": "2035-12-24T18:00:00Z"});
        let created = ann.send(Method::POST, "/v1/todos", Some(body)).await;
        assert_eq!((created.status, created.header("etag")), (200, "\"v1\""));
        assert_eq!(created.header("trace-id").len(), 32);
        let todo = created.body;
        assert_eq!(todo["status"], "OPEN");
        assert_eq!(todo["dueTime"], "2035-12-24T18:00:00Z");
        assert_eq!((&todo["createdBy"], &todo["version"]), (&json!("ann"), &json!(1)));
        assert_eq!(todo["completeTime"], Value::Null);
        let path = path(&todo);

        let unchanged = ann.request(Method::GET, &path).header("if-none-match", "\"v1\"").send().await.unwrap();
        assert_eq!(unchanged.status(), 304);
        assert_eq!(ann.send(Method::GET, &path, None).await.body, todo);

        let patched = ann.send(Method::PATCH, &path, Some(json!({"title": "Caulk it", "dueTime": null}))).await;
        assert_eq!((patched.status, &patched.body["title"]), (200, &json!("Caulk it")));
        assert_eq!((&patched.body["dueTime"], &patched.body["labels"]), (&Value::Null, &json!(["hull"])));
        // A client may send back what it has read.
        let whole = ann.send(Method::PATCH, &path, Some(patched.body.clone())).await;
        assert_eq!((whole.status, &whole.body["version"]), (200, &json!(2)));

        let stale =
            ann.request(Method::POST, &format!("{path}:complete")).header("if-match", "\"v1\"").json(&json!({}));
        let stale = Answer::of(stale.send().await.unwrap()).await;
        assert_eq!((stale.status, stale.code()), (412, "ETAG_MISMATCH"));
        let completed = ann.send(Method::POST, &format!("{path}:complete"), None).await;
        assert_eq!((completed.status, &completed.body["status"]), (200, &json!("COMPLETED")));
        assert_eq!(ann.send(Method::POST, &format!("{path}:complete"), None).await.code(), "TODO_ALREADY_COMPLETED");
        let reopened = ann.send(Method::POST, &format!("{path}:reopen"), Some(json!({}))).await;
        assert_eq!(reopened.header("etag"), "\"v4\"");

        let listed = ann.send(Method::GET, "/v1/todos?label=hull&status=OPEN&pageSize=1", None).await;
        assert_eq!(listed.body["todos"][0]["id"], todo["id"]);
        assert_eq!(listed.body["nextPageToken"], "");
        testkit::until("the search finds it", || async { ann.search("caulk").await == ["Caulk it"] }).await;

        assert_eq!(ann.send(Method::DELETE, &path, None).await.status, 200);
        assert_eq!(ann.send(Method::GET, &path, None).await.code(), "TODO_NOT_FOUND");
        testkit::until("the search finds it no more", || async { ann.search("caulk").await.is_empty() }).await;
    });
}

#[test]
fn a_recurring_todo_comes_again_and_a_role_says_who_may_do_what() {
    with_fleet(|fleet, _| async {
        let ann = fleet.caller("http-recurring", "ann").await;
        let recurrence = json!({"rule": "FREQ=MONTHLY;BYMONTHDAY=-1", "timeZone": "Europe/Berlin"});
        let body = json!({"title": "Pay the berth", "dueTime": "2035-01-31T08:00:00Z", "recurrence": recurrence});
        let first = ann.create(body).await;
        assert_eq!(first["occurrence"], json!({"seriesId": first["id"], "number": 1}));
        assert_eq!(first["recurrence"]["wallTime"], "2035-01-31T09:00:00");
        // A client may send back what it has read.
        let whole = ann.send(Method::PATCH, &path(&first), Some(first.clone())).await;
        assert_eq!((whole.status, &whole.body), (200, &first));

        let vic = fleet.caller_as("http-recurring", "vic", &["--role", "viewer"]).await;
        let refused = vic.send(Method::POST, &format!("{}:complete", path(&first)), None).await;
        assert_eq!((refused.status, refused.code()), (403, "PERMISSION_DENIED"));
        let agent = fleet.caller_as("http-recurring", "ann", &["--agent", "planner", "--scope", "todo:read"]).await;
        assert_eq!(agent.send(Method::DELETE, &path(&first), None).await.code(), "INSUFFICIENT_SCOPE");

        assert_eq!(ann.send(Method::POST, &format!("{}:complete", path(&first)), None).await.status, 200);
        let open = async || vic.send(Method::GET, "/v1/todos?status=OPEN", None).await.body["todos"][0].clone();
        testkit::until("the next occurrence is there", || async { open().await["id"].is_string() }).await;
        let next = open().await;
        assert_eq!((&next["dueTime"], &next["createdBy"]), (&json!("2035-02-28T08:00:00Z"), &json!("ann")));
        assert_eq!(next["occurrence"], json!({"seriesId": first["id"], "number": 2}));
        testkit::until("the search finds both", || async { ann.search("berth").await.len() == 2 }).await;
        let wrong = json!({"title": "x", "dueTime": "2035-01-31T08:00:00Z", "recurrence": {"rule": "FREQ=HOURLY", "timeZone": "UTC"}});
        let wrong = ann.send(Method::POST, "/v1/todos", Some(wrong)).await;
        assert_eq!((wrong.status, wrong.code()), (400, "INVALID_ARGUMENT"));
    });
}

#[test]
fn an_overdue_todo_is_announced() {
    with_fleet(|fleet, _| async {
        let ann = fleet.caller("http-due", "ann").await;
        let todo = ann.create(json!({"title": "Pay the berth", "dueTime": "2001-01-31T08:00:00Z"})).await;
        let etag = async || ann.send(Method::GET, &path(&todo), None).await.body["etag"].clone();
        testkit::until("it has become due", || async { etag().await == "v2" }).await;
        let tail = ["events", "tail", "--tenant", "http-due", "--from-start", "--count", "2", "--json"];
        let tail = String::from_utf8(fleet.run(&tail).await.stdout).unwrap();
        assert!(tail.contains("todo.became_due.v1") && tail.contains("service:todo"), "{tail}");
    });
}

/// RFC 9110, 9.3.2 and 13.1.
#[test]
fn head_and_conditions_are_as_http_has_them() {
    with_fleet(|fleet, _| async {
        let ann = fleet.caller("http-conditions", "ann").await;
        let todo = ann.create(json!({"title": "Splice"})).await;
        let path = path(&todo);
        let get = ann.request(Method::GET, &path).send().await.unwrap();
        let head = ann.request(Method::HEAD, &path).send().await.unwrap();
        for name in ["content-type", "etag", "content-length", "cache-control"] {
            assert_eq!(head.headers().get(name), get.headers().get(name), "{name}");
        }
        assert_eq!((head.status(), head.bytes().await.unwrap().len()), (get.status(), 0));
        let missing = ann.request(Method::HEAD, "/v1/todos/0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2e4f").send().await.unwrap();
        assert_eq!(missing.status(), 404);

        let ask = async |method: &Method, headers: &[(&str, &str)]| {
            let mut request = ann.request(method.clone(), &path);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            if *method == Method::PATCH {
                request = request.json(&json!({"notes": "n"}));
            }
            request.send().await.unwrap().status().as_u16()
        };
        for (method, headers, wanted) in [
            (Method::GET, &[("if-match", "\"zz\"")][..], 412),
            (Method::HEAD, &[("if-match", "\"zz\"")][..], 412),
            (Method::GET, &[("if-none-match", "\"zz\""), ("if-none-match", "\"v1\"")][..], 304),
            (Method::PATCH, &[("if-none-match", "*")][..], 412),
            (Method::PATCH, &[("if-none-match", "\"v1\"")][..], 400),
            (Method::PATCH, &[("if-match", "\"zz\"")][..], 412),
            (Method::PATCH, &[("if-match", "W/\"v1\"")][..], 412),
            (Method::PATCH, &[("if-match", "\"zz\", \"v1\"")][..], 200),
            (Method::PATCH, &[("if-match", "*")][..], 200),
            (Method::DELETE, &[("if-none-match", "*")][..], 412),
        ] {
            assert_eq!(ask(&method, headers).await, wanted, "{method} {headers:?}");
        }
        for (name, value, wanted) in [("if-match", "\"v1\"", 412), ("if-none-match", "*", 412), ("if-match", "*", 200)]
        {
            let request = ann.request(Method::POST, "/v1/todos").header(name, value).json(&json!({"title": "made?"}));
            assert_eq!(request.send().await.unwrap().status(), wanted, "{name}: {value}");
        }
        assert_eq!(ann.send(Method::GET, "/v1/todos", None).await.body["todos"].as_array().unwrap().len(), 2);
    });
}

#[test]
fn what_is_wrong_is_pointed_at_by_the_names_that_json_has() {
    with_fleet(|fleet, _| async {
        let ann = fleet.caller("http-pointers", "ann").await;
        let todo = ann.create(json!({"title": "Splice"})).await;
        let path = path(&todo);
        let due = json!({"dueTime": "2035-12-24T18:00:00Z"});
        for mask in ["due_time", "dueTime"] {
            let answer = ann.send(Method::PATCH, &format!("{path}?updateMask={mask}"), Some(due.clone())).await;
            assert_eq!((answer.status, &answer.body["dueTime"]), (200, &due["dueTime"]), "{mask}");
        }
        for (method, path, body, pointer) in [
            (Method::POST, "/v1/todos".to_owned(), json!({"title": true, "notes": "n"}), "#/title"),
            (Method::POST, "/v1/todos".to_owned(), json!({"title": "x", "colour": "red"}), "#/colour"),
            (Method::PATCH, format!("{path}?updateMask=nope"), json!({"title": "x"}), "#/updateMask"),
            (Method::GET, "/v1/todos?filter=colour%20%3D%20red".to_owned(), Value::Null, "#/filter"),
            (Method::GET, "/v1/todos?orderBy=title".to_owned(), Value::Null, "#/orderBy"),
        ] {
            let body = Some(body).filter(|body| !body.is_null());
            let answer = ann.send(method, &path, body).await;
            assert_eq!((answer.status, answer.code()), (400, "INVALID_ARGUMENT"));
            assert_eq!(answer.body["errors"][0]["pointer"], pointer, "{}", answer.body);
        }
    });
}

#[test]
fn a_repeat_with_the_same_key_happens_once() {
    with_fleet(|fleet, _| async {
        let ann = fleet.caller("http-again", "ann").await;
        let send = async |key: &str, title: &str| {
            let request = ann.request(Method::POST, "/v1/todos").header("idempotency-key", key);
            // The caller's own key would be a second one: send exactly this one.
            let mut request = request.json(&json!({"title": title})).build().unwrap();
            request.headers_mut().insert("idempotency-key", key.parse().unwrap());
            Answer::of(reqwest::Client::new_no_proxy().execute(request).await.unwrap()).await
        };
        let first = send("\"quoted-key\"", "x").await;
        let again = send("quoted-key", "x").await;
        assert_eq!((first.status, &first.body), (200, &again.body));
        let other = send("quoted-key", "y").await;
        assert_eq!((other.status, other.code()), (422, "IDEMPOTENCY_KEY_REUSED"));
        let listed = ann.send(Method::GET, "/v1/todos", None).await;
        assert_eq!(listed.body["todos"].as_array().unwrap().len(), 1);
    });
}

/// A client as an outside developer would make it.
trait NoProxy {
    fn new_no_proxy() -> Self;
}

impl NoProxy for reqwest::Client {
    fn new_no_proxy() -> Self {
        Self::builder().no_proxy().build().unwrap()
    }
}

#[test]
fn nothing_a_client_sends_is_a_5xx() {
    with_fleet(|fleet, _| async {
        let ann = fleet.caller("http-bad", "ann").await;
        let todo = ann.create(json!({"title": "x"})).await;
        let one = path(&todo);
        for (method, path, body, status) in [
            (Method::GET, "/v2/todos", "", 404),
            (Method::GET, "/", "", 404),
            (Method::PUT, "/v1/todos", "{}", 405),
            (Method::POST, "/v1/todos/x:explode", "{}", 404),
            (Method::GET, "/v1/todos/not-an-id", "", 400),
            (Method::GET, "/v1/todos/%ff", "", 404),
            (Method::GET, "/v1/todos/%00", "", 400),
            (Method::GET, "/v1/todos/00000000-0000-0000-0000-000000000000", "", 404),
            (Method::GET, "/v1/todos?pageSize=-1", "", 400),
            (Method::GET, "/v1/todos?pageSize=99999999999999", "", 400),
            (Method::GET, "/v1/todos?pageToken=%00", "", 400),
            (Method::GET, "/v1/todos?label=%00", "", 400),
            (Method::GET, "/v1/todos?assignee=%0a", "", 400),
            (Method::GET, "/v1/todos?status=99", "", 400),
            (Method::GET, "/v1/todos?colour=red", "", 400),
            (Method::GET, "/v1/todos:search?query=%00", "", 200),
            (Method::GET, "/v1/todos:search?label=%00", "", 200),
            (Method::GET, "/v1/todos:search?query=%22%5C%2F%28%7B", "", 200),
            (Method::GET, "/v1/todos:search?pageToken=AAAA", "", 400),
            (Method::POST, "/v1/todos", "", 400),
            (Method::POST, "/v1/todos", "{", 400),
            (Method::POST, "/v1/todos", "null", 400),
            (Method::POST, "/v1/todos", r#"{"title": "a\u0000b"}"#, 400),
            (Method::POST, "/v1/todos", r#"{"title": "\ud800"}"#, 400),
            (Method::POST, "/v1/todos", r#"{"title": ["a"]}"#, 400),
            (Method::POST, "/v1/todos", r#"{"title": "a", "dueTime": "tomorrow"}"#, 400),
            (Method::POST, "/v1/todos", r#"{"title": "a", "dueTime": "0000-01-01T00:00:00Z"}"#, 400),
            (Method::POST, "/v1/todos", r#"{"title": "a", "labels": [null]}"#, 400),
            (Method::PATCH, one.as_str(), r#"{"status": "COMPLETED", "title": ""}"#, 400),
            (Method::PATCH, &format!("{one}?updateMask=version"), "{}", 400),
            (Method::PATCH, &format!("{one}?updateMask=a.b"), "{}", 400),
            (Method::DELETE, &format!("{one}?etag=v99"), "", 412),
        ] {
            let request = ann.request(method.clone(), path).header("content-type", "application/json");
            let answer = Answer::of(request.body(body.to_owned()).send().await.unwrap()).await;
            assert_eq!(answer.status, status, "{method} {path} {body}: {}", answer.body);
            if status >= 400 {
                assert!(!answer.code().is_empty());
            }
        }
        let deep = format!("{{\"title\": {}1{}}}", "[".repeat(5_000), "]".repeat(5_000));
        let long_title = json!({"title": "x".repeat(100_000)}).to_string();
        for (body, kind, status) in [
            (deep, "application/json", 400),
            (long_title, "application/json", 400),
            ("x".repeat(2 << 20), "application/json", 413),
            ("title=x".to_owned(), "application/x-www-form-urlencoded", 415),
        ] {
            let request = ann.request(Method::POST, "/v1/todos").header("content-type", kind).body(body);
            let answer = Answer::of(request.send().await.unwrap()).await;
            assert_eq!(answer.status, status, "{}", answer.body);
        }
        // A long value is refused by its own rule, and does not overflow the headers of the answer.
        let long = "x".repeat(20_000);
        let complete = format!("{one}:complete");
        for (request, status) in [
            (ann.request(Method::POST, &complete).json(&json!({"etag": long})), 412),
            (ann.request(Method::PATCH, &format!("{one}?updateMask={}", &long[..6_000])).json(&json!({})), 400),
            (ann.request(Method::GET, &format!("/v1/todos?{}=1", &long[..6_000])), 400),
            (ann.request(Method::DELETE, &one).header("if-match", format!("\"{}\"", &long[..8_000])), 412),
            (fleet.stranger().request(Method::GET, &one).bearer_auth(&long), 401),
        ] {
            let answer = Answer::of(request.send().await.unwrap()).await;
            assert_eq!(answer.status, status, "{answer:?}");
        }
        let mut request = ann.request(Method::POST, &complete).json(&json!({})).build().unwrap();
        request.headers_mut().insert("idempotency-key", long.parse().unwrap());
        let answer = Answer::of(reqwest::Client::new_no_proxy().execute(request).await.unwrap()).await;
        assert_eq!((answer.status, answer.code()), (400, "IDEMPOTENCY_KEY_MALFORMED"));
        let health = ann.send(Method::POST, "/healthz", None).await;
        assert_eq!(
            (health.status, health.code(), health.header("allow")),
            (405, "METHOD_NOT_ALLOWED", "GET, HEAD, OPTIONS")
        );
        for value in ["v1", "\"v0,v1\"", "\"\"", "\"*\"", "W/\"v1\"", "\"v7\", \"v8\""] {
            let request = ann.request(Method::DELETE, &one).header("if-match", value);
            let answer = Answer::of(request.send().await.unwrap()).await;
            assert!([400, 412].contains(&answer.status), "{value}: {answer:?}");
        }
        assert_eq!(ann.send(Method::GET, &one, None).await.body, todo);
    });
}

#[test]
fn a_call_without_a_good_token_is_401_on_every_route() {
    with_fleet(|fleet, _| async {
        let stranger = fleet.stranger();
        let id = "0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2e4f";
        for (method, path) in routes(id) {
            let answer = stranger.send(method.clone(), &path, None).await;
            assert_eq!((answer.status, answer.code()), (401, "TOKEN_MISSING"), "{method} {path}");
            assert_eq!(answer.header("www-authenticate"), "Bearer");
            let request = stranger.request(method, &path).bearer_auth("nonsense");
            let answer = Answer::of(request.send().await.unwrap()).await;
            assert_eq!((answer.status, answer.code()), (401, "TOKEN_INVALID"));
            assert!(answer.header("www-authenticate").contains("invalid_token"));
        }
    });
}

/// A request for every RPC of the fleet that takes a token of the fleet's, from its annotations.
pub fn routes(id: &str) -> Vec<(Method, String)> {
    let mut routes = Vec::new();
    let http = proto::POOL.get_extension_by_name("google.api.http").unwrap();
    for rpc in proto::POOL.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
        if Policy::of(&rpc).public {
            continue;
        }
        let options = rpc.options();
        let rule = options.get_extension(&http);
        for verb in ["get", "post", "patch", "delete"] {
            let path = rule.as_message().and_then(|rule| rule.get_field_by_name(verb)?.as_str().map(ToOwned::to_owned));
            if let Some(path) = path.filter(|path| !path.is_empty()) {
                routes.push((verb.to_uppercase().parse().unwrap(), path.replace("{id}", id)));
            }
        }
    }
    routes
}

/// Whether it succeeds or not: only what its path names by an id may its caller keep, and nobody else keeps anything.
#[test]
fn nobody_keeps_an_answer_of_another_s() {
    with_fleet(|fleet, _| async {
        let ann = fleet.caller("kept", "ann").await;
        let todo = ann.create(json!({"title": "Mend the hatch"})).await;
        let id = todo["id"].as_str().unwrap();
        for (method, path) in routes(id) {
            let answer = ann.request(method.clone(), &path).send().await.unwrap();
            let kept = answer.headers()["cache-control"].to_str().unwrap();
            let may_be_kept = method == Method::GET && path.contains(id) && answer.status() == 200;
            let wanted = if may_be_kept { "private, no-cache" } else { "no-store" };
            assert_eq!(kept, wanted, "{method} {path}: {}", answer.status());
        }
    });
}

#[test]
fn health_and_the_problem_pages_are_open_and_every_code_is_explained() {
    with_fleet(|fleet, _| async {
        let stranger = fleet.stranger();
        for path in ["/healthz", "/readyz", "/problems"] {
            assert_eq!(stranger.send(Method::GET, path, None).await.status, 200, "{path}");
        }
        let page = stranger.request(Method::GET, "/problems").send().await.unwrap().text().await.unwrap();
        let problem = stranger.send(Method::GET, "/v1/todos", None).await;
        let anchor = problem.body["type"].as_str().unwrap().split('#').nth(1).unwrap();
        assert!(page.contains(&format!("<h2 id=\"{anchor}\">")), "{anchor}");
        operations_ports(fleet).await;
    });
}

async fn operations_ports(fleet: &Fleet) {
    let http = reqwest::Client::new_no_proxy();
    for (service, metric) in [
        ("gateway", "http_server_request_duration_seconds"),
        ("todo", "outbox_published_total"),
        ("search-projector", "consumer_handled_total"),
    ] {
        fleet.caller("http-metrics", "ann").await.create(json!({"title": "x"})).await;
        let url = format!("http://{}/metrics", fleet.unit(service).ops.unwrap());
        testkit::until(&format!("{service} shows {metric}"), || async {
            http.get(&url).send().await.unwrap().text().await.unwrap().contains(metric)
        })
        .await;
    }
}

/// Nobody waits by hand: each write is found by the search behind it.
#[test]
fn what_was_just_written_is_found_by_its_consistency_token() {
    with_fleet(|fleet, _| async {
        let ann = fleet.caller("http-consistency", "ann").await;
        let found = async |token: &str| {
            // On a busy machine it may take longer than the search waits; what is not pending is there.
            let answer = loop {
                let search =
                    ann.request(Method::GET, "/v1/todos:search?query=ketch").header("consistency-token", token);
                let answer = Answer::of(search.send().await.unwrap()).await;
                assert_eq!(answer.status, 200, "{:?}", answer.body);
                if answer.header("consistency-token-pending").is_empty() {
                    break answer;
                }
            };
            answer.body["hits"].as_array().unwrap().iter().map(|hit| hit["version"].clone()).collect::<Vec<_>>()
        };
        let write = |method, path: &str, body: Option<Value>| {
            let path = path.to_owned();
            let ann = &ann;
            async move {
                let answer = ann.send(method, &path, body).await;
                let token = answer.header("consistency-token").to_owned();
                assert!(answer.status == 200 && !token.is_empty(), "{path}: {}", answer.status);
                (answer.body, token)
            }
        };
        let (todo, token) = write(Method::POST, "/v1/todos", Some(json!({"title": "Paint the ketch"}))).await;
        let path = path(&todo);
        assert_eq!(found(&token).await, [1]);
        let (_, token) = write(Method::PATCH, &path, Some(json!({"notes": "white"}))).await;
        assert_eq!(found(&token).await, [2]);
        let (_, token) = write(Method::POST, &format!("{path}:complete"), Some(json!({}))).await;
        assert_eq!(found(&token).await, [3]);
        // A change that changes nothing has one too.
        let (_, token) = write(Method::PATCH, &path, Some(json!({"notes": "white"}))).await;
        assert_eq!(found(&token).await, [3]);
        let (_, token) = write(Method::DELETE, &path, None).await;
        assert_eq!(found(&token).await, Vec::<Value>::new());

        // The same key again: the same answer, and a place behind it.
        let again = async || {
            let request = ann.request(Method::POST, "/v1/todos").json(&json!({"title": "Sail the ketch"}));
            let mut request = request.build().unwrap();
            request.headers_mut().insert("idempotency-key", "ketch".parse().unwrap());
            Answer::of(reqwest::Client::builder().no_proxy().build().unwrap().execute(request).await.unwrap()).await
        };
        assert_eq!(again().await.status, 200);
        let replayed = again().await;
        assert_eq!(replayed.header("idempotency-replayed"), "true");
        assert_eq!(found(replayed.header("consistency-token")).await, [1]);
        // What is read from PostgreSQL needs none, and says none.
        let list = ann.send(Method::GET, "/v1/todos", None).await;
        assert_eq!((list.status, list.header("consistency-token")), (200, ""));
        // A place that is not reached in time, over HTTP and over gRPC.
        let beyond = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(format!("todo:{}", u64::MAX));
        let behind = ann.request(Method::GET, "/v1/todos:search?query=ketch").header("consistency-token", &beyond);
        let behind = Answer::of(behind.send().await.unwrap()).await;
        assert_eq!((behind.status, behind.header("consistency-token-pending")), (200, "true"));
        let url = format!("http://{}", fleet.unit("gateway").address);
        let mut search = proto::search::search_service_client::SearchServiceClient::connect(url).await.unwrap();
        let mut request = tonic::Request::new(proto::search::SearchTodosRequest::default());
        for (name, value) in
            [("authorization", format!("Bearer {}", ann.token().unwrap())), ("consistency-token", beyond)]
        {
            request.metadata_mut().insert(name, value.parse().unwrap());
        }
        let behind = search.search_todos(request).await.unwrap();
        assert_eq!(behind.metadata().get("consistency-token-pending").unwrap(), "true");
        // Every service that changes something says where.
        let owner = fleet.person("http-consistency-owner").await;
        owner.sign_up("http-consistency-of-hers").await;
        let group = owner.send(Method::POST, "/v1/groups", Some(json!({"name": "crew"}))).await;
        assert!(group.status == 200 && !group.header("consistency-token").is_empty(), "{:?}", group.body);
        let wrong = ann.request(Method::GET, "/v1/todos:search").header("consistency-token", "what?");
        let wrong = Answer::of(wrong.send().await.unwrap()).await;
        assert_eq!((wrong.status, wrong.code()), (400, "INVALID_ARGUMENT"));
    });
}
