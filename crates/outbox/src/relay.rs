//! The relay's life cycle: stand by, take the lease, take the position from the stream's tail, publish, and start over on a
//! fault. `resume` decides from where, `leader_term` what is set aside, `reader` what may be published, `chain` how.

use std::ops::DerefMut;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff as _;
use sqlx::{PgConnection, PgPool};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::chain::PublishError;
use crate::leader_term::LeaderTerm;
use crate::poison_tracker::PoisonTracker;
use crate::store::{self, Entry, NewEvent, Row};
use crate::stream;

/// How often the relay checks the stream's tail, the checkpoint and the lease while nothing happens.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(2);
/// After a lead of this length the pause behind a fault is short again.
const GOOD_LEAD: Duration = Duration::from_secs(15);
/// How long JetStream may take to answer, and how long once it has not: by then another relay may lead.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);
const ANSWERS_LATE: Duration = Duration::from_secs(10);
/// How long it may take to give up the lease, which ends by itself, or to send a hint, which a poll makes up for.
const GIVES_UP_WITHIN: Duration = Duration::from_secs(1);
/// How often a row may fail alone, while the stream answers, before it is parked.
const FAILS_ALONE: u32 = 3;
/// The stream that the relay publishes to, as [`crate::administer::stream`] makes it.
#[derive(Debug, Clone)]
pub struct StreamSpec {
    /// The stream's name.
    pub name: String,
    /// The subjects it takes; nobody else may publish on them.
    pub subjects: Vec<String>,
    /// How long it keeps a message; the outbox must keep its rows for at least as long.
    pub max_age: Duration,
    /// On how many servers.
    pub replicas: usize,
}

/// The configuration of a relay.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// Where to publish.
    pub stream: StreamSpec,
    /// The content type of every payload.
    pub content_type: String,
    /// A core-NATS subject on which writers in other processes hint that there is something to publish.
    pub hint_subject: String,
    /// Who this relay is, for the lease: new for each process.
    pub holder: Uuid,
    /// How long the lead lasts without a renewal.
    pub lease: Duration,
    /// How often to poll for rows without a hint.
    pub poll: Duration,
    /// How many messages may be in flight.
    pub window: usize,
    /// For how many days the outbox keeps its rows, at least as long as the stream its messages; `None` for ever.
    pub retention_days: Option<i32>,
    /// The largest payload; a larger one parks its aggregate.
    pub max_bytes: usize,
}

/// What a relay does right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Another relay leads, or a dependency is unavailable.
    Standby,
    /// This relay publishes.
    Leader {
        /// Rises with each change of the lead.
        epoch: i64,
    },
    /// Stream and outbox contradict each other: the relay waits for an operator, and checks again every few seconds.
    Halted {
        /// What contradicts what, and what to do.
        reason: String,
    },
}

/// Where a relay stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// What it does.
    pub role: Role,
    /// Every row up to this `seq` is stored in the stream, parked, or was rolled back.
    pub done: i64,
    /// The stream's last sequence.
    pub stream_seq: u64,
}

/// How many rows the hand-off may hold, and as many behind a gap; if more come, the relay queries the outbox for all. With the
/// largest events (64 KiB) that is 32 MiB.
pub(crate) const MAX_HANDED_OFF: usize = 500;

/// What was committed in this process and the relay has not taken up yet.
#[derive(Debug, Default)]
pub(crate) struct HandOff {
    pending: Mutex<Pending>,
    pub arrived: Notify,
}

#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Committed rows.
    pub rows: Vec<Row>,
    /// Whether there are more, which only a query of the outbox finds.
    pub look: bool,
}

