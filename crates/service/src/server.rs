//! Serves connections of clients that may be hostile: limited in number, and each in time and size.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
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
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a client may take for its first request's head.
pub const FIRST_HEAD_WITHIN: Duration = Duration::from_secs(10);
/// How long a connection may be idle after that, between requests or within a head; longer than a load balancer's minute.
pub const REST: Duration = Duration::from_secs(75);
/// How long it may be idle while the maximum number is open: waiting clients need its slot more.
pub const REST_WHEN_FULL: Duration = Duration::from_secs(2);
/// How long a request may take, to the end of its answer: an unread answer ends, and so does a stream.
pub const LONGEST: Duration = Duration::from_secs(60);
/// The same while the maximum number is open; a body, a turn and a call's deadline fit in it.
pub const LONGEST_WHEN_FULL: Duration = Duration::from_secs(30);
/// How long a connection that is to close may take for what it has to write, and then for what is at work: together less than
/// a drain.
const CLOSES_WITHIN: Duration = Duration::from_secs(5);
const ENDS_WITHIN: Duration = Duration::from_secs(11);
/// The largest HTTP/1 head, in bytes; the same for the read-ahead of a body.
const MAX_HEAD: usize = 64 * 1024;
/// The largest HTTP/2 head, in bytes, when it is unpacked.
const MAX_HEADER_LIST: u32 = 16 * 1024;
/// Fewer bytes written at once may be a ping, which is no work.
const OF_AN_ANSWER: usize = 1_024;
/// The pause after a failed accept, as when no descriptors are left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The limits of connections.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How many may be open; one more waits, and others in the kernel's queue.
    pub connections: usize,
    /// How many concurrent requests one HTTP/2 connection may have.
    pub streams: u32,
    /// Whether they must speak HTTP/2.
    pub http2_only: bool,
    /// How long a request may take, to the end of its answer: [`LONGEST`], where callers are strangers.
    pub longest: Duration,
}

/// Serves until `stop`, and then until the running requests have ended, or 16 seconds. With an acceptor, over TLS alone.
///
/// # Errors
/// None: a failure of one connection ends that connection only.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    (bounds, tls): (Bounds, Option<TlsAcceptor>),
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let builder = Arc::new(builder(bounds));
    let permits = Arc::new(Semaphore::new(bounds.connections));
    let full = Arc::new(AtomicBool::new(false));
    let connections = TaskTracker::new();
    loop {
        let next = async {
            let accepted = listener.accept().await;
            // A client waits: idle connections make room.
            full.store(permits.available_permits() == 0 || accepted.is_err(), Ordering::SeqCst);
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, accepted)
        };
        match stop.run_until_cancelled(next).await {
            Some((Ok(permit), Ok((stream, _)))) => {
                full.store(false, Ordering::SeqCst);
                let (builder, full, stop) = (Arc::clone(&builder), Arc::clone(&full), stop.clone());
                let connection = Connection { builder, full, stop, longest: bounds.longest, permit };
                stream.set_nodelay(true).ok();
                let router = router.clone();
                match tls.clone() {
                    None => connections.spawn(connection.serve(stream, Arc::new(Work::new()), router)),
                    Some(tls) => connections.spawn(connection.serve_tls(tls, stream, router)),
                };
            }
            // No descriptors are left, or this connection is gone already.
            Some((Ok(_), Err(error))) => {
                tracing::warn!(%error, "a connection could not be accepted");
                stop.run_until_cancelled(tokio::time::sleep(ACCEPT_AGAIN)).await;
            }
            // The semaphore is never closed.
            Some((Err(_), _)) | None => break,
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
    Ok(())
}

fn builder(bounds: Bounds) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    if bounds.http2_only {
        builder = builder.http2_only();
    }
    builder.http1().timer(TokioTimer::new()).header_read_timeout(REST).max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .max_concurrent_streams(bounds.streams)
        .max_header_list_size(MAX_HEADER_LIST);
    builder
}

struct Connection {
    builder: Arc<Builder<TokioExecutor>>,
    full: Arc<AtomicBool>,
    longest: Duration,
    stop: CancellationToken,
    permit: OwnedSemaphorePermit,
}

