//! One event at a time for each aggregate, many aggregates at once, each event in a transaction with its inbox row.
//!
//! The process that pulls has a lease. At its start the durable consumer goes back to its acknowledged floor, so that
//! events which an earlier process had in hand come again before newer ones; the inbox knows those that it had handled.
//! An event that must be tried again waits here, and the later ones of its aggregate behind it; meanwhile the server
//! gets progress reports. So order holds across failures, crashes and a stale process.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::{self, PullConsumer};
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::anchored::Anchored;
use crate::claim::Handler;
use crate::config::{BEGINS_BEHIND, IN_HAND};
use crate::durable::Durable;
use crate::floors::Floors;
use crate::inbox::{Inbox, Lead};
use crate::lanes::{After, Held, Lanes};
use crate::pull::{self, Messages};
use crate::replay;
use crate::rewind::reset;
use crate::settle::{Acker, Read, Unknown};
use crate::status::note_trimmed;
use crate::sweep;
use crate::time::{self, micros};

/// How long the right to pull lasts without a renewal.
const LEASE: Duration = Duration::from_secs(5);
/// How long it may take to give the lease back; it ends by itself.
const GIVES_UP_WITHIN: Duration = Duration::from_secs(1);

/// Stands by for the lease, and pulls for as long as it holds. A process that `has_failed` asks first whether the broker answers:
/// it may be cut off where another is well, and would take the lease from that one again and again.
pub async fn lead<H>(
    consumer: &Durable,
    stop: &CancellationToken,
    inbox: &Inbox,
    handler: &H,
    has_failed: bool,
    handled: &mut bool,
) -> Result<(), anyhow::Error>
where
    H: Handler,
{
    if has_failed {
        match stop.run_until_cancelled(consumer.open()).await {
            Some(opened) => drop(opened?),
            None => return Ok(()),
        }
    }
    let durable = &consumer.acker.config.durable;
    let Some(lead) = inbox.lease(durable, LEASE.as_secs_f64()).await.context("taking the lease")? else {
        // The process that leads says how the effects stand.
        consumer.status.send_modify(|status| status.diverged = false);
        stop.run_until_cancelled(tokio::time::sleep(LEASE / 4)).await;
        *handled = true;
        return Ok(());
    };
    let epoch = lead.epoch;
    info!(consumer = durable, epoch, "pulling");
    consumer.status.send_modify(|status| {
        status.trimmed_unread = status.trimmed_unread.max(lead.trimmed_unread.max(0).cast_unsigned());
    });
    // One connection is for the lease: handlers that take long must not cost the lead.
    let connections = inbox.db.options().get_max_connections();
    anyhow::ensure!(connections > 1, "the inbox needs a pool of two connections at least");
    let at_once = consumer.acker.config.mode.pulls().clamp(1, connections as usize - 1);
    let lanes = Lanes {
        acker: &consumer.acker,
        status: &consumer.status,
        inbox,
        stop,
        epoch,
        floors: Floors::of(&lead),
        permits: Semaphore::new(at_once),
    };
    let anchored =
        Anchored { rewinder: consumer.rewinder(), inbox, epoch, floors: &lanes.floors, status: &consumer.status };
    let result = tokio::select! {
        result = lanes.work(consumer, &lead, handler, handled) => result,
        lost = lanes.keep_lease(&lead) => Err(lost),
        never = lanes.follow_replays() => never,
        never = anchored.keep() => never,
        never = sweep::run(inbox, durable) => never,
    };
    // Also when it goes on: it may be cut off where another is well.
    let (written, floor) = lanes.floors.to_write(lanes.status.borrow().trimmed_unread);
    tokio::time::timeout(GIVES_UP_WITHIN, inbox.give_up(durable, &lead, written, floor)).await.ok();
    result
}

/// How far the events of the stream have come.
struct Progress {
    created: DateTime<Utc>,
    /// The newest that was delivered.
    newest: u64,
    /// Those that are not settled.
    in_hand: BTreeSet<u64>,
}

impl Progress {
    fn floor(&self) -> u64 {
        self.in_hand.first().map_or(self.newest, |first| first - 1)
    }
}

/// Behind which sequence a durable consumer began, as far as it says so.
fn begins_behind(is: &consumer::Config) -> u64 {
    is.metadata.get(BEGINS_BEHIND).and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// What is pulled from.
struct Opened<'a> {
    lead: &'a Lead,
    durable: PullConsumer,
    /// Up to where it was acknowledged before.
    acknowledged: u64,
}

