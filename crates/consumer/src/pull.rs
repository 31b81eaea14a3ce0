//! Pulls, hands batches to the handler, and acknowledges by its verdicts. Nothing else in the fleet acknowledges.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, AckKind, stream};
use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff as _;
use chrono::Utc;
use futures::{FutureExt, StreamExt};
use opentelemetry::trace::TraceContextExt as _;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, error, info, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::dead_letter::{self, Story};
use crate::event::{self, Event};

const PULL_EXPIRES: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_secs(2);
const ACK_WAIT: Duration = Duration::from_secs(30);
/// How many creation contexts a batch's span links to.
const MAX_LINKS: usize = 64;

/// What a handler says of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its effect is in place.
    Done,
    /// Not this time: again later.
    Retry(String),
    /// Never: a dead letter, now.
    Reject(String),
}

/// What to consume, and how.
#[derive(Debug, Clone)]
pub struct Config {
    /// The stream.
    pub stream: String,
    /// The durable consumer's name.
    pub durable: String,
    /// Which of the stream's subjects.
    pub filter: String,
    /// The event types that the handler knows.
    pub types: Vec<String>,
    /// The most events in one batch.
    pub batch: usize,
    /// How often an event is tried before it becomes a dead letter.
    pub max_attempts: i64,
}

/// A durable consumer.
pub struct Consumer {
    js: jetstream::Context,
    nats: async_nats::Client,
    config: Config,
}

impl Consumer {
    /// A consumer that acts as the user of `nats`.
    #[must_use]
    pub fn new(nats: async_nats::Client, config: Config) -> Self {
        let js = jetstream::ContextBuilder::new().timeout(Duration::from_secs(3)).build(nats.clone());
        Self { js, nats, config }
    }

    /// Handles events until `stop`. What is down is waited for.
    ///
    /// # Errors
    /// None at present; the type leaves room for a contradiction that needs a person.
    pub async fn run<H, F>(self, stop: CancellationToken, mut handler: H) -> Result<(), anyhow::Error>
    where
        H: FnMut(Vec<Event>) -> F,
        F: Future<Output = Vec<Verdict>>,
    {
        let mut pauses = ExponentialBackoffBuilder::new()
            .with_initial_interval(Duration::from_millis(100))
            .with_max_interval(Duration::from_secs(3))
            .with_max_elapsed_time(None)
            .build();
        loop {
            let mut handled = false;
            let worked = self.pull(&stop, &mut handler, &mut handled).await;
            self.nats.flush().await.ok();
            if stop.is_cancelled() {
                return Ok(());
            }
            if handled {
                pauses.reset();
            }
            if let Err(error) = worked {
                warn!(consumer = self.config.durable, error = format!("{error:#}"), "not consuming: trying again");
            }
            let pause = pauses.next_backoff().unwrap_or(HEARTBEAT);
            stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
    }

    /// One pull, until `stop` or until it is broken.
    async fn pull<H, F>(
        &self,
        stop: &CancellationToken,
        handler: &mut H,
        handled: &mut bool,
    ) -> Result<(), anyhow::Error>
    where
        H: FnMut(Vec<Event>) -> F,
        F: Future<Output = Vec<Verdict>>,
    {
        dead_letter::open(&self.js).await?;
        let stream = self.js.get_stream(&self.config.stream).await.context("opening the stream")?;
        let config = pull::Config {
            durable_name: Some(self.config.durable.clone()),
            filter_subject: self.config.filter.clone(),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            // The attempts are counted here; the server must never give up on its own.
            max_deliver: -1,
            max_ack_pending: i64::try_from(self.config.batch * 4).unwrap_or(i64::MAX),
            ..Default::default()
        };
        let consumer = stream
            .get_or_create_consumer(&self.config.durable, config)
            .await
            .context("opening the durable consumer")?;
        let mut messages = consumer
            .stream()
            .max_messages_per_batch(self.config.batch * 2)
            .expires(PULL_EXPIRES)
            .heartbeat(HEARTBEAT)
            .messages()
            .await
            .context("pulling")?;
        info!(consumer = self.config.durable, stream = self.config.stream, "consuming");
        self.look_for_trimmed(&stream, &consumer).await?;
        let mut missed = 0;
        loop {
            let first = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                first = messages.next() => first,
            };
            let first = match first {
                None => anyhow::bail!("the pull has ended"),
                Some(Err(error)) => {
                    missed += 1;
                    if missed < 2 {
                        continue;
                    }
                    return Err(error).context("the pull is broken");
                }
                Some(Ok(first)) => first,
            };
            missed = 0;
            let mut batch = vec![first];
            while batch.len() < self.config.batch
                && let Some(Some(Ok(next))) = messages.next().now_or_never()
            {
                batch.push(next);
            }
            self.handle(batch, handler).await?;
            *handled = true;
        }
    }

