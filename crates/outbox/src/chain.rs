//! Publishes rows as a chain: each message expects the stream to stand where the one before it leaves it, with a
//! window of them in flight. When one fails, the server refuses every later one (10071), so nothing is ever stored
//! out of order, and a relay that has lost its lead is refused in the same way.
//!
//! So an acknowledgement of one message proves that all before it are stored. Only every [`ASKS_EVERY`]th message and the last
//! of a burst ask for one. The next of these reports a refusal, as a break of the chain; a row that is sent alone gets its own
//! refusal. All of this presumes a single publisher: another publisher's message at the sequence of one that was refused
//! unheard would be taken for it.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::client::PublishErrorKind;
use async_nats::{HeaderMap, HeaderName, HeaderValue, Subscriber};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{FutureExt, StreamExt};
use serde::Deserialize;
use uuid::Uuid;

use crate::spans;
use crate::store::Row;

/// The header of a published message that names its row's `seq`.
pub const SEQ_HEADER: &str = "Outbox-Seq";
/// The header that names its row's `created_at`, in microseconds since 1970.
pub const CREATED_HEADER: &str = "Outbox-Created";
/// The header that names its row's `event_id`.
pub const EVENT_ID_HEADER: &str = "Outbox-Event-Id";

/// How long the oldest message in flight may go without an answer.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// One of this many messages in a burst asks for an answer: answers cost the server as much as messages.
const ASKS_EVERY: u32 = 32;

const EXPECTED: HeaderName = HeaderName::from_static("Nats-Expected-Last-Sequence");
const CONTENT_TYPE: HeaderName = HeaderName::from_static("content-type");
const SEQ: HeaderName = HeaderName::from_static(SEQ_HEADER);
const CREATED: HeaderName = HeaderName::from_static(CREATED_HEADER);
const EVENT_ID: HeaderName = HeaderName::from_static(EVENT_ID_HEADER);
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Why the chain broke. Forget everything in flight, and take the position again from the stream's tail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The stream does not stand where this relay thinks: it lost or gained messages, or another relay leads.
    #[error("the stream stands elsewhere: {0}")]
    WrongLast(String),
    /// JetStream is not able to store right now; nothing is wrong with the message.
    #[error("JetStream does not store: {0}")]
    Stalled(String),
    /// The oldest message in flight got no answer in time. A permission violation has this symptom.
    #[error("no acknowledgement for outbox row {seq} within {ACK_TIMEOUT:?}")]
    Silent {
        /// The row.
        seq: i64,
    },
    /// This very message cannot be stored: JetStream refused it, the server takes none so large, or no stream its subject.
    #[error("outbox row {seq} was refused: {reason}")]
    Refused {
        /// The row.
        seq: i64,
        /// Why.
        reason: String,
    },
}

struct InFlight {
    seq: i64,
    created_at: DateTime<Utc>,
    event_id: Uuid,
    /// The hex digits of the command's trace.
    trace_id: Option<[u8; 32]>,
    /// Open until an answer proves that the message is stored.
    _span: tracing::Span,
}

/// The newest message that is known to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub outbox_seq: i64,
    pub created_at: DateTime<Utc>,
    pub stream_seq: u64,
}

pub struct Chain {
    client: async_nats::Client,
    inbox: String,
    answers: Subscriber,
    content_type: HeaderValue,
    /// The stream sequence of the message before the oldest in flight.
    base: u64,
    in_flight: VecDeque<InFlight>,
    /// The newest row, until it is known whether another one follows it.
    held: Option<Row>,
    /// How many messages went out since one asked for an answer.
    unasked: u32,
    last_answer: tokio::time::Instant,
    published: metrics::Counter,
    age: metrics::Histogram,
}

impl Chain {
    /// A chain behind a stream whose last sequence is `base`. Its inbox is new: no old answer can reach it.
    pub async fn open(client: async_nats::Client, content_type: &str, base: u64) -> Result<Self, anyhow::Error> {
        let inbox = client.new_inbox();
        let answers = client.subscribe(format!("{inbox}.*")).await?;
        Ok(Self {
            client,
            inbox,
            answers,
            content_type: HeaderValue::from(content_type),
            published: metrics::counter!("outbox_published_total"),
            age: metrics::histogram!("outbox_commit_to_stored_seconds"),
            base,
            in_flight: VecDeque::new(),
            held: None,
            unasked: 0,
            last_answer: tokio::time::Instant::now(),
        })
    }

