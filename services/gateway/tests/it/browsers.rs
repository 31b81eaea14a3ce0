//! Caching, compression and CORS.

use http::HeaderMap;
use reqwest::{Method, RequestBuilder, Response};
use service::config::Admission;

use crate::{Edge, probe};

const APP: &str = "https://app.acme.example";

fn said<'a>(response: &'a Response, name: &str) -> Vec<&'a str> {
    response.headers().get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
}

fn kept(response: &Response) -> (u16, Vec<&str>) {
    (response.status().as_u16(), said(response, "cache-control"))
}

impl Edge {
    fn get(&self, path: &str) -> RequestBuilder {
        self.http.get(format!("{}{path}", self.base))
    }

    fn tagged(&self, method: Method) -> RequestBuilder {
        let request = self.http.request(method, format!("{}/v1/tagged/1", self.base));
        request.header("authorization", self.issuer.bearer("acme", "ann"))
    }

    fn preflight(&self, path: &str, origin: &str) -> RequestBuilder {
        let request = self.http.request(Method::OPTIONS, format!("{}{path}", self.base)).header("origin", origin);
        request
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization")
    }
}

#[tokio::test]
async fn what_has_an_entity_tag_its_caller_keeps_and_what_is_for_all_anybody() {
    let edge = probe::start(Admission::wide()).await;
    let tagged = edge.tagged(Method::GET).send().await.unwrap();
    assert_eq!(kept(&tagged), (200, vec!["private, no-cache"]));
    assert_eq!(said(&tagged, "vary"), ["authorization, accept-encoding"], "another caller's is another answer");
    let known = edge.tagged(Method::GET).header("if-none-match", "\"v1\"").send().await.unwrap();
    assert_eq!(kept(&known), (304, vec!["private, no-cache"]));
    assert_eq!((said(&known, "etag"), said(&known, "vary")), (vec!["\"v1\""], said(&tagged, "vary")));
    assert!(said(&known, "content-length").is_empty() && said(&known, "content-type").is_empty(), "{known:?}");
    // What every tenant has at one path: the tag of one may be another's, and a cache that knows the one would show it.
    let own = edge.send(Method::GET, "/v1/tagged").await;
    assert_eq!((kept(&own), said(&own, "etag")), ((200, vec!["no-store"]), vec!["\"v1\""]));
    let prices = edge.get("/v1/prices").send().await.unwrap();
    assert_eq!(kept(&prices), (200, vec!["public, max-age=60"]));
    assert_eq!(said(&prices, "vary"), ["accept-encoding"]);
    assert!(["trace-id", "ratelimit"].iter().all(|name| said(&prices, name).is_empty()), "they are of who asked first");
    assert!(!said(&tagged, "ratelimit").is_empty());
    // Whatever is not whole, or not as it should be, or changes something, or has no entity tag.
    let degraded = edge.get("/v1/prices?degraded=true").send().await.unwrap();
    assert_eq!(kept(&degraded), (200, vec!["no-store"]));
    let wrong = edge.get("/v1/prices?nothing=1").send().await.unwrap();
    assert_eq!(kept(&wrong), (400, vec!["no-store"]));
    let stranger = edge.get("/v1/tagged/1").header("if-none-match", "\"v1\"").send().await.unwrap();
    assert_eq!(kept(&stranger), (401, vec!["no-store"]));
    for (method, path) in [(Method::POST, "/v1/sendBack"), (Method::GET, "/v1/invoices/7")] {
        let answer = edge.send(method, path).await;
        assert_eq!(kept(&answer), (200, vec!["no-store"]), "{path}");
    }
}