impl Lanes<'_> {
    async fn keep_lease(&self, lead: &Lead) -> anyhow::Error {
        let mut held_until = tokio::time::Instant::now() + LEASE;
        let durable = &self.acker.config.durable;
        loop {
            tokio::time::sleep(LEASE / 4).await;
            let asked = tokio::time::Instant::now();
            let (written, floor) = self.floors.to_write(self.status.borrow().trimmed_unread);
            let renewal = self.inbox.renew(durable, lead, LEASE.as_secs_f64(), written, floor);
            match tokio::time::timeout_at(held_until, renewal).await {
                Ok(Ok(true)) => {
                    held_until = asked + LEASE;
                    if let Some(floor) = floor {
                        self.floors.wrote(floor);
                    }
                }
                // A standby that was promoted may lack effects of a moment ago: a new lead compares.
                Ok(Ok(false)) => {
                    return anyhow::anyhow!("another process pulls by now, or the database is not the one it was");
                }
                Ok(Err(error)) if tokio::time::Instant::now() < held_until => {
                    warn!(%error, "the lease was not renewed")
                }
                Ok(Err(_)) | Err(_) => return anyhow::anyhow!("the database did not renew the lease in time"),
            }
        }
    }

    /// Up to where replays are settled: those are acknowledged in any order, so the broker knows.
    async fn follow_replays(&self) -> Result<(), anyhow::Error> {
        let mut tick = tokio::time::interval(LEASE / 4);
        loop {
            tick.tick().await;
            if !self.floors.has_replays() {
                continue;
            }
            if let Ok(replays) =
                replay::consumer(&self.acker.js, &self.acker.config.records, &self.acker.config.durable).await
            {
                self.floors.replays_settled_up_to(replays.cached_info().ack_floor.stream_sequence);
            }
        }
    }

    /// What is replayed to this consumer; what a database that went back lacks of it comes again.
    async fn replays(&self, lead: &Lead) -> Result<Messages<'static>, anyhow::Error> {
        let Acker { js, config, .. } = self.acker;
        let durable = &config.durable;
        // Compared once in a lead: later this process knows better than what the database had at its beginning.
        if self.floors.has_replays() {
            return pull::messages(&replay::consumer(js, &config.records, durable).await?, config.mode.pulls()).await;
        }
        let stream = replay::stream(js, &config.records).await?;
        let replays = replay::consumer(js, &config.records, durable).await?;
        let acknowledged = replays.cached_info().ack_floor.stream_sequence;
        let effects = lead.replays_floor.map_or(acknowledged, |floor| floor.max(0).cast_unsigned());
        if effects < acknowledged {
            info!(consumer = durable, effects, acknowledged, "replays since come again");
            let first = stream.cached_info().state.first_sequence;
            reset(&stream, durable, Some((effects + 1).max(first))).await.context("taking replays back")?;
        }
        self.floors.replays_settled_up_to(effects.min(acknowledged));
        pull::messages(&replays, config.mode.pulls()).await
    }

    async fn work<H>(
        &self,
        consumer: &Durable,
        lead: &Lead,
        handler: &H,
        handled: &mut bool,
    ) -> Result<(), anyhow::Error>
    where
        H: Handler,
    {
        // An unavailable broker may take its time to say so: a stopping process does not wait for that.
        let Some(opened) = self.stop.run_until_cancelled(Box::pin(self.open(consumer, lead))).await else {
            return Ok(());
        };
        let (opened, messages, progress) = opened?;
        self.events(&opened, messages, progress, handler, handled).await
    }

    /// Opens the stream, goes back to where the effects end, and pulls.
    async fn open<'a>(
        &self,
        consumer: &Durable,
        lead: &'a Lead,
    ) -> Result<(Opened<'a>, Messages<'static>, Progress), anyhow::Error> {
        let (stream, durable) = consumer.open().await?;
        let config = &self.acker.config;
        let (created, first) = (micros(stream.cached_info().created), stream.cached_info().state.first_sequence);
        let acknowledged = durable.cached_info().ack_floor.stream_sequence;
        // Nothing of another stream is written down, whatever was acknowledged.
        let same = lead.stream_created_at.is_none_or(|of| of == created);
        let begins = begins_behind(&durable.cached_info().config);
        let effects = lead.floor.map(|floor| if same { floor.max(0).cast_unsigned().max(begins) } else { 0 });
        let back = effects.filter(|effects| *effects < acknowledged);
        if let Some(effects) = back {
            // A moment's worth after a crash; more after the database was restored, or a standby took over.
            info!(
                consumer = config.durable,
                effects, acknowledged, "the database is older than the broker thinks: events of between come again"
            );
            note_trimmed(config, self.status, first, effects);
        }
        // Back to the floor: what somebody had in hand comes first again.
        let from = back.map(|effects| (effects + 1).max(first));
        reset(&stream, &config.durable, from).await.context("resetting the durable consumer")?;
        let floor = back.unwrap_or(acknowledged);
        self.floors.settled_up_to(created, floor);
        let messages = consumer.pull_events(&durable).await?;
        let progress = Progress { created, newest: floor, in_hand: BTreeSet::new() };
        Ok((Opened { lead, durable, acknowledged }, messages, progress))
    }

    async fn events<'a, H>(
        &'a self,
        opened: &'a Opened<'a>,
        mut messages: Messages<'a>,
        mut settled: Progress,
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
        let mut progress = time::progress();
        // The reset restarts the count of deliveries; one to somebody else is missed here.
        let mut delivered = 0;
        // Replays are of events up to there: they come once those are settled again, each behind the earlier ones of its
        // aggregate.
        let mut replays_after = Some(opened.acknowledged);
        loop {
            let stopping = self.stop.is_cancelled();
            if !stopping && replays_after.take_if(|after| settled.floor() >= *after).is_some() {
                let replays = pull::replays(&self.acker.config.durable, || self.replays(opened.lead));
                messages = pull::both(messages, replays);
            }
            if stopping && work.is_empty() {
                return Ok(());
            }
            tokio::select! {
                message = messages.next(), if !stopping && in_hand < self.acker.config.mode.pulls() * IN_HAND => {
                    let message = message.context("the pull has ended")??;
                    // Every delivery is counted. One that is not here went to a pull that nobody reads any more, or was
                    // lost on the way, and would come after newer ones: from the floor again.
                    let info = message.info().map_err(|error| anyhow::anyhow!(error))?;
                    if info.stream != self.acker.config.records.replays {
                        let number = info.consumer_sequence;
                        anyhow::ensure!(number == delivered + 1, "delivery {} went elsewhere", delivered + 1);
                        delivered = number;
                        settled.newest = settled.newest.max(info.stream_sequence);
                    }
                    let read = match self.acker.read(&message) {
                        Read::Unknown(event, place) => match self.acker.unknown(&event, &mut None).await? {
                            Unknown::Skip(reason) => Read::Skip(reason),
                            Unknown::Failed(reason) if place.0 => Read::Malformed(reason),
                            // It waits for the other release in its aggregate's lane.
                            Unknown::Failed(_) => Read::Event(event, place),
                        },
                        read => read,
                    };
                    match read {
                        Read::Skip(reason) => self.acker.skip(&message, reason).await?,
                        Read::Malformed(reason) => {
                            self.acker.reject(&message, reason).await?;
                        }
                        Read::Unknown(event, place) | Read::Event(event, place) => {
                            in_hand += 1;
                            if !place.0 {
                                settled.in_hand.insert(place.1);
                            }
                            let aggregate = event.aggregate().to_owned();
                            let held = Held { message, event: Arc::new(event), place };
                            let lane = lanes.entry(aggregate.clone()).or_default();
                            lane.push_back(held.clone());
                            if lane.len() == 1 {
                                work.push(self.attempt(aggregate, held, Duration::ZERO, handler).boxed());
                            }
                        }
                    }
                    self.floors.settled_up_to(settled.created, settled.floor());
                }
                Some((aggregate, after)) = work.next() => {
                    *handled = true;
                    let Some(lane) = lanes.get_mut(&aggregate) else { continue };
                    let pause = match after? {
                        After::Left => continue,
                        After::Again(pause) => pause,
                        After::Next => {
                            if let Some(Held { place: (false, sequence), .. }) = lane.pop_front() {
                                settled.in_hand.remove(&sequence);
                                self.floors.settled_up_to(settled.created, settled.floor());
                            }
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
                    // What was acknowledged last may be none of this consumer's, or gone.
                    if replays_after.is_some() && in_hand == 0 {
                        let info = self.stop.run_until_cancelled(opened.durable.get_info()).await.transpose()?;
                        if info.is_some_and(|info| info.num_pending == 0) {
                            replays_after = Some(0);
                        }
                    }
                }
                () = self.stop.cancelled(), if !stopping => {}
            }
        }
    }
}
