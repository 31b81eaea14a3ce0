//! A stream as server-sent events (HTML, 9.2): each message is an event.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures::StreamExt as _;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use prost_reflect::{DynamicMessage, ReflectMessage as _};
use service::limits::Turn;
use service::server::Lasting;
use service::{Code, Failure, Lifecycle};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::problem::Problem;
use crate::transcode;

/// How much is kept for a reader that is slower than its stream, and for all of them together.
const KEPT_KIB: usize = 256;
const KEPT_FOR_ALL_KIB: usize = 64 * 1_024;
/// How long a stream waits for its reader.
const WAITS: Duration = Duration::from_secs(5);
/// How often it is sent something where nothing happens: proxies close what is silent, and a reader learns that it is connected.
const SENT_EVERY: Duration = Duration::from_secs(15);
/// After how long a reader connects anew.
const CONNECTS_AFTER: &str = "retry: 1000\n\n";

/// The memory for the readers of all streams.
#[derive(Debug)]
pub struct Kept(Arc<Semaphore>);

impl Kept {
    /// None is used.
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(KEPT_FOR_ALL_KIB)))
    }
}

/// The memory for one of them.
struct Room {
    all: Arc<Semaphore>,
    one: Arc<Semaphore>,
}

/// A piece of the answer, with the memory that it takes.
type Piece = (Bytes, Option<[OwnedSemaphorePermit; 2]>);

impl Room {
    /// Waits until there is room for so many bytes.
    async fn make(&self, bytes: usize) -> Option<[OwnedSemaphorePermit; 2]> {
        let kib = u32::try_from(bytes / 1_024 + 1).ok()?;
        let of = |room: &Arc<Semaphore>| Arc::clone(room).acquire_many_owned(kib);
        let room = async { Some([of(&self.one).await.ok()?, of(&self.all).await.ok()?]) };
        timeout(WAITS, room).await.ok().flatten()
    }
}

/// The answer that sends what the service streams. It ends with the stream, with the process, and with a reader that does not keep up; the
/// event `problem` says why. `open` is its place among the open streams, which it has for as long as anything is kept for it.
pub fn answer(
    messages: Streaming<DynamicMessage>,
    lifecycle: &Lifecycle,
    (kept, open): (&Kept, Option<Turn>),
) -> Response {
    let (sends, pieces) = unbounded_channel();
    let kept = Room { all: Arc::clone(&kept.0), one: Arc::new(Semaphore::new(KEPT_KIB)) };
    lifecycle.finish(|stop| async move {
        if let Err(problem) = pump(messages, &sends, &kept, &stop).await {
            // The last thing that it is sent, whatever is kept for it.
            let body = problem.body().to_string();
            drop(sends.send((text(None, Some("problem"), &body), None)));
        }
    });
    let pieces = UnboundedReceiverStream::new(pieces).map(move |(bytes, _)| {
        let _open = &open;
        Ok::<_, Infallible>(bytes)
    });
    let mut response = Response::new(Body::from_stream(pieces));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    // nginx's word: sent at once.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.extensions_mut().insert(Lasting::Reads);
    response
}

/// Reads the stream as it comes, and waits a short time for a reader that is slower.
async fn pump(
    mut messages: Streaming<DynamicMessage>,
    sends: &UnboundedSender<Piece>,
    kept: &Room,
    stop: &CancellationToken,
) -> Result<(), Problem> {
    let send = async |bytes: Bytes| {
        let room = tokio::select! {
            () = sends.closed() => return Ok(()),
            room = kept.make(bytes.len()) => room,
        };
        let Some(room) = room else {
            let what = "you read more slowly than events come: connect again, from the last event that you have";
            return Err(Problem::from(Status::from(Failure::new(Code::ResourceExhausted, "SLOW_READER", what))));
        };
        drop(sends.send((bytes, Some(room))));
        Ok(())
    };
    send(Bytes::from_static(CONNECTS_AFTER.as_bytes())).await?;
    let mut silence = interval(SENT_EVERY);
    silence.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            () = sends.closed() => return Ok(()),
            () = stop.cancelled() => return Ok(()),
            _ = silence.tick() => {
                send(Bytes::from_static(b":\n\n")).await?;
                continue;
            }
            message = messages.message() => message?,
        };
        let Some(message) = message else { return Ok(()) };
        send(event(&message)?).await?;
        silence.reset();
    }
}

/// A message as an event.
fn event(message: &DynamicMessage) -> Result<Bytes, Problem> {
    let (json, _) = transcode::response(message, false)?;
    let json = String::from_utf8(json).map_err(|_| Problem::internal())?;
    let id = message.get_field_by_name("id").and_then(|id| id.as_str().map(ToOwned::to_owned));
    let described = message.descriptor();
    let oneofs = described.oneofs().filter(|oneof| !oneof.is_synthetic());
    let mut members = oneofs.flat_map(|oneof| oneof.fields().collect::<Vec<_>>());
    let name = members.find(|field| message.has_field(field)).map(|field| field.json_name().to_owned());
    Ok(text(id.as_deref().filter(|id| !id.is_empty()), name.as_deref(), &json))
}

/// JSON has no line feeds; an id of ours has none either, and one that had would be another event.
fn text(id: Option<&str>, name: Option<&str>, data: &str) -> Bytes {
    let mut text = String::with_capacity(data.len() + 100);
    for (field, value) in [("id", id), ("event", name), ("data", Some(data))] {
        if let Some(value) = value.filter(|value| !value.contains(['\n', '\r', '\0'])) {
            text.extend([field, ": ", value, "\n"]);
        }
    }
    text.push('\n');
    text.into()
}
