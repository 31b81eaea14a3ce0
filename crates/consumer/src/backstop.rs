//! What nobody else would notice: messages that JetStream itself gave up on (a delivery limit that somebody set, a
//! message that somebody terminated), and a consumer whose acknowledged floor stands still although something waits.
//!
//! JetStream reports the former by advisories, at most once. A stream keeps those, so that they are still there when
//! nobody was listening; each becomes a dead letter with the message that it names.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::stream::{self, RawMessageErrorKind};
use futures::StreamExt as _;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::config::Config;
use crate::dead_letter::{self, Letter};
use crate::event;
use crate::failures::Failed;
#[cfg(feature = "inbox")]
use crate::inbox::Inbox;
use crate::records::{KINDS, RecordStreams};
use crate::settle::Acker;
use crate::status::{Status, compare, note_trimmed};

const CHECK_EVERY: Duration = Duration::from_secs(5);
/// How long a floor may stand still before it is reported.
const STALLED: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Advisory {
    stream_seq: u64,
    #[serde(default)]
    deliveries: i64,
    #[serde(default)]
    reason: String,
}

/// Watches one consumer.
pub struct Backstop<'a> {
    acker: &'a Acker,
    status: &'a watch::Sender<Status>,
    #[cfg(feature = "inbox")]
    inbox: Option<&'a Inbox>,
}

impl<'a> Backstop<'a> {
    pub const fn new(acker: &'a Acker, status: &'a watch::Sender<Status>) -> Self {
        Self {
            acker,
            status,
            #[cfg(feature = "inbox")]
            inbox: None,
        }
    }

    /// The same, for a consumer with an inbox.
    #[cfg(feature = "inbox")]
    pub const fn with(self, inbox: &'a Inbox) -> Self {
        Self { inbox: Some(inbox), ..self }
    }

