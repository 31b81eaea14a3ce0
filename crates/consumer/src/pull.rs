//! A durable consumer's life cycle: pulls, and rebuilds the pull when it falls silent. `batch` and `ordered` hand the messages
//! to a handler, `settle` acknowledges, `backstop` handles what JetStream itself gives up on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::consumer::{self, PullConsumer};
use async_nats::jetstream::{self, stream};
use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff as _;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{self as streams, BoxStream, StreamExt as _};
use sqlx::PgConnection;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::backstop::{Backstop, look_for_trimmed};
use crate::claim::Claim;
use crate::event::Event;
use crate::handler::Failure;
use crate::inbox::Inbox;
use crate::replay;
use crate::rewind::Rewinder;
use crate::settle::{self, Acker, Verdict};
use crate::{batch, ordered};

const PULL_EXPIRES: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_secs(2);
/// The metadata key for the revision of [`Config`] that a durable consumer was configured by.
const REVISION: &str = "revision";
/// The metadata key for the sequence behind which a durable consumer began: what the stream had dropped by then was never its.
pub const BEGINS_BEHIND: &str = "begins-behind";
/// How long the server waits for an acknowledgement, or for a sign that work goes on.
pub const ACK_WAIT: Duration = Duration::from_secs(30);

/// The pause behind a pull of replays that has broken.
const REPLAYS_AGAIN: Duration = Duration::from_secs(1);

/// How long the last acknowledgements may take to go out.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// What to consume, and how.
#[derive(Debug, Clone)]
pub struct Config {
    /// The stream.
    pub stream: String,
    /// The durable consumer's name.
    pub durable: String,
    /// Which of the stream's subjects.
    pub filter: String,
    /// The event types that the handler knows. They are written into the durable consumer's metadata, beside those of
    /// other releases: what one of them knows, another does not pass over.
    pub types: Vec<String>,
    /// Rises with each change of `filter`. A release whose revision is lower than the durable consumer's, and whose filter
    /// is another, does not pull: it would take back what a newer one has asked for.
    pub revision: u32,
    /// The most events in one batch; some more batches are in hand. With an inbox: the most that are handled at once.
    pub batch: usize,
    /// How long the first event of a batch waits for others, unless the batch is full before. Has no meaning with an inbox.
    pub linger: Duration,
    /// How many batches are handled at once. With more than one, an older event may be handled after a newer one of its
    /// aggregate: effects must be guarded by version. Has no meaning with an inbox.
    pub in_flight: usize,
    /// How often an event is tried before it becomes a dead letter.
    pub max_attempts: i64,
    /// How long a handler may take, of a batch or of an event; then the attempt has failed. None for a handler that itself waits
    /// for what is down.
    pub handle_within: Option<Duration>,
    /// Which code this is, for the failure history of a dead letter: a release, a commit.
    pub version: String,
}

impl Config {
    /// How many events may be unacknowledged: some batches, or in order some events for each that is handled.
    pub(crate) fn most_in_hand(&self) -> i64 {
        i64::try_from(self.batch * (self.in_flight + 2).max(ordered::IN_HAND)).unwrap_or(i64::MAX)
    }

    /// A durable consumer's configuration as this release asks for it, but for how many may be unacknowledged.
    pub(crate) fn ours(&self, is: &consumer::Config) -> consumer::Config {
        consumer::Config {
            filter_subject: self.filter.clone(),
            filter_subjects: Vec::new(),
            headers_only: false,
            backoff: Vec::new(),
            ack_wait: ACK_WAIT,
            // The attempts are counted here; the server must never give up on its own.
            max_deliver: -1,
            metadata: self.merged(&is.metadata),
            ..is.clone()
        }
    }

    /// Whether a newer release has asked for another filter.
    pub(crate) fn is_older(&self, is: &consumer::Config) -> Option<u32> {
        let revision = is.metadata.get(REVISION).and_then(|text| text.parse::<u32>().ok()).unwrap_or_default();
        (is.filter_subject != self.filter && revision > self.revision).then_some(revision)
    }

    /// Whether a durable consumer gives what this release asks for. If not, it must not pull: it would not have all events,
    /// or another release would pass over what only this one knows.
    fn fits(&self, is: &consumer::Config) -> bool {
        let ours = self.ours(is);
        (&is.filter_subject, &is.filter_subjects, is.headers_only, &is.metadata)
            == (&ours.filter_subject, &ours.filter_subjects, ours.headers_only, &ours.metadata)
    }

