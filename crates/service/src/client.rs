//! The one way in which a process of the fleet calls another over gRPC. It sets a deadline, retries within a budget, leaves out replicas
//! that do not answer, and passes on the trace and, by the service's own credential, the caller.
//!
//! A generated client uses [`Upstream`] as its channel, like a `tonic` channel. It reads the whole answer before it returns it, so that it
//! can handle a connection that ends in the middle; of a call that is marked as [`Streams`] it reads the head, and the rest comes as it is sent.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::header::{AUTHORIZATION, HeaderValue};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full};
use metrics::{Counter, counter};
use tonic::Status;
use tonic::body::Body;
use tonic_types::StatusExt as _;
use tower::Service;
use tower::retry::budget::{Budget as _, TpsBudget};
use tracing::Instrument as _;

pub use crate::replica::MAX_ANSWER_BYTES;
use crate::replica::{Admitted, LATE, Replica, Tls, Unanswered};
use crate::retry::Delays;
use crate::tls::{Authorities, Trusted};
use crate::{Code, Failure, Lifecycle, deadline, idempotency, notes, trace};

/// How long a call waits for a replica while all are left out: as long as a process takes to start, and longer than a breaker is open.
const PATIENCE: Duration = Duration::from_secs(2);
const ASK_EVERY: Duration = Duration::from_millis(25);
/// How much of a call's time a probe may cost it while another replica is known to live.
const PROBE_WITHIN: Duration = Duration::from_secs(1);
/// How many attempts a call has at most, except while it waits for the key of a lost attempt.
const ATTEMPTS: usize = 4;
/// The pauses while it waits for that key.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
/// Retries may be a fifth of all calls, plus this many in each second.
const REPEATS_OF_CALLS: f32 = 0.2;
const REPEATS_A_SECOND: u32 = 10;
/// How often names are looked up while one has no address; otherwise at every tenth time, in five seconds.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const LOOKS: u32 = 10;

/// Marks a request that may be sent twice without a key: it only reads. Set it as an extension of the request.
#[derive(Debug, Clone, Copy)]
pub struct ReadsOnly;

/// Marks a request whose answer goes on: a deadline is for its beginning. Set it as an extension of the request.
#[derive(Debug, Clone, Copy)]
pub struct Streams;

/// A service that is called, with all its replicas. Clones share them.
#[derive(Clone)]
pub struct Upstream {
    shared: Arc<Shared>,
    /// Without it, a call names no caller but the one that it is given.
    carry: Option<Carry>,
}

/// Of the authorization that the caller of the moment came with, the one by which its call is carried on.
pub(crate) type Carry = Arc<dyn Fn(HeaderValue) -> BoxFuture<'static, Result<HeaderValue, Status>> + Send + Sync>;

struct Shared {
    name: Arc<str>,
    replicas: Mutex<Vec<Arc<Replica>>>,
    budget: TpsBudget,
    turn: AtomicUsize,
    outcomes: Outcomes,
}

/// `upstream_attempts_total`, by outcome; resolved once.
struct Outcomes {
    answered: Counter,
    not_sent: Counter,
    lost: Counter,
    repeated: Counter,
    over_budget: Counter,
    nobody: Counter,
}

impl Outcomes {
    fn of(upstream: &str) -> Self {
        let outcome = |outcome: &'static str| {
            let attempts = counter!("upstream_attempts_total", "upstream" => upstream.to_owned(), "outcome" => outcome);
            attempts.increment(0);
            attempts
        };
        Self {
            answered: outcome("answered"),
            not_sent: outcome("not_sent"),
            lost: outcome("lost"),
            repeated: outcome("repeated"),
            over_budget: outcome("over_budget"),
            nobody: outcome("nobody"),
        }
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.shared.fmt(f)
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Upstream {
    /// The replicas at these addresses: `http://host:port`, or `https://host:port` for TLS. A host name is resolved every five
    /// seconds. Each address behind it, of the family of the first, is a replica. Connections are made when they are needed.
    ///
    /// # Errors
    /// An address cannot be parsed, or one is `https://` and there are no authorities.
    pub fn new(
        lifecycle: &Lifecycle,
        name: &str,
        addresses: &[String],
        authorities: &Authorities,
    ) -> Result<Self, anyhow::Error> {
        let trusted = authorities.trusted()?;
        let parse = |address: &String| Target::parse(address, trusted.as_ref());
        let targets = addresses.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let shared = Arc::new(Shared {
            name: name.into(),
            replicas: Mutex::default(),
            budget: TpsBudget::new(Duration::from_secs(10), REPEATS_A_SECOND, REPEATS_OF_CALLS),
            turn: AtomicUsize::new(0),
            outcomes: Outcomes::of(name),
        });
        let mut known: Vec<Vec<SocketAddr>> =
            targets.iter().map(|target| target.address().into_iter().collect()).collect();
        shared.set(&targets, &known)?;
        if known.iter().any(Vec::is_empty) {
            let (shared, stop) = (Arc::clone(&shared), lifecycle.stopping());
            lifecycle.spawn("names of upstreams", async move {
                let (mut tick, mut at) = (tokio::time::interval(LOOK_EVERY), 0_u32);
                while stop.run_until_cancelled(tick.tick()).await.is_some() {
                    // A name that has no address is looked for more often than all are, and named as rarely.
                    let all = at.is_multiple_of(LOOKS);
                    if all || known.iter().any(Vec::is_empty) {
                        stop.run_until_cancelled(shared.resolve(&targets, &mut known, all)).await;
                    }
                    at = at.wrapping_add(1);
                }
                Ok::<_, anyhow::Error>(())
            });
        }
        Ok(Self { shared, carry: None })
    }

    /// The same service, called on behalf of the caller of the moment.
    #[must_use]
    pub(crate) fn carrying(self, carry: Carry) -> Self {
        Self { carry: Some(carry), ..self }
    }
}

struct Target {
    host: String,
    port: u16,
    tls: Option<Tls>,
}

impl Target {
    fn parse(address: &str, trusted: Option<&Arc<Trusted>>) -> Result<Self, anyhow::Error> {
        let uri: Uri = address.parse()?;
        let (Some(scheme @ ("http" | "https")), Some(host), Some(port)) =
            (uri.scheme_str(), uri.host(), uri.port_u16())
        else {
            anyhow::bail!("{address} is not http://<host>:<port> or https://<host>:<port>");
        };
        let host = host.trim_matches(['[', ']']).to_owned();
        let tls = match (scheme, trusted) {
            ("http", _) => None,
            (_, Some(trusted)) => Some(Tls { trusted: Arc::clone(trusted), name: host.clone().try_into()? }),
            (_, None) => {
                anyhow::bail!("{address} needs FLOTILLA_TLS_AUTHORITIES, the file with who signs its certificate")
            }
        };
        Ok(Self { host, port, tls })
    }

