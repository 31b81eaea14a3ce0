//! One event at a time for each aggregate, many aggregates at once, each event in a transaction with its inbox row.
//!
//! The process that pulls has a lease. At its start the durable consumer goes back to its acknowledged floor, so that
//! events which an earlier process had in hand come again before newer ones; those that it had handled are told by the
//! inbox. An event that must be tried again waits here, and the later ones of its aggregate behind it; the server hears
//! meanwhile that work goes on. So is order kept across failures, crashes and a stale process.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::{self, AckKind};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use sqlx::PgConnection;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info, warn};

use crate::event::Event;
use crate::inbox::{Claim, Inbox};
use crate::pull::{self, Consumer, Messages};
use crate::replay;
use crate::settle::{Place, Read, Settler, delay, now};

/// For how long the right to pull is had without a renewal.
const LEASE: Duration = Duration::from_secs(5);
const SWEEP_EVERY: Duration = Duration::from_secs(600);
const SWEEP_PAUSE: Duration = Duration::from_millis(50);
/// So many times as many events are in hand as are handled at once.
const IN_HAND: usize = 4;

/// Why a handler did not handle an event. Its transaction is rolled back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Not this time: again later.
    #[error("{0}")]
    Retry(String),
    /// Never: a dead letter, now.
    #[error("{0}")]
    Reject(String),
}

/// What the database says is not the event's fault: again later.
impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Retry(error.to_string())
    }
}

/// What [`Consumer::run_in_order`] asks of a handler, written once.
pub trait Handler:
    for<'a> Fn(&'a mut PgConnection, &'a Event) -> BoxFuture<'a, Result<(), Failure>> + Send + Sync
{
}

impl<H> Handler for H where
    H: for<'a> Fn(&'a mut PgConnection, &'a Event) -> BoxFuture<'a, Result<(), Failure>> + Send + Sync
{
}

/// An event in hand.
#[derive(Clone)]
struct Held {
    message: jetstream::Message,
    event: Event,
    place: Place,
}

enum Outcome {
    Done,
    Duplicate,
    Discarded,
    Failed(Failure),
    /// Why the aggregate waits, and the dead event that it waits behind.
    Behind(String),
    /// It is dead already; its letter may not have been stored.
    Dead(String),
    Lost,
}

/// What follows an attempt.
enum After {
    /// It is acknowledged: the next of its aggregate.
    Next,
    /// It is tried again after a pause.
    Again(Duration),
    /// This process is stopping: it is left to the next one.
    Left,
}

/// Stands by for the lease, and pulls for as long as it holds.
pub async fn lead<H>(
    consumer: &Consumer,
    stop: &CancellationToken,
    inbox: &Inbox,
    handler: &H,
    handled: &mut bool,
) -> Result<(), anyhow::Error>
where
    H: Handler,
{
    let durable = &consumer.settler.config.durable;
    let Some(epoch) = inbox.lease(durable, LEASE.as_secs_f64()).await.context("taking the lease")? else {
        stop.run_until_cancelled(tokio::time::sleep(LEASE / 4)).await;
        *handled = true;
        return Ok(());
    };
    info!(consumer = durable, epoch, "pulling");
    // One connection is for the lease: handlers that take long must not cost the lead.
    let connections = inbox.db.options().get_max_connections();
    anyhow::ensure!(connections > 1, "the inbox needs a pool of two connections at least");
    let at_once = consumer.settler.config.batch.clamp(1, connections as usize - 1);
    let lanes = Lanes { settler: &consumer.settler, inbox, stop, epoch, permits: Semaphore::new(at_once) };
    let result = tokio::select! {
        result = lanes.work(consumer, handler, handled) => result,
        lost = lanes.keep_lease() => Err(lost),
        never = lanes.sweep() => never,
    };
    if stop.is_cancelled() {
        inbox.give_up(durable, epoch).await.ok();
    }
    result
}

struct Lanes<'a> {
    settler: &'a Settler,
    inbox: &'a Inbox,
    stop: &'a CancellationToken,
    epoch: i64,
    permits: Semaphore,
}

