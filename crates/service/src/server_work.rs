//! The work of one connection: how long its requests take, and how long it rests.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// How long a client may take for its first request's head.
pub const FIRST_HEAD_WITHIN: Duration = Duration::from_secs(10);
/// How long a connection may be idle after that, between requests or within a head; longer than a load balancer's minute.
pub const REST: Duration = Duration::from_secs(75);
/// How long it may be idle while the maximum number is open: waiting clients need its slot more.
pub const REST_WHEN_FULL: Duration = Duration::from_secs(2);
/// The same while the maximum number is open; a body, a turn and a call's deadline fit in it.
pub const LONGEST_WHEN_FULL: Duration = Duration::from_secs(30);
/// Fewer bytes written at once may be a ping, which is no work.
pub(crate) const OF_AN_ANSWER: usize = 1_024;

/// The address at the other end of a request's connection, among the request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

/// Marks an answer, among its extensions, as a stream: it may last longer than a request.
#[derive(Debug, Clone, Copy)]
pub enum Lasting {
    /// As long as its reader takes what there is: what it leaves unread is timed as a request is. For callers that are strangers.
    Reads,
    /// For ever, and in silence: its connection is that of many calls.
    Silent,
}

/// Later than anything that is looked at.
const NEVER: Duration = Duration::from_secs(1 << 32);

/// The running requests of one connection.
pub(crate) struct Work(Mutex<AtWorkNow>);

struct AtWorkNow {
    /// When each running request began, or its stream last sent something.
    requests: BTreeMap<u64, Instant>,
    /// How many there were, these among them.
    begun: u64,
    /// When the last request ended, bytes went out, or the connection began.
    rests_since: Instant,
}

impl Work {
    pub(crate) fn new() -> Self {
        let now = AtWorkNow { requests: BTreeMap::new(), begun: 0, rests_since: Instant::now() };
        Self(Mutex::new(now))
    }

    fn with<T>(&self, with: impl FnOnce(&mut AtWorkNow) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// When the newest running request began; silent streams are none.
    pub(crate) fn newest(&self) -> Option<Instant> {
        let now = Instant::now();
        self.with(|work| work.requests.values().filter(|since| **since <= now).max().copied())
    }

    /// Ends when the connection has been idle, or its oldest request has run, for longer than allowed.
    pub(crate) async fn takes_too_long(&self, full: &AtomicBool, longest: Duration) {
        let mut tick = tokio::time::interval(REST_WHEN_FULL / 2);
        loop {
            tick.tick().await;
            let full = full.load(Ordering::SeqCst);
            let too_long = self.with(|now| match now.requests.values().min() {
                Some(since) => since.elapsed() >= if full { LONGEST_WHEN_FULL } else { longest },
                None => {
                    now.rests_since.elapsed()
                        >= match (full, now.begun > 0) {
                            (true, _) => REST_WHEN_FULL,
                            (false, true) => REST,
                            (false, false) => FIRST_HEAD_WITHIN,
                        }
                }
            });
            if too_long {
                return;
            }
        }
    }
}

/// One running request.
struct AtWork {
    work: Arc<Work>,
    number: u64,
}

impl AtWork {
    fn on(work: &Arc<Work>) -> Self {
        let number = work.with(|now| {
            now.begun += 1;
            now.requests.insert(now.begun, Instant::now());
            now.begun
        });
        Self { work: Arc::clone(work), number }
    }
}

impl AtWork {
    fn begins_again(&self, after: Duration) {
        self.work.with(|now| now.requests.insert(self.number, Instant::now() + after));
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.work.with(|now| {
            now.requests.remove(&self.number);
            now.rests_since = Instant::now();
        });
    }
}

/// The connection's stream, which notes when bytes go out: over HTTP/1 an answer is handed over whole, and written later.
pub(crate) struct Watched<S> {
    pub(crate) stream: S,
    pub(crate) work: Arc<Work>,
}

impl<S> Watched<S> {
    fn went_out(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(written, Poll::Ready(Ok(OF_AN_ANSWER..))) {
            self.work.with(|now| now.rests_since = Instant::now());
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.went_out(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.went_out(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The router, with each request counted until its answer's body has ended.
#[derive(Clone)]
pub(crate) struct Counted {
    pub(crate) router: Router,
    pub(crate) work: Arc<Work>,
    pub(crate) peer: Peer,
}

impl<B> tower::Service<Request<B>> for Counted
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        tower::Service::<Request<B>>::poll_ready(&mut self.router, context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let at_work = AtWork::on(&self.work);
        request.extensions_mut().insert(self.peer);
        let answer = self.router.call(request);
        async move {
            let answer = answer.await?;
            let lasting = answer.extensions().get::<Lasting>().copied();
            if matches!(lasting, Some(Lasting::Silent)) {
                at_work.begins_again(NEVER);
            }
            Ok(answer.map(|body| Body::new(CountedBody { body, at_work, lasting })))
        }
        .boxed()
    }
}

struct CountedBody {
    body: Body,
    at_work: AtWork,
    lasting: Option<Lasting>,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        // It is asked for more once its reader has room: what waits then waits for the service.
        match (self.lasting, &frame) {
            (Some(Lasting::Reads), Poll::Pending) => self.at_work.begins_again(NEVER),
            (Some(Lasting::Reads), Poll::Ready(Some(Ok(_)))) => self.at_work.begins_again(Duration::ZERO),
            _ => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