impl Connection {
    /// A handshake is a part of the first head.
    async fn serve_tls(self, tls: TlsAcceptor, stream: TcpStream, router: Router) {
        let work = Arc::new(Work::new());
        let handshake = tokio::select! {
            handshake = tls.accept(stream) => handshake,
            () = work.takes_too_long(&self.full, self.longest) => Err(io::ErrorKind::TimedOut.into()),
            // What comes with its end may be a request, which is told to go elsewhere and not cut off.
            () = async { self.stop.cancelled().await; tokio::time::sleep(CLOSES_WITHIN).await } => return,
        };
        match handshake {
            Ok(stream) => self.serve(stream, work, router).await,
            Err(error) => {
                metrics::counter!("tls_handshakes_failed_total").increment(1);
                tracing::debug!(%error, "a client's TLS handshake has failed");
            }
        }
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        self,
        stream: S,
        work: Arc<Work>,
        router: Router,
    ) {
        let _permit = self.permit;
        let stream = TokioIo::new(Watched { stream, work: Arc::clone(&work) });
        let counted = Counted { router, work: Arc::clone(&work) };
        let connection = self.builder.serve_connection(stream, TowerToHyperService::new(counted));
        let mut connection = pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return,
            () = self.stop.cancelled() => {}
            () = work.takes_too_long(&self.full, self.longest) => {}
        }
        connection.as_mut().graceful_shutdown();
        let closed = tokio::time::timeout(CLOSES_WITHIN, connection.as_mut()).await;
        // Of those beside one that took too long, each has its time.
        if closed.is_err() && work.newest().is_some_and(|since| since.elapsed() < LONGEST_WHEN_FULL) {
            tokio::time::timeout(ENDS_WITHIN, connection).await.ok();
        }
    }
}

/// The running requests of one connection.
struct Work(Mutex<AtWorkNow>);

struct AtWorkNow {
    /// When each running request began; in that order.
    requests: BTreeMap<u64, Instant>,
    /// How many there were, these among them.
    begun: u64,
    /// When the last request ended, bytes went out, or the connection began.
    rests_since: Instant,
}

impl Work {
    fn new() -> Self {
        let now = AtWorkNow { requests: BTreeMap::new(), begun: 0, rests_since: Instant::now() };
        Self(Mutex::new(now))
    }