    /// Compares a durable consumer with what was asked for; what differs is in the status, the metrics and, once, the log.
    pub(crate) fn compare(&self, is: &consumer::Config, status: &watch::Sender<Status>) {
        let ours = self.ours(is);
        let (refused, differs) = (!self.fits(is), *is != ours);
        let changed = status.send_if_modified(|status| {
            let was = (status.refused, status.differs);
            (status.refused, status.differs) = (refused, differs);
            was != (refused, differs)
        });
        let gauge = |name: &'static str, value| {
            metrics::gauge!(name, "consumer" => self.durable.clone()).set(f64::from(u8::from(value)));
        };
        gauge("consumer_refused", refused);
        gauge("consumer_config_drift", differs);
        if changed && differs {
            error!(consumer = self.durable, ?is, ?ours, "the durable consumer is not as it was asked for");
        }
    }

    /// A durable consumer's metadata with what this release has to say in them.
    pub(crate) fn merged(&self, metadata: &HashMap<String, String>) -> HashMap<String, String> {
        let mut types: Vec<&str> = settle::types(metadata).chain(self.types.iter().map(String::as_str)).collect();
        types.sort_unstable();
        types.dedup();
        let was = metadata.get(REVISION).and_then(|text| text.parse().ok()).unwrap_or_default();
        let mut merged = metadata.clone();
        merged.insert(settle::TYPES.to_owned(), types.join(" "));
        merged.insert(REVISION.to_owned(), self.revision.max(was).to_string());
        merged
    }
}

/// The state of a consumer, beyond its metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// It pulls.
    pub pulling: bool,
    /// For how long nothing was acknowledged although something waits; zero while it goes on or is paused.
    pub stalled_for: Duration,
    /// How many events the stream dropped before this consumer had them, at most: what it makes of them is incomplete
    /// until it is rebuilt. With a filter, dropped events of others may be among them.
    pub trimmed_unread: u64,
    /// Its in-order effects are of events that the stream does not hold: a restore has undone them, or the stream is being
    /// refilled. False for as long as another process leads.
    pub diverged: bool,
    /// Whether an operator has paused it.
    pub paused: bool,
    /// It does not pull: the durable consumer was not made for this release, or for a newer one with another filter.
    pub refused: bool,
    /// The durable consumer is not as this release asks for it.
    pub differs: bool,
}

/// A durable consumer.
pub struct Consumer {
    pub(crate) acker: Acker,
    pub(crate) status: watch::Sender<Status>,
}

/// Messages of one pull: the stream's, and what is replayed to this consumer.
pub(crate) type Messages<'a> = BoxStream<'a, Result<jetstream::Message, anyhow::Error>>;

impl Consumer {
    /// A consumer that acts as the user of `nats`.
    #[must_use]
    pub fn new(nats: async_nats::Client, config: Config) -> Self {
        Self { acker: Acker::new(nats, config), status: watch::Sender::new(Status::default()) }
    }

    /// Takes this consumer back to the beginning of its stream, while it runs.
    #[must_use]
    pub fn rewinder(&self) -> Rewinder {
        Rewinder {
            js: self.acker.js.clone(),
            stream: self.acker.config.stream.clone(),
            durable: self.acker.config.durable.clone(),
        }
    }

    /// The consumer's status; the receiver reports changes.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Hands batches to a handler that gives a verdict for each event, until `stop`. For effects that tolerate repetition
    /// and delay, such as a version-guarded write. Waits for what is down.
    pub async fn run_batches<H, F>(self, stop: CancellationToken, mut handler: H)
    where
        H: FnMut(Vec<Event>) -> F,
        F: Future<Output = Vec<Verdict>>,
    {
        let backstop = Backstop::new(&self.acker, &self.status, None);
        let work = async {
            let mut pauses = pauses();
            while !stop.is_cancelled() {
                let mut handled = false;
                let worked = self.batches(&stop, &mut handler, &mut handled).await;
                self.rest(&stop, worked, handled, &mut pauses).await;
            }
        };
        tokio::join!(work, backstop.run(&stop));
    }