    fn address(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.host.parse().ok()?, self.port))
    }
}

impl Shared {
    /// Resolves the names; a name that does not resolve keeps its `known` addresses, and is logged if `said`.
    async fn resolve(&self, targets: &[Target], known: &mut [Vec<SocketAddr>], said: bool) {
        for (target, known) in targets.iter().zip(known.iter_mut()).filter(|(target, _)| target.address().is_none()) {
            match tokio::net::lookup_host((target.host.as_str(), target.port)).await {
                Ok(found) => {
                    let found: Vec<SocketAddr> = found.collect();
                    let family = found.first().map(SocketAddr::is_ipv4);
                    *known = found.into_iter().filter(|address| Some(address.is_ipv4()) == family).collect();
                }
                Err(error) if !said => {
                    tracing::debug!(upstream = %self.name, host = target.host, %error, "no address yet");
                }
                Err(error) => {
                    tracing::warn!(upstream = %self.name, host = target.host, %error, "the name cannot be looked up");
                }
            }
        }
        if let Err(error) = self.set(targets, known) {
            tracing::warn!(upstream = %self.name, error = format!("{error:#}"), "an address cannot be used");
        }
    }

    /// From now on these are the replicas; those that stay keep their connections.
    fn set(&self, targets: &[Target], known: &[Vec<SocketAddr>]) -> Result<(), anyhow::Error> {
        let mut replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new: Vec<Arc<Replica>> = Vec::new();
        let all = targets.iter().zip(known);
        for (target, address) in all.flat_map(|(target, known)| known.iter().map(move |address| (target, *address))) {
            if !new.iter().any(|replica| replica.is(address, target.tls.as_ref())) {
                let known = replicas.iter().find(|replica| replica.is(address, target.tls.as_ref()));
                new.push(known.map_or_else(
                    || Replica::new(&self.name, address, target.tls.as_ref()).map(Arc::new),
                    |known| Ok(Arc::clone(known)),
                )?);
            }
        }
        *replicas = new;
        Ok(())
    }

    /// A replica for the next attempt, with its breaker's permit. It prefers a replica that this call has not tried, and of these the one
    /// with the fewest calls; for a stream, with the fewest streams. A call that is not `repeatable` does not probe while another replica is known to be alive.
    fn admit(&self, tried: &[SocketAddr], (repeatable, streams): (bool, bool)) -> Option<Admitted> {
        let replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (count, turn) = (replicas.len(), self.turn.fetch_add(1, Ordering::Relaxed));
        loop {
            let now = Instant::now();
            let in_turn = replicas.iter().cycle().skip(turn % count.max(1)).take(count);
            let best = in_turn.filter(|replica| replica.would_admit(now)).min_by_key(|replica| {
                let probes = !repeatable && !replica.lives();
                (tried.contains(&replica.address()), probes, replica.at_work(streams))
            });
            // Another call may have been let through meanwhile: choose again.
            if let Some(admitted) = Admitted::new(best?, now) {
                return Some(admitted);
            }
        }
    }

