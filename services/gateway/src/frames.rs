//! gRPC and gRPC-Web at the edge: the frames of a call pass to the service and back as they are. Its path says which RPC it is, and the RPC's
//! options hold as they do over HTTP.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use futures::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, Method, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt as _, Limited, StreamBody};
use service::server::Lasting;
use service::{Code, DEGRADED, Failure, deadline, idempotency};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic_types::StatusExt as _;
use tower::{Layer as _, Service as _, ServiceExt as _};

use crate::edge::{Edge, Keyed, Seen};
use crate::problem::Problem;
use crate::request;
use crate::routes::Route;
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
/// The most that strangers may send to gRPC's own services in one call.
const MAX_OPEN_BYTES: usize = 64 * 1024;
/// How long a stream of theirs lasts: strangers hold no place that a caller may need.
const OPEN_FOR: Duration = Duration::from_secs(60);
const A_DAY: Duration = Duration::from_secs(86_400);
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// Whether this is a call of gRPC's; and whether it is meant to be one, and cannot be served.
pub fn is_call(request: &Request) -> (bool, bool) {
    let media = request.headers().get(CONTENT_TYPE).and_then(|media| media.to_str().ok());
    let Some(coding) = media.and_then(|media| media.strip_prefix(GRPC)) else { return (false, false) };
    let posted = request.method() == Method::POST;
    let is = posted && request.version() == Version::HTTP_2 && ["", "+proto"].contains(&coding);
    (is, posted && !is && is_rpc(request.uri().path()))
}

/// Whether a path is that of an RPC, known or not: `/package.Service/Method`.
fn is_rpc(path: &str) -> bool {
    let parts = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    parts.is_some_and(|(service, method)| service.contains('.') && !method.contains('/'))
}

/// What is meant to be a call, and is none.
pub fn no_call() -> Problem {
    let what =
        "gRPC is a POST of application/grpc over HTTP/2, with protobuf; over HTTP/1.1, send application/grpc-web";
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE", what)
}

/// Makes a call of gRPC-Web one of gRPC, and its answer one of gRPC-Web; all else goes on as it is.
pub async fn web(request: Request, router: Router) -> Response {
    let media = request.headers().get(CONTENT_TYPE).and_then(|media| media.to_str().ok());
    let posted = request.method() == Method::POST && is_rpc(request.uri().path());
    if !posted || !media.is_some_and(|media| GRPC_WEB.contains(&media)) {
        let Ok(response) = router.oneshot(request).await;
        return response;
    }
    let inner = tower::service_fn(move |request: http::Request<tonic::body::Body>| {
        let mut request = request.map(Body::new);
        // From here on it is one.
        *request.version_mut() = Version::HTTP_2;
        router.clone().oneshot(request)
    });
    let mut service = tonic_web::GrpcWebLayer::new().layer(inner);
    let Ok(response) = service.call(request).await;
    response.map(Body::new)
}

/// Answers a call of this RPC.
///
/// # Errors
/// The status of the service, or why it was not called.
pub async fn answer(
    edge: &Edge,
    route: Option<&'static Route>,
    request: Request,
    seen: &mut Seen,
) -> Result<Response, Status> {
    let Some(route) = route else {
        return Err(no_method());
    };
    let (head, body) = request.into_parts();
    let (authorization, turn) = edge.admit(route, &head, seen).await?;
    if head.headers.get_all(&ENCODING).iter().any(|coding| coding != "identity") {
        let what = "send messages as they are, without a compression";
        return Err(Failure::new(Code::Unimplemented, "UNSUPPORTED_MEDIA_TYPE", what).into());
    }
    if deadline::of(&head.headers).is_some_and(|deadline| deadline.is_zero()) {
        return Err(
            Failure::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "the call's time was over when it came").into()
        );
    }
    let arrived = edge.bodies.collect(body, route.max_body_bytes() + PREFIX_BYTES).await;
    let mut arrived = arrived.map_err(Status::from)?;
    request::said(&head.headers, &route.policy.request_headers)?;
    let key = Keyed::of(route, &head.headers)?;
    let open = if route.policy.streams { Some(edge.opens(&head, seen.caller.as_ref())?) } else { None };
    let frames = arrived.take();
    let again = Edge::may_repeat(route, seen, &key).then(|| frames.clone());
    let timeout = head.headers.get(&TIMEOUT).filter(|_| deadline::of(&head.headers).is_some());
    let send = |frames, authorization| {
        let mut metadata = key.metadata(authorization, (route, &head));
        metadata.extend(timeout.map(|timeout| (TIMEOUT, timeout.clone())));
        upstream::pass(&edge.upstreams, route, metadata, frames)
    };
    let response = edge.call((route, &head), (authorization, turn), seen, (frames, again), send).await;
    let passes = Passes { own_key: key.is_own(), named: &route.policy.response_headers };
    let mut response = response.map_err(|status| passes.of_status(key.outcome(status)))?;
    passes.filter(response.headers_mut());
    let response = response.map(|body| {
        body.map_frame(move |mut frame| {
            if let Some(trailers) = frame.trailers_mut() {
                passes.filter(trailers);
            }
            frame
        })
    });
    Ok(match open {
        // It ends with its token, as its service says.
        Some(open) => until(response, open, (edge.lifecycle.stopping(), Instant::now() + A_DAY)),
        None => response.map(Body::new),
    })
}

