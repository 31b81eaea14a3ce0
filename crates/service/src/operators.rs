//! The operators' services of a process: gRPC services of `flotilla.ops.v1` on its operations port, with an operator's token only. The
//! actor is the subject of that token.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use authz::{Operator, OperatorRole, Operators};
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use chrono::{DateTime, Utc};
use contracts::ActorKind;
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
use crate::{Code, Failure, Process, grpc, retry};

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
        let verifier = Arc::new(issuer.operators()?);
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
struct Actor(String);

/// What reads, and shows what tenants wrote or who their people are: an operator's.
const CONTENTS: [&str; 7] =
    ["ListAggregates", "GetAggregates", "GetLetter", "ListOpenInvitations", "ListRows", "GetRow", "FindRow"];

/// The least role that may call an RPC of `flotilla.ops`, by its name: a viewer sees how the fleet does, without contents. Everything else is an
/// operator's.
fn least(rpc: &str) -> OperatorRole {
    let reads = ["Get", "List", "Compare"].iter().any(|verb| rpc.starts_with(verb));
    if reads && !CONTENTS.contains(&rpc) { OperatorRole::Viewer } else { OperatorRole::Operator }
}

/// Checks that an operator may call an RPC. One without a role may call none.
///
/// # Errors
/// PERMISSION_DENIED.
fn permit(operator: &Operator, rpc: &str) -> Result<(), Failure> {
    let least = least(rpc);
    if operator.role.is_some_and(|role| role >= least) {
        return Ok(());
    }
    let has = operator.role.map_or("none", OperatorRole::as_str);
    let what = format!("{rpc} is for an operator of the role {}, and your token says {has}", least.as_str());
    Err(Failure::new(Code::PermissionDenied, "PERMISSION_DENIED", what))
}

async fn guard(State(verifier): State<Arc<Operators>>, mut request: Request, next: Next) -> Response {
    let method = request.uri().path().trim_start_matches('/').to_owned();
    let token = grpc::authorization(request.headers()).map(Option::<&HeaderValue>::cloned);
    let verified = async {
        let token = token?;
        verifier.verify(token.as_ref().and_then(|token| token.to_str().ok())).await
    };
    let operator = match tokio::time::timeout(VERIFIED_WITHIN, verified).await {
        Ok(Ok(operator)) => operator,
        Ok(Err(error)) => return Status::from(Failure::from(error)).into_http(),
        Err(_) => return Status::unavailable("the issuer's keys are not to be had").into_http(),
    };
    let name = contracts::Actor::new(ActorKind::User, operator.name.clone()).name();
    if let Err(denied) = permit(&operator, method.rsplit('/').next().unwrap_or_default()) {
        info!(operator = name, method, "an operator was refused");
        return Status::from(denied).into_http();
    }
    request.extensions_mut().insert(Actor(name.clone()));
    let (operator, response) = (name, next.run(request).await);
    let code = Status::from_header_map(response.headers()).map_or(tonic::Code::Ok, |status| status.code());
    info!(operator, method, ?code, "an operator asked");
    response
}

/// The actor, by the request's token, and the reason.
///
/// # Errors
/// INVALID_ARGUMENT without a reason.
pub fn act<T>(request: &tonic::Request<T>, reason: &str) -> Result<(String, String), Status> {
    let operator = request.extensions().get::<Actor>();
    let Actor(operator) = operator.ok_or_else(|| Status::unauthenticated("nobody asks"))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_operators_may_call_is_as_it_was_reviewed() {
        let operators = proto::POOL.services().filter(|service| service.full_name().starts_with("flotilla.ops."));
        let row = |service: prost_reflect::ServiceDescriptor| {
            let of = |role| {
                let rpcs = service.methods().filter(|rpc| least(rpc.name()) == role);
                rpcs.map(|rpc| format!("`{}`", rpc.name())).collect::<Vec<_>>().join(" ")
            };
            format!("| `{}` | {} | {} |\n", service.name(), of(OperatorRole::Viewer), of(OperatorRole::Operator))
        };
        let mut rows: Vec<_> = operators.map(row).collect();
        rows.sort_unstable();
        let table = rows.concat();
        assert!(include_str!("../../../docs/permissions.md").contains(&table), "docs/permissions.md lacks:\n{table}");
    }

    #[test]
    fn whoever_has_no_role_may_call_nothing() {
        let may = |role, rpc| permit(&Operator { name: "olga".parse().unwrap(), role }, rpc).is_ok();
        for (role, reads, acts) in [
            (None, false, false),
            (Some(OperatorRole::Viewer), true, false),
            (Some(OperatorRole::Operator), true, true),
        ] {
            assert_eq!((may(role, "ListParkedRows"), may(role, "DiscardRow")), (reads, acts), "{role:?}");
        }
    }
}
