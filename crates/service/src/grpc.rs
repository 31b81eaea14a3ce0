//! The gRPC server of a service: every call is traced, measured, has a deadline and a verified caller.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use authz::{Caller, TokenError, Verifier};
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderValue};
use http_body::Frame;
use http_body_util::BodyExt as _;
use prost::Message;
use prost_reflect::DescriptorPool;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_types::StatusExt as _;
use tower::Service;
use tracing::Instrument as _;

use crate::call::Call;
use crate::config::Common;
use crate::idempotency::{Attempt, Key};
use crate::limits::Limits;
use crate::lines::{Line, Outcome, Unanswered};
use crate::notes::{self, Notes};
use crate::policy::{Idempotency, Policy};
use crate::readiness::AtWork;
use crate::revocations::Revocations;
use crate::server::{self, Bounds, Peer};
use crate::streams::{self, Ends};
use crate::tls::Speaks;
use crate::{Code, DEGRADED, Failure, Process, RELEASE, clock, consistency, deadline, idempotency, trace};

/// How many concurrent calls one connection may have: a gateway's calls come from many tenants, each within its own limits.
const STREAMS: u32 = 1_024;

/// What every call passes.
struct Guard {
    verifier: Arc<Verifier>,
    limits: Limits,
    revocations: Revocations,
    /// By `package.Service/Method`.
    policies: HashMap<String, Policy>,
    /// Where answers are to name it.
    release: Option<HeaderValue>,
    /// The service's, in consistency tokens.
    name: &'static str,
    at_work: metrics::Gauge,
    stop: CancellationToken,
}

/// The facts of a call, for its line and its span.
struct Seen {
    who: Option<Caller>,
    notes: Notes,
    /// Its caller gave it less than [`deadline::SHORT`].
    hurried: bool,
    /// By when its answer is of use.
    until: Instant,
}

/// Serves `service` until the process stops; returns its address. Health, reflection and public methods
/// (`flotilla.edge.v1.policy`) need no token, everything else does. `descriptors`
/// may hold more than is served here. A token that says what was taken away meanwhile is refused by `revocations`.
///
/// # Errors
/// Fails when the address cannot be bound, or the descriptors cannot be read or do not hold the service.
pub async fn serve<S>(
    process: &Process,
    common: &Common,
    descriptors: &'static [u8],
    (service, revocations): (S, Revocations),
) -> Result<SocketAddr, anyhow::Error>
where
    S: Service<http::Request<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
    S::Response: IntoResponse,
    S::Future: Send + 'static,
{
    let (Common { listen, admission, .. }, lifecycle) = (common, &process.lifecycle);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status(S::NAME, tonic_health::ServingStatus::Serving).await;
    let mut routes = Routes::new(service).add_service(health_service);
    if admission.reflection {
        // Reflection lists only what is served here.
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(descriptors)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .with_service_name(S::NAME)
                .with_service_name("grpc.health.v1.Health")
        };
        // Two names of the same service: some clients know only the older one.
        routes = routes.add_service(reflection().build_v1()?).add_service(reflection().build_v1alpha()?);
    }
    let pool = DescriptorPool::decode(descriptors)?;
    let described = pool.get_service_by_name(S::NAME).with_context(|| format!("no descriptor of {}", S::NAME))?;
    let policies = described
        .methods()
        .map(|rpc| (format!("{}/{}", rpc.parent_service().full_name(), rpc.name()), Policy::of(&rpc)))
        .collect();
    let guard_state = Arc::new(Guard {
        verifier: process.verifier(common)?,
        limits: Limits::new(&admission.allowances(), None),
        revocations,
        policies,
        release: process.release_header(common),
        name: process.name,
        at_work: metrics::gauge!("rpc_server_active_calls"),
        stop: lifecycle.stopping(),
    });
    let router = routes.into_axum_router().layer(middleware::from_fn_with_state(guard_state, guard));
    let listener = TcpListener::bind(listen).await.map_err(|e| anyhow::anyhow!("the gRPC port {listen}: {e}"))?;
    let address = listener.local_addr()?;
    let bounds = Bounds {
        connections: usize::from(admission.connections.get()),
        streams: STREAMS,
        http2_only: true,
        longest: server::LONGEST,
    };
    lifecycle.run("gRPC health", |stop| async move {
        stop.cancelled().await;
        for name in ["", S::NAME] {
            health.set_service_status(name, tonic_health::ServingStatus::NotServing).await;
        }
    });
    let tls = process.acceptor(Speaks::Http2)?;
    tracing::info!(%address, tls = tls.is_some(), "taking calls");
    lifecycle.spawn("gRPC server", server::serve(listener, router, (bounds, tls), lifecycle.stopping()));
    Ok(address)
}

/// The call and the message of a request that came through [`serve`], for a method that reads.
///
/// # Errors
/// INTERNAL when the request did not come through it: a service that forgets the guard answers nothing.
pub fn reading<T>(request: tonic::Request<T>) -> Result<(Call, T), Failure> {
    let caller = caller(&request)?;
    Ok((Call::of_request(caller, None), request.into_inner()))
}

