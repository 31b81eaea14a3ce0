//! Sends events to one consumer again: what resolves dead letters.

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::jetstream::consumer;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{self, RawMessageErrorKind};
use async_nats::jetstream::{self, context};
use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::origin::{ACT, ID, STORED_AT, STREAM_SEQUENCE};
use crate::records::RecordStreams;
use crate::replay::{header, stored, stream};
use crate::time::{ANSWERS_WITHIN, micros};

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
    records: RecordStreams,
}

impl Replayer {
    /// A replayer that acts as the user of `nats`.
    #[must_use]
    pub fn new(nats: async_nats::Client, records: RecordStreams) -> Self {
        Self { js: jetstream::ContextBuilder::new().timeout(ANSWERS_WITHIN).build(nats), records }
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
            .expected_stream(&self.records.replays);
        stored(&self.js, self.records.replay(&sending.consumer, &sending.subject), message).await
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
        Ok(micros(stream.cached_info().created))
    }

    /// Whether there is a consumer of this name that takes replays.
    ///
    /// # Errors
    /// NATS does not answer.
    pub async fn takes_replays(&self, consumer: &str) -> Result<bool, anyhow::Error> {
        Ok(self.state(&stream(&self.js, &self.records).await?, consumer).await?.is_some())
    }

    /// How far a replay is that was stored at `sequence`.
    ///
    /// # Errors
    /// NATS does not answer.
    pub async fn status(&self, consumer: &str, id: &str, sequence: u64) -> Result<ReplayStatus, anyhow::Error> {
        let stream = stream(&self.js, &self.records).await?;
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
