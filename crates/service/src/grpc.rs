//! The gRPC door of a service: every call is traced, measured, has a deadline and a verified caller.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use authz::{Principal, TokenError, Verifier};
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use http::header::{AUTHORIZATION, HeaderValue};
use tokio::net::TcpListener;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tracing::Instrument as _;

use crate::{Code, Failure, Lifecycle, idempotency, telemetry};

/// The longest a call may take, whatever deadline it brings.
const DEADLINE: Duration = Duration::from_secs(10);
/// How many calls one connection may have under way.
const CONCURRENCY: usize = 256;

/// Serves until the process stops; the address it got. Health and reflection need no token, everything else does.
///
/// # Errors
/// Fails when the address cannot be bound or a descriptor set cannot be read.
pub async fn serve(
    lifecycle: &Lifecycle,
    listen: SocketAddr,
    verifier: Arc<Verifier>,
    descriptors: &'static [u8],
    routes: Routes,
) -> Result<SocketAddr, anyhow::Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(descriptors)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let router = routes
        .add_service(health_service)
        .add_service(reflection)
        .into_axum_router()
        .layer(middleware::from_fn_with_state(verifier, guard));
    let listener = TcpListener::bind(listen).await.map_err(|e| anyhow::anyhow!("the gRPC port {listen}: {e}"))?;
    let address = listener.local_addr()?;
    let stop = lifecycle.stopping();
    lifecycle.spawn("gRPC server", async move {
        Server::builder()
            .timeout(DEADLINE)
            .concurrency_limit_per_connection(CONCURRENCY)
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .add_routes(Routes::from(router))
            .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), async move {
                stop.cancelled().await;
                health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
            })
            .await
    });
    Ok(address)
}

/// The caller of a request that came through [`serve`].
///
/// # Errors
/// INTERNAL when it did not: a service that forgets the guard answers nothing.
pub fn principal<T>(request: &tonic::Request<T>) -> Result<Principal, Failure> {
    request
        .extensions()
        .get::<Principal>()
        .cloned()
        .ok_or_else(|| Failure::internal(anyhow::anyhow!("a call reached its handler without a verified caller")))
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

async fn guard(State(verifier): State<Arc<Verifier>>, request: Request, next: Next) -> Response {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let open = ["grpc.health.v1.Health/", "grpc.reflection."].iter().any(|prefix| path.starts_with(prefix));
    if open {
        return next.run(request).await;
    }
    let span =
        tracing::info_span!("rpc", otel.name = path, otel.kind = "server", rpc.system.name = "grpc", rpc.method = path);
    telemetry::continue_trace(&span, request.headers());
    let started = Instant::now();
    let (routed, response) = authenticated(&verifier, request, next).instrument(span.clone()).await;
    let code = Status::from_header_map(response.headers()).map_or(tonic::Code::Ok, |status| status.code());
    telemetry::set(&span, "rpc.response.status_code", format!("{code:?}"));
    // Paths that no method answers are the caller's invention: they must not become label values.
    let method = if routed && code != tonic::Code::Unimplemented { path } else { "other".to_owned() };
    metrics::histogram!("rpc_server_call_duration_seconds", "method" => method, "code" => format!("{code:?}"))
        .record(started.elapsed().as_secs_f64());
    response
}

/// The answer, and whether it is a handler's.
async fn authenticated(verifier: &Verifier, mut request: Request, next: Next) -> (bool, Response) {
    let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    match verifier.verify(authorization).await {
        Ok(principal) => {
            request.extensions_mut().insert(principal);
            let (mut response, replayed) = idempotency::noting(next.run(request)).await;
            if replayed {
                response.headers_mut().insert(idempotency::REPLAYED_METADATA, HeaderValue::from_static("true"));
            }
            (true, response)
        }
        Err(error) => (false, Status::from(Failure::from(error)).into_http()),
    }
}
