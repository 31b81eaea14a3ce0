//! The HTTP server: who calls, which RPC, call it, answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use authz::Caller;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use prost_reflect::DynamicMessage;
use service::config::Common;
use service::lines::{Line, Outcome, Unanswered};
use service::readiness::AtWork;
use service::server::{self, Bounds};
use service::tls::Speaks;
use service::upstreams::Upstreams;
use service::{DEGRADED, Process, RELEASE, deadline, idempotency, trace};
use tokio::net::TcpListener;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tower_http::cors::CorsLayer;
use tracing::Instrument as _;

use crate::Config;
use crate::edge::{Edge, Keyed, Seen};
use crate::problem::Problem;
use crate::request::{self, Conditions};
use crate::routes::{Answers, Found, Route, Routes, Takes};
use crate::transcode::{self, Content, Parts};
use crate::upstream::{self, Answer};
use crate::{browsers, events, form, frames, health, pages, rates};

/// What a page that a service answers may: styles of its own, and its form sent back.
const PAGES_MAY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
/// Where a reader of events is.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The code of a successful answer.
const OK: &str = "OK";

/// Serves these routes until the process stops; returns the address.
///
/// # Errors
/// Fails when the address cannot be bound.
pub async fn serve(
    process: &Process,
    config: &Config,
    routes: &'static Routes,
    upstreams: Upstreams,
) -> Result<SocketAddr, anyhow::Error> {
    let (common, Process { lifecycle, readiness, .. }) = (&config.common, process.clone());
    let Common { listen, admission, .. } = common;
    let listener = TcpListener::bind(listen).await.map_err(|e| anyhow::anyhow!("the HTTP port {listen}: {e}"))?;
    let address = listener.local_addr()?;
    let router = Router::new()
        .fallback(called)
        .with_state(Arc::new(Edge::new(process, config, (routes, upstreams)).await?))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(move || async move { readiness.answer() }))
        .merge(pages::router(routes))
        .method_not_allowed_fallback(pages::other_method);
    let (release, cors) = (process.release_header(common), browsers::cors(&config.cors_origins, routes));
    // Layers of a router would each be copied for each request.
    let router = Router::new().fallback(strict).with_state(Arc::new(Front { release, cors, router }));
    let bounds = Bounds {
        connections: usize::from(admission.connections.get()),
        streams: 256,
        http2_only: false,
        longest: server::LONGEST,
    };
    let tls = process.acceptor(Speaks::Both)?;
    tracing::info!(%address, tls = tls.is_some(), "taking requests");
    lifecycle.spawn("HTTP server", server::serve(listener, router, (bounds, tls), lifecycle.stopping()));
    Ok(address)
}

/// What every request goes through first.
struct Front {
    release: Option<HeaderValue>,
    cors: Option<CorsLayer>,
    /// The pages and the calls.
    router: Router,
}

/// Applies the rules that hold for every request and every answer.
async fn strict(State(front): State<Arc<Front>>, request: Request) -> Response {
    let mut response = match request::host(&request) {
        Ok(()) => {
            let inner = |request| frames::web(request, front.router.clone());
            browsers::crossing(front.cors.as_ref(), request, inner).await
        }
        Err(problem) => problem.into_response(),
    };
    let headers = response.headers_mut();
    // An answer is for its caller alone where it says nothing else, and its type is what it says.
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(release) = &front.release {
        headers.insert(RELEASE, release.clone());
    }
    response
}

async fn called(State(edge): State<Arc<Edge>>, request: Request) -> Response {
    browsers::compressed(request, |request| traced(Arc::clone(&edge), request)).await
}