    /// Hands events to a handler one by one, those of an aggregate in their order, each in a transaction with its row of
    /// the inbox: its effects in that database happen exactly once. Runs until `stop`; waits for what is down. The handler
    /// is a plain `async fn on_paid(tx: &mut PgConnection, event: &Event) -> Result<(), Failure>`, given as
    /// `|tx, event| on_paid(tx, event).boxed()`.
    pub async fn run_in_order<H>(self, stop: CancellationToken, inbox: Inbox, handler: H)
    where
        H: for<'a> Fn(&'a mut PgConnection, &'a Event) -> BoxFuture<'a, Result<(), Failure>> + Send + Sync + 'static,
    {
        let (db, handler) = (inbox.db.clone(), Arc::new(handler));
        let claimed = move |claim: Claim| {
            let (db, handler) = (db.clone(), Arc::clone(&handler));
            async move {
                let mut tx = db.begin().await?;
                claim.take(&mut tx).await?;
                handler(&mut tx, claim.event()).await?;
                tx.commit().await?;
                claim.committed();
                Ok(())
            }
            .boxed()
        };
        self.run_claims(stop, inbox, claimed).await;
    }

    /// The same, for a handler with its own transactions, such as a command that also answers requests: it begins one in
    /// the database of the inbox, calls [`Claim::take`] first, commits, and reports that by [`Claim::committed`].
    pub async fn run_claims<H>(self, stop: CancellationToken, inbox: Inbox, handler: H)
    where
        H: Fn(Claim) -> BoxFuture<'static, Result<(), Failure>> + Send + Sync,
    {
        let backstop = Backstop::new(&self.acker, &self.status, Some(&inbox));
        let work = async {
            let (mut pauses, mut has_failed) = (pauses(), false);
            while !stop.is_cancelled() {
                let mut handled = false;
                let worked = Box::pin(ordered::lead(&self, &stop, &inbox, &handler, has_failed, &mut handled)).await;
                has_failed = worked.is_err();
                self.rest(&stop, worked, handled, &mut pauses).await;
            }
        };
        tokio::join!(work, backstop.run(&stop));
    }

    async fn batches<H, F>(
        &self,
        stop: &CancellationToken,
        handler: &mut H,
        handled: &mut bool,
    ) -> Result<(), anyhow::Error>
    where
        H: FnMut(Vec<Event>) -> F,
        F: Future<Output = Vec<Verdict>>,
    {
        let open = async {
            let (_, consumer) = self.open().await?;
            self.pull_events(&consumer).await
        };
        // An unavailable broker may take its time to say so: a stopping process does not wait for that.
        let Some(events) = stop.run_until_cancelled(open).await else { return Ok(()) };
        let events = events?;
        let Acker { js, config, .. } = &self.acker;
        let replays = replays(&config.durable, || async {
            messages(&replay::consumer(js, &config.durable).await?, config.batch).await
        });
        let mut messages = both(events, replays);
        batch::run(&self.acker, stop, &mut messages, handler, handled).await
    }

    /// The pause after a pull has ended, and a word why.
    async fn rest(
        &self,
        stop: &CancellationToken,
        worked: Result<(), anyhow::Error>,
        handled: bool,
        pauses: &mut backoff::ExponentialBackoff,
    ) {
        self.status.send_modify(|status| status.pulling = false);
        // While NATS is unavailable this would wait for it, also when asked to stop.
        tokio::time::timeout(FLUSH_WITHIN, self.acker.nats.flush()).await.ok();
        if handled {
            pauses.reset();
        }
        if let Err(error) = worked {
            let consumer = &self.acker.config.durable;
            warn!(consumer, error = format!("{error:#}"), "not consuming: trying again");
        }
        let pause = pauses.next_backoff().unwrap_or(HEARTBEAT);
        stop.run_until_cancelled(tokio::time::sleep(pause)).await;
    }

    /// The stream and the durable consumer, as the administration has made them.
    pub(crate) async fn open(&self) -> Result<(stream::Stream, PullConsumer), anyhow::Error> {
        let Acker { js, config, .. } = &self.acker;
        let stream = js.get_stream(&config.stream).await.context("opening the stream")?;
        let consumer: PullConsumer =
            stream.get_consumer(&config.durable).await.map_err(|error| anyhow::anyhow!(error)).with_context(|| {
                format!("opening the durable consumer {}: `flotilla provision` makes it", config.durable)
            })?;
        let info = consumer.cached_info();
        // Before anything is pulled: afterwards the floor may have passed the gap.
        if info.num_pending > 0 || info.num_ack_pending > 0 {
            let first = stream.cached_info().state.first_sequence;
            look_for_trimmed(config, &self.status, first, info.ack_floor.stream_sequence);
        }
        config.compare(&info.config, &self.status);
        anyhow::ensure!(
            config.is_older(&info.config).is_none(),
            "a newer release has the durable consumer take {}: this one (revision {}), which asks for {}, does not pull",
            info.config.filter_subject,
            config.revision,
            config.filter
        );
        anyhow::ensure!(
            config.fits(&info.config),
            "the durable consumer was not made for what this release asks for: `flotilla provision` of this release changes it"
        );
        Ok((stream, consumer))
    }

