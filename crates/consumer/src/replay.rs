//! Replaying: an event goes to one consumer again, by a stream of its own, and its outcome comes back by the same
//! stream. The subjects are `replay.<consumer>.<the event's subject>` and `replayed.<consumer>`. A replay that fails
//! becomes a dead letter that names it.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{self, PullConsumer};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{self, RawMessageErrorKind};
use async_nats::jetstream::{self, context};
use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::event::Replay;
use crate::settle::{ANSWERS_WITHIN, Acker};

/// The stream of replays, and of their outcomes.
pub const STREAM: &str = "REPLAY";
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

const ID: &str = "Replay-Id";
const ACT: &str = "Replay-Act";
const STREAM_SEQUENCE: &str = "Replay-Stream-Sequence";
const STORED_AT: &str = "Replay-Stored-At";
const OUTCOME: &str = "Replay-Outcome";

/// Where a message comes from: for a replayed one, what it was when its stream gave it.
pub struct Origin {
    pub subject: String,
    pub stream_sequence: u64,
    pub stored_at: DateTime<Utc>,
    pub replay: Option<Replay>,
}

/// The origin of a message.
pub fn origin(message: &jetstream::Message, info: &jetstream::message::Info<'_>) -> Origin {
    let itself = Origin {
        subject: message.subject.to_string(),
        stream_sequence: info.stream_sequence,
        stored_at: info.published,
        replay: None,
    };
    if info.stream != STREAM {
        return itself;
    }
    let header = |name| header(message.headers.as_ref(), name);
    Origin {
        subject: message.subject.splitn(3, '.').nth(2).unwrap_or_default().to_owned(),
        stream_sequence: header(STREAM_SEQUENCE).and_then(|text| text.parse().ok()).unwrap_or(itself.stream_sequence),
        stored_at: header(STORED_AT).and_then(|text| text.parse().ok()).unwrap_or(itself.stored_at),
        replay: Some(Replay {
            id: header(ID).unwrap_or_default().to_owned(),
            discarded: header(ACT) == Some("discard"),
        }),
    }
}

/// Whether a message is a replay that only gives up its event.
pub fn is_discarded(message: &jetstream::Message, info: &jetstream::message::Info<'_>) -> bool {
    origin(message, info).replay.is_some_and(|replay| replay.discarded)
}

fn header<'a>(headers: Option<&'a HeaderMap>, name: &'static str) -> Option<&'a str> {
    headers?.get(name).map(|value| value.as_str())
}

/// The replay whose outcome a message reports, and the outcome.
pub fn outcome(headers: Option<&HeaderMap>) -> Option<(String, String)> {
    Some((header(headers, ID)?.to_owned(), header(headers, OUTCOME)?.to_owned()))
}

async fn stream(js: &jetstream::Context) -> Result<stream::Stream, anyhow::Error> {
    js.get_stream(STREAM).await.context("opening the stream of replays")
}

/// The durable consumer by which a consumer reads its replays.
pub async fn consumer(js: &jetstream::Context, durable: &str) -> Result<PullConsumer, anyhow::Error> {
    js.get_consumer_from_stream(durable, STREAM).await.context("opening the consumer of replays")
}

/// The same, and the stream.
pub async fn open(js: &jetstream::Context, durable: &str) -> Result<(stream::Stream, PullConsumer), anyhow::Error> {
    Ok((stream(js).await?, consumer(js, durable).await?))
}

/// Reports the outcome of a replayed message; `Ok` only once that is stored.
pub async fn report(acker: &Acker, message: &jetstream::Message, verdict: &str) -> Result<(), anyhow::Error> {
    let id = header(message.headers.as_ref(), ID).unwrap_or_default();
    let answer = PublishMessage::build()
        .header(ID, id)
        .header(OUTCOME, verdict)
        .message_id(format!("{id}:{verdict}"))
        .expected_stream(STREAM);
    stored(&acker.js, format!("replayed.{}", acker.config.durable), answer).await.map(drop)
}

async fn stored(js: &jetstream::Context, subject: String, message: PublishMessage) -> Result<u64, anyhow::Error> {
    let sent = js.send_publish(subject, message).await.context("publishing to the stream of replays")?;
    let ack =
        tokio::time::timeout(ANSWER_WITHIN, sent).await.context("the stream of replays did not answer in time")?;
    Ok(ack.context("the stream of replays did not store the message")?.sequence)
}

/// An event to be replayed.
#[derive(Debug, Clone)]
pub struct ReplayRequest {
    /// The one consumer that gets it.
    pub consumer: String,
    /// A name for this replay, never used before: the outcome is reported under it.
    pub id: String,
    /// The subject that it was published on.
    pub subject: String,
    /// Its headers.
    pub headers: Vec<(String, String)>,
    /// The event.
    pub payload: Bytes,
    /// Its sequence in its stream.
    pub stream_sequence: u64,
    /// When its stream stored it.
    pub stored_at: DateTime<Utc>,
    /// Whether it is given up instead of handled.
    pub discarded: bool,
}

