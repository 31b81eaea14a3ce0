//! gRPC and gRPC-Web at the edge: the frames of a call pass to the service and back as they are. Its path says which RPC it is, and the RPC's
//! options hold as they do over HTTP.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use authz::Caller;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use futures::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, Method, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use service::limits::Turn;
use service::server::Lasting;
use service::{Code, DEGRADED, Failure, idempotency};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::server::NamedService;
use tower::{Layer as _, Service as _};

use crate::edge::{Edge, Keyed};
use crate::problem::Problem;
use crate::request;
use crate::routes::{Route, Routes};
use crate::upstream;

/// The media type of gRPC, and those of gRPC-Web.
const GRPC: &str = "application/grpc";
const GRPC_WEB: [&str; 4] = [
    "application/grpc-web",
    "application/grpc-web+proto",
    "application/grpc-web-text",
    "application/grpc-web-text+proto",
];
/// What gRPC adds to each message.
const PREFIX_BYTES: usize = 5;
/// What passes of a call's metadata, beside what its method's options name.
const PASSES: [HeaderName; 3] = [
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("grpc-accept-encoding"),
];

/// Whether this is a call of gRPC's; none where it is one that cannot be served.
///
/// # Errors
/// What to send instead.
pub fn is_call(request: &Request) -> Result<bool, Problem> {
    let media = request.headers().get(CONTENT_TYPE).and_then(|media| media.to_str().ok());
    let Some(coding) = media.and_then(|media| media.strip_prefix(GRPC)) else { return Ok(false) };
    if request.method() == Method::POST && request.version() == Version::HTTP_2 && ["", "+proto"].contains(&coding) {
        return Ok(true);
    }
    let what =
        "gRPC is a POST of application/grpc over HTTP/2, with protobuf; over HTTP/1.1, send application/grpc-web";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE", what))
}

/// Makes a call of gRPC-Web one of gRPC, and its answer one of gRPC-Web; all else goes on as it is.
pub async fn web(request: Request, next: Next) -> Response {
    let media = request.headers().get(CONTENT_TYPE).and_then(|media| media.to_str().ok());
    if request.method() != Method::POST || !media.is_some_and(|media| GRPC_WEB.contains(&media)) {
        return next.run(request).await;
    }
    let inner = tower::service_fn(move |request: http::Request<tonic::body::Body>| {
        let next = next.clone();
        let mut request = request.map(Body::new);
        // From here on it is one.
        *request.version_mut() = Version::HTTP_2;
        async move { Ok::<_, Infallible>(next.run(request).await) }
    });
    let mut service = tonic_web::GrpcWebLayer::new().layer(inner);
    match service.call(request).await {
        Ok(response) => response.map(Body::new),
        Err(never) => match never {},
    }
}

/// Answers a call of this RPC.
///
/// # Errors
/// The status of the service, or why it was not called.
pub async fn answer(
    edge: &Edge,
    route: Option<&Route>,
    request: Request,
    caller: &mut Option<Caller>,
) -> Result<Response, Status> {
    let Some(route) = route else {
        return Err(Failure::new(Code::Unimplemented, "NO_SUCH_METHOD", "there is no such method").into());
    };
    let (head, body) = request.into_parts();
    let (authorization, turn) = edge.admit(route, &head, caller).await?;
    let arrived = edge.bodies.collect(body, route.max_body_bytes() + PREFIX_BYTES).await;
    let mut arrived = arrived.map_err(Status::from)?;
    request::said(&head.headers, &route.policy.request_headers)?;
    let key = Keyed::of(route, &head.headers)?;
    let open = if route.policy.streams { Some(edge.opens(&head, caller.as_ref())?) } else { None };
    let frames = arrived.take();
    let again = edge.may_repeat(route, &head, &key).then(|| frames.clone());
    let send = |frames, authorization| {
        let mut metadata = HeaderMap::new();
        key.put(authorization, &mut metadata);
        for name in PASSES.iter().chain(&route.policy.request_headers) {
            for value in head.headers.get_all(name) {
                metadata.append(name, value.clone());
            }
        }
        upstream::pass(&edge.upstreams, route, metadata, frames)
    };
    let response = edge.call((route, &head), (authorization, turn), caller, (frames, again), send).await;
    let mut response = response.map_err(|status| key.outcome(status))?;
    let said = std::mem::take(response.headers_mut());
    let passes = |name: &HeaderName| {
        let replayed = *name == idempotency::REPLAYED_METADATA && !key.is_own();
        let usual = *name == CONTENT_TYPE || *name == DEGRADED || name.as_str().starts_with("grpc-");
        replayed || usual || route.policy.response_headers.contains(name)
    };
    for (name, value) in said.iter().filter(|(name, _)| passes(name)) {
        response.headers_mut().append(name, value.clone());
    }
    Ok(match open {
        Some(open) => until(response, open, edge.lifecycle.stopping()),
        None => response.map(Body::new),
    })
}

/// The answer as it comes, until it ends or the process stops. `open` is its place among the open streams.
fn until(response: http::Response<tonic::body::Body>, open: Turn, stop: CancellationToken) -> Response {
    let (mut head, body) = response.into_parts();
    head.extensions.insert(Lasting::Sends);
    let frames = stream::unfold(Some((body, open, stop)), |going| async {
        let (mut body, open, stop) = going?;
        match stop.run_until_cancelled(body.frame()).await {
            Some(None) => None,
            Some(Some(Ok(frame))) => Some((Ok::<_, Infallible>(frame), Some((body, open, stop)))),
            Some(Some(Err(_))) => Some((Ok(ended("the service went away")), None)),
            None => Some((Ok(ended("the edge stops")), None)),
        }
    });
    Response::from_parts(head, Body::new(StreamBody::new(frames)))
}

/// The last frame of a stream that ends before its time.
fn ended(why: &str) -> Frame<Bytes> {
    let what = format!("{why}: begin again where this stream ends");
    let status = Status::from(Failure::new(Code::Unavailable, "UNAVAILABLE", what).retry_after(Duration::from_secs(1)));
    let mut trailers = HeaderMap::new();
    if let Err(error) = status.add_header(&mut trailers) {
        tracing::error!(%error, "a status cannot be written");
    }
    Frame::trailers(trailers)
}

/// Health, and where it is wanted reflection of all that is served: to anybody.
///
/// # Errors
/// The descriptors cannot be read.
pub fn router<S: Clone + Send + Sync + 'static>(routes: &Routes, reflects: bool) -> Result<Router<S>, anyhow::Error> {
    let (_, health) = tonic_health::server::health_reporter();
    let router = Router::new().route_service(&of(&health), health);
    if !reflects {
        return Ok(router);
    }
    let reflection = || {
        let mut served = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(routes.descriptors())
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.health.v1.Health");
        for name in routes.all().map(Route::service).collect::<BTreeSet<_>>() {
            served = served.with_service_name(name);
        }
        served
    };
    // Two names of the same service: some clients know only the older one.
    let (newer, older) = (reflection().build_v1()?, reflection().build_v1alpha()?);
    Ok(router.route_service(&of(&newer), newer).route_service(&of(&older), older))
}

/// The paths of a service's methods.
fn of<S: NamedService>(_: &S) -> String {
    format!("/{}/{{method}}", S::NAME)
}
