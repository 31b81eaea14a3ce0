//! Serves connections of clients that may be hostile: bounded in number, and each in time and in size.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a client may take for its first request's head.
pub const FIRST_HEAD_WITHIN: Duration = Duration::from_secs(10);
/// How long a connection may rest after that, between requests or within a head; longer than a load balancer's minute.
pub const REST: Duration = Duration::from_secs(75);
/// How long it may rest while as many are open as may be: those who wait outside have more need of its place.
pub const REST_WHEN_FULL: Duration = Duration::from_secs(2);
/// How long a connection that is to close may take for what it has to write, and then for what is at work.
const CLOSES_WITHIN: Duration = Duration::from_secs(5);
const ENDS_WITHIN: Duration = Duration::from_secs(15);
/// The most of an HTTP/1 head, in bytes; the same for what is read ahead of a body.
const MAX_HEAD: usize = 64 * 1024;
/// The most of an HTTP/2 head, in bytes, when it is unpacked.
const MAX_HEADER_LIST: u32 = 16 * 1024;
/// How many requests one HTTP/2 connection may have at work.
const MAX_STREAMS: u32 = 256;
/// The pause after nothing could be accepted, as when there are no descriptors left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What connections may be.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How many may be open; more wait to be accepted.
    pub connections: usize,
    /// Whether they must speak HTTP/2.
    pub http2_only: bool,
}

/// Serves until `stop`, and then until what is at work has ended, or 20 seconds.
///
/// # Errors
/// None: what goes wrong with one connection is that one's end.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    bounds: Bounds,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let builder = Arc::new(builder(bounds));
    let permits = Arc::new(Semaphore::new(bounds.connections));
    let connections = TaskTracker::new();
    loop {
        let next = async {
            // Else the kernel's queue would move here.
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, listener.accept().await)
        };
        match stop.run_until_cancelled(next).await {
            Some((Ok(permit), Ok((stream, _)))) => {
                let connection = Connection {
                    builder: Arc::clone(&builder),
                    permits: Arc::clone(&permits),
                    stop: stop.clone(),
                    permit,
                };
                connections.spawn(connection.serve(stream, router.clone()));
            }
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
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST);
    builder
}

struct Connection {
    builder: Arc<Builder<TokioExecutor>>,
    permits: Arc<Semaphore>,
    stop: CancellationToken,
    permit: OwnedSemaphorePermit,
}

impl Connection {
    async fn serve(self, stream: TcpStream, router: Router) {
        let _permit = self.permit;
        stream.set_nodelay(true).ok();
        let work = Arc::new(Work::new());
        let counted = Counted { router, work: Arc::clone(&work) };
        let connection = self.builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(counted));
        let mut connection = pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return,
            () = self.stop.cancelled() => {}
            () = work.rests_too_long(&self.permits) => {}
        }
        connection.as_mut().graceful_shutdown();
        let closed = tokio::time::timeout(CLOSES_WITHIN, connection.as_mut()).await;
        if closed.is_err() && work.is_at_work() {
            tokio::time::timeout(ENDS_WITHIN, connection).await.ok();
        }
    }
}

/// What is at work on one connection.
struct Work {
    requests: AtomicUsize,
    any_yet: AtomicBool,
    /// When the last of them ended, or the connection began.
    rests_since: Mutex<Instant>,
}

impl Work {
    fn new() -> Self {
        Self { requests: AtomicUsize::new(0), any_yet: AtomicBool::new(false), rests_since: Mutex::new(Instant::now()) }
    }

    fn is_at_work(&self) -> bool {
        self.requests.load(Ordering::SeqCst) > 0
    }

    async fn rests_too_long(&self, permits: &Semaphore) {
        let mut tick = tokio::time::interval(REST_WHEN_FULL / 2);
        loop {
            tick.tick().await;
            let may_rest = match () {
                () if permits.available_permits() == 0 => REST_WHEN_FULL,
                () if self.any_yet.load(Ordering::SeqCst) => REST,
                () => FIRST_HEAD_WITHIN,
            };
            let since = *self.rests_since.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.is_at_work() && since.elapsed() >= may_rest {
                return;
            }
        }
    }
}

/// One request at work.
struct AtWork(Arc<Work>);

impl AtWork {
    fn on(work: &Arc<Work>) -> Self {
        work.requests.fetch_add(1, Ordering::SeqCst);
        work.any_yet.store(true, Ordering::SeqCst);
        Self(Arc::clone(work))
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        *self.0.rests_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.requests.fetch_sub(1, Ordering::SeqCst);
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

    use super::*;

    struct Served {
        address: std::net::SocketAddr,
        stop: CancellationToken,
        server: TaskTracker,
        began: Instant,
    }

    /// Time passes at once when everybody waits.
    async fn served(connections: usize) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, server) = (CancellationToken::new(), TaskTracker::new());
        let never = get(std::future::pending::<()>);
        let router = Router::new().route("/", get(|| async { "well" })).route("/never", never);
        server.spawn(serve(listener, router, Bounds { connections, http2_only: false }, stop.clone()));
        server.close();
        Served { address, stop, server, began: Instant::now() }
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
    async fn when_all_places_are_taken_those_at_rest_make_room() {
        let served = served(3).await;
        let silent = [served.connect(b"").await, served.connect(WELL).await];
        let at_work = served.connect(b"GET /never HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let waits = served.connect(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let (answer, seconds) = served.closed(waits).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(seconds < 10, "after {seconds} s");
        for stream in silent {
            assert!(served.closed(stream).await.1 < 10);
        }
        // Who is at work is left alone, until the server ends.
        let mut at_work = at_work;
        let more = tokio::time::timeout(Duration::from_secs(600), at_work.read_u8()).await;
        assert!(more.is_err(), "{more:?}");
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