/// How far a replay is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayStatus {
    /// The stream does not hold it: it was lost on the way.
    Lost,
    /// It waits for its consumer, or is in its hands.
    Waits,
    /// The consumer has acknowledged it: the outcome is stored, in this stream or as a dead letter.
    Settled,
}

/// Sends replays, to resolve dead letters.
#[derive(Debug, Clone)]
pub struct Replayer {
    js: jetstream::Context,
}

impl Replayer {
    /// A replayer that acts as the user of `nats`.
    #[must_use]
    pub fn new(nats: async_nats::Client) -> Self {
        Self { js: jetstream::ContextBuilder::new().timeout(ANSWERS_WITHIN).build(nats) }
    }

    /// Sends an event to one consumer; returns its sequence in the stream of replays.
    ///
    /// # Errors
    /// It was not stored, or that is not known: send it again, with the same id.
    pub async fn send(&self, sending: &ReplayRequest) -> Result<u64, anyhow::Error> {
        let mut headers = HeaderMap::new();
        for (name, value) in &sending.headers {
            headers.append(name.as_str(), value.as_str());
        }
        headers.insert(ID, sending.id.as_str());
        headers.insert(ACT, if sending.discarded { "discard" } else { "handle" });
        headers.insert(STREAM_SEQUENCE, sending.stream_sequence.to_string());
        headers.insert(STORED_AT, sending.stored_at.to_rfc3339());
        let message = PublishMessage::build()
            .headers(headers)
            .payload(sending.payload.clone())
            .message_id(&sending.id)
            .expected_stream(STREAM);
        stored(&self.js, format!("replay.{}.{}", sending.consumer, sending.subject), message).await
    }

    /// An event as a stream holds it, to be sent; none when the stream no longer holds it.
    ///
    /// # Errors
    /// NATS does not answer.
    pub async fn find(&self, stream: &str, sequence: u64) -> Result<Option<ReplayRequest>, anyhow::Error> {
        let stream = self.js.get_stream(stream).await.context("opening the stream of the event")?;
        let message = match stream.get_raw_message(sequence).await {
            Ok(message) => message,
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(None),
            Err(error) => return Err(error).context("reading the event"),
        };
        let own = |name: &str| !name.to_ascii_lowercase().starts_with("nats-");
        let headers = message.headers.iter().filter(|(name, _)| own((*name).as_ref()));
        Ok(Some(ReplayRequest {
            consumer: String::new(),
            id: String::new(),
            subject: message.subject.to_string(),
            headers: headers
                .flat_map(|(name, values)| values.iter().map(move |value| (name.to_string(), value.to_string())))
                .collect(),
            payload: message.payload,
            stream_sequence: sequence,
            stored_at: message.time,
            discarded: false,
        }))
    }

    /// When a stream was created, to the microsecond: in one that is created again, the same sequences are other events.
    ///
    /// # Errors
    /// NATS does not answer.
    pub async fn created(&self, stream: &str) -> Result<DateTime<Utc>, anyhow::Error> {
        let stream = self.js.get_stream(stream).await.context("opening the stream of the event")?;
        Ok(crate::settle::micros(stream.cached_info().created))
    }

    /// Whether there is a consumer of this name that takes replays.
    ///
    /// # Errors
    /// NATS does not answer.
    pub async fn takes_replays(&self, consumer: &str) -> Result<bool, anyhow::Error> {
        Ok(self.state(&stream(&self.js).await?, consumer).await?.is_some())
    }

    /// How far a replay is that was stored at `sequence`.
    ///
    /// # Errors
    /// NATS does not answer.
    pub async fn status(&self, consumer: &str, id: &str, sequence: u64) -> Result<ReplayStatus, anyhow::Error> {
        let stream = stream(&self.js).await?;
        let floor = self.state(&stream, consumer).await?.map_or(0, |info| info.ack_floor.stream_sequence);
        match stream.get_raw_message(sequence).await {
            Ok(message) if header(Some(&message.headers), ID) != Some(id) => Ok(ReplayStatus::Lost),
            Ok(_) if floor >= sequence => Ok(ReplayStatus::Settled),
            Ok(_) => Ok(ReplayStatus::Waits),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(ReplayStatus::Lost),
            Err(error) => Err(error).context("reading the stream of replays"),
        }
    }

    async fn state(&self, stream: &stream::Stream, name: &str) -> Result<Option<consumer::Info>, anyhow::Error> {
        match stream.consumer_info(name).await {
            Ok(info) => Ok(Some(info)),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(error).context("asking for the consumer of replays"),
        }
    }
}

fn is_not_found(error: &context::ConsumerInfoError) -> bool {
    matches!(error.kind(), context::ConsumerInfoErrorKind::NotFound)
}
