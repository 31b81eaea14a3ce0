//! One session of the leader: from taking its position at the stream's tail to the first fault.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use anyhow::Context as _;
use async_nats::connection::State;
use async_nats::jetstream::stream::{self, InfoError};
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use sqlx::Postgres;
use sqlx::pool::PoolConnection;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::chain::{self, Chain, PublishError, Stored};
use crate::context::{Context, LeadError};
use crate::handle::{Role, Status};
use crate::poison_tracker::PoisonTracker;
use crate::position::Position;
use crate::reader::{Next, Reader};
use crate::resume::{self, micros};
use crate::store::{self, Created, Row};

/// How often the relay checks the stream's tail, the checkpoint and the lease while nothing happens.
pub const CHECK_EVERY: Duration = Duration::from_secs(2);
/// How often the leader creates the coming days' partitions and drops those of days gone by.
const PARTITIONS_EVERY: Duration = Duration::from_secs(3_600);
/// The pause before retention tries again after it could not get the table's lock.
const RETENTION_AGAIN: Duration = Duration::from_secs(60);
/// How many checks in a row may get no answer while nothing is stored.
const MAX_UNANSWERED: u32 = 3;
/// The most rows that one query reads.
const BATCH: usize = 1_000;
/// The pause before the reader works on a gap that no commit has closed, and the longest.
const GAP_PAUSE: Duration = Duration::from_millis(3);
const MAX_GAP_PAUSE: Duration = Duration::from_millis(50);

/// When queries of the outbox take longer than this, the machine is busy ([`Pace`]).
const SLOW_QUERY: Duration = Duration::from_millis(1);
/// The longest pause between two queries.
const MAX_REST: Duration = Duration::from_millis(10);

/// The pause between two queries of the outbox: none while they are quick. On a busy machine the pause is twice as long as a
/// query, so that each finds more rows and writers get the processor instead. A database that is further away than
/// [`SLOW_QUERY`] has the same effect; then a row waits at most [`MAX_REST`] for it.
#[derive(Debug, Default)]
struct Pace {
    /// How long the last ones took: one slow query is chance, four are not.
    took: [Duration; 4],
    looks: usize,
    rests_until: Option<Instant>,
}

impl Pace {
    /// After a query; `follow` if more rows lie ready behind what it returned.
    fn looked(&mut self, since: Instant, follow: bool) {
        let now = Instant::now();
        self.took[self.looks % self.took.len()] = now - since;
        self.looks += 1;
        let shortest = self.took.iter().min().copied().unwrap_or_default();
        let rests = !follow && shortest > SLOW_QUERY;
        self.rests_until = rests.then(|| now + (shortest * 2).min(MAX_REST));
    }

    fn rests(&self) -> bool {
        self.rests_until.is_some_and(|until| Instant::now() < until)
    }

    async fn rest(&self) {
        // A timer that is due already may still take a millisecond.
        if let Some(until) = self.rests_until.filter(|_| self.rests()) {
            tokio::time::sleep_until(until).await;
        }
    }
}

/// A check of the stream that is under way.
struct Look {
    /// What was known to be stored when it began.
    stored: Stored,
    answer: BoxFuture<'static, Result<stream::Info, InfoError>>,
}

async fn answer(looking: &mut Option<Look>) -> Result<stream::Info, InfoError> {
    match looking {
        Some(look) => look.answer.as_mut().await,
        None => std::future::pending().await,
    }
}

/// From taking the position to the first fault.
pub struct LeaderTerm<'a> {
    context: &'a Context,
    epoch: i64,
    /// For the reader alone: a query of the outbox is one round trip.
    db: PoolConnection<Postgres>,
    stream_created_at: DateTime<Utc>,
    stream: stream::Stream,
    /// What the stream takes.
    subjects: Vec<String>,
    chain: Chain,
    reader: Reader,
    /// The first parked row of each aggregate that has one.
    parked: HashMap<String, i64>,
    /// Rows that were parked once and that operators have resolved since.
    worked: HashSet<i64>,
    pub window: usize,
    pub stored: Stored,
    /// Whether `stored` is a row of this session.
    acknowledged: bool,
    /// What `stored` was at the last check.
    checked_at: Stored,
    /// How many checks in a row got no answer while nothing was stored.
    unanswered: u32,
    /// Whether rows that the reader has passed were put back, because this relay is asked to stop.
    put_back: bool,
    saved: i64,
    next_partitions: Instant,
}