    /// Waits a short time while all replicas are left out.
    async fn next_replica(&self, tried: &[SocketAddr], call: (bool, bool), ends: Instant) -> Option<Admitted> {
        let until = ends.min(Instant::now() + PATIENCE);
        loop {
            if let Some(admitted) = self.admit(tried, call) {
                return Some(admitted);
            }
            if Instant::now() + ASK_EVERY >= until {
                return None;
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Whether another replica is known to be alive.
    fn has_another(&self, tried: &[SocketAddr]) -> bool {
        let replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        replicas.iter().any(|replica| !tried.contains(&replica.address()) && replica.lives())
    }

    async fn call(&self, request: Request<Body>, carry: Option<Carry>) -> Result<Response<Body>, Status> {
        let (mut head, body) = request.into_parts();
        let ends = Instant::now()
            + deadline::of(&head.headers).map_or(deadline::LONGEST, |deadline| deadline.min(deadline::LONGEST));
        if !head.headers.contains_key(AUTHORIZATION)
            && let (Some(carry), Some(callers)) = (carry, notes::authorization())
        {
            let carried = tokio::time::timeout_at(ends.into(), carry(callers)).await;
            head.headers.insert(AUTHORIZATION, carried.map_err(|_| Failure::late())??);
        }
        trace::pass_trace(&mut head.headers);
        let body = body.collect().await?.to_bytes();
        let streams = head.extensions.get::<Streams>().is_some();
        let repeatable =
            head.extensions.get::<ReadsOnly>().is_some() || head.headers.contains_key(idempotency::METADATA);
        self.budget.deposit();
        let mut delays = Delays::new(FIRST_PAUSE, LONGEST_PAUSE);
        let (mut tried, mut lost, mut why) = (Vec::new(), false, "no address is known".to_owned());
        for attempt in 1.. {
            let Some(replica) = self.next_replica(&tried, (repeatable, streams), ends).await else {
                self.outcomes.nobody.increment(1);
                break;
            };
            tried.push(replica.address());
            let left = ends.saturating_duration_since(Instant::now());
            let probes = repeatable && replica.is_probe() && self.has_another(&tried);
            let within = if probes { left.min(PROBE_WITHIN) } else { left };
            let again = match replica.attempt(copy(&head, &body, within), within, (probes, streams)).await {
                Ok(response) => {
                    self.outcomes.answered.increment(1);
                    if !lost || !holds_the_key(&response) {
                        return Ok(response);
                    }
                    // The lost attempt holds the key until the database has noticed that its process is gone.
                    let pause = delays.next_delay();
                    if Instant::now() + pause >= ends {
                        return Ok(response);
                    }
                    tokio::time::sleep(pause).await;
                    continue;
                }
                Err(Unanswered::NotSent(reason)) => {
                    self.outcomes.not_sent.increment(1);
                    why = reason;
                    true
                }
                Err(Unanswered::Lost(reason)) => {
                    self.outcomes.lost.increment(1);
                    (lost, why) = (true, reason);
                    repeatable
                }
                Err(Unanswered::Late) => {
                    self.outcomes.lost.increment(1);
                    if !probes {
                        return Err(self.gave_up(true, true, LATE));
                    }
                    (lost, why) = (true, LATE.to_owned());
                    true
                }
            };
            if !again || attempt >= ATTEMPTS || Instant::now() >= ends {
                break;
            }
            if !self.budget.withdraw() {
                self.outcomes.over_budget.increment(1);
                break;
            }
            self.outcomes.repeated.increment(1);
        }
        Err(self.gave_up(Instant::now() >= ends, lost, &why))
    }

    /// The caller's error; the log has the cause.
    fn gave_up(&self, late: bool, lost: bool, why: &str) -> Status {
        tracing::warn!(upstream = %self.name, why, "a call did not get through");
        let failure = if late {
            Failure::late()
        } else {
            let what = if lost {
                "the service went away, and the call may have happened: ask, or try again with the same key"
            } else {
                "the service is unavailable for the moment: try again"
            };
            Failure::new(Code::Unavailable, "UNAVAILABLE", what).retry_after(Duration::from_secs(1))
        };
        failure.into()
    }
}

fn copy(head: &http::request::Parts, body: &Bytes, within: Duration) -> Request<Body> {
    let mut request = Request::new(Body::new(Full::new(body.clone())));
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    *request.version_mut() = head.version;
    *request.headers_mut() = head.headers.clone();
    // Rounded up: the caller that waits here gives up first.
    if let Ok(timeout) = HeaderValue::try_from(format!("{}m", within.as_millis().min(99_999_998) + 1)) {
        request.headers_mut().insert("grpc-timeout", timeout);
    }
    request
}

/// Whether another request with the same key is still at work.
fn holds_the_key(response: &Response<Body>) -> bool {
    let status = Status::from_header_map(response.headers());
    let reason = status.and_then(|status| Some(status.get_details_error_info()?.reason));
    reason.as_deref() == Some("IDEMPOTENCY_KEY_IN_USE")
}

impl Service<Request<Body>> for Upstream {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { shared, carry } = self.clone();
        let method = request.uri().path().trim_start_matches('/').to_owned();
        let span = tracing::info_span!(target: "service::trace", "call", otel.name = method, otel.kind = "client",
            rpc.system.name = "grpc", rpc.method = method);
        async move { shared.call(request, carry).await }.instrument(span).boxed()
    }
}
