//! One replica of an upstream service, and one attempt of a call to it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::Frame;
use http_body_util::{BodyExt as _, Limited};
use hyper_util::rt::TokioIo;
use metrics::gauge;
use rustls::pki_types::ServerName;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower::Service as _;

use crate::breaker::{Breaker, State, Ticket};
use crate::tls::Trusted;
use crate::{Code, Failure};

const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// A replica that is silent for this long while calls run gets a keep-alive ping, and has as long to answer it.
const ALIVE_EVERY: Duration = Duration::from_secs(2);
/// How much of a stream may be on the way unread, and of all streams of a connection.
const WINDOW: u32 = 64 * 1024;
const WINDOWS: u32 = 64 * 1024 * 1024;
/// The largest answer.
pub const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// How the replicas behind a name are reached over TLS.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) trusted: Arc<Trusted>,
    /// What their certificates say.
    pub(crate) name: ServerName<'static>,
}

/// One process of the service.
pub(crate) struct Replica {
    upstream: Arc<str>,
    address: SocketAddr,
    /// Its name, over TLS.
    name: Option<ServerName<'static>>,
    channel: Channel,
    /// For streams: what fills its windows and its places holds up no call.
    streaming: Channel,
    at_work: AtomicUsize,
    streams: AtomicUsize,
    breaker: Mutex<Breaker>,
}

/// Why, for the log, where the time of an attempt is over.
pub(crate) const LATE: &str = "it was not answered in its time";

/// Why an attempt has no answer.
pub(crate) enum Unanswered {
    /// Nothing was sent: a retry is always safe.
    NotSent(String),
    /// The call may have taken effect.
    Lost(String),
    /// The same: its time is over, which says nothing about the replica.
    Late,
}

impl Replica {
    /// With authorities, over TLS: its certificate must have the host's name.
    pub(crate) fn new(upstream: &Arc<str>, address: SocketAddr, tls: Option<&Tls>) -> Result<Self, anyhow::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .tcp_nodelay(true)
            .http2_keep_alive_interval(ALIVE_EVERY)
            .keep_alive_timeout(ALIVE_EVERY);
        // Room for as many streams as there may be, of which nobody reads one.
        let streams = endpoint.clone().initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOWS);
        let (channel, streaming) = (connects(endpoint, address, tls)?, connects(streams, address, tls)?);
        let breaker = Mutex::new(Breaker::new());
        let name = tls.map(|tls| tls.name.clone());
        let (at_work, streams) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let replica =
            Self { upstream: Arc::clone(upstream), address, name, channel, streaming, at_work, streams, breaker };
        replica.report(State::Closed);
        Ok(replica)
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it is what is reached there, in that way.
    pub(crate) fn is(&self, address: SocketAddr, tls: Option<&Tls>) -> bool {
        self.address == address && self.name.as_ref() == tls.map(|tls| &tls.name)
    }

    /// How many calls run there, or how many streams.
    pub(crate) fn at_work(&self, streams: bool) -> usize {
        if streams { self.streams.load(Ordering::Relaxed) } else { self.at_work.load(Ordering::Relaxed) }
    }

    /// Whether a call would be let through now.
    pub(crate) fn would_admit(&self, now: Instant) -> bool {
        self.breaker().would_admit(now)
    }

    /// Whether it is known to be alive.
    pub(crate) fn lives(&self) -> bool {
        self.breaker().state() == State::Closed
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, state: State) {
        let (upstream, replica) = (self.upstream.to_string(), self.address.to_string());
        gauge!("upstream_breaker_state", "upstream" => upstream, "replica" => replica).set(state.gauge());
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // It is none any more.
        self.report(State::Closed);
    }
}

/// A connection that is made when it is needed.
fn connects(endpoint: Endpoint, address: SocketAddr, tls: Option<&Tls>) -> Result<Channel, anyhow::Error> {
    let Some(Tls { trusted, name }) = tls.cloned() else {
        return Ok(endpoint.connect_timeout(CONNECT_WITHIN).connect_lazy());
    };
    let origin = format!("https://{}:{}", name.to_str(), address.port()).parse()?;
    // Its time is counted within: without a connection nothing was sent.
    Ok(endpoint.origin(origin).connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (trusted, name) = (Arc::clone(&trusted), name.clone());
        async move {
            let connected = tokio::time::timeout(CONNECT_WITHIN, trusted.connect(address, name)).await;
            connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(TokioIo::new)
        }
    })))
}

/// One call to a replica that its breaker has let through.
pub(crate) struct Admitted {
    replica: Arc<Replica>,
    /// There until its outcome is known.
    ticket: Option<Ticket>,
}

