//! Serves connections of clients that may be hostile: limited in number, and each in time and size.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::server_work::{Counted, LONGEST_WHEN_FULL, Watched, Work};
pub use crate::server_work::{FIRST_HEAD_WITHIN, Lasting, Peer, REST};

/// How long a request may take, to the end of its answer: an unread answer ends. A stream ([`Lasting::Reads`]) may leave unread what there is for so long.
pub const LONGEST: Duration = Duration::from_secs(60);
/// How long a connection that is to close may take for what it has to write, and then for what is at work: together less than
/// a drain.
const CLOSES_WITHIN: Duration = Duration::from_secs(5);
const ENDS_WITHIN: Duration = Duration::from_secs(11);
/// The largest HTTP/1 head, in bytes; the same for the read-ahead of a body.
const MAX_HEAD: usize = 64 * 1024;
/// The largest HTTP/2 head, in bytes, when it is unpacked.
const MAX_HEADER_LIST: u32 = 16 * 1024;
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
            Some((Ok(permit), Ok((stream, peer)))) => {
                full.store(false, Ordering::SeqCst);
                let (builder, full, stop) = (Arc::clone(&builder), Arc::clone(&full), stop.clone());
                let peer = Peer(peer.ip());
                let connection = Connection { builder, full, stop, longest: bounds.longest, permit, peer };
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
    peer: Peer,
}

impl Connection {
    /// A handshake is a part of the first head.
    async fn serve_tls(self, tls: TlsAcceptor, stream: TcpStream, router: Router) {
        let work = Arc::new(Work::new());
        let handshake = tokio::select! {
            handshake = tls.accept(stream) => handshake,
            () = work.takes_too_long(&self.full, self.longest) => Err(io::ErrorKind::TimedOut.into()),
            // A request may come with its end: it gets a GOAWAY and no reset.
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
        let counted = Counted { router, work: Arc::clone(&work), peer: self.peer };
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

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::Notify;
    use tokio::time::Instant;

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
            .route("/lines", get(|| async { lasting(Lasting::Reads, 20) }))
            .route("/flood", get(|| async { flood() }))
            .route("/silent", get(|| async { lasting(Lasting::Silent, 1) }))
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

    /// An answer of so many lines, half a minute apart, and silence then.
    fn lasting(lasting: Lasting, lines: usize) -> axum::response::Response {
        let lines = futures::stream::unfold(lines, |left| async move {
            tokio::time::sleep(Duration::from_secs(30)).await;
            match left {
                0 => std::future::pending().await,
                left => Some((Ok::<_, Infallible>("line\n"), left - 1)),
            }
        });
        let mut answer = axum::response::Response::new(axum::body::Body::from_stream(lines));
        answer.extensions_mut().insert(lasting);
        answer
    }

    /// An answer without an end, as fast as it is read.
    fn flood() -> axum::response::Response {
        let pieces = futures::stream::repeat_with(|| Ok::<_, Infallible>("x".repeat(LARGE)));
        let mut answer = axum::response::Response::new(axum::body::Body::from_stream(pieces));
        answer.extensions_mut().insert(Lasting::Reads);
        answer
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
    async fn a_stream_lasts_as_long_as_it_is_read_or_for_ever() {
        let served = served(10).await;
        for path in ["lines", "silent"] {
            let get = format!("GET /{path} HTTP/1.1\r\nhost: x\r\n\r\n");
            let mut stream = served.connect(get.as_bytes()).await;
            let read = tokio::time::timeout(Duration::from_secs(3_600), stream.read_to_end(&mut Vec::new())).await;
            assert!(read.is_err(), "{path} is open after an hour");
        }
        let unread = served.connect(b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n").await;
        tokio::time::sleep(Duration::from_secs(70)).await;
        // What was on its way comes, and the end.
        let most = 64 * LARGE as u64;
        let read = unread.take(most).read_to_end(&mut Vec::new()).await;
        assert!(read.map_or(true, |bytes| (bytes as u64) < most), "it is still sent to");
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