    /// Runs until `stop`; waits for what is down.
    pub async fn run(&self, stop: &CancellationToken) {
        let mut floor = Floor { at: 0, since: Instant::now(), said: false };
        let mut tick = tokio::time::interval(CHECK_EVERY);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            if let Err(error) = stop.run_until_cancelled(Box::pin(self.look(&mut floor))).await.unwrap_or(Ok(())) {
                warn!(consumer = self.config().durable, error = format!("{error:#}"), "the backstop cannot look");
            }
        }
        // A stopping process reports nothing more: its last report must not stand for ever.
        for name in [
            "consumer_pending",
            "consumer_stalled_seconds",
            "consumer_paused",
            "consumer_diverged",
            "consumer_refused",
            "consumer_config_drift",
        ] {
            metrics::gauge!(name, "consumer" => self.config().durable.clone()).set(0.0);
        }
    }

    const fn config(&self) -> &Config {
        &self.acker.config
    }

    async fn look(&self, floor: &mut Floor) -> Result<(), anyhow::Error> {
        let stream = self.acker.js.get_stream(&self.config().stream).await.context("opening the stream")?;
        let consumer: PullConsumer =
            stream.get_consumer(&self.config().durable).await.map_err(|error| anyhow::anyhow!(error))?;
        let info = consumer.cached_info();
        compare(self.config(), &info.config, self.status);
        let waits = info.num_pending > 0 || info.num_ack_pending > 0;
        if info.ack_floor.stream_sequence != floor.at || !waits || info.paused {
            *floor = Floor { at: info.ack_floor.stream_sequence, since: Instant::now(), said: false };
        }
        let stalled_for = floor.since.elapsed();
        let stalled_for = if stalled_for < CHECK_EVERY { Duration::ZERO } else { stalled_for };
        self.status.send_modify(|status| (status.stalled_for, status.paused) = (stalled_for, info.paused));
        let durable = self.config().durable.clone();
        metrics::gauge!("consumer_pending", "consumer" => durable.clone()).set(info.num_pending as f64);
        metrics::gauge!("consumer_stalled_seconds", "consumer" => durable.clone()).set(stalled_for.as_secs_f64());
        metrics::gauge!("consumer_paused", "consumer" => durable.clone()).set(f64::from(u8::from(info.paused)));
        let diverged = self.status.borrow().diverged;
        metrics::gauge!("consumer_diverged", "consumer" => durable).set(f64::from(u8::from(diverged)));
        if stalled_for > STALLED && !floor.said {
            floor.said = true;
            error!(
                consumer = self.config().durable,
                floor = floor.at,
                waiting = info.num_pending,
                in_hand = info.num_ack_pending,
                "nothing has been acknowledged for {} s although something waits",
                stalled_for.as_secs()
            );
        }
        let first = if waits { stream.cached_info().state.first_sequence } else { 0 };
        note_trimmed(self.config(), self.status, first, info.ack_floor.stream_sequence);
        self.bury_what_was_given_up(&stream).await
    }

    async fn bury_what_was_given_up(&self, events: &stream::Stream) -> Result<(), anyhow::Error> {
        let Config { stream, durable, .. } = self.config();
        let advisories = self
            .acker
            .js
            .get_stream(&self.config().records.advisories)
            .await
            .context("opening the stream of advisories")?;
        let consumer: PullConsumer = advisories
            .get_consumer(&RecordStreams::backstop(stream, durable))
            .await
            .map_err(|error| anyhow::anyhow!(error))
            .context("opening the backstop")?;
        let mut batch = consumer.fetch().max_messages(100).messages().await.context("reading advisories")?;
        while let Some(message) = batch.next().await {
            let message = message.map_err(|error| anyhow::anyhow!(error))?;
            let advisory: Advisory = serde_json::from_slice(&message.payload).context("reading an advisory")?;
            let kind = if message.subject.contains(KINDS[0]) { "its deliveries ran out" } else { "it was terminated" };
            let reason = format!("JetStream gave up on it: {kind} {}", advisory.reason);
            match events.get_raw_message(advisory.stream_seq).await {
                Ok(given_up) => {
                    // Do this before the letter, so that no later event of the aggregate slips by.
                    let event = event::parse(Some(&given_up.headers), &given_up.payload).ok().map(|(event, _)| event);
                    if let Some(event) = &event
                        && !self.declare_dead(event, &reason).await?
                    {
                        message.ack().await.map_err(|error| anyhow::anyhow!(error))?;
                        continue;
                    }
                    let letter = Letter::stored(given_up);
                    error!(consumer = durable, sequence = advisory.stream_seq, reason, "a dead letter");
                    let failed = Failed { times: advisory.deliveries, first: letter.stored_at() };
                    dead_letter::store(&self.acker.nats, &self.acker.js, self.config(), &letter, &reason, failed)
                        .await?;
                    if let Some(event) = &event {
                        self.remember_letter(event).await?;
                    }
                    metrics::counter!("consumer_dead_letters_total", "consumer" => durable.clone()).increment(1);
                }
                Err(gone) if gone.kind() == RawMessageErrorKind::NoMessageFound => {
                    error!(consumer = durable, sequence = advisory.stream_seq, reason, "the stream no longer holds it");
                    metrics::counter!("consumer_lost_total", "consumer" => durable.clone()).increment(1);
                }
                Err(error) => return Err(error).context("reading what JetStream gave up on"),
            }
            message.ack().await.map_err(|error| anyhow::anyhow!(error))?;
        }
        Ok(())
    }

    /// Writes down in the inbox that an event is dead; false when it was handled.
    #[cfg(feature = "inbox")]
    async fn declare_dead(&self, event: &Attributes, reason: &str) -> Result<bool, anyhow::Error> {
        let Some(inbox) = self.inbox else { return Ok(true) };
        inbox.was_given_up(&self.config().durable, event, reason).await.context("writing down that an event is dead")
    }

    /// Writes down in the inbox that a dead event's letter is stored.
    #[cfg(feature = "inbox")]
    async fn remember_letter(&self, event: &Attributes) -> Result<(), anyhow::Error> {
        let Some(inbox) = self.inbox else { return Ok(()) };
        let name = |name: &str| event.get(name).map(String::as_str).unwrap_or_default();
        Ok(inbox.remember_letter(&self.config().durable, name("source"), name("id")).await?)
    }

    #[cfg(not(feature = "inbox"))]
    async fn declare_dead(&self, _: &Attributes, _: &str) -> Result<bool, anyhow::Error> {
        Ok(true)
    }

    #[cfg(not(feature = "inbox"))]
    async fn remember_letter(&self, _: &Attributes) -> Result<(), anyhow::Error> {
        Ok(())
    }
}

type Attributes = BTreeMap<String, String>;

/// Where the acknowledged floor stands, and since when.
struct Floor {
    at: u64,
    since: Instant,
    said: bool,
}