impl Lanes<'_> {
    async fn keep_lease(&self) -> anyhow::Error {
        let mut held_until = tokio::time::Instant::now() + LEASE;
        let durable = &self.settler.config.durable;
        loop {
            tokio::time::sleep(LEASE / 4).await;
            let asked = tokio::time::Instant::now();
            let renewal = self.inbox.renew(durable, self.epoch, LEASE.as_secs_f64());
            match tokio::time::timeout_at(held_until, renewal).await {
                Ok(Ok(true)) => held_until = asked + LEASE,
                Ok(Ok(false)) => return anyhow::anyhow!("another process pulls by now"),
                Ok(Err(error)) if tokio::time::Instant::now() < held_until => {
                    warn!(%error, "the lease was not renewed")
                }
                Ok(Err(_)) | Err(_) => return anyhow::anyhow!("the database did not renew the lease in time"),
            }
        }
    }

    /// Forgets what was handled long ago, for as long as this process leads.
    async fn sweep(&self) -> Result<(), anyhow::Error> {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            while self.inbox.sweep(&self.settler.config.durable).await.is_ok_and(|swept| swept == 1_000) {
                tokio::time::sleep(SWEEP_PAUSE).await;
            }
        }
    }

    async fn work<H>(&self, consumer: &Consumer, handler: &H, handled: &mut bool) -> Result<(), anyhow::Error>
    where
        H: Handler,
    {
        let in_hand = self.settler.config.batch * IN_HAND;
        let (stream, durable) = consumer.open(in_hand).await?;
        // Back to the floor: what somebody had in hand comes first again.
        let reset = stream.reset_consumer(&self.settler.config.durable, None).await;
        let reset = reset.context("resetting the durable consumer")?;
        let mut messages = consumer.pull(&durable).await?;
        self.events(&mut messages, reset.info.delivered.consumer_sequence, handler, handled).await
    }

    async fn events<H>(
        &self,
        messages: &mut Messages,
        mut delivered: u64,
        handler: &H,
        handled: &mut bool,
    ) -> Result<(), anyhow::Error>
    where
        H: Handler,
    {
        // The events of each aggregate in hand, in their order; the first is at work or waits for its next attempt.
        let mut lanes: HashMap<String, VecDeque<Held>> = HashMap::new();
        let mut work: FuturesUnordered<BoxFuture<'_, (String, Result<After, anyhow::Error>)>> = FuturesUnordered::new();
        let mut in_hand = 0;
        let mut missed = 0;
        let mut progress = pull::progress();
        loop {
            let stopping = self.stop.is_cancelled();
            if stopping && work.is_empty() {
                return Ok(());
            }
            tokio::select! {
                message = pull::next(messages, &mut missed), if !stopping && in_hand < self.settler.config.batch * IN_HAND => {
                    let message = message?;
                    // Every delivery is counted. One that is not here went to a pull that nobody reads any more, or was
                    // lost on the way, and would come after newer ones: from the floor again.
                    let info = message.info().map_err(|error| anyhow::anyhow!(error))?;
                    if info.stream != replay::STREAM {
                        let number = info.consumer_sequence;
                        anyhow::ensure!(number == delivered + 1, "delivery {} went elsewhere", delivered + 1);
                        delivered = number;
                    }
                    match self.settler.read(&message) {
                        Read::Skip(reason) => self.settler.skip(&message, reason).await?,
                        Read::Malformed(reason) => {
                            self.settler.reject(&message, reason).await?;
                        }
                        Read::Event(event, place) => {
                            in_hand += 1;
                            let aggregate = event.aggregate().to_owned();
                            let held = Held { message, event, place };
                            let lane = lanes.entry(aggregate.clone()).or_default();
                            lane.push_back(held.clone());
                            if lane.len() == 1 {
                                work.push(self.attempt(aggregate, held, Duration::ZERO, handler).boxed());
                            }
                        }
                    }
                }
                Some((aggregate, after)) = work.next() => {
                    *handled = true;
                    let Some(lane) = lanes.get_mut(&aggregate) else { continue };
                    let pause = match after? {
                        After::Left => continue,
                        After::Again(pause) => pause,
                        After::Next => {
                            lane.pop_front();
                            in_hand -= 1;
                            Duration::ZERO
                        }
                    };
                    match lane.front() {
                        Some(head) => {
                            let head = head.clone();
                            work.push(self.attempt(aggregate, head, pause, handler).boxed());
                        }
                        None => drop(lanes.remove(&aggregate)),
                    }
                }
                _ = progress.tick() => {
                    for held in lanes.values().flatten() {
                        held.message.ack_with(AckKind::Progress).await.ok();
                    }
                }
                () = self.stop.cancelled(), if !stopping => {}
            }
        }
    }

    /// One attempt, after a pause, and what is made of its outcome.
    async fn attempt<H>(
        &self,
        aggregate: String,
        held: Held,
        pause: Duration,
        handler: &H,
    ) -> (String, Result<After, anyhow::Error>)
    where
        H: Handler,
    {
        let ready = async {
            tokio::time::sleep(pause).await;
            self.permits.acquire().await
        };
        let Some(permit) = self.stop.run_until_cancelled(ready).await else {
            return (aggregate, Ok(After::Left));
        };
        let span = self.settler.span(std::slice::from_ref(&held.event));
        let outcome = self.handle(&held.event, handler).instrument(span).await;
        drop(permit);
        let outcome = outcome.unwrap_or_else(|error| Outcome::Failed(error.into()));
        let after = self.settle(&held, outcome).await;
        (aggregate, after)
    }

    async fn handle<H>(&self, event: &Event, handler: &H) -> Result<Outcome, sqlx::Error>
    where
        H: Handler,
    {
        if event.replay.as_ref().is_some_and(|replay| replay.discarded) {
            let leads = self.inbox.discard(&self.settler.config.durable, self.epoch, event).await?;
            return Ok(if leads { Outcome::Discarded } else { Outcome::Lost });
        }
        let mut tx = self.inbox.db.begin().await?;
        match self.inbox.claim(&mut tx, &self.settler.config.durable, self.epoch, event).await? {
            Claim::New => {}
            Claim::Handled => return Ok(Outcome::Duplicate),
            Claim::Lost => return Ok(Outcome::Lost),
            Claim::Dead(reason) => return Ok(Outcome::Dead(reason)),
            Claim::Behind(id) => {
                return Ok(Outcome::Behind(format!("an earlier event of its aggregate is a dead letter: {id}")));
            }
        }
        if let Err(failure) = handler(&mut tx, event).await {
            return Ok(Outcome::Failed(failure));
        }
        tx.commit().await?;
        Ok(Outcome::Done)
    }

    /// Acknowledges by the outcome.
    async fn settle(&self, held: &Held, outcome: Outcome) -> Result<After, anyhow::Error> {
        let durable = &self.settler.config.durable;
        let again = |times| Ok(After::Again(delay(times)));
        let (name, reason) = match outcome {
            Outcome::Lost => anyhow::bail!("another process pulls by now"),
            Outcome::Done => {
                if !held.place.0 {
                    self.settler.record_age(now() - held.event.stored_at);
                }
                ("done", None)
            }
            Outcome::Duplicate => ("duplicate", None),
            Outcome::Discarded => ("discarded", None),
            Outcome::Dead(reason) => ("reject", Some(reason)),
            Outcome::Behind(reason) => ("behind", Some(reason)),
            Outcome::Failed(Failure::Retry(reason)) => ("retry", Some(reason)),
            Outcome::Failed(Failure::Reject(reason)) => ("reject", Some(reason)),
        };
        let Some(reason) = reason else {
            self.settler.handled(&held.message, held.place, name).await?;
            self.settler.failures.forget(held.place);
            return Ok(After::Next);
        };
        let failed = self.settler.failures.one_more(held.place);
        // To give an event up cannot fail for good.
        let gives_up = held.event.replay.as_ref().is_some_and(|replay| replay.discarded);
        if name == "retry" && (gives_up || failed.times < self.settler.config.max_attempts) {
            let (subject, attempts) = (&held.event.nats_subject, failed.times);
            warn!(consumer = durable, subject, attempts, reason, "again later");
            self.settler.count("retry");
            return again(failed.times);
        }
        // Before the letter, so that no later event of the aggregate slips by.
        match self.inbox.die(durable, self.epoch, &held.event, &reason).await {
            Ok(true) => {}
            Ok(false) => anyhow::bail!("another process pulls by now"),
            Err(error) => {
                warn!(%error, "the event's death could not be written down: again later");
                return again(failed.times);
            }
        }
        if !self.settler.bury(&held.message, &reason, failed).await {
            return again(failed.times);
        }
        if let Err(error) = self.inbox.remember_letter(durable, &held.event).await {
            warn!(%error, "the letter could not be remembered: again later");
            return again(failed.times);
        }
        self.settler.acknowledge(&held.message, name, AckKind::Ack).await?;
        self.settler.failures.forget(held.place);
        Ok(After::Next)
    }
}
