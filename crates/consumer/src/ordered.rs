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
use crate::pull::{self, ACK_WAIT, Consumer, Messages};
use crate::settle::{Read, Settler, Verdict, delay, now};

/// For how long the right to pull is had without a renewal.
const LEASE: Duration = Duration::from_secs(5);
const SWEEP_EVERY: Duration = Duration::from_secs(600);

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
struct Held {
    message: jetstream::Message,
    event: Event,
    attempts: i64,
}

enum Outcome {
    Done,
    Duplicate,
    Failed(Failure),
    /// Why the aggregate waits, and the dead event that it waits behind.
    Behind(String),
    /// It is dead already; its letter may not have been stored.
    Dead(String),
    Lost,
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
    let lane =
        Lanes { settler: &consumer.settler, inbox, epoch, permits: Semaphore::new(consumer.settler.config.batch) };
    let result = tokio::select! {
        result = lane.work(consumer, stop, handler, handled) => result,
        lost = lane.keep_lease() => Err(lost),
    };
    if stop.is_cancelled() {
        inbox.give_up(durable, epoch).await.ok();
    }
    result
}

struct Lanes<'a> {
    settler: &'a Settler,
    inbox: &'a Inbox,
    epoch: i64,
    permits: Semaphore,
}

impl Lanes<'_> {
    async fn keep_lease(&self) -> anyhow::Error {
        let mut held_until = tokio::time::Instant::now() + LEASE;
        let mut swept = tokio::time::Instant::now();
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
            if swept.elapsed() > SWEEP_EVERY {
                while self.inbox.sweep(durable).await.is_ok_and(|swept| swept == 1_000) {}
                swept = tokio::time::Instant::now();
            }
        }
    }

    async fn work<H>(
        &self,
        consumer: &Consumer,
        stop: &CancellationToken,
        handler: &H,
        handled: &mut bool,
    ) -> Result<(), anyhow::Error>
    where
        H: Handler,
    {
        let (stream, durable) = consumer.open().await?;
        // Back to the floor: what somebody had in hand comes first again.
        stream.reset_consumer(&self.settler.config.durable, None).await.context("resetting the durable consumer")?;
        let mut messages = consumer.pull(&stream, &durable).await?;
        self.events(stop, &mut messages, handler, handled).await
    }

    async fn events<H>(
        &self,
        stop: &CancellationToken,
        messages: &mut Messages,
        handler: &H,
        handled: &mut bool,
    ) -> Result<(), anyhow::Error>
    where
        H: Handler,
    {
        // The events of each aggregate in hand, in their order; the first is at work or waits for its next attempt.
        let mut lanes: HashMap<String, VecDeque<Held>> = HashMap::new();
        let mut work: FuturesUnordered<BoxFuture<'_, (String, Outcome)>> = FuturesUnordered::new();
        let mut in_hand = 0;
        let mut missed = 0;
        let mut progress = tokio::time::interval_at(tokio::time::Instant::now() + ACK_WAIT / 3, ACK_WAIT / 3);
        loop {
            let stopping = stop.is_cancelled();
            tokio::select! {
                message = pull::next(messages, &mut missed), if !stopping && in_hand < self.settler.config.batch * 4 => {
                    let message = message?;
                    match self.settler.read(&message) {
                        Read::Skip(reason) => self.settler.skip(&message, reason).await?,
                        Read::Malformed(reason) => {
                            self.settler.settle(&message, &Verdict::Reject(reason), 0).await?;
                        }
                        Read::Event(event) => {
                            in_hand += 1;
                            let aggregate = event.aggregate().to_owned();
                            let attempts = event.delivered - 1;
                            let lane = lanes.entry(aggregate.clone()).or_default();
                            lane.push_back(Held { message, event: event.clone(), attempts });
                            if lane.len() == 1 {
                                work.push(self.attempt(aggregate, event, Duration::ZERO, handler).boxed());
                            }
                        }
                    }
                }
                Some((aggregate, outcome)) = work.next() => {
                    *handled = true;
                    let Some(lane) = lanes.get_mut(&aggregate) else { continue };
                    let Some(head) = lane.front_mut() else { continue };
                    if let Some(pause) = self.settle(head, outcome).await? {
                        // When stopping, it is left to the next process.
                        if !stop.is_cancelled() {
                            work.push(self.attempt(aggregate, head.event.clone(), pause, handler).boxed());
                        }
                        continue;
                    }
                    lane.pop_front();
                    in_hand -= 1;
                    match lane.front() {
                        Some(next) if !stop.is_cancelled() => {
                            work.push(self.attempt(aggregate, next.event.clone(), Duration::ZERO, handler).boxed());
                        }
                        Some(_) => {}
                        None => drop(lanes.remove(&aggregate)),
                    }
                }
                _ = progress.tick() => {
                    for held in lanes.values().flatten() {
                        held.message.ack_with(AckKind::Progress).await.ok();
                    }
                }
                () = stop.cancelled(), if !stopping => {}
                else => return Ok(()),
            }
            if stop.is_cancelled() && work.is_empty() {
                return Ok(());
            }
        }
    }

    /// One attempt, after a pause.
    async fn attempt<H>(&self, aggregate: String, event: Event, pause: Duration, handler: &H) -> (String, Outcome)
    where
        H: Handler,
    {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let _permit = self.permits.acquire().await;
        let span = self.settler.span(std::slice::from_ref(&event));
        let outcome = self.handle(&event, handler).instrument(span).await;
        (aggregate, outcome.unwrap_or_else(|error| Outcome::Failed(error.into())))
    }

    async fn handle<H>(&self, event: &Event, handler: &H) -> Result<Outcome, sqlx::Error>
    where
        H: Handler,
    {
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

    /// Acknowledges by the outcome; a pause when it is to be tried again.
    async fn settle(&self, held: &mut Held, outcome: Outcome) -> Result<Option<Duration>, anyhow::Error> {
        let (name, reason) = match outcome {
            Outcome::Lost => anyhow::bail!("another process pulls by now"),
            Outcome::Done => {
                self.settler.record_age(now() - held.event.stored_at);
                ("done", None)
            }
            Outcome::Duplicate => ("duplicate", None),
            Outcome::Dead(reason) => ("reject", Some(reason)),
            Outcome::Behind(reason) => ("behind", Some(reason)),
            Outcome::Failed(failure) => {
                held.attempts += 1;
                let (reason, name) = match failure {
                    Failure::Retry(reason) if held.attempts < self.settler.config.max_attempts => {
                        let (consumer, subject) = (&self.settler.config.durable, &held.event.nats_subject);
                        warn!(consumer, subject, attempts = held.attempts, reason, "again later");
                        self.settler.count("retry");
                        return Ok(Some(delay(held.attempts)));
                    }
                    Failure::Retry(reason) => (reason, "retry"),
                    Failure::Reject(reason) => (reason, "reject"),
                };
                // Before the letter, so that no later event of the aggregate slips by.
                let parked = self.inbox.park(&self.settler.config.durable, self.epoch, &held.event, &reason).await;
                match parked {
                    Ok(true) => {}
                    Ok(false) => anyhow::bail!("another process pulls by now"),
                    Err(error) => {
                        warn!(%error, "the aggregate could not be parked: again later");
                        return Ok(Some(delay(held.attempts)));
                    }
                }
                (name, Some(reason))
            }
        };
        if let Some(reason) = &reason
            && !self.settler.bury(&held.message, reason, held.attempts.max(1)).await
        {
            return Ok(Some(delay(held.attempts)));
        }
        self.settler.acknowledge(&held.message, name, AckKind::Ack).await?;
        Ok(None)
    }
}
