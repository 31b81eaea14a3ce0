//! Takes messages apart, and acknowledges them by what was made of them. Nothing else acknowledges.

use anyhow::Context as _;
use async_nats::jetstream::{self, AckKind};
use metrics::{Gauge, Histogram};
use tracing::{error, warn};

use crate::config::{Config, types};
use crate::dead_letter::{self, Letter};
use crate::event::{self, Event};
use crate::failures::{Failed, Failures, Place};
use crate::lines;
use crate::origin::{Origin, place};
#[cfg(feature = "replay")]
use crate::replay;
use crate::time::{ANSWERS_WITHIN, delay};

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
        let place = (info.stream == self.config.records.replays, info.stream_sequence);
        if !place.0 {
            self.metrics.pending.set(info.pending as f64);
        }
        let origin = Origin::of(message, &info, &self.config.records);
        let (attributes, data) = match event::parse(message.headers.as_ref(), &message.payload) {
            Ok(parts) => parts,
            // The message is no event: nothing remains to be given up.
            Err(_) if origin.replay.is_some_and(|replay| replay.discarded) => return Read::Skip("discarded"),
            Err(error) => return Read::Malformed(error.to_string()),
        };
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
        self.failures.is_suspect(|| place(message, &self.config.records))
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
        #[cfg(feature = "replay")]
        if place.0 {
            replay::report(&self.js, &self.config, message, verdict).await?;
        }
        let _ = place;
        self.acknowledge(message, verdict, AckKind::Ack).await
    }

    /// Makes a dead letter of what is no event.
    pub async fn reject(&self, message: &jetstream::Message, reason: String) -> Result<(), anyhow::Error> {
        self.settle(message, place(message, &self.config.records), Verdict::Reject(reason)).await
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
        self.handled(message, place(message, &self.config.records), "skipped").await
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
        let stored = match Letter::of(message, &self.config.records) {
            Ok(letter) => dead_letter::store(&self.nats, &self.js, &self.config, &letter, reason, failed).await,
            Err(error) => Err(error),
        };
        if let Err(error) = stored {
            error!(error = format!("{error:#}"), "the dead letter was not stored: the event stays unacknowledged");
            return false;
        }
        metrics::counter!("consumer_dead_letters_total", "consumer" => self.config.durable.clone()).increment(1);
        true
    }
}

/// The trace that a message's publisher names.
fn trace_of(message: &jetstream::Message) -> &str {
    let traceparent = message.headers.as_ref().and_then(|headers| headers.get("traceparent"));
    traceparent.map_or("", |traceparent| lines::trace_id(traceparent.as_str()))
}