/// The same for a method that writes, and takes an idempotency key: one that the method's policy requires is there.
///
/// # Errors
/// As [`reading`]; INVALID_ARGUMENT for a key that is malformed.
pub fn writing<T: Message>(request: tonic::Request<T>, method: &'static str) -> Result<(Call, T), Failure> {
    let (caller, key) = (caller(&request)?, Key::of(request.metadata().as_ref())?);
    let request = request.into_inner();
    let attempt = key.map(|key| Attempt::new(&caller, method, key, &request));
    Ok((Call::of_request(caller, attempt), request))
}

fn caller<T>(request: &tonic::Request<T>) -> Result<Caller, Failure> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Failure::internal(anyhow::anyhow!("a call reached its handler without a verified caller")))
}

impl From<TokenError> for Failure {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Keys(source) => {
                let mut failure = Self::unavailable("the token issuer", source);
                failure.reason = "ISSUER_UNAVAILABLE";
                failure
            }
            TokenError::Missing => Self::new(Code::Unauthenticated, "TOKEN_MISSING", error),
            TokenError::Expired => Self::new(Code::Unauthenticated, "TOKEN_EXPIRED", error),
            TokenError::Malformed(_) | TokenError::Untrusted(_) => {
                Self::new(Code::Unauthenticated, "TOKEN_INVALID", error)
            }
        }
    }
}

/// The value of the one `Authorization` header of a request.
///
/// # Errors
/// There are several: other servers might choose another one.
pub fn authorization(headers: &HeaderMap) -> Result<Option<&HeaderValue>, TokenError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(TokenError::Malformed("there are several Authorization headers: send one")),
        (value, None) => Ok(value),
    }
}

async fn guard(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let open = ["grpc.health.v1.Health/", "grpc.reflection."].iter().any(|prefix| path.starts_with(prefix));
    if open {
        return next.run(request).await;
    }
    // The caller invents paths that no method answers: they become no label value, no span's name and no line.
    let method = if guard.policies.contains_key(&path) { path.clone() } else { "_OTHER".to_owned() };
    let span = tracing::info_span!(
        "rpc",
        otel.name = method,
        otel.kind = "server",
        rpc.system.name = "grpc",
        rpc.method = method
    );
    trace::continue_trace(&span, request.headers());
    let (started, _at_work) = (Instant::now(), AtWork::new(&guard.at_work));
    let callers = deadline::of(request.headers());
    let within = callers.map_or(deadline::LONGEST, |deadline| deadline.min(deadline::LONGEST));
    let (hurried, until) = (within < deadline::SHORT, started + within);
    let mut seen = Seen { who: None, notes: Notes::default(), hurried, until };
    let answer = async {
        let unanswered = Unanswered::new("call", &method, started);
        let answer = match tokio::time::timeout(within, guard.answer(&path, request, next, &mut seen)).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::late()),
        };
        let answer = answer.map(with_reason).map_err(Status::from);
        let mut response = answer.unwrap_or_else(Status::into_http);
        if let Some(release) = &guard.release {
            response.headers_mut().insert(RELEASE, release.clone());
        }
        let status = Status::from_header_map(response.headers());
        let code = status.as_ref().map_or(tonic::Code::Ok, Status::code);
        report(&method, status.as_ref(), &seen, started.elapsed());
        unanswered.answered();
        (code, response)
    };
    let (code, response) = answer.instrument(span.clone()).await;
    trace::set(&span, "rpc.response.status_code", name_of(code));
    if code != tonic::Code::Ok {
        trace::set_error(&span, &name_of(code));
    }
    if let Some(who) = seen.who {
        trace::set_caller(&span, &who);
    }
    metrics::histogram!("rpc_server_call_duration_seconds", "method" => method, "code" => format!("{code:?}"))
        .record(started.elapsed().as_secs_f64());
    response
}

