//! The one way in which a process of the fleet calls another over gRPC: a deadline, repeats within a budget, replicas that do not
//! answer left out, and the caller's identity and trace carried along.
//!
//! [`Upstream`] is what a generated client stands on, as on a `tonic` channel. It is for unary calls: an answer is read whole before
//! it is handed on, so that a connection that ends in the middle of it can be borne.

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
use http_body_util::{BodyExt as _, Full, Limited};
use metrics::{counter, gauge};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt as _;
use tower::Service;
use tower::retry::budget::{Budget as _, TpsBudget};
use tracing::Instrument as _;

use crate::breaker::{Breaker, State};
use crate::retry::Delays;
use crate::{Code, Failure, Lifecycle, grpc, idempotency, notes, telemetry};

/// The longest a call may take, whatever deadline it brings.
const DEADLINE: Duration = Duration::from_secs(10);
/// Not to be answered within less is no sign of a replica that is away.
const TIME_ENOUGH: Duration = Duration::from_secs(1);
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// The largest answer.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// How often a call is sent at most, unless an attempt that was lost is waited out.
const ATTEMPTS: usize = 4;
/// The pauses between, where there is no other replica to turn to at once.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
/// Repeats may be a fifth of all calls, and in each second so many more.
const REPEATS_OF_CALLS: f32 = 0.2;
const REPEATS_A_SECOND: u32 = 10;
/// How often names are looked up again.
const RESOLVE_EVERY: Duration = Duration::from_secs(5);

/// A request that may be sent twice without a key: it only reads. Set it as an extension of the request.
#[derive(Debug, Clone, Copy)]
pub struct ReadsOnly;

/// A service that is called, with all its replicas. Clones share them.
#[derive(Debug, Clone)]
pub struct Upstream(Arc<Shared>);

struct Shared {
    name: Arc<str>,
    replicas: Mutex<Vec<Arc<Replica>>>,
    budget: TpsBudget,
    turn: AtomicUsize,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("name", &self.name).finish_non_exhaustive()
    }
}

/// One process of the service.
struct Replica {
    upstream: Arc<str>,
    address: SocketAddr,
    channel: Channel,
    at_work: AtomicUsize,
    breaker: Mutex<Breaker>,
}

/// What came of one attempt.
enum Attempt {
    Answered(Response<Body>),
    /// Nothing was sent: it may always be sent again.
    NotSent(String),
    /// It may have been done.
    Lost(String),
}

impl Upstream {
    /// The replicas at these addresses: `http://host:port`. A host that is a name is looked up now and then, and each address
    /// behind it is a replica. Connections are made when they are needed.
    ///
    /// # Errors
    /// An address cannot be read.
    pub fn new(lifecycle: &Lifecycle, name: &str, addresses: &[String]) -> Result<Self, anyhow::Error> {
        let targets = addresses.iter().map(|address| Target::parse(address)).collect::<Result<Vec<_>, _>>()?;
        let upstream = Self(Arc::new(Shared {
            name: name.into(),
            replicas: Mutex::default(),
            budget: TpsBudget::new(Duration::from_secs(10), REPEATS_A_SECOND, REPEATS_OF_CALLS),
            turn: AtomicUsize::new(0),
        }));
        for outcome in ["answered", "not_sent", "lost", "repeated", "over_budget", "nobody"] {
            upstream.0.count(outcome, 0);
        }
        let fixed: Option<Vec<SocketAddr>> = targets.iter().map(Target::address).collect();
        if let Some(fixed) = fixed {
            upstream.0.set(&fixed)?;
        } else {
            let (shared, stop) = (Arc::clone(&upstream.0), lifecycle.stopping());
            lifecycle.spawn("names of upstreams", async move {
                let mut tick = tokio::time::interval(RESOLVE_EVERY);
                while stop.run_until_cancelled(tick.tick()).await.is_some() {
                    shared.resolve(&targets).await;
                }
                Ok::<_, anyhow::Error>(())
            });
        }
        Ok(upstream)
    }
}

struct Target {
    host: String,
    port: u16,
}

impl Target {
    fn parse(address: &str) -> Result<Self, anyhow::Error> {
        let uri: Uri = address.parse()?;
        let (host, port) = (uri.host(), uri.port_u16());
        let (Some("http"), Some(host), Some(port)) = (uri.scheme_str(), host, port) else {
            anyhow::bail!("{address} is not http://<host>:<port>");
        };
        Ok(Self { host: host.trim_matches(['[', ']']).to_owned(), port })
    }

    fn address(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.host.parse().ok()?, self.port))
    }
}

impl Shared {
    async fn resolve(&self, targets: &[Target]) {
        let mut addresses = Vec::new();
        for target in targets {
            match tokio::net::lookup_host((target.host.as_str(), target.port)).await {
                Ok(found) => addresses.extend(found),
                // Those that are known stay in use.
                Err(error) => {
                    tracing::warn!(upstream = %self.name, host = target.host, %error, "the name cannot be looked up");
                    return;
                }
            }
        }
        if let Err(error) = self.set(&addresses) {
            tracing::warn!(upstream = %self.name, error = format!("{error:#}"), "an address cannot be used");
        }
    }