    /// Alarms when the stream begins behind what this consumer has acknowledged: events were trimmed unread, and what
    /// is made of them is incomplete until it is rebuilt.
    async fn look_for_trimmed(&self, stream: &stream::Stream, consumer: &PullConsumer) -> Result<(), anyhow::Error> {
        let first = stream.get_info().await.context("reading the stream's state")?.state.first_sequence;
        let floor = consumer.get_info().await.context("reading the consumer's state")?.ack_floor.stream_sequence;
        let trimmed = first.saturating_sub(floor + 1);
        metrics::gauge!("consumer_trimmed_unread", "consumer" => self.config.durable.clone()).set(trimmed as f64);
        if trimmed > 0 {
            error!(
                consumer = self.config.durable,
                from = floor + 1,
                to = first - 1,
                "events of this range were trimmed before this consumer had them: rebuild what it makes of them"
            );
        }
        Ok(())
    }

    async fn handle<H, F>(&self, batch: Vec<jetstream::Message>, handler: &mut H) -> Result<(), anyhow::Error>
    where
        H: FnMut(Vec<Event>) -> F,
        F: Future<Output = Vec<Verdict>>,
    {
        let mut messages = Vec::with_capacity(batch.len());
        let mut events = Vec::with_capacity(batch.len());
        for message in batch {
            match self.read(&message) {
                Read::Event(event) => {
                    events.push(event);
                    messages.push(message);
                }
                Read::Skip(reason) => {
                    metrics::counter!("consumer_skipped_total", "consumer" => self.config.durable.clone(), "reason" => reason)
                        .increment(1);
                    self.acknowledge(&message, "skipped", AckKind::Ack).await?;
                }
                Read::Malformed(reason) => self.settle(&message, &Verdict::Reject(reason), 0).await?,
            }
        }
        if events.is_empty() {
            return Ok(());
        }
        let facts: Vec<_> = events.iter().map(|event| (event.delivered, event.stored_at)).collect();
        let span = self.span(&events);
        let verdicts = self.watched(handler(events).instrument(span), &messages).await;
        anyhow::ensure!(verdicts.len() == messages.len(), "a handler must give one verdict per event");
        for ((message, verdict), (delivered, stored_at)) in messages.iter().zip(&verdicts).zip(facts) {
            let age = (now() - stored_at).to_std().unwrap_or_default();
            if *verdict == Verdict::Done {
                metrics::histogram!("consumer_stored_to_handled_seconds", "consumer" => self.config.durable.clone())
                    .record(age.as_secs_f64());
            }
            self.settle(message, verdict, delivered).await?;
        }
        Ok(())
    }