/// A status as gRPC's specification spells it: `NotFound` in capitals, with an underscore between words.
fn name_of(code: tonic::Code) -> String {
    let mut name = String::with_capacity(20);
    for c in format!("{code:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

/// The line of a call: who called what, the outcome, and the events it has written. It holds nothing that the caller wrote.
fn report(method: &str, status: Option<&Status>, Seen { who, notes, hurried, .. }: &Seen, took: Duration) {
    let code = status.map_or(tonic::Code::Ok, Status::code);
    let reason = status.and_then(|status| Some(status.get_details_error_info()?.reason));
    let events = notes.events.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let line = Line {
        kind: "call",
        method,
        who: who.as_ref(),
        code: &reason.unwrap_or_else(|| name_of(code)),
        status: code as u16,
        outcome: match code {
            tonic::Code::Ok => Outcome::Done,
            // A caller that allows no time does not cause a failure of ours.
            tonic::Code::DeadlineExceeded if *hurried => Outcome::Refused,
            tonic::Code::Internal
            | tonic::Code::Unknown
            | tonic::Code::Unavailable
            | tonic::Code::DeadlineExceeded
            | tonic::Code::DataLoss => Outcome::Failed,
            _ => Outcome::Refused,
        },
        took,
        events: Some(events).filter(|events| !events.is_empty()),
        replayed: notes.replayed,
        degraded: notes.degraded(),
    };
    line.write();
}

impl Guard {
    async fn answer(&self, path: &str, mut request: Request, next: Next, seen: &mut Seen) -> Result<Response, Failure> {
        let authorization = authorization(request.headers())?.cloned();
        let policy = self.policies.get(path);
        let cost = policy.map_or(NonZeroU32::MIN, |policy| policy.cost);
        let needs_key = policy.is_some_and(|policy| policy.idempotency == Idempotency::Required);
        let answers_by_stream = policy.is_some_and(|policy| policy.streams);
        let (mut stale, mut open) = (false, None);
        let (_turn, authorization) = if policy.is_some_and(|policy| policy.public) {
            let peer = request.extensions().get::<Peer>().copied();
            let Peer(address) = peer.context("a call without its peer").map_err(Failure::internal)?;
            if answers_by_stream {
                open = Some(self.limits.stream_of_address(address)?);
            }
            // The address is mostly a gateway's, which has counted the cost for its own client. Calls that this one makes are the service's.
            (self.limits.turn_of_address(address, NonZeroU32::MIN).await?, None)
        } else {
            let text = authorization.as_ref().and_then(|value| value.to_str().ok());
            let caller = &*seen.who.insert(self.verifier.verify(text).await?);
            request.extensions_mut().insert(caller.clone());
            let turn = self.limits.turn(caller, cost).await?;
            if answers_by_stream {
                open = Some(self.limits.stream(caller)?);
            }
            stale = self.revocations.check(caller)?;
            if let (Some(sign_in), Some((_, rpc))) = (&caller.sign_in, path.rsplit_once('/')) {
                sign_in.allows(rpc, clock::now().timestamp())?;
            }
            (turn, authorization)
        };
        if needs_key {
            Key::required(request.headers())?;
        }
        let answered = async {
            if stale {
                notes::degraded("identity");
            }
            next.run(request).await
        };
        let (mut response, notes) = notes::noting((authorization, seen.until), answered).await;
        if notes.replayed {
            response.headers_mut().insert(idempotency::REPLAYED_METADATA, HeaderValue::from_static("true"));
        }
        if let Some(token) = notes.place.and_then(|place| consistency::token(self.name, place)) {
            response.headers_mut().insert(consistency::TOKEN, token);
        }
        if notes.pending {
            response.headers_mut().insert(consistency::PENDING, HeaderValue::from_static("true"));
        }
        if let Some(parts) = notes.degraded() {
            response = with_trailer(response, DEGRADED, parts);
        }
        seen.notes = notes;
        // An answer that is only its head has failed.
        if let Some(open) = open.filter(|_| Status::from_header_map(response.headers()).is_none()) {
            let (caller, revocations, stop) = (seen.who.clone(), self.revocations.clone(), self.stop.clone());
            response = streams::until(response, Ends { caller, revocations, stop, open });
        }
        Ok(response)
    }
}

/// Adds a trailer to an answer. An answer that consists of its head alone is not degraded.
fn with_trailer(response: Response, name: &'static str, value: String) -> Response {
    let Ok(value) = HeaderValue::try_from(value) else { return response };
    response.map(|body| {
        axum::body::Body::new(body.map_frame(move |frame| match frame.into_trailers() {
            Ok(mut trailers) => {
                trailers.insert(name, value.clone());
                Frame::trailers(trailers)
            }
            Err(frame) => frame,
        }))
    })
}

/// Adds a reason to an answer that no handler of ours has made: all of ours carry details.
fn with_reason(response: Response) -> Response {
    let Some(status) = Status::from_header_map(response.headers()).filter(|status| status.details().is_empty()) else {
        return response;
    };
    let failure = match status.code() {
        // tonic's word for what is no message of the method.
        tonic::Code::Internal => {
            Failure::new(Code::InvalidArgument, "INVALID_ARGUMENT", "the request is not a message of this method")
        }
        tonic::Code::OutOfRange | tonic::Code::ResourceExhausted => {
            Failure::new(Code::ResourceExhausted, "TOO_LARGE", "the request is larger than a message may be")
        }
        // tonic has words where it does not take the compression, and none for a method.
        tonic::Code::Unimplemented => {
            let what = Some(status.message()).filter(|what| !what.is_empty());
            Failure::new(Code::Unimplemented, "NO_SUCH_METHOD", what.unwrap_or("this service has no such method"))
        }
        _ => return response,
    };
    tracing::debug!(%status, "a status of tonic's, given a reason");
    Status::from(failure).into_http()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_spelled_as_everywhere() {
        for (code, name) in [
            (tonic::Code::Ok, "OK"),
            (tonic::Code::Internal, "INTERNAL"),
            (tonic::Code::InvalidArgument, "INVALID_ARGUMENT"),
        ] {
            assert_eq!(name_of(code), name);
        }
    }
}
