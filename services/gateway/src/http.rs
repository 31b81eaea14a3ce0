//! The HTTP door: who calls, which RPC, call it, answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use authz::Verifier;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use futures::StreamExt as _;
use http::header::{AUTHORIZATION, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use service::ops::Readiness;
use service::{Failure, Lifecycle, idempotency, telemetry};
use tokio::net::TcpListener;
use tonic::Status;
use tracing::Instrument as _;

use crate::problem::Problem;
use crate::routes::{self, Found, Route};
use crate::transcode::{self, Parts};
use crate::upstream::Upstreams;

/// The largest request body.
const MAX_BODY_BYTES: usize = 1024 * 1024;
/// How much of a larger one is read before the connection is given up.
const MAX_DRAINED_BYTES: usize = 16 * MAX_BODY_BYTES;
/// How long a request body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);
/// The error types, for people: what `type` in a problem points to.
const PROBLEMS: &str = include_str!("../../../docs/errors.md");
/// A key and its quotes.
const MAX_KEY_BYTES: usize = 257;
/// The longest `Authorization` header: upstream takes no more than 16 KiB of headers in all.
const MAX_AUTHORIZATION_BYTES: usize = 9 * 1024;
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static(idempotency::METADATA);

struct Edge {
    verifier: Arc<Verifier>,
    upstreams: Upstreams,
}

/// Serves until the process stops; the address it got.
///
/// # Errors
/// Fails when the address cannot be bound.
pub async fn serve(
    lifecycle: &Lifecycle,
    listen: SocketAddr,
    readiness: Readiness,
    verifier: Arc<Verifier>,
    upstreams: Upstreams,
) -> Result<SocketAddr, anyhow::Error> {
    let listener = TcpListener::bind(listen).await.map_err(|e| anyhow::anyhow!("the HTTP port {listen}: {e}"))?;
    let address = listener.local_addr()?;
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(move || async move { readiness.answer() }))
        .route("/problems", get(|| async { ([(CONTENT_TYPE, "text/markdown; charset=utf-8")], PROBLEMS) }))
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed(&[&Method::GET]) })
        .fallback(traced)
        .with_state(Arc::new(Edge { verifier, upstreams }));
    let stop = lifecycle.stopping();
    lifecycle.spawn("HTTP server", async move {
        axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await }).await
    });
    Ok(address)
}

async fn traced(State(edge): State<Arc<Edge>>, request: Request) -> Response {
    let found = routes::find(request.method(), request.uri().path());
    let pattern = match &found {
        Found::Route(route, _) => route.pattern.as_str(),
        Found::OtherMethods(_) | Found::Nothing => "unknown",
    };
    let method = known_method(request.method());
    let span = tracing::info_span!(
        "http",
        otel.name = format_args!("{method} {pattern}"),
        otel.kind = "server",
        http.request.method = method,
        http.route = pattern
    );
    telemetry::continue_trace(&span, request.headers());
    let started = Instant::now();
    let response = async {
        let answer = answer(&edge, found, request).await.unwrap_or_else(axum::response::IntoResponse::into_response);
        with_trace_id(answer)
    }
    .instrument(span.clone())
    .await;
    telemetry::set(&span, "http.response.status_code", i64::from(response.status().as_u16()));
    metrics::histogram!("http_server_request_duration_seconds", "method" => method, "route" => pattern.to_owned(),
        "status" => response.status().as_u16().to_string())
    .record(started.elapsed().as_secs_f64());
    response
}

/// Methods are the caller's to invent; label values are not.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::PUT => "PUT",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "_OTHER",
    }
}

fn with_trace_id(mut response: Response) -> Response {
    if let Some(id) = telemetry::trace_id().and_then(|id| HeaderValue::try_from(id).ok()) {
        response.headers_mut().insert("trace-id", id);
    }
    response
}

async fn answer(edge: &Edge, found: Found, request: Request) -> Result<Response, Problem> {
    let (route, fields) = match found {
        Found::Route(route, fields) => (route, fields),
        Found::OtherMethods(methods) => return Err(Problem::method_not_allowed(&methods)),
        Found::Nothing => {
            return Err(Problem::new(StatusCode::NOT_FOUND, "NO_SUCH_PATH", "there is nothing at this path"));
        }
    };
    let (head, body) = request.into_parts();
    // Who calls, before anything of the request is looked at.
    let authorization = head.headers.get(AUTHORIZATION).filter(|value| value.len() <= MAX_AUTHORIZATION_BYTES).cloned();
    edge.verifier
        .verify(authorization.as_ref().and_then(|value| value.to_str().ok()))
        .await
        .map_err(|error| Problem::from(Status::from(Failure::from(error))))?;
    let body = read_body(&head.headers, body).await?;
    let if_match = if_match(&head.headers)?;
    let parts = Parts {
        path: &fields,
        query: head.uri.query().unwrap_or_default(),
        body: &body,
        if_match: if_match.as_deref(),
    };
    let mut call = tonic::Request::new(transcode::request(route, parts)?);
    let metadata: &mut HeaderMap = call.metadata_mut().as_mut();
    for (name, value) in [(AUTHORIZATION, authorization), (IDEMPOTENCY_KEY.clone(), one_key(&head.headers)?)] {
        if let Some(value) = value {
            metadata.insert(name, value);
        }
    }
    let answer = call_upstream(edge, route, call).await?;
    let mut response = respond(answer.get_ref(), &head.method, &head.headers)?;
    // Said by the service, of an answer that is an earlier request's with the same key.
    if let Some(replayed) = answer.metadata().as_ref().get(idempotency::REPLAYED_METADATA) {
        response.headers_mut().insert(idempotency::REPLAYED_METADATA, replayed.clone());
    }
    Ok(response)
}

