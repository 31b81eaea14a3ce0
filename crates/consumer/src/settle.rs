//! Takes messages apart, and acknowledges them by what was made of them. Nothing else in the fleet acknowledges.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::{self, AckKind};
use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff as _;
use chrono::{DateTime, Utc};
use metrics::{Gauge, Histogram};
use opentelemetry::trace::TraceContextExt as _;
use tracing::{error, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::dead_letter::{self, Letter};
use crate::event::{self, Event};
use crate::lines;
use crate::pull::Config;
use crate::replay;

/// How many creation contexts a batch's span links to.
const MAX_LINKS: usize = 64;

/// How long JetStream may take to answer: its API may be slow where deliveries are not.
pub const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// The longest id, source or aggregate of an event, in bytes.
const MAX_NAME: usize = 600;

/// A handler's verdict on one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its effect is in place.
    Done,
    /// It failed this time: try it again later.
    Retry(String),
    /// It can never succeed: make it a dead letter now.
    Reject(String),
}

impl Verdict {
    /// The word for it in logs and metrics.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Retry(_) => "retry",
            Self::Reject(_) => "reject",
        }
    }
}

/// Where a message is: whether in the stream of replays, and at which sequence.
pub type Place = (bool, u64);

/// How an event has failed so far.
#[derive(Debug, Clone, Copy)]
pub struct Failed {
    /// How often.
    pub times: i64,
    /// When it did for the first time, as this process knows it.
    pub first: DateTime<Utc>,
}

/// How often each event in hand has failed, by its position. Counted here: the server counts deliveries, and what waits here
/// for long through nobody's fault is delivered again and again.
#[derive(Default)]
pub struct Failures(Mutex<Known>);

#[derive(Default)]
struct Known {
    failed: HashMap<Place, Failed>,
    /// Those that may be why a batch had no verdicts.
    suspects: HashSet<Place>,
}

impl Failures {
    /// More than can be in hand; some may have gone to another process.
    const MAX: usize = 100_000;

    /// Counts a failure; returns all so far.
    pub fn one_more(&self, place: Place) -> Failed {
        let mut known = self.known();
        if known.failed.len() >= Self::MAX {
            known.failed.clear();
        }
        let failed = known.failed.entry(place).or_insert_with(|| Failed { times: 0, first: now() });
        failed.times += 1;
        *failed
    }

    /// Forgets an event that is settled.
    pub fn forget(&self, place: Place) {
        let mut known = self.known();
        known.failed.remove(&place);
        known.suspects.remove(&place);
    }

