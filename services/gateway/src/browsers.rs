//! Caching, compression and CORS: whose pages may call, what of the answers may be kept, and in which coding they come.

use std::convert::Infallible;
use std::str::FromStr;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use futures::FutureExt as _;
use http::header::{
    ACCEPT_ENCODING, ACCESS_CONTROL_REQUEST_METHOD, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, ORIGIN, VARY,
};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version};
use http_body_util::BodyExt as _;
use service::{DEGRADED, RELEASE, idempotency};
use tower::{Layer as _, Service as _};
use tower_http::CompressionLevel;
use tower_http::compression::predicate::SizeAbove;
use tower_http::compression::{CompressionLayer, Predicate};
use tower_http::cors::{AllowOrigin, Any, CorsLayer};

use crate::problem::{self, Problem};
use crate::routes::{Answers, Route, Routes};

/// How long a browser may keep what a preflight has answered: the longest that any of them does.
const PREFLIGHT_FOR: Duration = Duration::from_secs(7_200);
/// The smallest body that is worth a coding: below, the head is most of an answer.
const MIN_COMPRESSED_BYTES: u16 = 1_024;
/// What every method takes, beside what its options name.
const REQUEST_HEADERS: [&str; 12] = [
    "authorization",
    "accept",
    "content-type",
    "if-match",
    "if-none-match",
    idempotency::METADATA,
    "last-event-id",
    "traceparent",
    "tracestate",
    // What clients of gRPC-Web send.
    "grpc-timeout",
    "x-grpc-web",
    "x-user-agent",
];
/// What every method may say, beside what its options name.
const RESPONSE_HEADERS: [&str; 16] = [
    "allow",
    "deprecation",
    "etag",
    "link",
    "sunset",
    "ratelimit",
    "ratelimit-policy",
    "retry-after",
    "www-authenticate",
    idempotency::REPLAYED_METADATA,
    DEGRADED,
    RELEASE,
    "trace-id",
    "grpc-status",
    "grpc-message",
    "grpc-status-details-bin",
];

/// The origins whose pages may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// Any: a page sends no token that it does not have.
    Any,
    /// These, as browsers write them.
    These(Vec<HeaderValue>),
}

impl FromStr for Origins {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "*" => Ok(Self::Any),
            "" => Ok(Self::These(Vec::new())),
            text => Ok(Self::These(text.split(',').map(|one| origin(one.trim())).collect::<Result<_, _>>()?)),
        }
    }
}

/// An origin as browsers write it (RFC 6454, 6.2): any other would never be equal to one.
fn origin(text: &str) -> Result<HeaderValue, String> {
    let wrong =
        || format!("{text:?} is no origin: write https://host or https://host:port, in small letters, or * alone");
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    let (scheme, authority) = uri.scheme_str().zip(uri.authority()).ok_or_else(wrong)?;
    let usual = match scheme {
        "https" => 443,
        "http" => 80,
        _ => return Err(wrong()),
    };
    let as_written = format!("{scheme}://{}", authority.as_str().to_ascii_lowercase());
    if text != as_written || authority.as_str().contains(['@', '*']) || authority.port_u16() == Some(usual) {
        return Err(wrong());
    }
    HeaderValue::from_str(text).map_err(|_| wrong())
}

/// What pages of these origins may send and read; nothing without any.
pub fn cors(origins: &Origins, routes: &Routes) -> Option<CorsLayer> {
    let (origins, vary) = match origins {
        Origins::Any => (AllowOrigin::from(Any), vec![]),
        Origins::These(these) if these.is_empty() => return None,
        Origins::These(these) => (AllowOrigin::list(these.clone()), vec![ORIGIN]),
    };
    let of_all = |usual: &[&'static str], of: fn(&Route) -> &[HeaderName]| {
        let mut names: Vec<_> = usual.iter().copied().map(HeaderName::from_static).collect();
        names.extend(routes.all().flat_map(of).cloned());
        names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        names.dedup();
        names
    };
    let methods = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let cors = CorsLayer::new().allow_origin(origins).vary(vary).allow_methods(methods).max_age(PREFLIGHT_FOR);
    let cors = cors.allow_headers(of_all(&REQUEST_HEADERS, |route| &route.policy.request_headers));
    Some(cors.expose_headers(of_all(&RESPONSE_HEADERS, |route| &route.policy.response_headers)))
}

/// Answers preflights, and says who may read an answer. An OPTIONS that is no preflight goes on as any request.
pub async fn crossing<F>(cors: Option<&CorsLayer>, request: Request, inner: impl Fn(Request) -> F) -> Response
where
    F: Future<Output = Response>,
{
    let asks = request.method() == Method::OPTIONS && !request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let Some(cors) = cors.filter(|_| !asks) else { return inner(request).await };
    let inner = tower::service_fn(|request| inner(request).map(Ok::<_, Infallible>));
    let Ok(response) = cors.layer(inner).call(request).await;
    response
}

/// The answer to an OPTIONS that is no preflight: what may be sent there.
pub fn options(methods: &[&Method]) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    response.headers_mut().extend(problem::allowed(methods));
    response
}