impl<'a> LeaderTerm<'a> {
    /// Takes the position. `patience` is how long JetStream may take to answer.
    pub async fn open(context: &'a Context, epoch: i64, patience: Duration) -> Result<Self, LeadError> {
        let config = &context.config;
        match store::create_partitions(&context.db).await {
            Ok(0) => {}
            Ok(made) => info!(made, "made outbox partitions ahead"),
            // What is committed can be published without them.
            Err(error) => error!(%error, "partitions ahead could not be made"),
        }
        let mut db = context.db.acquire().await?;
        store::pin_index_plan(&mut db, false).await?;
        let stream = Box::pin(crate::stream::open(&context.nats, config, patience)).await?;
        let info = stream.get_info().await.context("reading the stream's state")?;
        let created = micros(info.created);
        let base = info.state.last_sequence;
        let place = Box::pin(resume::find(&context.db, &mut db, epoch, (&stream, &info))).await?;
        info!(seq = place.seq, base, messages = info.state.messages, "place taken from the stream's tail");
        let stored = Stored { outbox_seq: place.seq, created_at: place.created_at, stream_seq: base };
        let chain = Chain::open(context.nats.clone(), &config.content_type, base).await?;
        Ok(Self {
            context,
            epoch,
            db,
            stream_created_at: created,
            stream,
            subjects: info.config.subjects.clone(),
            chain,
            reader: Reader::new(place, i64::try_from(config.window.clamp(1, BATCH)).unwrap_or(1)),
            parked: store::parked_aggregates(&context.db).await?.into_iter().collect(),
            worked: store::worked(&context.db).await?.into_iter().collect(),
            window: config.window,
            stored,
            acknowledged: false,
            checked_at: Stored { stream_seq: resume::beginning(&info), ..stored },
            unanswered: 0,
            put_back: false,
            saved: 0,
            // The first check drops what retention allows.
            next_partitions: Instant::now(),
        })
    }

    pub fn status(&self) -> Status {
        // With nothing in flight, everything the reader has passed is done, gaps and parked rows included.
        let all = self.chain.in_flight() == 0 && !self.put_back;
        let done = if all { self.reader.done() } else { self.stored.outbox_seq };
        Status { role: Role::Leader { epoch: self.epoch }, done, stream_seq: self.stored.stream_seq }
    }