    /// Marks this event as a possible reason why those which were handled together have no outcome.
    pub fn suspect(&self, place: Place) {
        let mut known = self.known();
        if known.suspects.len() >= Self::MAX {
            known.suspects.clear();
        }
        known.suspects.insert(place);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What becomes of an event of an unknown type.
pub enum Unknown {
    /// It is nothing to this consumer.
    Skip(&'static str),
    /// Another release knows it: this one tries again, and in the end makes a dead letter of it; of a replay at once.
    Failed(String),
}

/// Why an event fails that another release knows.
pub fn unknown_here(event_type: &str) -> String {
    format!("another release of this consumer knows the type {event_type}, this one does not")
}

/// The metadata key for the types that a durable consumer's releases know.
pub const TYPES: &str = "types";

/// The types that some release of a durable consumer knows.
pub fn types(metadata: &HashMap<String, String>) -> impl Iterator<Item = &str> {
    metadata.get(TYPES).map_or("", String::as_str).split_whitespace()
}

/// Acknowledges for one consumer.
pub struct Acker {
    pub nats: async_nats::Client,
    pub js: jetstream::Context,
    pub config: Config,
    pub failures: Failures,
    metrics: Metrics,
}

/// What is counted for each event, resolved once.
struct Metrics {
    pending: Gauge,
    age: Histogram,
}

/// What a message is.
pub enum Read {
    /// An event that the handler knows, and where its message is.
    Event(Event, Place),
    /// An event of a type that the handler does not know: [`Acker::unknown`] says what becomes of it.
    Unknown(Event, Place),
    /// Nothing for the handler.
    Skip(&'static str),
    /// No event.
    Malformed(String),
}

impl Acker {
    pub fn new(nats: async_nats::Client, config: Config) -> Self {
        let js = jetstream::ContextBuilder::new().timeout(ANSWERS_WITHIN).build(nats.clone());
        let consumer = config.durable.clone();
        // To Prometheus, a counter that appears with its first event did not rise.
        for rare in ["consumer_lost_total", "consumer_dead_letters_total"] {
            metrics::counter!(rare, "consumer" => consumer.clone()).increment(0);
        }
        for reason in ["unknown type", "twin"] {
            metrics::counter!("consumer_skipped_total", "consumer" => consumer.clone(), "reason" => reason)
                .increment(0);
        }
        let metrics = Metrics {
            pending: metrics::gauge!("consumer_pending", "consumer" => consumer.clone()),
            age: metrics::histogram!("consumer_stored_to_handled_seconds", "consumer" => consumer),
        };
        Self { nats, js, config, failures: Failures::default(), metrics }
    }

    pub fn read(&self, message: &jetstream::Message) -> Read {
        let info = match message.info() {
            Ok(info) => info,
            Err(error) => return Read::Malformed(error.to_string()),
        };
        if info.stream != replay::STREAM {
            self.metrics.pending.set(info.pending as f64);
        }
        let (attributes, data) = match event::parse(message.headers.as_ref(), &message.payload) {
            Ok(parts) => parts,
            // The message is no event: nothing remains to be given up.
            Err(_) if replay::is_discarded(message, &info) => return Read::Skip("discarded"),
            Err(error) => return Read::Malformed(error.to_string()),
        };
        let place = (info.stream == replay::STREAM, info.stream_sequence);
        let origin = replay::origin(message, &info);
        let event = Event {
            attributes,
            data,
            nats_subject: origin.subject,
            stream_sequence: origin.stream_sequence,
            stored_at: origin.stored_at,
            delivered: info.delivered,
            replay: origin.replay,
        };
        // Neither an index nor a text of Postgres takes what is longer, or has a NUL in it.
        let named = [event.attribute("id"), event.attribute("source"), event.aggregate()];
        let unfit = named.iter().any(|name| name.len() > MAX_NAME)
            || event.attributes.values().any(|value| value.contains('\0'));
        if event.replay.as_ref().is_some_and(|replay| replay.discarded) {
            return if unfit { Read::Skip("discarded") } else { Read::Event(event, place) };
        }
        if unfit {
            return Read::Malformed(format!("a NUL, or an id, a source or an aggregate of more than {MAX_NAME} bytes"));
        }
        // From before twins named each other: only the newer form shows by its type that it is the same.
        let nameless = event.replay.is_none() && event.attribute("twinof").is_empty();
        if nameless && self.knows(event.attribute("supersededby")) {
            return Read::Skip("superseded");
        }
        if self.knows(event.event_type()) { Read::Event(event, place) } else { Read::Unknown(event, place) }
    }

    /// Whether this message is to be handled alone: it may be why a batch had no verdicts.
    pub fn is_suspect(&self, message: &jetstream::Message) -> bool {
        let known = self.failures.known();
        !known.suspects.is_empty() && known.suspects.contains(&place(message))
    }

    /// Whether the handler knows this type.
    pub fn knows(&self, event_type: &str) -> bool {
        self.config.types.iter().any(|known| known == event_type)
    }

    /// What becomes of an event of a type that this process does not know. Never decided by what this process knows alone:
    /// another release of the same consumer may pull beside it, or have pulled before.
    /// `asked` keeps the answer for events that had come before it was asked.
    pub async fn unknown(&self, event: &Event, asked: &mut Option<Vec<String>>) -> Result<Unknown, anyhow::Error> {
        let event_type = event.event_type();
        // Its other form comes, or came, by itself, to this consumer as a whole; but not of a replay.
        if event.replay.is_none() && ["supersedes", "supersededby"].iter().any(|twin| self.knows(event.attribute(twin)))
        {
            return Ok(Unknown::Skip("twin"));
        }
        // Each release writes down what it knows before it pulls.
        let known = match asked {
            Some(known) => known,
            None => {
                let stream = self.js.get_stream_no_info(&self.config.stream).await.context("opening the stream")?;
                let info =
                    stream.consumer_info(&self.config.durable).await.context("asking what other releases know")?;
                asked.insert(types(&info.config.metadata).map(ToOwned::to_owned).collect())
            }
        };
        Ok(if known.iter().any(|known| known == event_type) {
            Unknown::Failed(unknown_here(event_type))
        } else {
            Unknown::Skip("unknown type")
        })
    }

    /// Acknowledges the message at this position by the verdict. A dead letter, or the outcome of a replay, is stored before
    /// its original is acknowledged.
    pub async fn settle(
        &self,
        message: &jetstream::Message,
        place: Place,
        verdict: Verdict,
    ) -> Result<(), anyhow::Error> {
        let (Verdict::Retry(reason) | Verdict::Reject(reason)) = &verdict else {
            self.failures.forget(place);
            return self.handled(message, place, "done").await;
        };
        let failed = self.failures.one_more(place);
        let again = AckKind::Nak(Some(delay(failed.times)));
        if matches!(verdict, Verdict::Retry(_)) && failed.times < self.config.max_attempts {
            let (attempt, trace_id) = (failed.times, trace_of(message));
            warn!(trace_id, consumer = self.config.durable, subject = %message.subject, attempt, reason, "again later");
            return self.acknowledge(message, "retry", again).await;
        }
        if !self.bury(message, reason, failed).await {
            return self.acknowledge(message, "retry", again).await;
        }
        self.failures.forget(place);
        self.acknowledge(message, verdict.name(), AckKind::Ack).await
    }

    /// Acknowledges what needs no more handling; reports the outcome of a replay before.
    pub async fn handled(
        &self,
        message: &jetstream::Message,
        place: Place,
        verdict: &'static str,
    ) -> Result<(), anyhow::Error> {
        if place.0 {
            replay::report(self, message, verdict).await?;
        }
        self.acknowledge(message, verdict, AckKind::Ack).await
    }

    /// Makes a dead letter of what is no event.
    pub async fn reject(&self, message: &jetstream::Message, reason: String) -> Result<(), anyhow::Error> {
        self.settle(message, place(message), Verdict::Reject(reason)).await
    }

    pub async fn acknowledge(
        &self,
        message: &jetstream::Message,
        verdict: &'static str,
        kind: AckKind,
    ) -> Result<(), anyhow::Error> {
        self.count(verdict);
        message.ack_with(kind).await.map_err(|error| anyhow::anyhow!(error)).context("acknowledging")
    }

    /// Passes over a message that is nothing for the handler.
    pub async fn skip(&self, message: &jetstream::Message, reason: &'static str) -> Result<(), anyhow::Error> {
        let consumer = self.config.durable.clone();
        metrics::counter!("consumer_skipped_total", "consumer" => consumer, "reason" => reason).increment(1);
        self.handled(message, place(message), "skipped").await
    }

    /// How long after it was stored an event was handled.
    pub fn record_age(&self, age: chrono::TimeDelta) {
        self.metrics.age.record(age.to_std().unwrap_or_default().as_secs_f64());
    }

    /// Counts an event by what was made of it.
    pub fn count(&self, verdict: &'static str) {
        metrics::counter!("consumer_handled_total", "consumer" => self.config.durable.clone(), "verdict" => verdict)
            .increment(1);
    }

    /// Stores a dead letter; `false` when the dead-letter stream did not take it.
    pub async fn bury(&self, message: &jetstream::Message, reason: &str, failed: Failed) -> bool {
        let attempt = failed.times;
        let trace_id = trace_of(message);
        error!(trace_id, consumer = self.config.durable, subject = %message.subject, attempt, reason, "a dead letter");
        let stored = match Letter::of(message) {
            Ok(letter) => dead_letter::store(self, &letter, reason, failed).await,
            Err(error) => Err(error),
        };
        if let Err(error) = stored {
            error!(error = format!("{error:#}"), "the dead letter was not stored: the event stays unacknowledged");
            return false;
        }
        metrics::counter!("consumer_dead_letters_total", "consumer" => self.config.durable.clone()).increment(1);
        true
    }

    /// The span of a batch: the child of its only event's creation, or linked to those of several
    /// (OpenTelemetry semantic conventions for messaging: a parent for single messages, links for batches).
    pub fn span(&self, events: &[Event]) -> tracing::Span {
        let span = tracing::info_span!(
            target: "consumer::trace",
            "process",
            otel.name = format_args!("process {}", self.config.filter),
            otel.kind = "consumer",
            messaging.system = "nats",
            messaging.operation.name = "process",
            messaging.consumer.group.name = self.config.durable,
            messaging.batch.message_count = events.len(),
        );
        if span.is_disabled() {
            return span;
        }
        if let [event] = events {
            span.set_attribute("cloudevents.event_id", event.attribute("id").to_owned());
            span.set_attribute("cloudevents.event_type", event.event_type().to_owned());
            span.set_attribute("flotilla.tenant", event.attribute("tenant").to_owned());
        }
        let links = events.len();
        let contexts = events.iter().filter_map(|event| event.attributes.get("traceparent")).map(|traceparent| {
            let carrier = HashMap::from([("traceparent".to_owned(), traceparent.clone())]);
            opentelemetry::global::get_text_map_propagator(|propagator| {
                propagator.extract_with_context(&opentelemetry::Context::new(), &carrier)
            })
        });
        for (index, context) in contexts.take(MAX_LINKS).enumerate() {
            if index == 0 && links == 1 {
                span.set_parent(context).ok();
            } else {
                span.add_link(context.span().span_context().clone());
            }
        }
        span
    }
}

/// The trace that a message's publisher names.
fn trace_of(message: &jetstream::Message) -> &str {
    let traceparent = message.headers.as_ref().and_then(|headers| headers.get("traceparent"));
    traceparent.map_or("", |traceparent| lines::trace_id(traceparent.as_str()))
}

fn place(message: &jetstream::Message) -> Place {
    message.info().map_or((false, 0), |info| (info.stream == replay::STREAM, info.stream_sequence))
}

/// How long to wait after so many attempts.
pub fn delay(attempts: i64) -> Duration {
    let most = Duration::from_secs(60);
    let mut delays = ExponentialBackoffBuilder::new()
        .with_initial_interval(Duration::from_millis(250))
        .with_multiplier(2.0)
        .with_max_interval(most)
        .with_max_elapsed_time(None)
        .build();
    (0..attempts.clamp(1, 12)).filter_map(|_| delays.next_backoff()).last().unwrap_or(most)
}

/// To the microsecond, as Postgres keeps it.
pub fn micros(time: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(time.timestamp_micros()).unwrap_or(time)
}

#[expect(clippy::disallowed_methods, reason = "the age of an event is a measurement; nothing is decided by it")]
pub fn now() -> chrono::DateTime<Utc> {
    Utc::now()
}

#[cfg(test)]
mod tests {
    use super::delay;
    use std::time::Duration;

    #[test]
    fn a_retry_always_waits_and_waits_longer_in_time() {
        for delivered in [0, 1, 5, 100] {
            assert!(delay(delivered) >= Duration::from_millis(100), "{delivered}");
            assert!(delay(delivered) <= Duration::from_secs(90), "{delivered}");
        }
        assert!(delay(12) > delay(1));
    }
}
