//! What holds for every call, over HTTP and over gRPC: who calls, within which bounds, and by which credential it is sent.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use authz::{Caller, TokenError, Verifier};
use axum::Router;
use contracts::ActorKind;
use http::header::AUTHORIZATION;
use http::request::Parts as Head;
use http::{HeaderMap, HeaderValue, Method};
use service::limits::{Limits, Turn};
use service::shared_rates::{SharedRates, Standing};
use service::upstreams::Upstreams;
use service::{Code, Failure, Lifecycle, Process, clock};
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::Config;
use crate::events::Kept;
use crate::exchange::Exchange;
use crate::health;
use crate::problem::Problem;
use crate::request::{self, Bodies, IDEMPOTENCY_KEY};
use crate::routes::{Route, Routes};

/// The longest `Authorization` header: upstream takes no more than 16 KiB of headers in all.
const MAX_AUTHORIZATION_BYTES: usize = 9 * 1024;

/// What requests and calls are answered with.
pub struct Edge {
    /// What is served.
    pub routes: &'static Routes,
    verifier: Arc<Verifier>,
    limits: Limits,
    /// The memory for bodies.
    pub bodies: Bodies,
    /// The memory for readers of streams.
    pub kept: Kept,
    /// How many proxies stand in front.
    proxies: usize,
    exchange: Exchange,
    /// The services.
    pub upstreams: Upstreams,
    /// gRPC's own.
    pub open: Router,
    /// How many requests run.
    pub at_work: metrics::Gauge,
    /// The process's.
    pub lifecycle: Lifecycle,
}

/// What is known of a request while it is answered.
#[derive(Debug, Default)]
pub struct Seen {
    /// Who calls, once it is verified.
    pub caller: Option<Caller>,
    /// What is left of the rates that it was charged to.
    pub standing: Vec<Standing>,
    /// Whether its caller came with a credential that was exchanged.
    pub exchanged: bool,
}

/// The idempotency key of a call.
pub struct Keyed {
    key: Option<HeaderValue>,
    /// Whether it was made here.
    own: bool,
}

