//! Where events go that cannot be handled: a stream that refuses rather than drops, each letter whole and with its
//! failure history in headers. The subject is `dlq.<consumer>.<the event's subject>`.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream;
use async_nats::jetstream::message::PublishMessage;
#[cfg(feature = "backstop")]
use async_nats::jetstream::message::StreamMessage;
use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::config::Config;
use crate::failures::Failed;
use crate::origin::Origin;
use crate::records::RecordStreams;

/// The most bytes of headers that JetStream stores.
const MAX_HEADERS: usize = 65_535;
/// What a letter's failure history and the server's own headers take at most: a reason of 1,000 characters, names, two subjects.
const ROOM_FOR_OUR_HEADERS: usize = 6_144;

/// A message, whole, to become a letter.
pub struct Letter {
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
    stream_sequence: u64,
    stored_at: DateTime<Utc>,
    /// The replay by which it came.
    replay: Option<String>,
}

impl Letter {
    /// The letter of a message as it was delivered.
    pub fn of(message: &jetstream::Message, records: &RecordStreams) -> Result<Self, anyhow::Error> {
        let info = message.info().map_err(|error| anyhow::anyhow!(error))?;
        let origin = Origin::of(message, &info, records);
        Ok(Self {
            subject: origin.subject,
            headers: message.headers.clone().unwrap_or_default(),
            payload: message.payload.clone(),
            stream_sequence: origin.stream_sequence,
            stored_at: origin.stored_at,
            replay: origin.replay.map(|replay| replay.id),
        })
    }

    /// The letter of a message as the stream holds it.
    #[cfg(feature = "backstop")]
    pub fn stored(message: StreamMessage) -> Self {
        Self {
            subject: message.subject.to_string(),
            headers: message.headers,
            payload: message.payload,
            stream_sequence: message.sequence,
            stored_at: message.time,
            replay: None,
        }
    }

    /// When its stream stored it.
    #[cfg(feature = "backstop")]
    pub const fn stored_at(&self) -> DateTime<Utc> {
        self.stored_at
    }
}

/// Stores a letter; `Ok` only once the stream has acknowledged it. What is too large for one message with its history goes
/// without its payload (or its headers), which stays in its stream for as long as that keeps it: the header
/// `Dlq-Payload-Left` (`Dlq-Headers-Left`) says so.
pub async fn store(
    nats: &async_nats::Client,
    js: &jetstream::Context,
    config: &Config,
    letter: &Letter,
    reason: &str,
    failed: Failed,
) -> Result<(), anyhow::Error> {
    let Config { stream, durable: consumer, version, records, .. } = config;
    let mut headers = HeaderMap::new();
    for (name, values) in letter.headers.iter() {
        let text: &str = name.as_ref();
        // What steers the server, or a replay, is not the event's: it would steer the letter.
        if !["nats-", "replay-"].iter().any(|ours| text.to_ascii_lowercase().starts_with(ours)) {
            values.iter().for_each(|value| headers.append(name.clone(), value.clone()));
        }
    }
    if size(&headers) + ROOM_FOR_OUR_HEADERS > MAX_HEADERS {
        let left = format!("{} bytes", size(&headers));
        headers = HeaderMap::new();
        headers.insert("Dlq-Headers-Left", left);
    }
    // NATS headers hold one line; the reason is bounded so that a letter always fits.
    let reason: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1_000).collect();
    headers.insert("Dlq-Consumer", consumer.as_str());
    headers.insert("Dlq-Stream", stream.as_str());
    headers.insert("Dlq-Stream-Sequence", letter.stream_sequence.to_string());
    headers.insert("Dlq-Stored-At", letter.stored_at.to_rfc3339());
    headers.insert("Dlq-Subject", letter.subject.as_str());
    headers.insert("Dlq-Delivered", failed.times.to_string());
    headers.insert("Dlq-First-Failed-At", failed.first.to_rfc3339());
    headers.insert("Dlq-Version", version.as_str());
    headers.insert("Dlq-Reason", reason);
    // With the time: a stream that lost its tail gives a sequence to another event.
    let key = format!(
        "{stream}:{consumer}:{}:{}{}",
        letter.stream_sequence,
        letter.stored_at.timestamp_nanos_opt().unwrap_or_default(),
        letter.replay.as_ref().map(|replay| format!(":{replay}")).unwrap_or_default()
    );
    headers.insert("Dlq-Key", key.as_str());
    if let Some(replay) = &letter.replay {
        headers.insert("Dlq-Replay", replay.as_str());
    }
    // The server closes the connection of a client that sends more.
    let room = nats.server_info().max_payload.saturating_sub(size(&headers) + ROOM_FOR_OUR_HEADERS);
    let payload = if letter.payload.len() <= room {
        letter.payload.clone()
    } else {
        headers.insert("Dlq-Payload-Left", format!("{} bytes", letter.payload.len()));
        Bytes::new()
    };
    let message = PublishMessage::build()
        .payload(payload)
        .headers(headers)
        // One failure is stored once. With when it began: an event that was resolved and comes again may fail once more.
        .message_id(format!("{key}:{}", failed.first.timestamp_millis()))
        .expected_stream(&records.dead_letters);
    let subject = records.dead_letter(consumer, &letter.subject);
    let sent = js.send_publish(subject, message).await.context("publishing to the dead-letter stream")?;
    tokio::time::timeout(Duration::from_secs(5), sent)
        .await
        .context("the dead-letter stream did not answer in time")?
        .context("the dead-letter stream did not store the letter")?;
    Ok(())
}

/// The bytes that headers take in a message, at most.
fn size(headers: &HeaderMap) -> usize {
    let line = |name: &HeaderName, value: &HeaderValue| AsRef::<str>::as_ref(name).len() + value.as_str().len() + 4;
    headers.iter().flat_map(|(name, values)| values.iter().map(move |value| line(name, value))).sum()
}