    fn with<T>(&self, with: impl FnOnce(&mut AtWorkNow) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// When the newest running request began.
    fn newest(&self) -> Option<Instant> {
        self.with(|now| now.requests.values().next_back().copied())
    }

    /// Ends when the connection has been idle, or its oldest request has run, for longer than allowed.
    async fn takes_too_long(&self, full: &AtomicBool, longest: Duration) {
        let mut tick = tokio::time::interval(REST_WHEN_FULL / 2);
        loop {
            tick.tick().await;
            let full = full.load(Ordering::SeqCst);
            let too_long = self.with(|now| match now.requests.values().next() {
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

impl Drop for AtWork {
    fn drop(&mut self) {
        self.work.with(|now| {
            now.requests.remove(&self.number);
            now.rests_since = Instant::now();
        });
    }
}

/// The connection's stream, which notes when bytes go out: over HTTP/1 an answer is handed over whole, and written later.
struct Watched<S> {
    stream: S,
    work: Arc<Work>,
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
struct Counted {
    router: Router,
    work: Arc<Work>,
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

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let at_work = AtWork::on(&self.work);
        let answer = self.router.call(request);
        async move { answer.await.map(|answer| answer.map(|body| Body::new(CountedBody { body, _at_work: at_work }))) }
            .boxed()
    }
}

struct CountedBody {
    body: Body,
    _at_work: AtWork,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::Notify;

    use super::*;

    const LARGE: usize = 1 << 20;

    struct Served {
        address: std::net::SocketAddr,
        stop: CancellationToken,
        server: TaskTracker,
        began: Instant,
        /// A request to /never is at work.
        never: Arc<Notify>,
    }

    /// Time passes at once when everybody waits.
    async fn served(connections: usize) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, server, never) = (CancellationToken::new(), TaskTracker::new(), Arc::new(Notify::new()));
        let begun = Arc::clone(&never);
        let router = Router::new()
            .route("/", get(|| async { "well" }))
            .route("/large", get(|| async { "x".repeat(LARGE) }))
            .route(
                "/never",
                get(move || async move {
                    begun.notify_one();
                    std::future::pending::<()>().await
                }),
            );
        let bounds = Bounds { connections, streams: 10, http2_only: false, longest: LONGEST };
        server.spawn(serve(listener, router, (bounds, None), stop.clone()));
        server.close();
        Served { address, stop, server, began: Instant::now(), never }
    }

    impl Served {
        async fn connect(&self, sends: &[u8]) -> TcpStream {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(sends).await.unwrap();
            stream
        }

        /// What a connection was answered until it was closed, and when that was.
        async fn closed(&self, mut stream: TcpStream) -> (String, u64) {
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.ok();
            (String::from_utf8_lossy(&answer).into_owned(), self.began.elapsed().as_secs())
        }

        async fn end(self) {
            self.stop.cancel();
            self.server.wait().await;
        }
    }

    const WELL: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    #[tokio::test(start_paused = true)]
    async fn whoever_sends_no_first_head_is_closed() {
        for sends in [&b""[..], b"P", b"GET / HTTP/1.1\r\nx-slow: 1", PREFACE] {
            let served = served(10).await;
            let (_, seconds) = served.closed(served.connect(sends).await).await;
            assert!((10..=17).contains(&seconds), "{sends:?}: after {seconds} s");
            served.end().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_may_rest_between_requests_and_not_for_ever() {
        let served = served(10).await;
        let mut stream = served.connect(WELL).await;
        for _ in 0..3 {
            tokio::time::sleep(REST - Duration::from_secs(5)).await;
            stream.write_all(WELL).await.unwrap();
        }
        let (answers, seconds) = served.closed(stream).await;
        assert_eq!(answers.matches("HTTP/1.1 200").count(), 4);
        assert!((285..=300).contains(&seconds), "after {seconds} s");
        served.end().await;
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_read_its_answers_is_closed() {
        let served = served(1).await;
        let many = b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
        let mut unread = served.connect(&many).await;
        let waits = served.connect(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let (answer, seconds) = served.closed(waits).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(seconds <= 40, "after {seconds} s");
        let mut answers = Vec::new();
        unread.read_to_end(&mut answers).await.ok();
        assert!(answers.len() < 100 * LARGE, "{}", answers.len());
        served.end().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_an_end_is_ended() {
        let served = served(10).await;
        let endless = served.connect(b"GET /never HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let (_, seconds) = served.closed(endless).await;
        assert!((60..=67).contains(&seconds), "after {seconds} s");
        served.end().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_before_a_drain_does() {
        let served = served(10).await;
        let _endless = served.connect(b"GET /never HTTP/1.1\r\nhost: x\r\n\r\n").await;
        served.never.notified().await;
        let began = Instant::now();
        served.end().await;
        assert!((5..20).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_places_are_taken_those_at_rest_make_room() {
        let served = served(3).await;
        let silent = [served.connect(b"").await, served.connect(WELL).await];
        let at_work = served.connect(b"GET /never HTTP/1.1\r\nhost: x\r\n\r\n").await;
        served.never.notified().await;
        let waits = served.connect(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let (answer, seconds) = served.closed(waits).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(seconds < 10, "after {seconds} s");
        for stream in silent {
            assert!(served.closed(stream).await.1 < 10);
        }
        let (_, seconds) = served.closed(at_work).await;
        assert!(seconds >= 30, "who is at work is left alone: {seconds} s");
        served.end().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_is_too_large_is_refused() {
        let served = served(10).await;
        let head = format!("GET / HTTP/1.1\r\nhost: x\r\nx-large: {}\r\n\r\n", "x".repeat(2 * MAX_HEAD));
        let (answer, _) = served.closed(served.connect(head.as_bytes()).await).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
        served.end().await;
    }
}