    /// From now on these are the replicas; those that stay keep their connections.
    fn set(&self, addresses: &[SocketAddr]) -> Result<(), anyhow::Error> {
        let mut replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new: Vec<Arc<Replica>> = Vec::new();
        for &address in addresses {
            if new.iter().all(|replica| replica.address != address) {
                let known = replicas.iter().find(|replica| replica.address == address);
                new.push(
                    known.map_or_else(
                        || Replica::new(&self.name, address).map(Arc::new),
                        |known| Ok(Arc::clone(known)),
                    )?,
                );
            }
        }
        *replicas = new;
        Ok(())
    }

    /// A replica for the next attempt, with its breaker's leave: the one with the least at work, one that this call has not tried
    /// rather than one it has.
    fn admit(&self, tried: &[SocketAddr]) -> Option<Admitted> {
        let replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (now, turn) = (Instant::now(), self.turn.fetch_add(1, Ordering::Relaxed));
        let (count, tried) = (replicas.len(), |replica: &Replica| tried.contains(&replica.address));
        let mut best: Option<&Arc<Replica>> = None;
        for replica in replicas.iter().cycle().skip(turn % count.max(1)).take(count) {
            let rank = |replica: &Replica| (tried(replica), replica.at_work.load(Ordering::Relaxed));
            if replica.breaker().would_admit(now) && best.is_none_or(|best| rank(replica) < rank(best)) {
                best = Some(replica);
            }
        }
        best.and_then(|replica| Admitted::new(replica, now))
    }

    /// Whether another replica than these would take a call now.
    fn has_another(&self, tried: &[SocketAddr]) -> bool {
        let now = Instant::now();
        let replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        replicas.iter().any(|replica| !tried.contains(&replica.address) && replica.breaker().would_admit(now))
    }

    fn count(&self, outcome: &'static str, by: u64) {
        counter!("upstream_attempts_total", "upstream" => self.name.to_string(), "outcome" => outcome).increment(by);
    }

    async fn call(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (mut head, body) = request.into_parts();
        let ends = Instant::now() + grpc::deadline(&head.headers).map_or(DEADLINE, |deadline| deadline.min(DEADLINE));
        if !head.headers.contains_key(AUTHORIZATION)
            && let Some(authorization) = notes::authorization()
        {
            head.headers.insert(AUTHORIZATION, authorization);
        }
        telemetry::pass_trace(&mut head.headers);
        let body = body.collect().await?.to_bytes();
        let repeatable =
            head.extensions.get::<ReadsOnly>().is_some() || head.headers.contains_key(idempotency::METADATA);
        self.budget.deposit();
        let mut delays = Delays::new(FIRST_PAUSE, LONGEST_PAUSE);
        let (mut tried, mut attempts, mut lost) = (Vec::new(), 0, false);
        loop {
            let Some(replica) = self.admit(&tried) else {
                self.count("nobody", 1);
                return Err(self.gave_up(ends, "no replica answers"));
            };
            attempts += 1;
            tried.push(replica.address());
            let left = ends.saturating_duration_since(Instant::now());
            // Time for another replica stays, should this one not answer.
            let within = if repeatable && attempts < ATTEMPTS && self.has_another(&tried) { left / 2 } else { left };
            let outcome = replica.attempt(copy(&head, &body, within), within).await;
            let (again, last) = match outcome {
                Attempt::Answered(response) => {
                    self.count("answered", 1);
                    // The attempt that was lost holds the key until the database has seen that its process is gone.
                    (lost && holds_the_key(&response), Ok(response))
                }
                Attempt::NotSent(why) => {
                    self.count("not_sent", 1);
                    (attempts < ATTEMPTS, Err(why))
                }
                Attempt::Lost(why) => {
                    self.count("lost", 1);
                    lost = true;
                    (repeatable && attempts < ATTEMPTS, Err(why))
                }
            };
            let pause = if last.is_err() && self.has_another(&tried) { Duration::ZERO } else { delays.next_delay() };
            let again = again && Instant::now() + pause < ends;
            if !again || !self.budget.withdraw() {
                self.count("over_budget", u64::from(again));
                return last.map_err(|why| self.gave_up(ends, &why));
            }
            self.count("repeated", 1);
            tokio::time::sleep(pause).await;
        }
    }

