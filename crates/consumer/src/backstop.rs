//! What nobody else would notice: messages that JetStream itself gave up on (a delivery limit that somebody set, a
//! message that somebody terminated), and a consumer whose acknowledged floor stands still although something waits.
//!
//! JetStream reports the former by advisories, at most once. A stream keeps those, so that they are still there when
//! nobody was listening; each becomes a dead letter with the message that it names.

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

use crate::dead_letter::{self, Letter};
use crate::event;
use crate::inbox::Inbox;
use crate::pull::{Config, Status};
use crate::settle::{Acker, Failed};

/// The stream that keeps the advisories.
pub const STREAM: &str = "ADVISORIES";
pub const KINDS: [&str; 2] = ["MAX_DELIVERIES", "MSG_TERMINATED"];
const LOOK_EVERY: Duration = Duration::from_secs(5);
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
    inbox: Option<&'a Inbox>,
}

impl<'a> Backstop<'a> {
    pub const fn new(acker: &'a Acker, status: &'a watch::Sender<Status>, inbox: Option<&'a Inbox>) -> Self {
        Self { acker, status, inbox }
    }

    /// Runs until `stop`; waits for what is down.
    pub async fn run(&self, stop: &CancellationToken) {
        let mut floor = Floor { at: 0, since: Instant::now(), said: false };
        let mut tick = tokio::time::interval(LOOK_EVERY);
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
        self.config().compare(&info.config, self.status);
        let waits = info.num_pending > 0 || info.num_ack_pending > 0;
        if info.ack_floor.stream_sequence != floor.at || !waits || info.paused {
            *floor = Floor { at: info.ack_floor.stream_sequence, since: Instant::now(), said: false };
        }
        let stalled_for = floor.since.elapsed();
        let stalled_for = if stalled_for < LOOK_EVERY { Duration::ZERO } else { stalled_for };
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
        look_for_trimmed(self.config(), self.status, first, info.ack_floor.stream_sequence);
        self.bury_what_was_given_up(&stream).await
    }

    async fn bury_what_was_given_up(&self, events: &stream::Stream) -> Result<(), anyhow::Error> {
        let Config { stream, durable, .. } = self.config();
        let advisories = self.acker.js.get_stream(STREAM).await.context("opening the stream of advisories")?;
        let consumer: PullConsumer = advisories
            .get_consumer(&self::durable(stream, durable))
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
                    let dead = self.inbox.zip(event.as_ref());
                    if let Some((inbox, event)) = dead {
                        let dead = inbox.was_given_up(durable, event, &reason).await;
                        if !dead.context("writing down that an event is dead")? {
                            message.ack().await.map_err(|error| anyhow::anyhow!(error))?;
                            continue;
                        }
                    }
                    let letter = Letter::stored(given_up);
                    error!(consumer = durable, sequence = advisory.stream_seq, reason, "a dead letter");
                    let failed = Failed { times: advisory.deliveries, first: letter.stored_at() };
                    dead_letter::store(self.acker, &letter, &reason, failed).await?;
                    if let Some((inbox, event)) = dead {
                        let name = |name: &str| event.get(name).map(String::as_str).unwrap_or_default();
                        inbox.remember_letter(durable, name("source"), name("id")).await?;
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
}

/// Alarms when the stream begins behind what this consumer has acknowledged although something waits: events may have
/// been trimmed unread, and what is made of them is incomplete until it is rebuilt.
pub fn look_for_trimmed(config: &Config, status: &watch::Sender<Status>, first: u64, floor: u64) {
    let trimmed = first.saturating_sub(floor + 1);
    let worse = status.send_if_modified(|status| {
        let worse = trimmed > status.trimmed_unread;
        status.trimmed_unread = status.trimmed_unread.max(trimmed);
        worse
    });
    let durable = &config.durable;
    metrics::gauge!("consumer_trimmed_unread", "consumer" => durable.clone())
        .set(status.borrow().trimmed_unread as f64);
    if worse {
        error!(
            consumer = durable,
            from = floor + 1,
            to = first - 1,
            "events of this range were trimmed before this consumer had them: rebuild what it makes of them"
        );
    }
}

/// The name of the durable consumer that reads the advisories about another one.
pub fn durable(stream: &str, durable: &str) -> String {
    format!("backstop-{stream}-{durable}")
}

/// Where the acknowledged floor stands, and since when.
struct Floor {
    at: u64,
    since: Instant,
    said: bool,
}
