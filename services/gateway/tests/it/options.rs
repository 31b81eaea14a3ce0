//! What the options of a method change over HTTP, with a service that has a method for each.

use std::time::Duration;

use gateway::routes::Routes;
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use service::config::Admission;
use std::num::NonZeroU16;

use crate::{Edge, probe};

impl Edge {
    fn post(&self, path: &str) -> RequestBuilder {
        self.http.post(format!("{}{path}", self.base))
    }

    fn as_ann(&self, request: RequestBuilder) -> RequestBuilder {
        request.header("authorization", self.issuer.bearer("acme", "ann"))
    }

    fn watch(&self, query: &str) -> RequestBuilder {
        self.as_ann(self.http.get(format!("{}/v1/things:watch?{query}", self.base)))
    }
}

/// The status, the code of the problem, and the whole.
async fn refused(request: RequestBuilder) -> (u16, String) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let problem: Value = response.json().await.unwrap();
    (status, problem["code"].as_str().unwrap_or_default().to_owned())
}

/// What the service was called with, and the metadata that it got.
async fn received(request: RequestBuilder) -> (Value, Value) {
    let received: Value = request.send().await.unwrap().error_for_status().unwrap().json().await.unwrap();
    (serde_json::from_str(received["request"].as_str().unwrap()).unwrap(), received["metadata"].clone())
}

#[tokio::test]
async fn a_signed_webhook_reaches_its_method_byte_by_byte_without_a_token() {
    let edge = probe::start(Admission::wide()).await;
    let hook = || edge.post("/v1/hooks/acme%20pay").header("content-type", "application/json; charset=utf-8");
    let signed = hook().header("x-signature", "t=1").header("x-signature", "v1=2").header("x-other", "no");
    let (request, metadata) = received(signed.header("idempotency-key", "theirs").body(" {\"a\":1,\"a\":2}\n")).await;
    let body = json!({"contentType": "application/json; charset=utf-8", "data": "IHsiYSI6MSwiYSI6Mn0K"});
    assert_eq!(request, json!({"provider": "acme pay", "body": body}));
    let got = metadata["x-signature"].as_str().unwrap();
    assert!(["t=1", "v1=2"].contains(&got) && metadata.as_object().unwrap().len() == 1, "{metadata}");
    // Of its own size, and none of what the body fills comes by the query.
    assert!(hook().body("x".repeat(40_000)).send().await.unwrap().status().is_success());
    assert_eq!(refused(hook().body("x".repeat(40_001))).await, (413, "TOO_LARGE".to_owned()));
    // What its sender says is bounded too.
    assert!(hook().header("x-signature", "s".repeat(8_000)).send().await.unwrap().status().is_success());
    assert_eq!(refused(hook().header("x-signature", "s".repeat(8_200))).await, (431, "HEADERS_TOO_LARGE".to_owned()));
    let twice = edge.post("/v1/hooks/acme?body.data=aaaa").body("x");
    assert_eq!(refused(twice).await, (400, "INVALID_ARGUMENT".to_owned()));
}