/// Answers a call of gRPC's own services, which are open to anybody: within what an address may.
///
/// # Errors
/// The address calls too often.
pub async fn open(edge: &Edge, request: Request, streams: bool) -> Result<Response, Status> {
    let (head, body) = request.into_parts();
    let (turn, place) = edge.admit_stranger(&head, streams).await?;
    let body = Body::new(Limited::new(body, MAX_OPEN_BYTES));
    let response = match edge.open.clone().oneshot(Request::from_parts(head, body)).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    drop(turn);
    if response.status() == StatusCode::NOT_FOUND {
        return Err(no_method());
    }
    Ok(match place {
        Some(place) => until(response, place, (edge.lifecycle.stopping(), Instant::now() + OPEN_FOR)),
        None => response,
    })
}

fn no_method() -> Status {
    let what = "there is no such method: /descriptors.binpb has those that there are";
    Failure::new(Code::Unimplemented, "NO_SUCH_METHOD", what).into()
}

/// What passes of what a service says, beside its messages: what gRPC and the edge know, and what the method's options name.
struct Passes {
    own_key: bool,
    named: &'static [HeaderName],
}

impl Passes {
    fn filter(&self, said: &mut HeaderMap) {
        let passes = |name: &HeaderName| {
            let replayed = *name == idempotency::REPLAYED_METADATA && !self.own_key;
            let usual = *name == CONTENT_TYPE || *name == DEGRADED || name.as_str().starts_with("grpc-");
            replayed || usual || self.named.contains(name)
        };
        let all = std::mem::take(said);
        for (name, value) in all.iter().filter(|(name, _)| passes(name)) {
            said.append(name, value.clone());
        }
    }

    /// A status with its reason: one that no service of ours has made shows nothing of its own.
    fn of_status(&self, status: Status) -> Status {
        if status.get_details_error_info().is_none() {
            return Problem::from(status).into();
        }
        let mut metadata = status.metadata().clone().into_headers();
        self.filter(&mut metadata);
        let details = Bytes::copy_from_slice(status.details());
        Status::with_details_and_metadata(status.code(), status.message(), details, MetadataMap::from_headers(metadata))
    }
}

/// The answer as it comes, until it ends, the process stops, or its time is over. `open` is its place among the open streams.
fn until<B, H: Send + 'static>(response: http::Response<B>, open: H, ends: (CancellationToken, Instant)) -> Response
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Send,
{
    let (mut head, body) = response.into_parts();
    head.extensions.insert(Lasting::Reads);
    let frames = stream::unfold(Some((body, open, ends)), |going| async {
        let (mut body, open, (stop, at)) = going?;
        match timeout_at(at, stop.run_until_cancelled(body.frame())).await {
            Ok(Some(None)) => None,
            Ok(Some(Some(Ok(frame)))) => Some((Ok::<_, Infallible>(frame), Some((body, open, (stop, at))))),
            Ok(Some(Some(Err(_)))) => Some((Ok(ended("the service went away")), None)),
            Ok(None) => Some((Ok(ended("the edge stops")), None)),
            Err(_) => Some((Ok(ended("its time is over")), None)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_says_why_it_ends() {
        let began = Instant::now();
        for stopped in [true, false] {
            let silent = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
            let stop = CancellationToken::new();
            if stopped {
                stop.cancel();
            }
            let mut body = until(http::Response::new(silent), (), (stop, began + OPEN_FOR)).into_body();
            let last = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
            assert_eq!(last["grpc-status"], "14");
            assert!(body.frame().await.is_none());
            assert_eq!(began.elapsed(), if stopped { Duration::ZERO } else { OPEN_FOR });
        }
    }

    #[test]
    fn only_paths_of_methods_are_calls() {
        for (path, is) in
            [("/a.b.C/D", true), ("/healthz", false), ("/v1/todos", false), ("/a.b.C/D/E", false), ("/", false)]
        {
            assert_eq!(is_rpc(path), is, "{path}");
        }
    }
}