    /// What the caller is told; the log has why.
    fn gave_up(&self, ends: Instant, why: &str) -> Status {
        tracing::warn!(upstream = %self.name, why, "a call did not get through");
        let failure = if ends <= Instant::now() {
            let what = "the call was not done in its time, and may have happened: ask, or try again with the same key";
            Failure::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", what)
        } else {
            let what = "the service is away for the moment: try again";
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
    // Rounded up: the one who waits here is the first to give up.
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

impl Replica {
    fn new(upstream: &Arc<str>, address: SocketAddr) -> Result<Self, anyhow::Error> {
        let channel = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_WITHIN)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .connect_lazy();
        let breaker = Mutex::new(Breaker::new());
        let replica = Self { upstream: Arc::clone(upstream), address, channel, at_work: AtomicUsize::new(0), breaker };
        replica.tell(State::Closed);
        Ok(replica)
    }

    fn breaker(&self) -> std::sync::MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, state: State) {
        let (upstream, replica) = (self.upstream.to_string(), self.address.to_string());
        gauge!("upstream_breaker_state", "upstream" => upstream, "replica" => replica).set(state.gauge());
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // It is none any more.
        self.tell(State::Closed);
    }
}

/// One call to a replica that its breaker has let through.
struct Admitted {
    replica: Arc<Replica>,
    settled: bool,
}

impl Admitted {
    fn new(replica: &Arc<Replica>, now: Instant) -> Option<Self> {
        let admitted = {
            let mut breaker = replica.breaker();
            let (was, admitted) = (breaker.state(), breaker.admit(now));
            (was != breaker.state()).then(|| replica.tell(breaker.state()));
            admitted
        };
        admitted.then(|| {
            replica.at_work.fetch_add(1, Ordering::Relaxed);
            Self { replica: Arc::clone(replica), settled: false }
        })
    }

    fn address(&self) -> SocketAddr {
        self.replica.address
    }

    async fn attempt(mut self, request: Request<Body>, within: Duration) -> Attempt {
        let mut channel = self.replica.channel.clone();
        let answer = async {
            std::future::poll_fn(|context| channel.poll_ready(context)).await.map_err(|error| failed(&error))?;
            let response = channel.call(request).await.map_err(|error| failed(&error))?;
            if response.status() != http::StatusCode::OK {
                return Err(Attempt::Lost(format!("it was answered {}", response.status())));
            }
            let (head, body) = response.into_parts();
            let body = match Limited::new(body, MAX_ANSWER_BYTES).collect().await {
                Ok(body) => body,
                Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                    let failure = Failure::new(
                        Code::ResourceExhausted,
                        "TOO_LARGE",
                        "the answer is larger than a message may be",
                    );
                    return Ok(Status::from(failure).into_http());
                }
                Err(error) => return Err(Attempt::Lost(error.to_string())),
            };
            let response = Response::from_parts(head, Body::new(body));
            // A status that no service of ours has made: of a proxy, or of a server that goes.
            match Status::from_header_map(response.headers()) {
                Some(status) if status.code() == tonic::Code::Unavailable && status.details().is_empty() => {
                    Err(Attempt::Lost(status.message().to_owned()))
                }
                _ => Ok(response),
            }
        };
        let outcome = match tokio::time::timeout(within, answer).await {
            Ok(Ok(response)) => Attempt::Answered(response),
            Ok(Err(failed)) => failed,
            Err(_) => Attempt::Lost("it was not answered in its time".to_owned()),
        };
        self.settle(|breaker| match &outcome {
            Attempt::Answered(_) => breaker.answered(),
            Attempt::NotSent(_) => breaker.failed(Instant::now(), true),
            // Whoever gives a call no time does not make it the replica's failure.
            Attempt::Lost(_) if within < TIME_ENOUGH => breaker.abandoned(Instant::now()),
            Attempt::Lost(_) => breaker.failed(Instant::now(), false),
        });
        outcome
    }

    fn settle(&mut self, tell: impl FnOnce(&mut Breaker)) {
        self.settled = true;
        let mut breaker = self.replica.breaker();
        let was = breaker.state();
        tell(&mut breaker);
        let state = breaker.state();
        if was != state {
            self.replica.tell(state);
            let (upstream, replica) = (&*self.replica.upstream, self.replica.address);
            match state {
                State::Open { .. } if was == State::Closed => {
                    tracing::warn!(upstream, %replica, "the replica does not answer: it is left out");
                }
                State::Closed => tracing::info!(upstream, %replica, "the replica answers again"),
                State::Open { .. } | State::HalfOpen => {}
            }
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.replica.at_work.fetch_sub(1, Ordering::Relaxed);
        if !self.settled {
            self.settle(|breaker| breaker.abandoned(Instant::now()));
        }
    }
}

fn failed(error: &tonic::transport::Error) -> Attempt {
    let mut why = error.to_string();
    let mut not_sent = false;
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(error) = cause {
        why = format!("{why}: {error}");
        not_sent |= error.is::<tonic::ConnectError>();
        cause = error.source();
    }
    if not_sent { Attempt::NotSent(why) } else { Attempt::Lost(why) }
}

impl Service<Request<Body>> for Upstream {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        let method = request.uri().path().trim_start_matches('/').to_owned();
        let span = tracing::info_span!(target: "service::trace", "call", otel.name = method, otel.kind = "client",
            rpc.system.name = "grpc", rpc.method = method);
        async move { shared.call(request).await }.instrument(span).boxed()
    }
}