#[tokio::test]
async fn a_body_goes_and_comes_as_it_is() {
    let edge = probe::start(Admission::wide()).await;
    let all: Vec<u8> = (0..=255).collect();
    let sent = edge.post("/v1/sendBack").header("content-type", "image/png").body(all.clone());
    assert_eq!(refused(edge.post("/v1/sendBack").body("x")).await, (401, "TOKEN_MISSING".to_owned()));
    let back = edge.as_ann(sent).send().await.unwrap();
    assert_eq!(back.headers()["content-type"], "image/png");
    assert_eq!(back.bytes().await.unwrap(), all);

    let pdf = edge.as_ann(edge.http.get(format!("{}/v1/invoices/7", edge.base))).send().await.unwrap();
    let headers = pdf.headers();
    assert_eq!(
        (&headers["content-type"], &headers["content-disposition"]),
        (&"application/pdf".parse().unwrap(), &"attachment; filename=7.pdf".parse().unwrap())
    );
    assert!(!headers.contains_key("set-cookie"), "its option does not name it");
    // It is deprecated; also where it is refused, and over gRPC (frames.rs).
    let refused = edge.http.get(format!("{}/v1/invoices/7", edge.base)).send().await.unwrap();
    for headers in [headers, refused.headers()] {
        assert_eq!(headers["deprecation"], "@1796083200");
        assert_eq!(headers["sunset"], "Wed, 30 Jun 2027 00:00:00 GMT");
        let link = headers["link"].to_str().unwrap();
        assert!(
            link.contains("</promises>; rel=\"deprecation\"")
                && link.contains("</v1/documents/{id}>; rel=\"successor-version\"")
        );
    }
    let described = edge.http.get(format!("{}/openapi.json", edge.base)).send().await.unwrap();
    let described: Value = described.json().await.unwrap();
    let get = |path: &str| described["paths"][path]["get"].clone();
    assert_eq!(get("/v1/invoices/{id}")["deprecated"], true);
    assert_eq!(get("/v1/tagged/{id}")["deprecated"], Value::Null);
    let policy = headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'"), "{policy}");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert_eq!(pdf.bytes().await.unwrap(), "%PDF");
}

#[tokio::test]
async fn a_form_fills_the_request_in_either_coding() {
    let edge = probe::start(Admission::wide()).await;
    // As mail clients send it (RFC 8058): with a field that the method does not have.
    let one_click = edge.post("/v1/unsubscribe/t1").form(&[("List-Unsubscribe", "One-Click")]);
    let page = one_click.send().await.unwrap();
    assert_eq!((page.status().as_u16(), &page.headers()["content-type"]), (200, &"text/html".parse().unwrap()));
    assert_eq!(page.text().await.unwrap(), "t1");
    let part = "--b\r\nContent-Disposition: form-data; name=\"List-Unsubscribe\"\r\n\r\nOne-Click\r\n--b--\r\n";
    let multipart = edge.post("/v1/unsubscribe/t2").header("content-type", "multipart/form-data; boundary=b");
    assert_eq!(multipart.body(part).send().await.unwrap().text().await.unwrap(), "t2");
    let as_json = edge.post("/v1/unsubscribe/t3").json(&json!({"reason": "x"}));
    assert_eq!(refused(as_json).await, (415, "UNSUPPORTED_MEDIA_TYPE".to_owned()));

    let file = |name: &str| {
        format!(
            "--b\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"f\"\r\nContent-Type: image/png\r\n\r\nPNG\r\n"
        )
    };
    let text = |name: &str| format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{name}\r\n");
    let upload = |parts: &[String]| {
        let upload = edge.post("/v1/uploads").header("content-type", "multipart/form-data; boundary=b");
        edge.as_ann(upload.body(format!("{}--b--\r\n", parts.concat())))
    };
    let all = [text("title"), text("label"), text("label"), file("small"), file("file")];
    let (request, metadata) = received(upload(&all).header("idempotency-key", "k1")).await;
    assert_eq!(metadata, json!({"idempotency-key": "k1"}));
    let file_of_it = json!({"contentType": "image/png", "data": "UE5H"});
    assert_eq!(request, json!({"title": "title", "label": ["label", "label"], "small": "UE5H", "file": file_of_it}));
    assert_eq!(refused(upload(&all)).await, (400, "IDEMPOTENCY_KEY_REQUIRED".to_owned()));
    for wrong in [&[text("title"), text("title")][..], &[file("title")][..], &[file("small"), file("small")][..]] {
        let wrong = upload(wrong).header("idempotency-key", "k2");
        assert_eq!(refused(wrong).await, (400, "INVALID_ARGUMENT".to_owned()));
    }
}

/// The events of a stream until it ends, as text.
async fn events(response: Response) -> String {
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    response.text().await.unwrap()
}

/// Proxies close what is silent.
#[tokio::test]
async fn a_stream_in_which_nothing_happens_goes_on_saying_so() {
    let edge = probe::start(Admission::wide()).await;
    let mut silent = edge.watch("what=silence").send().await.unwrap();
    let mut said = String::new();
    while said.matches("\n:\n\n").count() < 2 {
        said.push_str(str::from_utf8(&silent.chunk().await.unwrap().expect("it goes on")).unwrap());
    }
}