impl HandOff {
    fn push(&self, rows: Vec<Row>, look: bool) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.rows.len() + rows.len() > MAX_HANDED_OFF {
            *pending = Pending { rows: Vec::new(), look: true };
        } else {
            pending.rows.extend(rows);
            pending.look |= look;
        }
        drop(pending);
        self.arrived.notify_one();
    }

    pub fn take(&self) -> Pending {
        std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// For writers and observers of a relay.
#[derive(Debug, Clone)]
pub struct Handle {
    hand_off: Arc<HandOff>,
    status: watch::Receiver<Status>,
}

impl Handle {
    /// Appends these events, in their order, as the last step of a transaction, commits it, and hands the rows to the
    /// relay, which then need not query for them. Lock the aggregate's row first. `commit` is that of the transaction, for
    /// example `sqlx::Transaction::commit`.
    ///
    /// **`tx` must be the outermost transaction, and `commit` must commit it.** The relay publishes the rows once it has returned
    /// `Ok`. The commit of a savepoint, or one that does nothing, would publish what may yet be rolled back.
    ///
    /// So only a transaction that was whole to its end hands a row over: one in which a statement has failed takes no more
    /// appends. (To sqlx its COMMIT, which the database answers with a rollback, is a success.)
    ///
    /// # Errors
    /// Those of the inserts and of `commit`; if the outcome of the commit is not known, the relay finds out by itself.
    pub async fn commit<T, F>(
        &self,
        mut tx: T,
        events: Vec<NewEvent>,
        commit: impl FnOnce(T) -> F,
    ) -> Result<(), sqlx::Error>
    where
        T: DerefMut<Target = PgConnection>,
        F: Future<Output = Result<(), sqlx::Error>>,
    {
        let mut rows = Vec::with_capacity(events.len());
        for event in events {
            rows.push(store::append_row(&mut tx, event).await?);
        }
        commit(tx).await?;
        if !rows.is_empty() {
            self.hand_off.push(rows, false);
        }
        Ok(())
    }

    /// Reports the commit of a transaction with an event. Never waits; if the report is lost, the poll finds the row.
    pub fn wake(&self) {
        self.hand_off.push(Vec::new(), true);
    }

    /// Where the relay stands; the receiver reports changes.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }
}

/// Publishes the outbox of one database to one stream.
pub struct Relay {
    pub(crate) db: PgPool,
    pub(crate) nats: async_nats::Client,
    pub(crate) config: RelayConfig,
    pub(crate) hand_off: Arc<HandOff>,
    pub(crate) status: watch::Sender<Status>,
}

/// How this relay stands with the broker.
struct Standing {
    /// It has failed there: it checks whether the broker answers before it asks for the lead again.
    looks_first: bool,
    /// How long an answer may take.
    patience: Duration,
}

impl Standing {
    const fn failed(&mut self) {
        (self.looks_first, self.patience) = (true, ANSWERS_LATE);
    }
}

pub(crate) enum LeadError {
    PublishError(PublishError),
    Lost(&'static str),
    Down(anyhow::Error),
    Halted(String),
    /// Row after row is refused: the next one is parked later, if none passes.
    NonePasses(String),
    Stop,
}

impl<E: Into<anyhow::Error>> From<E> for LeadError {
    fn from(error: E) -> Self {
        match error.into().downcast::<PublishError>() {
            Ok(fault) => Self::PublishError(fault),
            Err(other) => Self::Down(other),
        }
    }
}

impl Relay {
    /// A relay that reads as the role of `db` and publishes as the user of `nats`.
    #[must_use]
    pub fn new(db: PgPool, nats: async_nats::Client, config: RelayConfig) -> Self {
        let status = watch::Sender::new(Status { role: Role::Standby, done: 0, stream_seq: 0 });
        Self { db, nats, config, hand_off: Arc::default(), status }
    }

    /// The handle for writers and observers.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle { hand_off: Arc::clone(&self.hand_off), status: self.status.subscribe() }
    }

    /// Relays until `stop`. Waits for a dependency that is down, and for an operator when stream and outbox contradict
    /// each other ([`Role::Halted`]): meanwhile rows are kept, and nothing is published.
    pub async fn run(self, stop: CancellationToken) {
        let mut pauses = ExponentialBackoffBuilder::new()
            .with_initial_interval(Duration::from_millis(100))
            .with_max_interval(Duration::from_secs(5))
            .with_max_elapsed_time(None)
            .build();
        let mut suspects = PoisonTracker::new();
        let mut standing = Standing { looks_first: false, patience: ANSWERS_WITHIN };
        // To Prometheus, a counter that appears with its first event did not rise.
        for rare in ["outbox_missing_rows_total", "outbox_refills_total", "outbox_parked_rows_total"] {
            metrics::counter!(rare).increment(0);
        }
        loop {
            let began = Instant::now();
            let trouble = match self.try_to_lead(&stop, &mut suspects, &mut standing).await {
                Ok(()) => {
                    pauses.reset();
                    continue;
                }
                Err(trouble) => trouble,
            };
            if began.elapsed() > GOOD_LEAD {
                pauses.reset();
            }
            let halted = matches!(trouble, LeadError::Halted(_));
            metrics::gauge!("outbox_leader").set(0.0);
            metrics::gauge!("outbox_halted").set(f64::from(u8::from(halted)));
            if !halted {
                self.status.send_modify(|status| status.role = Role::Standby);
            }
            match trouble {
                LeadError::Stop => return,
                LeadError::Halted(reason) => self.status.send_modify(|status| status.role = Role::Halted { reason }),
                LeadError::Lost(why) => warn!(why, "the lead is lost"),
                LeadError::PublishError(fault) => {
                    warn!(%fault, "the chain broke");
                    standing.failed();
                }
                LeadError::NonePasses(what) => warn!(what, "the chain broke"),
                LeadError::Down(error) => {
                    warn!(error = format!("{error:#}"), "a dependency of the relay is down: waiting");
                    standing.failed();
                }
            }
            let pause = pauses.next_backoff().unwrap_or(LOOK_EVERY);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn say_halted(&self, epoch: i64, reason: &str) {
        error!(stream = self.config.stream.name, reason, "the relay has stopped and waits for a person");
        let actor = format!("relay {}", self.config.holder);
        let entry = Entry { kind: "halted", actor: &actor, from_seq: None, to_seq: None, detail: reason };
        if let Err(error) = store::journal_halt(&self.db, &entry, epoch).await {
            warn!(%error, "the journal could not be written");
        }
    }

    /// Waits for the lease and leads for as long as it holds; `Ok` after a stand-by round.
    async fn try_to_lead(
        &self,
        stop: &CancellationToken,
        suspects: &mut PoisonTracker,
        standing: &mut Standing,
    ) -> Result<(), LeadError> {
        if standing.looks_first {
            let looked = stop.run_until_cancelled(Box::pin(stream::open(self, standing.patience))).await;
            looked.ok_or(LeadError::Stop)??;
            standing.looks_first = false;
        }
        let lease = self.config.lease.as_secs_f64();
        let Some(epoch) = store::take_lease(&self.db, self.config.holder, lease).await? else {
            // The leader reports these.
            for of_the_leader in ["outbox_leader", "outbox_halted", "outbox_backlog_rows", "outbox_parked_rows"] {
                metrics::gauge!(of_the_leader).set(0.0);
            }
            tokio::select! {
                () = stop.cancelled() => return Err(LeadError::Stop),
                () = tokio::time::sleep(self.config.lease / 4) => {}
                () = self.hand_off.arrived.notified() => {
                    self.hand_off.take();
                    self.hint().await;
                }
            }
            return Ok(());
        };
        info!(epoch, stream = self.config.stream.name, "leading");
        let result = tokio::select! {
            result = self.lead(epoch, stop, suspects, standing.patience) => result,
            lost = self.keep_lease(epoch) => Err(lost),
        };
        if let Err(LeadError::Halted(reason)) = &result {
            self.say_halted(epoch, reason).await;
        }
        // Another relay may be well where this one is cut off.
        if matches!(result, Err(LeadError::Stop | LeadError::Down(_) | LeadError::PublishError(_))) {
            tokio::time::timeout(GIVES_UP_WITHIN, store::give_up_lease(&self.db, epoch)).await.ok();
        }
        result
    }

    /// Hints to the leader, in another process, that rows are pending. While NATS is unavailable there is no room for more.
    async fn hint(&self) {
        let hint = self.nats.publish(self.config.hint_subject.clone(), bytes::Bytes::new());
        tokio::time::timeout(GIVES_UP_WITHIN, hint).await.ok();
    }

    async fn keep_lease(&self, epoch: i64) -> LeadError {
        let lease = self.config.lease;
        let mut held_until = Instant::now() + lease;
        loop {
            tokio::time::sleep(lease / 4).await;
            let asked = Instant::now();
            match tokio::time::timeout_at(held_until, store::renew_lease(&self.db, epoch, lease.as_secs_f64())).await {
                Ok(Ok(true)) => held_until = asked + lease,
                Ok(Ok(false)) => return LeadError::Lost("another relay took it"),
                Ok(Err(error)) if Instant::now() >= held_until => return LeadError::Down(error.into()),
                Ok(Err(error)) => warn!(%error, "the lease could not be renewed: trying again"),
                Err(_) => return LeadError::Lost("the database did not renew the lease in time"),
            }
        }
    }

    /// Sessions, one after the other: each takes its position from the stream's tail.
    async fn lead(
        &self,
        epoch: i64,
        stop: &CancellationToken,
        suspects: &mut PoisonTracker,
        patience: Duration,
    ) -> Result<(), LeadError> {
        suspects.fails.clear();
        let mut hints = self.nats.subscribe(self.config.hint_subject.clone()).await?;
        // Where the stream stood when the chain last broke on a wrong sequence.
        let mut broke_at = None;
        loop {
            let mut session = LeaderTerm::open(self, epoch, patience).await?;
            suspects.taken_up(session.stored.outbox_seq);
            // If the stream still stands there, nobody else has published: a message of ours was dropped without an
            // answer. It goes out alone then, and so does a row that failed, to know which one it is.
            let dropped = broke_at.take() == Some(session.stored.stream_seq);
            session.window = if dropped || !suspects.fails.is_empty() { 1 } else { self.config.window };
            metrics::gauge!("outbox_halted").set(0.0);
            metrics::gauge!("outbox_leader").set(1.0);
            self.status.send_replace(session.status());
            let trouble = match session.pump(&mut hints, stop, suspects).await {
                Ok(()) => continue,
                Err(trouble) => trouble,
            };
            let (seq, reason) = match trouble {
                LeadError::PublishError(PublishError::WrongLast(what)) => {
                    warn!(what, "taking the place anew from the stream's tail");
                    metrics::counter!("outbox_sessions_total", "reason" => "wrong_last").increment(1);
                    broke_at = Some(session.stored.stream_seq);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
                LeadError::PublishError(PublishError::Silent { seq }) => (seq, "no acknowledgement".to_owned()),
                LeadError::PublishError(PublishError::Refused { seq, reason }) => (seq, reason),
                other @ (LeadError::PublishError(PublishError::Stalled(_))
                | LeadError::Lost(_)
                | LeadError::Down(_)
                | LeadError::Halted(_)
                | LeadError::NonePasses(_)
                | LeadError::Stop) => return Err(other),
            };
            metrics::counter!("outbox_sessions_total", "reason" => "row_failed").increment(1);
            let alone = session.window == 1;
            let count = suspects.fails.entry(seq).or_insert(0);
            *count += u32::from(alone);
            warn!(seq, reason, fails = *count, "a row was not stored");
            if *count >= FAILS_ALONE {
                if Instant::now() < suspects.may_park_from {
                    let wait = suspects.may_park_from - Instant::now();
                    let what = format!(
                        "no row passes any more, not only {seq}, which is parked in {wait:.0?} at the earliest: {reason}"
                    );
                    error!(seq, "{what}");
                    return Err(LeadError::NonePasses(what));
                }
                if session.park_seq(seq, &reason).await? {
                    suspects.parked(seq);
                }
                suspects.fails.remove(&seq);
            }
        }
    }
}
