//! HTTP/2's own bounds, against a client that writes its frames by hand: what a library would not let a hostile one do.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use axum::Router;
use axum::routing::get;
use service::server::{Bounds, FIRST_HEAD_WITHIN, LONGEST, REST, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const STREAMS: u32 = 10;
const LARGE: usize = 1 << 20;

const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
/// The end of a request without a body.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const REFUSED_STREAM: u32 = 7;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// A gRPC server, and one client of it. Time passes at once when everybody waits.
struct Served {
    client: TcpStream,
    began: Instant,
    stop: CancellationToken,
    server: TaskTracker,
}

struct Frame {
    kind: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Served {
    async fn open(sends: &[u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/", get(|| async { "well" }))
            .route("/large", get(|| async { "x".repeat(LARGE) }))
            .route("/never", get(std::future::pending::<()>));
        let (stop, server) = (CancellationToken::new(), TaskTracker::new());
        let bounds = Bounds { connections: 10, streams: STREAMS, http2_only: true, longest: LONGEST };
        server.spawn(serve(listener, router, (bounds, None), stop.clone()));
        server.close();
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(sends).await.unwrap();
        Self { client, began: Instant::now(), stop, server }
    }

    /// The connection of a client that has greeted, with these settings.
    async fn greeted(settings: &[(u16, u32)]) -> Self {
        let settings: Vec<u8> =
            settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        Self::open(&[PREFACE, &frame(SETTINGS, 0, 0, &settings)].concat()).await
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.client.write_all(bytes).await.unwrap();
    }

    /// The next frame; none when the connection is closed. The server's pings are answered: this client lives.
    async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.client.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length as usize];
        self.client.read_exact(&mut payload).await.ok()?;
        if head[3] == PING && head[4] & ACK == 0 {
            self.client.write_all(&frame(PING, ACK, 0, &payload)).await.ok()?;
        }
        Some(Frame { kind: head[3], stream, payload })
    }

    /// The next frame of this kind.
    async fn next_of(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.expect("the connection is open");
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// After how long the connection is closed.
    async fn closed_after(mut self) -> Duration {
        while self.next().await.is_some() {}
        let after = self.began.elapsed();
        self.end().await;
        after
    }

    async fn end(self) {
        drop(self.client);
        self.stop.cancel();
        self.server.wait().await;
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// The fields of a GET, as RFC 7541 writes them without its tables of former fields.
fn fields(path: &str) -> Vec<u8> {
    let text = |index: u8, text: &str| [&[index, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    // :method GET and :scheme http are entries 2 and 6 of the static table, :path and :authority have the names of 4 and 1.
    [&[0x82, 0x86][..], &text(0x04, path), &text(0x01, "x")].concat()
}

fn request(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &fields(path))
}

/// The server checks a connection each second, and then gives it some seconds to close.
fn about(after: Duration, wanted: Duration) -> bool {
    (wanted..wanted + Duration::from_secs(8)).contains(&after)
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_for_nothing_is_closed_whatever_frames_it_sends() {
    let greeting = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let half_a_head = [&greeting[..], &frame(HEADERS, END_STREAM, 1, &fields("/"))].concat();
    for sends in [&b""[..], &PREFACE[..10], PREFACE, &greeting, &half_a_head] {
        let after = Served::open(sends).await.closed_after().await;
        assert!(about(after, FIRST_HEAD_WITHIN), "{sends:?}: after {after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn pings_are_no_work() {
    let mut served = Served::greeted(&[]).await;
    served.send(&request(1, "/")).await;
    while served.next_of(HEADERS).await.stream != 1 {}
    // Every few seconds, until it is closed.
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    loop {
        tokio::select! {
            frame = served.next() => if frame.is_none() { break },
            _ = tick.tick() => if served.client.write_all(&frame(PING, 0, 0, &[0; 8])).await.is_err() { break },
        }
    }
    let after = served.began.elapsed();
    assert!(about(after, REST), "after {after:?}");
    served.end().await;
}

#[tokio::test(start_paused = true)]
async fn one_connection_has_so_many_requests_at_work_and_one_more_is_refused() {
    let mut served = Served::greeted(&[]).await;
    for number in 0..=STREAMS {
        served.send(&request(2 * number + 1, "/never")).await;
    }
    let refused = served.next_of(RESET).await;
    assert_eq!(refused.stream, 2 * STREAMS + 1);
    assert_eq!(refused.payload, REFUSED_STREAM.to_be_bytes());
    served.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_head_that_is_too_large_when_it_is_unpacked_reaches_nobody() {
    let mut served = Served::greeted(&[]).await;
    // One field of 20 KiB: a name and a value with their lengths, that of the value in four bytes.
    let value = vec![b'x'; 20 * 1024];
    let length = [0x7f, 0x81, 0x9f, 0x01];
    let large = [&fields("/")[..], &[0x00, 1, b'a'], &length, &value].concat();
    let (first, rest) = large.split_at(16_000);
    served.send(&frame(HEADERS, END_STREAM, 1, first)).await;
    served.send(&frame(CONTINUATION, END_HEADERS, 1, rest)).await;
    let answer = served.next_of(HEADERS).await;
    assert_eq!(answer.stream, 1);
    // :status 200 is entry 8 of the static table.
    assert_ne!(answer.payload[0], 0x88, "it is refused with a status of its own");
    // And the connection goes on.
    served.send(&request(3, "/")).await;
    let answer = served.next_of(HEADERS).await;
    assert_eq!((answer.stream, answer.payload[0]), (3, 0x88));
    served.end().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_never_opens_its_window_is_closed() {
    let mut served = Served::greeted(&[(INITIAL_WINDOW_SIZE, 0)]).await;
    served.send(&request(1, "/large")).await;
    let after = served.closed_after().await;
    assert!(about(after, LONGEST), "after {after:?}");
}