    /// How many rows were sent and are not known to be stored, the one that is held included.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len() + usize::from(self.held.is_some())
    }

    /// Where the stream stands if everything in flight is stored.
    pub fn end(&self) -> u64 {
        self.base + self.in_flight.len() as u64
    }

    /// Sends the row that is held, and holds this one: it goes out behind it with the next row, or by [`Self::ask`].
    pub async fn send(&mut self, row: Row) -> Result<(), PublishError> {
        match self.held.replace(row) {
            Some(before) => self.publish(before, false).await,
            None => Ok(()),
        }
    }

    /// Ends a burst: the row that is held goes out and asks for an answer.
    pub async fn ask(&mut self) -> Result<(), PublishError> {
        match self.held.take() {
            Some(last) => self.publish(last, true).await,
            None => Ok(()),
        }
    }

    async fn publish(&mut self, row: Row, last: bool) -> Result<(), PublishError> {
        let expected = self.end();
        let mut headers = HeaderMap::new();
        headers.insert(EXPECTED, HeaderValue::from(expected));
        headers.insert(CONTENT_TYPE, self.content_type.clone());
        headers.insert(SEQ, HeaderValue::from(row.seq));
        headers.insert(CREATED, HeaderValue::from(row.created_at.timestamp_micros()));
        headers.insert(EVENT_ID, row.event_id.to_string());
        if self.in_flight.is_empty() {
            self.last_answer = tokio::time::Instant::now();
        }
        let span = spans::publish(&row);
        let trace_id = row.traceparent.as_deref().and_then(trace_id).and_then(|id| id.as_bytes().try_into().ok());
        if let Some(traceparent) = row.traceparent {
            headers.insert(TRACEPARENT, traceparent);
        }
        self.unasked += 1;
        let payload = Bytes::from(row.payload);
        let seq = row.seq;
        let sent = if last || self.unasked >= ASKS_EVERY {
            self.unasked = 0;
            let reply = format!("{}.{}", self.inbox, expected + 1);
            self.client.publish_with_reply_and_headers(row.subject, reply, headers, payload).await
        } else {
            self.client.publish_with_headers(row.subject, headers, payload).await
        };
        sent.map_err(|error| match error.kind() {
            PublishErrorKind::MaxPayloadExceeded | PublishErrorKind::InvalidSubject => {
                PublishError::Refused { seq, reason: error.to_string() }
            }
            PublishErrorKind::Send => PublishError::Stalled(error.to_string()),
        })?;
        self.in_flight.push_back(InFlight {
            seq,
            created_at: row.created_at,
            event_id: row.event_id,
            trace_id,
            _span: span,
        });
        Ok(())
    }

    /// Waits for an answer, takes in all that have come, and returns the newest message that is stored with everything
    /// before it. Cancel-safe: what was not taken in comes again.
    pub async fn next(&mut self) -> Result<Option<Stored>, PublishError> {
        debug_assert!(self.held.is_none(), "whoever waits has asked");
        let deadline = self.last_answer + ACK_TIMEOUT;
        let first = tokio::time::timeout_at(deadline, self.answers.next()).await;
        let mut answer = match first {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(PublishError::Stalled("the subscription for answers has ended".to_owned())),
            Err(_) => {
                let seq = self.in_flight.front().map_or(0, |front| front.seq);
                return Err(PublishError::Silent { seq });
            }
        };
        self.last_answer = tokio::time::Instant::now();
        let mut newest = None;
        loop {
            newest = newest.max(self.take_in(&answer)?);
            match self.answers.next().now_or_never() {
                Some(Some(next)) => answer = next,
                Some(None) | None => break,
            }
        }
        Ok(newest.and_then(|newest| self.stored_up_to(newest)))
    }

    /// The sequence that an answer proves to be stored, with all before it; none if it is of a message before.
    fn take_in(&self, answer: &async_nats::Message) -> Result<Option<u64>, PublishError> {
        let wanted: u64 = answer.subject.rsplit('.').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let index = wanted.checked_sub(self.base + 1).and_then(|index| usize::try_from(index).ok());
        let Some(entry) = index.and_then(|index| self.in_flight.get(index)) else { return Ok(None) };
        verdict(answer.status.map(|s| s.as_u16()), &answer.payload, wanted, entry.seq)?;
        Ok(Some(wanted))
    }

    fn stored_up_to(&mut self, newest: u64) -> Option<Stored> {
        let (mut stored, mut batch) = (None, Batch::default());
        let now = now();
        while self.base < newest
            && let Some(front) = self.in_flight.pop_front()
        {
            self.base += 1;
            let age = (now - front.created_at).to_std().unwrap_or_default();
            self.age.record(age.as_secs_f64());
            self.published.increment(1);
            batch.add(&front);
            stored = Some(Stored { outbox_seq: front.seq, created_at: front.created_at, stream_seq: self.base });
        }
        if let Some(stored) = stored {
            batch.write(stored);
        }
        stored
    }
}