#[tokio::test]
async fn a_large_answer_comes_in_the_coding_that_the_client_takes() {
    let edge = probe::start(Admission::wide()).await;
    let plain = edge.get("/v1/prices").send().await.unwrap().bytes().await.unwrap();
    for coding in ["zstd", "br", "gzip"] {
        let asked = |path: &str| edge.get(path).header("accept-encoding", coding);
        let prices = asked("/v1/prices").send().await.unwrap();
        assert_eq!(said(&prices, "content-encoding"), [coding]);
        assert_eq!(said(&prices, "vary"), ["accept-encoding"]);
        let bytes = prices.bytes().await.unwrap();
        assert!(bytes.len() < plain.len() / 2, "{coding}: {} of {}", bytes.len(), plain.len());
        let head = edge.http.head(format!("{}/v1/prices", edge.base)).header("accept-encoding", coding);
        let head = head.send().await.unwrap();
        assert_eq!(said(&head, "content-encoding"), [coding], "its head is that of a GET");
        assert_eq!(said(&head, "content-length"), [bytes.len().to_string()]);
        // What is small, streams, is bytes, or answers a change.
        let small = asked("/v1/prices?few=true").send().await.unwrap();
        assert_eq!((small.status().as_u16(), said(&small, "cache-control")), (200, vec!["public, max-age=60"]));
        let stream = asked("/v1/things:watch?what=some").header("authorization", edge.issuer.bearer("acme", "ann"));
        let stream = stream.send().await.unwrap();
        let change = edge.http.post(format!("{}/v1/sendBack", edge.base)).header("accept-encoding", coding);
        let change =
            change.header("authorization", edge.issuer.bearer("acme", "ann")).header("content-type", "text/plain");
        let change = change.header("idempotency-key", "k").body("x".repeat(9_000)).send().await.unwrap();
        for answer in [&small, &stream, &change] {
            assert!(said(answer, "content-encoding").is_empty(), "{answer:?}");
        }
    }
    let tagged = edge.tagged(Method::GET).header("accept-encoding", "gzip;q=0, br;q=0.1, zstd").send().await.unwrap();
    assert_eq!((said(&tagged, "content-encoding"), said(&tagged, "etag")), (vec!["zstd"], vec!["\"v1\""]));
    // Nobody sends a coding that nobody reads.
    let zipped = edge.http.post(format!("{}/v1/sendBack", edge.base)).header("content-encoding", "gzip").body("x");
    let zipped = zipped.header("authorization", edge.issuer.bearer("acme", "ann")).send().await.unwrap();
    assert_eq!((zipped.status().as_u16(), said(&zipped, "accept-encoding")), (415, vec!["identity"]));
}

#[tokio::test]
async fn a_page_is_kept_and_asked_about() {
    let edge = probe::start(Admission::wide()).await;
    for path in [
        "/openapi.json",
        "/docs/swagger-ui-bundle.js",
        "/events",
        "/problems",
        "/promises",
        "/schemas/todo.became_due.v1.json",
    ] {
        let plain = edge.get(path).send().await.unwrap();
        let zipped = edge.get(path).header("accept-encoding", "br, gzip").send().await.unwrap();
        assert_eq!(kept(&plain), (200, vec!["public, max-age=300"]), "{path}");
        let etags = [&plain, &zipped].map(|page| said(page, "etag")[0].to_owned());
        assert_eq!(said(&zipped, "content-encoding"), ["gzip"], "{path}");
        assert_ne!(etags[0], etags[1], "each coding has its own");
        assert_eq!((said(&plain, "vary"), said(&zipped, "vary")), (vec!["accept-encoding"], vec!["accept-encoding"]));
        let (plain, zipped) = (plain.bytes().await.unwrap(), zipped.bytes().await.unwrap());
        let mut unzipped = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*zipped), &mut unzipped).unwrap();
        assert!(unzipped == plain && zipped.len() < plain.len(), "{path}");
        let again = edge.get(path).header("if-none-match", &etags[0]).send().await.unwrap();
        assert_eq!((again.status().as_u16(), said(&again, "etag")), (304, vec![etags[0].as_str()]), "{path}");
        assert!(said(&again, "content-length").is_empty() && said(&again, "content-type").is_empty(), "{again:?}");
        let head = edge.http.head(format!("{}{path}", edge.base)).send().await.unwrap();
        assert_eq!(said(&head, "content-length"), [plain.len().to_string()], "{path}");
        let wrong = edge.get(path).header("if-none-match", "x").send().await.unwrap();
        assert_eq!(kept(&wrong), (400, vec!["no-store"]));
    }
}