/// What a request asks for.
enum Asked {
    Http(Found<'static>),
    Grpc(Option<&'static Route>),
    /// A method of gRPC's own services, and whether it streams.
    Open(bool),
    /// A call that is none.
    NoCall,
}

async fn traced(edge: Arc<Edge>, request: Request) -> Response {
    let path = request.uri().path();
    let asked = match (frames::is_call(&request), health::streams(path)) {
        ((true, _), Some(streams)) => Asked::Open(streams),
        ((true, _), None) => Asked::Grpc(edge.routes.rpc(path)),
        ((_, true), _) => Asked::NoCall,
        _ => Asked::Http(edge.routes.find(request.method(), path)),
    };
    let (pattern, oauth, deprecated) = match &asked {
        Asked::Http(Found::Route(route, _)) => (route.pattern.clone(), route.policy.oauth, Some(&route.deprecated)),
        Asked::Grpc(Some(route)) => (path.to_owned(), false, Some(&route.deprecated)),
        Asked::Open(_) => ("grpc".to_owned(), false, None),
        _ => ("unknown".to_owned(), false, None),
    };
    let method = known_method(request.method());
    let span = tracing::info_span!(
        "http",
        otel.name = format_args!("{method} {pattern}"),
        otel.kind = "server",
        http.request.method = method,
        http.route = pattern
    );
    trace::continue_trace(&span, request.headers());
    let (started, _at_work) = (Instant::now(), AtWork::new(&edge.at_work));
    let mut seen = Seen::default();
    let called = format!("{method} {pattern}");
    let (response, code, status) = async {
        let unanswered = Unanswered::new("request", &called, started);
        let answered = match asked {
            Asked::Http(found) => answer(&edge, found, request, &mut seen).await.map_err(|problem| {
                let (code, status) = (problem.code.clone(), problem.status);
                (if oauth { problem.into_oauth_response() } else { problem.into_response() }, code, status)
            }),
            Asked::Grpc(route) => {
                let hurried = deadline::of(request.headers()).is_some_and(|deadline| deadline < deadline::SHORT);
                let answered = frames::answer(&edge, route, request, &mut seen).await;
                answered.map_err(|status| over_grpc(status, hurried))
            }
            Asked::Open(streams) => {
                frames::open(&edge, request, streams).await.map_err(|status| over_grpc(status, false))
            }
            Asked::NoCall => {
                let problem = frames::no_call();
                let (code, status) = (problem.code.clone(), problem.status);
                Err((problem.into_response(), code, status))
            }
        };
        let (mut response, code, status) = answered.map_or_else(
            |failed| failed,
            |response| {
                let status = response.status();
                (response, OK.to_owned(), status)
            },
        );
        // What anybody may keep says nothing of whoever asked first.
        let is_shared = browsers::is_shared(response.headers());
        if !is_shared {
            rates::say(response.headers_mut(), &seen.standing);
        }
        response.headers_mut().extend(deprecated.cloned().into_iter().flatten());
        report(&called, seen.caller.as_ref(), &code, (&response, status), started.elapsed());
        unanswered.answered();
        (if is_shared { response } else { with_trace_id(response) }, code, status)
    }
    .instrument(span.clone())
    .await;
    trace::set(&span, "http.response.status_code", i64::from(status.as_u16()));
    if code != OK {
        trace::set_error(&span, &code);
    }
    if let Some(who) = seen.caller {
        trace::set_caller(&span, &who);
    }
    metrics::histogram!("http_server_request_duration_seconds", "method" => method, "route" => pattern,
        "status" => status.as_u16().to_string())
    .record(started.elapsed().as_secs_f64());
    response
}

/// A status as an answer over gRPC, which is 200 whatever has happened; and what the line and the metrics have: the status that it would be over
/// HTTP. What no method answers, and a caller that allows no time, are no failures of ours.
fn over_grpc(status: Status, hurried: bool) -> (Response, String, StatusCode) {
    let problem = Problem::from(status.clone());
    let over_http = match status.code() {
        tonic::Code::Unimplemented if problem.code == "NO_SUCH_METHOD" => StatusCode::NOT_FOUND,
        tonic::Code::DeadlineExceeded if hurried => StatusCode::REQUEST_TIMEOUT,
        _ => problem.status,
    };
    let mut response = status.into_http::<Body>();
    // As over HTTP: what is left of whose rate.
    response.headers_mut().extend(problem.headers.into_iter().filter(|(name, _)| rates::is_said(name)));
    (response, problem.code, over_http)
}

/// Writes the log line of a request.
fn report(method: &str, who: Option<&Caller>, code: &str, (response, status): (&Response, StatusCode), took: Duration) {
    let status = status.as_u16();
    let outcome = match status {
        ..400 => Outcome::Done,
        400..500 => Outcome::Refused,
        _ => Outcome::Failed,
    };
    let replayed = response.headers().contains_key(idempotency::REPLAYED_METADATA);
    let degraded = response.headers().get(DEGRADED).and_then(|parts| parts.to_str().ok()).map(ToOwned::to_owned);
    Line { kind: "request", method, who, code, status, outcome, took, events: None, replayed, degraded }.write();
}

/// A caller may invent methods; label values must be known.
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
    if let Some(id) = trace::trace_id().and_then(|id| HeaderValue::try_from(id).ok()) {
        response.headers_mut().insert("trace-id", id);
    }
    response
}

async fn answer(edge: &Edge, found: Found<'_>, request: Request, seen: &mut Seen) -> Result<Response, Problem> {
    let (route, fields) = match found {
        Found::Route(route, fields) => (route, fields),
        Found::OtherMethods(methods) if request.method() == Method::OPTIONS => return Ok(browsers::options(&methods)),
        Found::OtherMethods(methods) => return Err(Problem::method_not_allowed(&methods)),
        Found::Nothing => {
            return Err(Problem::new(StatusCode::NOT_FOUND, "NO_SUCH_PATH", "there is nothing at this path"));
        }
    };
    let (head, body) = request.into_parts();
    let (authorization, turn) = edge.admit(route, &head, seen).await?;
    let body = edge.bodies.read(&head.headers, body, (&route.takes, route.max_body_bytes())).await?;
    let form = match route.takes {
        Takes::Form | Takes::OauthForm => form::read(&head.headers, body.bytes()).await?,
        Takes::Json | Takes::Raw(_) => Vec::new(),
    };
    request::said(&head.headers, &route.policy.request_headers)?;
    let conditions = Conditions::of(&head.method, &head.headers)?;
    let reads = route.verb == Method::GET;
    if route.verb == Method::POST && fields.is_empty() {
        conditions.of_collection()?;
    }
    let if_match = conditions.etag();
    let parts = Parts {
        path: &fields,
        query: head.uri.query().unwrap_or_default(),
        body: match route.takes {
            Takes::Json => Content::Json(body.bytes()),
            Takes::Form | Takes::OauthForm => Content::Form(&form),
            Takes::Raw(_) => Content::Raw { media: text_of(&head.headers, &CONTENT_TYPE), bytes: body.bytes() },
        },
        if_match: if_match.as_deref(),
        last_event: Some(text_of(&head.headers, &LAST_EVENT_ID)).filter(|id| !id.is_empty()),
    };
    let message = transcode::request(route, parts)?;
    let open =
        if route.policy.streams { Some(edge.opens(&head, seen.caller.as_ref()).map_err(Status::from)?) } else { None };
    let key = Keyed::of(route, &head.headers)?;
    let again = Edge::may_repeat(route, seen, &key).then(|| message.clone());
    let send = |message: DynamicMessage, authorization: Option<HeaderValue>| {
        let mut call = tonic::Request::new(message);
        *call.metadata_mut() = MetadataMap::from_headers(key.metadata(authorization, (route, &head)));
        upstream::call(&edge.upstreams, route, call)
    };
    let answer = edge.call((route, &head), (authorization, turn), seen, (message, again), send).await;
    let answer = answer.map_err(|status| key.outcome(status))?;
    let (metadata, answer, _) = answer.into_parts();
    let mut response = match answer {
        Answer::Stream(messages) => events::answer(messages, &edge.lifecycle, (&edge.kept, open)),
        Answer::Message(message) if route.answers == Answers::Raw => raw(&message),
        Answer::Message(message) => respond(&message, route, reads.then_some(&conditions))?,
    };
    // The service marks an answer that repeats an earlier one of the same key, and one that lacks a backing service.
    for name in [idempotency::REPLAYED_METADATA, DEGRADED] {
        let meant = !(key.is_own() && name == idempotency::REPLAYED_METADATA);
        if let Some(said) = metadata.as_ref().get(name).filter(|_| meant) {
            response.headers_mut().insert(name, said.clone());
        }
    }
    for name in &route.policy.response_headers {
        if let Some(said) = metadata.as_ref().get(name) {
            response.headers_mut().insert(name.clone(), said.clone());
        }
    }
    if reads {
        browsers::keep(route, &mut response);
    }
    Ok(response)
}

/// The value of a header as a text; empty without one.
fn text_of<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// An answer as it is. A page of it runs no script, loads nothing and is shown in no other page.
fn raw(answer: &DynamicMessage) -> Response {
    let field = |name: &str| answer.get_field_by_name(name);
    let media = field("content_type").and_then(|media| HeaderValue::try_from(media.as_str()?).ok());
    let media = media.filter(|media| !media.is_empty());
    let data = field("data").and_then(|data| data.as_bytes().cloned()).unwrap_or_default();
    let mut response = Response::new(Body::from(data));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, media.unwrap_or(HeaderValue::from_static("application/octet-stream")));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGES_MAY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// The answer as JSON; a read follows the request's conditions.
fn respond(answer: &DynamicMessage, route: &Route, conditions: Option<&Conditions>) -> Result<Response, Problem> {
    let (json, etag) = transcode::response(answer, route.policy.oauth)?;
    let json = match &route.response_body {
        Some(field) => transcode::only(&json, field)?,
        None => json,
    };
    let known = conditions.map_or(Ok(false), |conditions| conditions.is_known(etag.as_deref()))?;
    let mut response =
        if known { browsers::not_modified() } else { ([(CONTENT_TYPE, "application/json")], json).into_response() };
    if let Some(etag) = etag.and_then(|etag| HeaderValue::try_from(format!("\"{etag}\"")).ok()) {
        response.headers_mut().insert(ETAG, etag);
    }
    Ok(response)
}
