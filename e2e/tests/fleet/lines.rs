//! The log lines of one request, through all services.

use reqwest::Method;
use serde_json::{Value, json};

use crate::with_fleet;

/// The lines of a trace, once each of these services has written this one.
async fn lines(fleet: &e2e::Fleet, trace_id: &str, wanted: &[(&str, &str)]) -> Vec<Value> {
    let read = async || {
        let output = fleet.run(&["trace", trace_id, "--json"]).await;
        let lines = String::from_utf8(output.stdout).unwrap();
        lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    testkit::until("each service has written its lines", || async {
        let lines = read().await;
        let is = |line: &Value, (service, message): &(&str, &str)| {
            line["service"] == *service && line["message"] == *message
        };
        wanted.iter().all(|wanted| lines.iter().any(|line| is(line, wanted)))
    })
    .await;
    read().await
}

fn line<'a>(lines: &'a [Value], service: &str, message: &str) -> &'a Value {
    let found: Vec<_> = lines.iter().filter(|line| line["service"] == service && line["message"] == message).collect();
    assert_eq!(found.len(), 1, "{service} {message}: {lines:?}");
    found[0]
}

#[test]
fn a_request_that_succeeds_is_found_by_its_trace_in_each_service_from_the_edge_to_the_index() {
    with_fleet(|fleet, _| async {
        let ann = fleet.caller("lines", "ann").await;
        let releases = fleet.json(&["status"]).await["releases"].clone();
        let secret = "nobody-but-me";
        let body = json!({"title": secret, "notes": secret, "labels": [secret]});
        let answer = ann.send(Method::POST, "/v1/todos", Some(body)).await;
        let trace_id = answer.header("trace-id").to_owned();
        let wanted = [("gateway", "request"), ("todo", "call"), ("todo", "published"), ("search-projector", "event")];
        let all = lines(fleet, &trace_id, &wanted).await;
        let request = line(&all, "gateway", "request");
        let call = line(&all, "todo", "call");
        let published = line(&all, "todo", "published");
        let event = line(&all, "search-projector", "event");
        for line in [request, call, event] {
            assert_eq!((&line["tenant"], &line["outcome"]), (&json!("lines"), &json!("done")), "{line}");
            assert_eq!(line["trace_id"], trace_id);
        }
        for line in [request, call, published, event] {
            assert!(line["duration_ms"].as_f64() > Some(0.0), "{line}");
            assert!(line["timestamp"].is_string(), "{line}");
            assert_eq!(line["release"], releases[line["service"].as_str().unwrap()], "{line}");
        }
        for (line, method, status) in
            [(request, "POST /v1/todos", 200), (call, "flotilla.todo.v1.TodoService/CreateTodo", 0)]
        {
            assert_eq!((&line["actor"], &line["code"]), (&json!("user:ann"), &json!("OK")));
            assert_eq!((&line["method"], &line["status"]), (&json!(method), &json!(status)));
        }
        assert_eq!((&event["method"], &event["consumer"]), (&json!("todo.created.v1"), &json!("search-projector")));
        assert_eq!(call["event_ids"], event["event_id"], "one event, from the command to its consumer");
        assert!(published["event_ids"].as_str().unwrap().contains(event["event_id"].as_str().unwrap()), "{published}");
        let text = format!("{all:?}");
        assert!(!text.contains(secret) && !text.contains("Bearer") && !text.contains("eyJ"), "{text}");
        let shown = String::from_utf8(fleet.run(&["trace", &trace_id]).await.stdout).unwrap();
        assert!(
            ["request POST /v1/todos", "published", "event todo.created.v1"].iter().all(|part| shown.contains(part)),
            "{shown}"
        );
    });
}

#[test]
fn a_request_that_fails_is_found_by_the_trace_that_its_problem_names() {
    with_fleet(|fleet, _| async {
        let ann = fleet.caller("lines", "ann").await;
        for (method, path, body, code) in [
            (Method::GET, "/v1/todos/0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2e4f", None, "TODO_NOT_FOUND"),
            (Method::POST, "/v1/todos", Some(json!({"title": ""})), "INVALID_ARGUMENT"),
        ] {
            let answer = ann.send(method, path, body).await;
            assert_eq!(answer.code(), code);
            let trace_id = answer.body["traceId"].as_str().unwrap().to_owned();
            let all = lines(fleet, &trace_id, &[("gateway", "request"), ("todo", "call")]).await;
            for line in [line(&all, "gateway", "request"), line(&all, "todo", "call")] {
                assert_eq!((&line["outcome"], &line["code"]), (&json!("refused"), &json!(code)), "{line}");
                assert_eq!(line["tenant"], "lines");
            }
        }
        let answer = fleet.stranger().send(Method::GET, "/v1/todos/secret-path", None).await;
        let trace_id = answer.header("trace-id").to_owned();
        let all = lines(fleet, &trace_id, &[("gateway", "request")]).await;
        let request = line(&all, "gateway", "request");
        assert_eq!((&request["code"], &request["method"]), (&json!("TOKEN_MISSING"), &json!("GET /v1/todos/{id}")));
        assert!(request["tenant"].is_null() && !request.to_string().contains("secret-path"), "{request}");
    });
}

#[test]
fn the_release_is_seen_everywhere_and_by_callers_only_where_it_is_asked_for() {
    with_fleet(|fleet, _| async {
        let status = fleet.json(&["status"]).await;
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        for name in ["gateway", "todo", "search-projector", "operations"] {
            let release = status["releases"][name].as_str().unwrap_or_else(|| panic!("{name}: {status}"));
            let ops = fleet.unit(name).ops.unwrap();
            let metrics = http.get(format!("http://{ops}/metrics")).send().await.unwrap().text().await.unwrap();
            let health = http.get(format!("http://{ops}/healthz")).send().await.unwrap().text().await.unwrap();
            assert!(health.lines().any(|line| line == format!("release {release}")), "{health}");
            let gauge = metrics.lines().find(|line| line.starts_with("build_info{")).unwrap();
            assert!(gauge.contains(&format!("release=\"{release}\"")) && gauge.contains(name), "{gauge}");
        }
        let ann = fleet.caller("lines", "ann").await;
        let answer = ann.request(Method::GET, "/v1/todos").send().await.unwrap();
        assert!(answer.headers().get("flotilla-release").is_none());
    });
}