/// Says of an answer to a read how long it may be kept, and by whom. Of any other, nobody may keep it.
pub fn keep(route: &Route, response: &mut Response) {
    let complete = !response.headers().contains_key(DEGRADED);
    let headers = response.headers_mut();
    if let Some(seconds) = route.policy.shared_seconds.filter(|_| complete) {
        let value = HeaderValue::try_from(format!("public, max-age={seconds}"));
        headers.extend(value.map(|value| (CACHE_CONTROL, value)));
        headers.append(VARY, HeaderValue::from_static("accept-encoding"));
    } else if headers.contains_key(ETAG) && !route.policy.public && route.names_one() {
        // Its caller may keep it, and asks each time whether it is still so. Only where the path names it: a cache asks by the tag of what it has,
        // whoever calls by then (RFC 9111, 4.3.1), and what is at one path for every tenant has the same tag for several.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        // A 304 says the same as the answer itself (RFC 9110, 15.4.5).
        headers.append(VARY, HeaderValue::from_static("authorization, accept-encoding"));
    }
    if matches!(route.answers, Answers::Json) || is_text(headers) {
        if !headers.contains_key(VARY) {
            headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        }
        response.extensions_mut().insert(Compressible);
    }
}

/// Whether anybody may keep an answer.
pub fn is_shared(headers: &HeaderMap) -> bool {
    headers.get(CACHE_CONTROL).is_some_and(|value| value.as_bytes().starts_with(b"public"))
}

fn is_text(headers: &HeaderMap) -> bool {
    let media = headers.get(CONTENT_TYPE).and_then(|media| media.to_str().ok()).unwrap_or_default();
    media != "text/event-stream" && (media.starts_with("text/") || media.starts_with("application/json"))
}

/// An answer that may come in a coding.
#[derive(Debug, Clone, Copy)]
struct Compressible;

/// Compresses what is worth it, in the coding that the client likes best. What changes answer with is left as it is: it may hold a secret.
fn compression() -> CompressionLayer<impl Predicate> {
    let is =
        |_: StatusCode, _: Version, _: &HeaderMap, extensions: &Extensions| extensions.get::<Compressible>().is_some();
    // The fastest level: a megabyte must not cost more than it took to fetch.
    CompressionLayer::new()
        .quality(CompressionLevel::Fastest)
        .compress_when(SizeAbove::new(MIN_COMPRESSED_BYTES).and(is))
}

/// The answer in a coding that its client takes. It is compressed at once, while it is whole in memory anyway: one that nobody reads must not hold
/// an encoder.
pub async fn compressed<F>(request: Request, inner: impl Fn(Request) -> F) -> Response
where
    F: Future<Output = Response>,
{
    if !request.headers().contains_key(ACCEPT_ENCODING) {
        return inner(request).await;
    }
    let inner = tower::service_fn(|request| inner(request).map(Ok::<_, Infallible>));
    let Ok(response) = compression().layer(inner).call(request).await;
    let (head, body) = response.into_parts();
    if !head.headers.contains_key(CONTENT_ENCODING) {
        return Response::from_parts(head, Body::new(body));
    }
    match body.collect().await {
        Ok(whole) => Response::from_parts(head, Body::from(whole.to_bytes())),
        Err(error) => {
            tracing::error!(%error, "an answer cannot be compressed");
            Problem::internal().into_response()
        }
    }
}

/// 304, without the length of a body that it does not have (RFC 9110, 8.6).
pub fn not_modified() -> Response {
    let mut response = Response::new(Body::from_stream(futures::stream::empty::<Result<Bytes, Infallible>>()));
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

/// Whether a client takes gzip (RFC 9110, 12.5.3).
pub fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let is = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let refused = |weight: &str| {
            let weight = weight.to_ascii_lowercase();
            weight.strip_prefix("q=").is_some_and(|weight| weight.parse() == Ok(0.0))
        };
        is && !parts.any(refused)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_as_browsers_write_them() {
        let these = |text: &str| text.parse::<Origins>();
        assert_eq!(these("*"), Ok(Origins::Any));
        assert_eq!(these(""), Ok(Origins::These(vec![])));
        let two = ["https://app.acme.example", "http://localhost:5173"];
        assert_eq!(these(&two.join(", ")), Ok(Origins::These(two.map(HeaderValue::from_static).into())));
        for wrong in [
            "https://app.acme.example/",
            "https://App.acme.example",
            "https://app.acme.example:443",
            "http://app.acme.example:80",
            "https://ann@app.acme.example",
            "https://app.acme.example,*",
            "https://*.acme.example",
            "app.acme.example",
            "ftp://app.acme.example",
            "https://",
            "null",
            ",",
        ] {
            assert!(these(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn gzip_is_taken_where_it_is_named_and_not_refused() {
        for (value, takes) in [
            ("gzip", true),
            ("br, GZIP;q=0.5", true),
            ("gzip;q=0", false),
            ("gzip; q=0.000", false),
            ("gzip;Q=0", false),
            ("br", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(value))]);
            assert_eq!(takes_gzip(&headers), takes, "{value}");
        }
    }
}
