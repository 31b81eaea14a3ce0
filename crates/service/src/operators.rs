//! The operators' services of a process: gRPC services of `flotilla.ops.v1` on its operations port, with an operator's token only. The
//! actor is the subject of that token.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use authz::Verifier;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use http::HeaderValue;
use prost::{Message, Name};
use prost_types::Timestamp;
use serde::Serialize;
use tonic::Status;
use tonic::service::Routes;
use tracing::info;

use crate::config::Issuer;
use crate::{Failure, Process, grpc, retry};

/// How long a token's verification may take: nobody holds the port while the issuer is unavailable.
const VERIFIED_WITHIN: Duration = Duration::from_secs(5);
/// The longest reason of an act, in characters.
const MAX_REASON: usize = 1_000;

impl Process {
    /// Serves these to operators, on the operations port.
    ///
    /// # Errors
    /// The client for the issuer's keys cannot be made, or others are served already.
    pub fn operate(&self, issuer: &Issuer, services: Routes) -> Result<(), anyhow::Error> {
        let verifier = Arc::new(issuer.verifier(&issuer.operators_audience)?);
        // So that an operator gets in while the issuer is unavailable.
        let keys = Arc::clone(&verifier);
        self.lifecycle.run("operators' keys", |stop| async move {
            stop.run_until_cancelled(retry::retry_forever("the operators' keys", || keys.refresh())).await;
            stop.cancelled().await;
        });
        let router = services.into_axum_router().layer(middleware::from_fn_with_state(verifier, guard));
        self.operators.0.set(router).ok().context("what operators ask for is served once")
    }
}

/// The actor: the subject of the verified token.
#[derive(Debug, Clone)]
struct Operator(String);

async fn guard(State(verifier): State<Arc<Verifier>>, mut request: Request, next: Next) -> Response {
    let method = request.uri().path().trim_start_matches('/').to_owned();
    let token = grpc::authorization(request.headers()).map(Option::<&HeaderValue>::cloned);
    let verified = async {
        let token = token?;
        verifier.verify(token.as_ref().and_then(|token| token.to_str().ok())).await
    };
    let operator = match tokio::time::timeout(VERIFIED_WITHIN, verified).await {
        Ok(Ok(caller)) => caller.actor.name(),
        Ok(Err(error)) => return Status::from(Failure::from(error)).into_http(),
        Err(_) => return Status::unavailable("the issuer's keys are not to be had").into_http(),
    };
    request.extensions_mut().insert(Operator(operator.clone()));
    let response = next.run(request).await;
    let code = Status::from_header_map(response.headers()).map_or(tonic::Code::Ok, |status| status.code());
    info!(operator, method, ?code, "an operator asked");
    response
}

/// The actor, by the request's token, and the reason.
///
/// # Errors
/// INVALID_ARGUMENT without a reason.
pub fn act<T>(request: &tonic::Request<T>, reason: &str) -> Result<(String, String), Status> {
    let operator = request.extensions().get::<Operator>();
    let Operator(operator) = operator.ok_or_else(|| Status::unauthenticated("nobody asks"))?;
    let reason = reason.trim();
    if reason.is_empty() || reason.chars().count() > MAX_REASON {
        return Err(Status::invalid_argument(format!("the reason must have 1 to {MAX_REASON} characters")));
    }
    info!(operator, reason, "an operator acts");
    Ok((operator.clone(), reason.to_owned()))
}

/// How many of something a request may ask for.
///
/// # Errors
/// INVALID_ARGUMENT for a number out of range.
pub fn limit(asked: i64) -> Result<i64, Status> {
    const MAX: i64 = 10_000;
    if (1..=MAX).contains(&asked) { Ok(asked) } else { Err(Status::invalid_argument(format!("ask for 1 to {MAX}"))) }
}

/// The time in a request.
///
/// # Errors
/// INVALID_ARGUMENT when it is out of range.
pub fn time(at: Option<Timestamp>) -> Result<Option<DateTime<Utc>>, Status> {
    at.map(|at| proto::time(&at).ok_or_else(|| Status::invalid_argument("a time is out of range"))).transpose()
}

/// The message that this says, by the names of its fields in JSON.
///
/// # Errors
/// INTERNAL when the message has no such field.
pub fn message<M: Message + Name + Default>(said: &impl Serialize) -> Result<M, Status> {
    proto::from_json(said).map_err(|error| Status::internal(format!("{}: {error}", M::full_name())))
}

/// Messages, one after the other.
pub type Answers<M> = BoxStream<'static, Result<M, Status>>;

/// These, one after the other.
#[must_use]
pub fn answers<M: Send + 'static>(all: Vec<M>) -> tonic::Response<Answers<M>> {
    tonic::Response::new(stream::iter(all).map(Ok).boxed())
}

/// A failure of the database, or another backing service.
pub fn away(error: impl Into<anyhow::Error>) -> Status {
    Status::unavailable(format!("{:#}", error.into()))
}

/// An act that the current state does not allow, with all known reasons.
pub fn refused(error: impl Into<anyhow::Error>) -> Status {
    Status::failed_precondition(format!("{:#}", error.into()))
}