impl Admitted {
    pub(crate) fn new(replica: &Arc<Replica>, now: Instant) -> Option<Self> {
        let mut breaker = replica.breaker();
        let ticket = breaker.admit(now)?;
        if breaker.state() != State::Closed {
            replica.report(breaker.state());
        }
        drop(breaker);
        replica.at_work.fetch_add(1, Ordering::Relaxed);
        Some(Self { replica: Arc::clone(replica), ticket: Some(ticket) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.replica.address
    }

    pub(crate) fn is_probe(&self) -> bool {
        self.ticket.is_some_and(Ticket::is_probe)
    }

    /// Sends it once. One that is `hurried` must be answered in its time; a replica that lives may else be slow, and that it is gone
    /// is found by asking it whether it lives. What `streams` is answered once its answer has begun, and at work until its end.
    pub(crate) async fn attempt(
        mut self,
        request: Request<Body>,
        within: Duration,
        (hurried, streams): (bool, bool),
    ) -> Result<Response<Body>, Unanswered> {
        let mut channel = if streams { &self.replica.streaming } else { &self.replica.channel }.clone();
        let answer = async {
            std::future::poll_fn(|context| channel.poll_ready(context)).await.map_err(|error| failed(&error))?;
            let response = channel.call(request).await.map_err(|error| failed(&error))?;
            let status = response.status();
            if status.is_client_error() {
                // The replica is alive, and would give the same answer again.
                let error = anyhow::anyhow!("it was answered {status}");
                return Ok(Status::from(Failure::internal(error)).into_http());
            }
            if status != http::StatusCode::OK {
                return Err(Unanswered::Lost(format!("it was answered {status}")));
            }
            let (head, body) = response.into_parts();
            if streams {
                return begun(Response::from_parts(head, body));
            }
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
                Err(error) => return Err(Unanswered::Lost(error.to_string())),
            };
            begun(Response::from_parts(head, Body::new(body)))
        };
        let outcome = tokio::time::timeout(within, answer).await.unwrap_or(Err(Unanswered::Late));
        let now = Instant::now();
        match &outcome {
            Ok(_) => self.settle("", |breaker, _| breaker.answered()),
            Err(Unanswered::NotSent(why)) => self.settle(why, |breaker, ticket| breaker.failed(ticket, now, true)),
            Err(Unanswered::Lost(why)) => self.settle(why, |breaker, ticket| breaker.failed(ticket, now, false)),
            Err(Unanswered::Late) if hurried => self.settle(LATE, |breaker, ticket| breaker.failed(ticket, now, false)),
            Err(Unanswered::Late) => self.settle(LATE, |breaker, ticket| breaker.abandoned(ticket, now)),
        }
        let replica = Arc::clone(&self.replica);
        outcome.map(|response| if streams { response.map(|body| Body::new(Held::of(body, replica))) } else { response })
    }

    fn settle(&mut self, why: &str, settle: impl FnOnce(&mut Breaker, Ticket)) {
        let Some(ticket) = self.ticket.take() else { return };
        let mut breaker = self.replica.breaker();
        let was = breaker.state();
        settle(&mut breaker, ticket);
        let state = breaker.state();
        if was != state {
            self.replica.report(state);
            let (upstream, replica) = (&*self.replica.upstream, self.replica.address);
            match state {
                State::Open { .. } if was == State::Closed => {
                    tracing::warn!(upstream, %replica, why, "the replica does not answer: it is left out");
                }
                State::Closed => tracing::info!(upstream, %replica, "the replica answers again"),
                State::Open { .. } | State::HalfOpen { .. } => {}
            }
        }
    }
}

/// An answer, unless its head is a status that no service of ours has made: from a proxy, or from a server that stops.
fn begun(response: Response<Body>) -> Result<Response<Body>, Unanswered> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() == tonic::Code::Unavailable && status.details().is_empty() => {
            Err(Unanswered::Lost(status.message().to_owned()))
        }
        _ => Ok(response),
    }
}

/// A stream, which counts at its replica until it is dropped.
struct Held {
    body: Body,
    replica: Arc<Replica>,
}

impl Held {
    fn of(body: Body, replica: Arc<Replica>) -> Self {
        replica.streams.fetch_add(1, Ordering::Relaxed);
        Self { body, replica }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.replica.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.replica.at_work.fetch_sub(1, Ordering::Relaxed);
        self.settle("", |breaker, ticket| breaker.abandoned(ticket, Instant::now()));
    }
}

fn failed(error: &tonic::transport::Error) -> Unanswered {
    let mut why = error.to_string();
    let (mut not_sent, mut late) = (false, false);
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(error) = cause {
        why = format!("{why}: {error}");
        not_sent |= error.is::<tonic::ConnectError>();
        // tonic applies the same deadline as we do.
        late |= error.is::<tonic::TimeoutExpired>();
        cause = error.source();
    }
    match (not_sent, late) {
        (true, _) => Unanswered::NotSent(why),
        (_, true) => Unanswered::Late,
        _ => Unanswered::Lost(why),
    }
}