/// The log line of the rows that one answer proves to be stored (target `outbox::published`).
#[derive(Default)]
struct Batch {
    rows: usize,
    trace_ids: String,
    event_ids: String,
    first_seq: Option<i64>,
    oldest: Option<DateTime<Utc>>,
}

impl Batch {
    fn add(&mut self, row: &InFlight) {
        self.rows += 1;
        self.first_seq.get_or_insert(row.seq);
        self.oldest.get_or_insert(row.created_at);
        let trace_id = row.trace_id.as_ref().and_then(|id| str::from_utf8(id).ok());
        append(&mut self.trace_ids, trace_id);
        let mut event_id = Uuid::encode_buffer();
        append(&mut self.event_ids, Some(row.event_id.hyphenated().encode_lower(&mut event_id)));
    }

    fn write(self, stored: Stored) {
        let Self { rows, trace_ids, event_ids, first_seq, oldest } = self;
        let duration_ms = oldest.map(|oldest| (now() - oldest).num_microseconds().unwrap_or_default() as f64 / 1e3);
        let (last_seq, stream_seq) = (stored.outbox_seq, stored.stream_seq);
        tracing::info!(target: "outbox::published", trace_ids, outcome = "done", duration_ms, event_ids, rows, first_seq,
            last_seq, stream_seq, "published");
    }
}

fn append(list: &mut String, id: Option<&str>) {
    let Some(id) = id else { return };
    if !list.is_empty() {
        list.push(',');
    }
    list.push_str(id);
}

/// The trace of a W3C `traceparent`.
pub fn trace_id(traceparent: &str) -> Option<&str> {
    traceparent.split('-').nth(1).filter(|id| id.len() == 32)
}

#[expect(clippy::disallowed_methods, reason = "the age of a row is a measurement; nothing is decided by it")]
fn now() -> DateTime<Utc> {
    Utc::now()
}

#[derive(Deserialize)]
struct PubAck {
    seq: Option<u64>,
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

/// What an answer says of the message that expected to be stored as `wanted`.
fn verdict(status: Option<u16>, payload: &[u8], wanted: u64, seq: i64) -> Result<(), PublishError> {
    if let Some(status) = status {
        return Err(PublishError::Stalled(format!("status {status} (503: no stream takes this subject)")));
    }
    let ack: PubAck =
        serde_json::from_slice(payload).map_err(|e| PublishError::Stalled(format!("an unreadable answer: {e}")))?;
    match (ack.error, ack.seq) {
        // Success is this very sequence, nothing else.
        (None, Some(stored)) if stored == wanted => Ok(()),
        (None, stored) => Err(PublishError::WrongLast(format!("stored as {stored:?} instead of {wanted}"))),
        (Some(error), _) => {
            let text = format!("{} ({})", error.description, error.err_code);
            Err(match error.err_code {
                // wrong last sequence, also in its constant form; another copy of the sequence is in process
                10071 | 10164 | 10163 => PublishError::WrongLast(text),
                // account or stream limits, insufficient resources, not able to store, server shutting down
                10002 | 10077 | 10023 | 10047 | 10028 | 10076 => PublishError::Stalled(text),
                _ if error.code == 503 => PublishError::Stalled(text),
                _ => PublishError::Refused { seq, reason: text },
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(payload: &str) -> Result<(), PublishError> {
        verdict(None, payload.as_bytes(), 7, 42)
    }

    #[test]
    fn only_the_expected_sequence_is_success() {
        assert_eq!(of(r#"{"stream":"S","seq":7}"#), Ok(()));
        assert!(matches!(of(r#"{"stream":"S","seq":8}"#), Err(PublishError::WrongLast(_))));
        assert!(matches!(of(r#"{"stream":"S","seq":7,"duplicate":true}"#), Ok(())));
        assert!(matches!(of("{}"), Err(PublishError::WrongLast(_))));
    }

    #[test]
    fn a_fault_of_the_server_is_never_blamed_on_the_row() {
        for code in [10077, 10023, 10002] {
            let answer = format!(r#"{{"error":{{"code":503,"err_code":{code},"description":"no"}}}}"#);
            assert!(matches!(of(&answer), Err(PublishError::Stalled(_))), "{code}");
        }
        assert!(matches!(verdict(Some(503), b"", 7, 42), Err(PublishError::Stalled(_))));
        assert!(matches!(of("not json"), Err(PublishError::Stalled(_))));
        let wrong = r#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 9"}}"#;
        assert!(matches!(of(wrong), Err(PublishError::WrongLast(_))));
    }

    #[test]
    fn a_message_that_is_refused_for_itself_names_its_row() {
        let answer = r#"{"error":{"code":400,"err_code":10054,"description":"message size exceeds maximum allowed"}}"#;
        assert!(matches!(of(answer), Err(PublishError::Refused { seq: 42, .. })));
    }
}