#[tokio::test]
async fn what_a_method_streams_is_sent_as_events() {
    let edge = probe::start(Admission::wide()).await;
    let resumed = edge.watch("what=some").header("last-event-id", "0").send().await.unwrap();
    let wanted = "retry: 1000\n\n:\n\n\
                  id: 1\nevent: thing\ndata: {\"id\":\"1\",\"thing\":{\"text\":\"after 0\"}}\n\n\
                  id: 2\nevent: thing\ndata: {\"id\":\"2\",\"thing\":{\"text\":\"line\\nbreak\"}}\n\n";
    assert_eq!(events(resumed).await.replace(":\n\n", ""), wanted.replace(":\n\n", ""));
    let reset = events(edge.watch("what=reset").send().await.unwrap()).await;
    assert!(reset.contains("id: 2\nevent: reset\ndata: {\"id\":\"2\",\"reset\":{}}\n\n"), "{reset}");
    let failed = events(edge.watch("what=failure").send().await.unwrap()).await;
    let (_, problem) = failed.split_once("event: problem\ndata: ").unwrap();
    let problem: Value = serde_json::from_str(problem.trim()).unwrap();
    assert_eq!((&problem["code"], &problem["status"]), (&json!("THING_NOT_FOUND"), &json!(404)));
    // What is refused before it begins is no stream.
    assert_eq!(refused(edge.watch("what=refusal")).await, (404, "THING_NOT_FOUND".to_owned()));
    let unknown = edge.watch("colour=red");
    assert_eq!(refused(unknown).await, (400, "INVALID_ARGUMENT".to_owned()));
    let anonymous = edge.http.get(format!("{}/v1/things:watch", edge.base));
    assert_eq!(refused(anonymous).await, (401, "TOKEN_MISSING".to_owned()));
}

#[tokio::test]
async fn a_stream_ends_with_its_token_and_with_the_process() {
    let edge = probe::start(Admission::wide()).await;
    let ends = service::clock::now().timestamp() + 2;
    let short = edge.issuer.bearer_with("acme", "ann", &json!({"exp": ends}));
    let watched = edge.http.get(format!("{}/v1/things:watch?what=silence", edge.base)).header("authorization", short);
    let ended = events(watched.send().await.unwrap()).await;
    assert!(ended.contains("event: problem") && ended.contains("TOKEN_EXPIRED"), "{ended}");
    assert!(service::clock::now().timestamp() >= ends);
    let open = edge.watch("what=silence").send().await.unwrap();
    let (died, rest) = futures::join!(edge.lifecycle.shut_down(), events(open));
    assert_eq!(died, None, "a stream holds up no drain");
    assert!(rest.starts_with("retry: 1000\n\n"), "{rest}");
}

#[tokio::test]
async fn whoever_comes_to_much_at_once_gets_all_of_it_in_order() {
    let edge = probe::start(Admission::wide()).await;
    let all = events(edge.watch("what=many").send().await.unwrap()).await;
    let ids: Vec<usize> = all.lines().filter_map(|line| line.strip_prefix("id: ")?.parse().ok()).collect();
    assert_eq!(ids, (1..=1_000).collect::<Vec<_>>());
    assert!(!all.contains("event: problem"), "{}", &all[all.len() - 500..]);
}

#[tokio::test]
async fn a_slow_reader_is_told_and_holds_up_nobody() {
    let edge = probe::start(Admission::wide()).await;
    let mut slow: Vec<_> = Vec::new();
    for _ in 0..8 {
        slow.push(edge.watch("what=ever").send().await.unwrap());
    }
    // More than there is room for on the way is streamed past those who read nothing; at the service's pace, for longer than they are waited for.
    let mut reader = edge.watch("what=ever").send().await.unwrap();
    let mut read = 0;
    while read < 128 * 1_024 * 1_024 {
        read += tokio::time::timeout(Duration::from_secs(30), reader.chunk()).await.unwrap().unwrap().unwrap().len();
    }
    drop(reader);
    for slow in slow {
        let all = events(slow).await;
        assert!(all.contains("\nevent: problem\n") && all.contains("SLOW_READER"), "{}", all.len());
    }
}