impl Edge {
    /// With nothing at work.
    ///
    /// # Errors
    /// No address is known for identity, the keys of the issuer cannot be asked for, or the address of Redis cannot be read.
    pub async fn new(
        process: &Process,
        config: &Config,
        (routes, upstreams): (&'static Routes, Upstreams),
    ) -> Result<Self, anyhow::Error> {
        let Config { common, proxies, provider, redis_url, .. } = config;
        let shared = match redis_url {
            Some(url) => Some(SharedRates::open((&process.authorities, &process.lifecycle), url).await?),
            None => None,
        };
        Ok(Self {
            routes,
            verifier: process.verifier(common)?,
            limits: Limits::new(&common.admission.allowances(), shared),
            bodies: Bodies::new(),
            kept: Kept::new(),
            proxies: usize::from(*proxies),
            exchange: Exchange::new(&upstreams, provider)?,
            upstreams,
            open: health::router(routes, common.admission.reflection, &process.lifecycle)?,
            at_work: metrics::gauge!("http_server_active_requests"),
            lifecycle: process.lifecycle.clone(),
        })
    }

    /// Verifies the caller before the rest of the request, unless the method is public; charges and bounds the call before its body is read and
    /// parsed. Returns the authorization that it came with.
    pub async fn admit(
        &self,
        route: &Route,
        head: &Head,
        seen: &mut Seen,
    ) -> Result<(Option<HeaderValue>, Turn), Status> {
        let authorization = service::grpc::authorization(&head.headers).map_err(Failure::from)?;
        let authorization = authorization.filter(|value| value.len() <= MAX_AUTHORIZATION_BYTES).cloned();
        let address = request::client(head, self.proxies)?;
        if route.policy.public {
            let turn = self.limits.turn_of_address(address, route.policy.cost).await?;
            seen.standing.clone_from(&turn.standing);
            // What anybody may keep is the same whoever asks.
            let authorization = authorization.filter(|_| route.policy.shared_seconds.is_none());
            return Ok((authorization, turn));
        }
        let text = authorization.as_ref().and_then(|value| value.to_str().ok());
        let charged = self.limits.turn_of_address(address, self.exchange.cost);
        let exchanged = self.exchange.authorization(text, charged).await?;
        seen.exchanged = exchanged.is_some();
        let authorization = exchanged.or(authorization);
        let text = authorization.as_ref().and_then(|value| value.to_str().ok());
        let who = self.verifier.verify(text).await.map_err(Failure::from)?;
        // A service calls another one itself: a token for it has got into other hands.
        if who.actor.kind == ActorKind::Service {
            let what = "it is a service's, which does not call through the edge";
            return Err(Failure::from(TokenError::Untrusted(what)).into());
        }
        let turn = self.limits.turn(&*seen.caller.insert(who), route.policy.cost).await?;
        seen.standing.clone_from(&turn.standing);
        Ok((authorization, turn))
    }

    /// Bounds a call of somebody whom nobody verifies; and, where it streams, its place among the open streams.
    ///
    /// # Errors
    /// The address calls too often.
    pub async fn admit_stranger(&self, head: &Head, streams: bool) -> Result<(Turn, Option<Turn>), Failure> {
        let address = request::client(head, self.proxies)?;
        let place = if streams { Some(self.limits.stream_of_address(address)?) } else { None };
        Ok((self.limits.turn_of_address(address, NonZeroU32::MIN).await?, place))
    }

    /// A place among the open streams.
    ///
    /// # Errors
    /// There is none for this caller.
    pub fn opens(&self, head: &Head, caller: Option<&Caller>) -> Result<Turn, Failure> {
        match caller {
            Some(caller) => self.limits.stream(caller),
            None => self.limits.stream_of_address(request::client(head, self.proxies)?),
        }
    }

    /// Whether a call may be sent a second time, by another token: a service may have asked another one, which had heard first of what was
    /// taken from its caller.
    pub fn may_repeat(route: &Route, seen: &Seen, key: &Keyed) -> bool {
        seen.exchanged && (route.verb == Method::GET || key.key.is_some())
    }

    /// Sends a call; and once more what is to be sent `again`, where its caller has another role by now: its credential says which.
    ///
    /// # Errors
    /// Those of `send`, and of a caller who may not call any more.
    pub async fn call<M, A, F>(
        &self,
        (route, head): (&Route, &Head),
        (authorization, turn): (Option<HeaderValue>, Turn),
        seen: &mut Seen,
        (message, again): (M, Option<M>),
        send: impl Fn(M, Option<HeaderValue>) -> F,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<A, Status>>,
    {
        let mut turn = turn;
        let mut answer = send(message, authorization.clone()).await;
        if seen.exchanged && answer.as_ref().is_err_and(is_revoked) {
            self.exchange.give_up(credential(head), authorization.as_ref()).await;
            if let Some(message) = again {
                drop(turn);
                let mut admitted = Seen::default();
                let (authorization, next) = self.admit(route, head, &mut admitted).await?;
                turn = next;
                // What was meant for one tenant goes to no other.
                let tenant = |seen: &Seen| seen.caller.as_ref().map(|caller| caller.tenant.clone());
                if tenant(&admitted) == tenant(seen) {
                    *seen = admitted;
                    answer = send(message, authorization).await;
                }
            }
        }
        drop(turn);
        answer
    }
}

/// What a caller came with.
fn credential(head: &Head) -> Option<&str> {
    head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok())
}

impl Keyed {
    /// That of a request; a change without one gets one here, so that it can be sent to another replica.
    ///
    /// # Errors
    /// There are several, or it is too long.
    pub fn of(route: &Route, headers: &HeaderMap) -> Result<Self, Problem> {
        let key = if route.takes_key() { request::one_key(headers)? } else { None };
        let own = key.is_none() && route.takes_key() && [Method::PATCH, Method::DELETE].contains(&route.verb);
        let key = if own { HeaderValue::try_from(clock::new_id().to_string()).ok() } else { key };
        Ok(Self { key, own })
    }

    /// The metadata of a call: this key, the authorization, and the headers that its method gets.
    pub fn metadata(&self, authorization: Option<HeaderValue>, (route, head): (&Route, &Head)) -> HeaderMap {
        let mut metadata = HeaderMap::new();
        for name in &route.policy.request_headers {
            for value in head.headers.get_all(name) {
                metadata.append(name, value.clone());
            }
        }
        for (name, value) in [(AUTHORIZATION, authorization), (IDEMPOTENCY_KEY.clone(), self.key.clone())] {
            if let Some(value) = value {
                metadata.insert(name, value);
            }
        }
        metadata
    }

    /// The status for the caller of a call that has failed.
    pub fn outcome(&self, status: Status) -> Status {
        let reason = status.get_details_error_info().map(|info| info.reason);
        // The gateway's own attempt holds the key; its replica went away.
        if self.own && reason.as_deref() == Some("IDEMPOTENCY_KEY_IN_USE") {
            let what = "the service went away, and the change may have happened: ask";
            return Failure::new(Code::Unavailable, "UNAVAILABLE", what).retry_after(Duration::from_secs(1)).into();
        }
        status
    }

    /// Whether its caller knows nothing of it.
    pub const fn is_own(&self) -> bool {
        self.own
    }
}

/// Whether a service takes a token for revoked.
fn is_revoked(status: &Status) -> bool {
    status.code() == tonic::Code::Unauthenticated
        && status.get_details_error_info().is_some_and(|info| info.reason == "TOKEN_REVOKED")
}