    /// Publishes what is settled, until a fault. `Ok` once a row that had failed before is through.
    pub async fn pump(
        &mut self,
        hints: &mut async_nats::Subscriber,
        stop: &CancellationToken,
        suspects: &mut PoisonTracker,
    ) -> Result<(), LeadError> {
        let mut poll = tokio::time::interval(self.context.config.poll);
        let mut look = tokio::time::interval_at(Instant::now() + CHECK_EVERY, CHECK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut waiting: VecDeque<Row> = VecDeque::new();
        let mut more = true;
        // When to work on a gap, and how long the pause before was.
        let mut gap: Option<(Instant, Duration)> = None;
        let mut pace = Pace::default();
        let mut looking: Option<Look> = None;
        // The first query finds all that was committed before it. Rows handed over before may be of a database that has been
        // restored since, and their numbers given out again.
        self.context.hand_off.take();
        loop {
            // Asked to stop, it finishes what is in flight and begins nothing new.
            if stop.is_cancelled() {
                self.put_back |= !waiting.is_empty();
                waiting.clear();
                self.reader.forget_handed();
                (more, gap) = (false, None);
            }
            if waiting.is_empty() && self.chain.in_flight() < self.window {
                // Behind a gap that a query has found may be rows that nobody hands over.
                let found_a_gap = self.reader.waits();
                if let Some(Next::Rows(rows, _)) = self.reader.next_handed() {
                    waiting.extend(rows);
                    (more, gap) = (more || found_a_gap, None);
                } else if gap.is_none() && !more && self.reader.holds_back() {
                    gap = Some((Instant::now() + GAP_PAUSE, GAP_PAUSE));
                }
            }
            if waiting.is_empty() && more && self.chain.in_flight() < self.window && !pace.rests() {
                let settle = gap.is_some_and(|(at, _)| at <= Instant::now());
                let (began, known) = (Instant::now(), self.reader.waits());
                let next = self.reader.next(&mut self.db, settle).await?;
                pace.looked(began, matches!(next, Next::Rows(_, true)));
                match next {
                    Next::Rows(rows, follow) => {
                        waiting.extend(rows);
                        (more, gap) = (follow, None);
                    }
                    Next::Idle => (more, gap) = (false, None),
                    Next::Unsettled => {
                        more = false;
                        gap = match gap {
                            Some(waiting) if !settle => Some(waiting),
                            // This query was the first to see the gap.
                            Some((_, pause)) if !known => Some((Instant::now() + pause, pause)),
                            Some((_, pause)) => {
                                let pause = (pause * 2).min(MAX_GAP_PAUSE);
                                Some((Instant::now() + pause, pause))
                            }
                            None => Some((Instant::now() + GAP_PAUSE, GAP_PAUSE)),
                        };
                    }
                }
            }
            while self.chain.in_flight() < self.window
                && let Some(row) = waiting.pop_front()
            {
                self.publish(row).await?;
            }
            self.chain.ask().await?;
            if waiting.is_empty() {
                self.context.status.send_if_modified(|status| {
                    let now = self.status();
                    let changed = *status != now;
                    *status = now;
                    changed
                });
            }
            tokio::select! {
                biased;
                () = stop.cancelled(), if self.chain.in_flight() == 0 => {
                    // The check saves it only of a stream that is as it should be: a position behind a purge would hide it for ever.
                    if Box::pin(self.last_look()).await.is_err() {
                        info!("stopping without a checkpoint: the next leader takes its place from an older one");
                    }
                    return Err(LeadError::Stop);
                }
                // Before what may always be ready: it comes every few seconds, also under load.
                _ = look.tick(), if looking.is_none() => looking = Some(self.look().await?),
                answer = answer(&mut looking), if looking.is_some() => {
                    if let Some(look) = looking.take() {
                        self.looked(look.stored, answer).await?;
                    }
                }
                stored = self.chain.next(), if self.chain.in_flight() > 0 => {
                    if let Some(stored) = stored? {
                        self.stored = stored;
                        self.acknowledged = true;
                        if waiting.is_empty() {
                            self.context.status.send_replace(self.status());
                        }
                        let none_suspected = suspects.passed(stored.outbox_seq);
                        if self.window == 1 && none_suspected {
                            return Ok(());
                        }
                    }
                }
                () = pace.rest(), if more && waiting.is_empty() && self.chain.in_flight() < self.window => {}
                () = tokio::time::sleep_until(gap.map_or_else(Instant::now, |(at, _)| at)), if gap.is_some() && !more => {
                    more = true;
                }
                () = self.context.hand_off.arrived.notified() => {
                    let pending = self.context.hand_off.take();
                    let kept = self.reader.hand_over(pending.rows);
                    more |= pending.look || !kept;
                }
                Some(_) = hints.next() => {
                    // One query does for all that have come.
                    while let Some(Some(_)) = hints.next().now_or_never() {}
                    more = true;
                }
                _ = poll.tick() => more = true,
            }
        }
    }

    async fn publish(&mut self, row: Row) -> Result<(), LeadError> {
        if self.worked.contains(&row.seq) {
            return Ok(());
        }
        let reason = match self.parked.get(&row.aggregate_id) {
            Some(first) if *first == row.seq => Some("it was parked before"),
            Some(first) if *first < row.seq => Some("an earlier event of its aggregate is parked"),
            _ => unpublishable(&row, self.context.config.max_bytes),
        };
        match reason {
            Some(reason) => self.park(&row, reason).await,
            // Do not park it at once: when the stream is wrong, this is true of every row.
            None if !crate::stream::takes(&self.subjects, &row.subject) => {
                let reason = format!("the stream does not take the subject {}", row.subject);
                Err(LeadError::PublishError(PublishError::Refused { seq: row.seq, reason }))
            }
            None => Ok(self.chain.send(row).await?),
        }
    }

    /// Sets a row and its aggregate aside; recorded before anything behind it goes out.
    async fn park(&mut self, row: &Row, reason: &str) -> Result<(), LeadError> {
        // The rows before it need not wait for the database.
        self.chain.ask().await?;
        let actor = format!("relay, epoch {}", self.epoch);
        // Write one line for an aggregate, not one for each row behind the first.
        let actor = (!self.parked.contains_key(&row.aggregate_id)).then_some(actor.as_str());
        if !store::park(&self.context.db, self.epoch, row, reason, actor).await? {
            return Err(LeadError::Lost("another relay took it"));
        }
        let trace_id = row.traceparent.as_deref().and_then(chain::trace_id);
        let event_id = row.event_id.to_string();
        error!(
            trace_id,
            event_id,
            seq = row.seq,
            aggregate = row.aggregate_id,
            subject = row.subject,
            reason,
            "parked"
        );
        metrics::counter!("outbox_parked_rows_total").increment(1);
        self.parked.entry(row.aggregate_id.clone()).or_insert(row.seq);
        Ok(())
    }

    /// Parks a row by its number, unless it has been stored after all; returns whether it did.
    pub async fn park_seq(&mut self, seq: i64, reason: &str) -> Result<bool, LeadError> {
        // Only while the stream answers, and stands where it was left: else it is not the row's fault.
        let info = self.stream.get_info().await.context("reading the stream's state")?;
        if info.state.last_sequence != self.stored.stream_seq {
            return Ok(false);
        }
        match store::rows(&mut self.db, seq - 1, Some(seq), Created::Ever, 1).await?.pop() {
            Some(row) => self.park(&row, reason).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// A regular check: does the outbox hold what it did, and does the stream stand where it was left? Publishing goes on while the
    /// stream's answer is on its way.
    async fn look(&mut self) -> Result<Look, LeadError> {
        let mark = store::mark(&mut *self.db).await?;
        if mark < self.stored.outbox_seq {
            let what = format!("the outbox's sequence stands at {mark}, behind row {}", self.stored.outbox_seq);
            return Err(LeadError::PublishError(PublishError::WrongLast(what)));
        }
        // Or it fell back, and writes have overtaken since.
        if store::numbered_twice(&mut *self.db, self.checked_at.outbox_seq).await? {
            let what = format!("numbers up to {} of the outbox were given out twice", self.checked_at.outbox_seq);
            return Err(LeadError::PublishError(PublishError::WrongLast(what)));
        }
        let backlog = mark - self.status().done;
        metrics::gauge!("outbox_backlog_rows").set(backlog.max(0) as f64);
        metrics::gauge!("outbox_parked_rows").set(store::parked_count(&self.context.db).await? as f64);
        self.reader.forget_settled();
        if self.acknowledged {
            // The database may have been restored from a backup under a running relay.
            let (seq, created_at) = (self.stored.outbox_seq, self.stored.created_at);
            if store::event_at(&mut *self.db, seq, created_at).await?.is_none() {
                let what = format!("the outbox no longer holds its row {seq}");
                return Err(LeadError::PublishError(PublishError::WrongLast(what)));
            }
        }
        let stream = self.stream.clone();
        Ok(Look { stored: self.stored, answer: async move { stream.get_info().await }.boxed() })
    }

    /// Takes in the stream's answer to a check that began when `asked_at` was stored.
    async fn looked(&mut self, asked_at: Stored, answer: Result<stream::Info, InfoError>) -> Result<(), LeadError> {
        let info = match answer {
            Ok(info) => info,
            // What is stored proves as much: the chain is fenced.
            Err(error) => {
                self.unanswered = if self.stored == asked_at { self.unanswered + 1 } else { 0 };
                warn!(%error, unanswered = self.unanswered, "the stream's state could not be read");
                let away = self.context.nats.connection_state() != State::Connected;
                return if away || self.unanswered >= MAX_UNANSWERED {
                    Err(LeadError::Down(anyhow::Error::new(error).context("reading the stream's state")))
                } else {
                    Ok(())
                };
            }
        };
        self.unanswered = 0;
        let (last, created) = (info.state.last_sequence, micros(info.created));
        // It was asked after the one was stored, and has answered before the others are.
        let elsewhere = last < asked_at.stream_seq || last > self.chain.end();
        let purged = resume::is_purged(&info, self.checked_at.stream_seq, self.checked_at.created_at);
        if elsewhere || purged || created != self.stream_created_at {
            let what = format!(
                "it stands at {last}, not between {} and {}, and begins at {}",
                asked_at.stream_seq,
                self.chain.end(),
                info.state.first_sequence
            );
            return Err(LeadError::PublishError(PublishError::WrongLast(what)));
        }
        if asked_at.stream_seq > self.checked_at.stream_seq {
            self.checked_at = asked_at;
        }
        // Save it only of a stream that is as it should be.
        self.save_checkpoint(asked_at).await?;
        self.look_after_partitions().await;
        Ok(())
    }

    async fn last_look(&mut self) -> Result<(), LeadError> {
        let mut look = self.look().await?;
        let answer = look.answer.as_mut().await;
        self.looked(look.stored, answer).await
    }

    /// Creates the partitions ahead and drops those gone by. A failure here is logged and tried again; relaying goes on.
    async fn look_after_partitions(&mut self) {
        if Instant::now() < self.next_partitions {
            return;
        }
        self.next_partitions = Instant::now() + PARTITIONS_EVERY;
        if let Err(error) = store::create_partitions(&self.context.db).await {
            error!(%error, "partitions ahead could not be made");
        }
        if let Some(days) = self.context.config.retention_days {
            match store::drop_partitions(&self.context.db, days).await {
                Ok(Some(0)) => {}
                Ok(Some(dropped)) => info!(dropped, "dropped outbox partitions by retention"),
                // A reader holds the outbox for long. Each try holds writers up for a moment.
                Ok(None) => self.next_partitions = Instant::now() + RETENTION_AGAIN,
                Err(error) => error!(%error, "retention could not drop old partitions"),
            }
        }
    }

    async fn save_checkpoint(&mut self, stored: Stored) -> Result<(), LeadError> {
        if self.saved == stored.outbox_seq {
            return Ok(());
        }
        let place = Position { seq: stored.outbox_seq, created_at: stored.created_at };
        let stream_seq = stored.stream_seq.max(self.checked_at.stream_seq);
        // Do not wait for the disk: a crash that loses the newest checkpoint leaves an older one, which is as true.
        store::save_checkpoint(&self.context.db, self.epoch, place, stream_seq, self.stream_created_at, false).await?;
        self.saved = stored.outbox_seq;
        Ok(())
    }
}

/// Why this row can never be published, if so.
fn unpublishable(row: &Row, max_bytes: usize) -> Option<&'static str> {
    if row.payload.len() > max_bytes {
        return Some("its payload is larger than the largest event");
    }
    let token =
        |token: &str| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic() && b != b'*' && b != b'>');
    let subject = row.subject.len() <= 255 && row.subject.split('.').all(token);
    // A header's value is one line.
    if row.traceparent.as_ref().is_some_and(|text| text.len() > 255 || !text.bytes().all(|b| b.is_ascii_graphic())) {
        return Some("its traceparent is not one");
    }
    (!subject).then_some("its subject is not one that can be published on")
}