#[tokio::test]
async fn options_says_what_may_be_sent_there() {
    let edge = probe::start(Admission::wide()).await;
    for (path, allowed) in
        [("/v1/tagged/1", "GET, HEAD, OPTIONS"), ("/v1/sendBack", "POST, OPTIONS"), ("/docs", "GET, HEAD, OPTIONS")]
    {
        let options = edge.http.request(Method::OPTIONS, format!("{}{path}", edge.base)).send().await.unwrap();
        assert_eq!((options.status().as_u16(), said(&options, "allow")), (204, vec![allowed]), "{path}");
        let wrong = edge.http.put(format!("{}{path}", edge.base)).send().await.unwrap();
        assert_eq!((wrong.status().as_u16(), said(&wrong, "allow")), (405, vec![allowed]), "{path}");
    }
    let nowhere = edge.http.request(Method::OPTIONS, format!("{}/v1/nothing", edge.base)).send().await.unwrap();
    assert_eq!(nowhere.status(), 404);
    // Without any origin that may, a preflight is answered like any other, and no page may read anything.
    let preflight = edge.preflight("/v1/sendBack", APP).send().await.unwrap();
    assert_eq!(preflight.status(), 204);
    let names = |headers: &HeaderMap| headers.keys().any(|name| name.as_str().starts_with("access-control-"));
    assert!(!names(preflight.headers()));
    assert!(!names(edge.tagged(Method::GET).header("origin", APP).send().await.unwrap().headers()));
}

#[tokio::test]
async fn pages_of_the_origins_that_may_call_and_read_what_they_need() {
    let edge = probe::start_for(Admission::wide(), &format!("{APP}, http://localhost:5173")).await;
    let preflight = edge.preflight("/v1/hooks/acme", APP).send().await.unwrap();
    assert!(preflight.status().is_success());
    assert_eq!(said(&preflight, "access-control-allow-origin"), [APP]);
    assert_eq!(said(&preflight, "vary"), ["origin"]);
    let may_send = said(&preflight, "access-control-allow-headers")[0];
    for name in ["authorization", "idempotency-key", "if-match", "last-event-id", "x-grpc-web", "x-signature"] {
        assert!(may_send.split(',').any(|one| one == name), "{name} in {may_send}");
    }
    assert!(said(&preflight, "access-control-allow-methods")[0].contains("PATCH"));
    assert!(said(&preflight, "access-control-allow-credentials").is_empty(), "cookies mean nothing here");
    let tagged = edge.tagged(Method::GET).header("origin", APP).send().await.unwrap();
    assert_eq!(said(&tagged, "access-control-allow-origin"), [APP]);
    assert_eq!(said(&tagged, "vary"), ["authorization, accept-encoding", "origin"]);
    let may_read = said(&tagged, "access-control-expose-headers")[0];
    for name in ["etag", "retry-after", "trace-id", "grpc-status", "consistency-token", "content-disposition"] {
        assert!(may_read.split(',').any(|one| one == name), "{name} in {may_read}");
    }
    // An error is read too, and a page; a call of gRPC-Web as well.
    for path in ["/v1/tagged/1", "/openapi.json", "/nothing"] {
        let answer = edge.get(path).header("origin", APP).send().await.unwrap();
        assert_eq!(said(&answer, "access-control-allow-origin"), [APP], "{path}");
    }
    let web = edge.http.post(format!("{}/{}/SendBack", edge.base, probe::NAME)).header("origin", APP);
    let web = web.header("content-type", "application/grpc-web+proto").body(vec![0; 5]).send().await.unwrap();
    assert_eq!((said(&web, "access-control-allow-origin"), said(&web, "grpc-status")), (vec![APP], vec!["16"]));
    for other in ["https://evil.example", "https://app.acme.example.evil.example", "null"] {
        for request in [edge.preflight("/v1/sendBack", other), edge.tagged(Method::GET).header("origin", other)] {
            let answer = request.send().await.unwrap();
            assert!(said(&answer, "access-control-allow-origin").is_empty(), "{other}");
            assert!(said(&answer, "vary").contains(&"origin"), "a cache must not give it to {APP}");
        }
    }
    let edge = probe::start_for(Admission::wide(), "*").await;
    let any = edge.tagged(Method::GET).header("origin", "https://else.example").send().await.unwrap();
    assert_eq!(said(&any, "access-control-allow-origin"), ["*"]);
}