#[tokio::test]
async fn so_many_streams_are_open_at_once() {
    let one = NonZeroU16::MIN;
    let edge = probe::start(Admission { principal_streams: one, ..Admission::wide() }).await;
    let first = edge.watch("what=silence").send().await.unwrap();
    assert_eq!(refused(edge.watch("what=silence")).await, (429, "TOO_MANY_REQUESTS".to_owned()));
    drop(first);
    testkit::until("its place is free", || async { edge.watch("what=some").send().await.unwrap().status() == 200 })
        .await;
}

#[test]
fn an_option_that_cannot_be_served_is_refused_at_start() {
    for (options, wanted) in [
        ("option (google.api.http) = {get: \"/v1/x\"};", ""),
        ("option (google.api.http) = {get: \"/v1/x\" response_body: \"text\"};", ""),
        (
            "option (google.api.http) = {get: \"/v1/x\" response_body: \"other\"};",
            "the response body is no field of the answer",
        ),
        ("option (google.api.http) = {custom: {kind: \"LIST\" path: \"/v1/x\"}};", "custom is not served"),
        ("option (google.api.http) = {post: \"/v1/x\" body: \"other\"};", "the body is no field of the request"),
        ("option (google.api.http) = {get: \"/v1/{x\"};", "{x"),
        (
            "option (google.api.http) = {post: \"/v1/x\" body: \"text\"}; option (flotilla.edge.v1.policy) = {form: true};",
            "a form fills the whole request",
        ),
        (
            "option (google.api.http) = {post: \"/v1/x\" body: \"*\"}; option (flotilla.edge.v1.policy) = {max_body_bytes: 4000000};",
            "no body has so many bytes",
        ),
        (
            "option (google.api.http) = {get: \"/v1/x\"}; option (flotilla.edge.v1.policy) = {request_headers: \"grpc-timeout\"};",
            "the header grpc-timeout is the edge's own",
        ),
        (
            "option (google.api.http) = {get: \"/v1/x\"}; option (flotilla.edge.v1.policy) = {response_headers: \"set-cookie\"};",
            "the header set-cookie is the edge's own",
        ),
        (
            "option (google.api.http) = {get: \"/v1/x\"}; option (flotilla.edge.v1.policy) = {response_headers: \"cache-control\"};",
            "the header cache-control is the edge's own",
        ),
        (
            "option (google.api.http) = {get: \"/v1/x\"}; option (flotilla.edge.v1.policy) = {deprecation: {since: \"2027-01-31\" sunset: \"2027-02-28\" successor: \"/v2/x\"}};",
            "answers for half a year",
        ),
        (
            "option (google.api.http) = {get: \"/v1/x\"}; option (flotilla.edge.v1.policy) = {deprecation: {since: \"soon\" sunset: \"2027-02-28\" successor: \"/v2/x\"}};",
            "is no day",
        ),
        (
            "option (google.api.http) = {get: \"/v1/x\"}; option (flotilla.edge.v1.policy) = {shared_seconds: 60};",
            "nobody else may keep",
        ),
        (
            "option (google.api.http) = {get: \"/v1/x\"}; option (flotilla.edge.v1.policy) = {public: true reads_copy: true shared_seconds: 60};",
            "nobody else may keep",
        ),
        (
            "option (google.api.http) = {post: \"/v1/x\" body: \"*\"}; option (flotilla.edge.v1.policy) = {public: true shared_seconds: 60};",
            "nobody else may keep",
        ),
    ] {
        let refused = Routes::of(&probe::method(options)).err().map(|error| format!("{error:#}")).unwrap_or_default();
        let fits = if wanted.is_empty() { refused.is_empty() } else { refused.contains(wanted) };
        assert!(fits, "{options}: {refused}");
    }
}