async fn call_upstream(
    edge: &Edge,
    route: &Route,
    mut call: tonic::Request<prost_reflect::DynamicMessage>,
) -> Result<tonic::Response<prost_reflect::DynamicMessage>, Problem> {
    let span = tracing::info_span!(target: "service::trace", "call", otel.name = route.rpc.full_name(),
        otel.kind = "client", rpc.system.name = "grpc", rpc.method = route.rpc.full_name());
    async {
        telemetry::pass_trace(call.metadata_mut().as_mut());
        edge.upstreams.call(&route.rpc, call).await.map_err(Problem::from)
    }
    .instrument(span)
    .await
}

async fn read_body(headers: &HeaderMap, body: Body) -> Result<Vec<u8>, Problem> {
    let bytes = match tokio::time::timeout(BODY_TIMEOUT, collect(body)).await {
        Ok(bytes) => bytes?,
        Err(_) => {
            return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "REQUEST_TIMEOUT", "the body took too long"));
        }
    };
    let json = |value: &str| {
        let media = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        media == "application/json" || media == "application/merge-patch+json"
    };
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !bytes.is_empty() && !content_type.is_some_and(json) {
        let detail = "send the body as JSON, with the header Content-Type: application/json";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE", detail));
    }
    Ok(bytes)
}

/// A body that is too large is read a good deal further, and forgotten: a client that is still sending would not see
/// the answer.
async fn collect(body: Body) -> Result<Vec<u8>, Problem> {
    let mut stream = body.into_data_stream();
    let (mut bytes, mut total) = (Vec::new(), 0);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| Problem::invalid("the body did not arrive as it was announced"))?;
        total += chunk.len();
        if total <= MAX_BODY_BYTES {
            bytes.extend_from_slice(&chunk);
        } else if total > MAX_DRAINED_BYTES {
            break;
        }
    }
    if total > MAX_BODY_BYTES {
        let detail = format!("a request body may have {MAX_BODY_BYTES} bytes at most");
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE", detail));
    }
    Ok(bytes)
}

/// The entity tag of `If-Match`, unquoted (RFC 9110, 13.1.1).
fn if_match(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let wrong = || Problem::invalid("If-Match must be one entity tag in quotes, such as \"v3\", or *");
    let mut values = headers.get_all(IF_MATCH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().map_err(|_| wrong())?.trim();
    if values.next().is_some() {
        return Err(wrong());
    }
    if text == "*" {
        return Ok(Some(text.to_owned()));
    }
    // A weak tag never matches: it goes on as it is, and the service refuses it.
    let tag = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    match tag {
        Some(tag) if !tag.is_empty() && !tag.contains('"') => Ok(Some(tag.to_owned())),
        None if text.starts_with("W/\"") && text.ends_with('"') => Ok(Some(text.to_owned())),
        _ => Err(wrong()),
    }
}

fn one_key(headers: &HeaderMap) -> Result<Option<HeaderValue>, Problem> {
    let mut values = headers.get_all(&IDEMPOTENCY_KEY).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "IDEMPOTENCY_KEY_MALFORMED",
            "send one Idempotency-Key, not several",
        )),
        (Some(value), None) if value.len() > MAX_KEY_BYTES => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "IDEMPOTENCY_KEY_MALFORMED",
            "Idempotency-Key must be 1 to 255 printable ASCII characters, for example a UUID",
        )),
        (value, None) => Ok(value.cloned()),
    }
}

fn respond(answer: &prost_reflect::DynamicMessage, method: &Method, headers: &HeaderMap) -> Result<Response, Problem> {
    let (json, etag) = transcode::response(answer)?;
    let etag = etag.and_then(|etag| HeaderValue::try_from(format!("\"{etag}\"")).ok());
    let fresh = match (&etag, headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok())) {
        (Some(etag), Some(known)) if method == Method::GET => {
            known.split(',').map(str::trim).any(|known| known == "*" || known.trim_start_matches("W/") == etag)
        }
        _ => false,
    };
    let mut response = if fresh {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(CONTENT_TYPE, "application/json")], json).into_response()
    };
    if let Some(etag) = etag {
        response.headers_mut().insert(ETAG, etag);
    }
    Ok(response)
}