    /// Runs the handler, and tells the server meanwhile that work goes on.
    async fn watched<T>(&self, work: impl Future<Output = T>, messages: &[jetstream::Message]) -> T {
        let mut work = std::pin::pin!(work);
        let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + ACK_WAIT / 3, ACK_WAIT / 3);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = tick.tick() => {
                    for message in messages {
                        message.ack_with(AckKind::Progress).await.ok();
                    }
                }
            }
        }
    }

    fn read(&self, message: &jetstream::Message) -> Read {
        let info = match message.info() {
            Ok(info) => info,
            Err(error) => return Read::Malformed(error.to_string()),
        };
        metrics::gauge!("consumer_pending", "consumer" => self.config.durable.clone()).set(info.pending as f64);
        let (attributes, data) = match event::parse(message.headers.as_ref(), &message.payload) {
            Ok(parts) => parts,
            Err(error) => return Read::Malformed(error.to_string()),
        };
        let event = Event {
            attributes,
            data,
            nats_subject: message.subject.to_string(),
            stream_sequence: info.stream_sequence,
            stored_at: info.published,
            delivered: info.delivered,
        };
        let knows = |event_type: &str| self.config.types.iter().any(|known| known == event_type);
        if knows(event.attribute("supersededby")) {
            Read::Skip("superseded")
        } else if !knows(event.event_type()) {
            Read::Skip("unknown type")
        } else {
            Read::Event(event)
        }
    }

    /// Acknowledges by the verdict. A dead letter is stored before its original is acknowledged.
    async fn settle(
        &self,
        message: &jetstream::Message,
        verdict: &Verdict,
        delivered: i64,
    ) -> Result<(), anyhow::Error> {
        let (name, reason) = match verdict {
            Verdict::Done => ("done", None),
            Verdict::Retry(reason) if delivered < self.config.max_attempts => {
                warn!(consumer = self.config.durable, subject = %message.subject, delivered, reason, "again later");
                return self.acknowledge(message, "retry", AckKind::Nak(Some(delay(delivered)))).await;
            }
            Verdict::Retry(reason) => ("retry", Some(reason)),
            Verdict::Reject(reason) => ("reject", Some(reason)),
        };
        if let Some(reason) = reason {
            error!(consumer = self.config.durable, subject = %message.subject, delivered, reason, "a dead letter");
            let story = Story { stream: &self.config.stream, consumer: &self.config.durable, reason, delivered };
            if let Err(error) = dead_letter::store(&self.js, message, &story).await {
                error!(error = format!("{error:#}"), "the dead letter was not stored: the event stays unacknowledged");
                return self.acknowledge(message, "retry", AckKind::Nak(Some(delay(delivered)))).await;
            }
            metrics::counter!("consumer_dead_letters_total", "consumer" => self.config.durable.clone()).increment(1);
        }
        self.acknowledge(message, name, AckKind::Ack).await
    }

    async fn acknowledge(
        &self,
        message: &jetstream::Message,
        verdict: &'static str,
        kind: AckKind,
    ) -> Result<(), anyhow::Error> {
        metrics::counter!("consumer_handled_total", "consumer" => self.config.durable.clone(), "verdict" => verdict)
            .increment(1);
        message.ack_with(kind).await.map_err(|error| anyhow::anyhow!(error)).context("acknowledging")
    }

    /// The span of a batch: the child of its only event's creation, or linked to those of several
    /// (OpenTelemetry semantic conventions for messaging: a parent for single messages, links for batches).
    fn span(&self, events: &[Event]) -> tracing::Span {
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
        let contexts = events.iter().filter_map(|event| event.attributes.get("traceparent")).map(|traceparent| {
            let carrier = HashMap::from([("traceparent".to_owned(), traceparent.clone())]);
            opentelemetry::global::get_text_map_propagator(|propagator| {
                propagator.extract_with_context(&opentelemetry::Context::new(), &carrier)
            })
        });
        for (index, context) in contexts.take(MAX_LINKS).enumerate() {
            if index == 0 && events.len() == 1 {
                span.set_parent(context).ok();
            } else {
                span.add_link(context.span().span_context().clone());
            }
        }
        span
    }
}

enum Read {
    Event(Event),
    Skip(&'static str),
    Malformed(String),
}

/// How long to wait before the next attempt.
fn delay(delivered: i64) -> Duration {
    let most = Duration::from_secs(60);
    let mut delays = ExponentialBackoffBuilder::new()
        .with_initial_interval(Duration::from_millis(250))
        .with_multiplier(2.0)
        .with_max_interval(most)
        .with_max_elapsed_time(None)
        .build();
    (0..delivered.clamp(1, 12)).filter_map(|_| delays.next_backoff()).last().unwrap_or(most)
}

#[expect(clippy::disallowed_methods, reason = "the age of an event is a measurement; nothing is decided by it")]
fn now() -> chrono::DateTime<Utc> {
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