    /// The stream's messages; ends when the durable consumer is not this release's any more.
    pub(crate) async fn pull_events(&self, consumer: &PullConsumer) -> Result<Messages<'static>, anyhow::Error> {
        let config = &self.acker.config;
        // Somebody may change the durable consumer meanwhile: then it is opened again, and refused.
        let mut status = self.status.subscribe();
        let refused = async move { status.wait_for(|status| status.refused).await.is_ok() };
        let messages = messages(consumer, config.batch).await?.take_until(refused).boxed();
        info!(consumer = config.durable, stream = config.stream, "consuming");
        self.status.send_modify(|status| status.pulling = true);
        Ok(messages)
    }
}

/// Behind which sequence a durable consumer began, as far as it says so.
pub(crate) fn begins_behind(is: &consumer::Config) -> u64 {
    is.metadata.get(BEGINS_BEHIND).and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// What a durable consumer gives; an error when the pull is broken: after two missed heartbeats, or at its end.
pub(crate) async fn messages(consumer: &PullConsumer, batch: usize) -> Result<Messages<'static>, anyhow::Error> {
    let pull = consumer.stream().max_messages_per_batch(batch * 2).expires(PULL_EXPIRES).heartbeat(HEARTBEAT);
    let messages = pull.messages().await.context("pulling")?;
    let end = streams::once(std::future::ready(Err(anyhow::anyhow!("the pull has ended"))));
    let mut missed = 0;
    let messages = messages.filter_map(move |message| {
        missed = if message.is_ok() { 0 } else { missed + 1 };
        let passes = message.is_ok() || missed >= 2;
        std::future::ready(passes.then(|| message.context("the pull is broken")))
    });
    Ok(messages.chain(end).boxed())
}

/// What is replayed, by pulls that `open` begins: a new one whenever one has failed. It never ends and never fails, so that the
/// events go on while the stream of replays is unavailable.
pub(crate) fn replays<'a, F>(durable: &'a str, open: impl Fn() -> F + Send + 'a) -> Messages<'a>
where
    F: Future<Output = Result<Messages<'static>, anyhow::Error>> + Send + 'a,
{
    let pulls = streams::unfold((open, pauses(), Duration::ZERO), move |(open, mut pauses, pause)| async move {
        tokio::time::sleep(pause).await;
        match open().await {
            Ok(messages) => {
                let messages = messages.take_while(move |message| {
                    if let Err(error) = message {
                        warn!(consumer = durable, error = format!("{error:#}"), "the pull of replays is broken");
                    }
                    std::future::ready(message.is_ok())
                });
                pauses.reset();
                Some((messages.boxed(), (open, pauses, REPLAYS_AGAIN)))
            }
            Err(error) => {
                warn!(consumer = durable, error = format!("{error:#}"), "replays cannot be pulled: trying again");
                let pause = pauses.next_backoff().unwrap_or(HEARTBEAT);
                Some((streams::empty().boxed(), (open, pauses, pause)))
            }
        }
    });
    pulls.flatten().boxed()
}

/// The events and what is replayed, until the events end.
pub(crate) fn both<'a>(events: Messages<'a>, replays: Messages<'a>) -> Messages<'a> {
    let events = events.map(Some).chain(streams::once(std::future::ready(None)));
    let both = streams::select(events, replays.map(Some));
    both.take_while(|message| std::future::ready(message.is_some())).filter_map(std::future::ready).boxed()
}

/// When to report progress to the server.
pub(crate) fn progress() -> tokio::time::Interval {
    let every = ACK_WAIT / 3;
    tokio::time::interval_at(tokio::time::Instant::now() + every, every)
}

pub(crate) fn pauses() -> backoff::ExponentialBackoff {
    ExponentialBackoffBuilder::new()
        .with_initial_interval(Duration::from_millis(100))
        .with_max_interval(Duration::from_secs(3))
        .with_max_elapsed_time(None)
        .build()
}
