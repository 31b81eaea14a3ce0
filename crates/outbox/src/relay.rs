//! The relay's life cycle: stand by, take the lease, take the position from the stream's tail, publish, and start over on a
//! fault. `resume` decides from where, `leader_term` what is set aside, `reader` what may be published, `chain` how.

use std::sync::Arc;
use std::time::Duration;

use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff as _;
use sqlx::PgPool;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::chain::PublishError;
use crate::config::RelayConfig;
use crate::context::{Context, LeadError};
use crate::handle::{Handle, Role, Status};
use crate::leader_term::{CHECK_EVERY, LeaderTerm};
use crate::poison_tracker::PoisonTracker;
use crate::store::{self, Entry};
use crate::stream;

/// After a lead of this length the pause behind a fault is short again.
const GOOD_LEAD: Duration = Duration::from_secs(15);
/// How long JetStream may take to answer, and how long once it has not: by then another relay may lead.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);
const ANSWERS_LATE: Duration = Duration::from_secs(10);
/// How long it may take to give up the lease, which ends by itself, or to send a hint, which a poll makes up for.
const GIVES_UP_WITHIN: Duration = Duration::from_secs(1);
/// How often a row may fail alone, while the stream answers, before it is parked.
const FAILS_ALONE: u32 = 3;

/// Publishes the outbox of one database to one stream.
pub struct Relay {
    context: Context,
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

impl Relay {
    /// A relay that reads as the role of `db` and publishes as the user of `nats`.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "each relay is another holder of the lease")]
    pub fn new(db: PgPool, nats: async_nats::Client, config: RelayConfig) -> Self {
        let status = watch::Sender::new(Status { role: Role::Standby, done: 0, stream_seq: 0 });
        Self { context: Context { db, nats, config, holder: Uuid::now_v7(), hand_off: Arc::default(), status } }
    }

    /// The handle for writers and observers.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle { hand_off: Arc::clone(&self.context.hand_off), status: self.context.status.subscribe() }
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
                self.context.status.send_modify(|status| status.role = Role::Standby);
            }
            match trouble {
                LeadError::Stop => return,
                LeadError::Halted(reason) => {
                    self.context.status.send_modify(|status| status.role = Role::Halted { reason })
                }
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
            let pause = pauses.next_backoff().unwrap_or(CHECK_EVERY);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn say_halted(&self, epoch: i64, reason: &str) {
        error!(stream = self.context.config.stream.name, reason, "the relay has stopped and waits for a person");
        let actor = format!("relay {}", self.context.holder);
        let entry = Entry { kind: "halted", actor: &actor, from_seq: None, to_seq: None, detail: reason };
        if let Err(error) = store::journal_halt(&self.context.db, &entry, epoch).await {
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
            let looked = stop
                .run_until_cancelled(Box::pin(stream::open(
                    &self.context.nats,
                    &self.context.config,
                    standing.patience,
                )))
                .await;
            looked.ok_or(LeadError::Stop)??;
            standing.looks_first = false;
        }
        let lease = self.context.config.lease.as_secs_f64();
        let Some(epoch) = store::take_lease(&self.context.db, self.context.holder, lease).await? else {
            // The leader reports these.
            for of_the_leader in ["outbox_leader", "outbox_halted", "outbox_backlog_rows", "outbox_parked_rows"] {
                metrics::gauge!(of_the_leader).set(0.0);
            }
            tokio::select! {
                () = stop.cancelled() => return Err(LeadError::Stop),
                () = tokio::time::sleep(self.context.config.lease / 4) => {}
                () = self.context.hand_off.arrived.notified() => {
                    self.context.hand_off.take();
                    self.hint().await;
                }
            }
            return Ok(());
        };
        info!(epoch, stream = self.context.config.stream.name, "leading");
        let result = tokio::select! {
            result = self.lead(epoch, stop, suspects, standing.patience) => result,
            lost = self.keep_lease(epoch) => Err(lost),
        };
        if let Err(LeadError::Halted(reason)) = &result {
            self.say_halted(epoch, reason).await;
        }
        // Another relay may be well where this one is cut off.
        if matches!(result, Err(LeadError::Stop | LeadError::Down(_) | LeadError::PublishError(_))) {
            tokio::time::timeout(GIVES_UP_WITHIN, store::give_up_lease(&self.context.db, epoch)).await.ok();
        }
        result
    }

    /// Hints to the leader, in another process, that rows are pending. While NATS is unavailable there is no room for more.
    async fn hint(&self) {
        let hint = self.context.nats.publish(self.context.config.hint_subject.clone(), bytes::Bytes::new());
        tokio::time::timeout(GIVES_UP_WITHIN, hint).await.ok();
    }

    async fn keep_lease(&self, epoch: i64) -> LeadError {
        let lease = self.context.config.lease;
        let mut held_until = Instant::now() + lease;
        loop {
            tokio::time::sleep(lease / 4).await;
            let asked = Instant::now();
            match tokio::time::timeout_at(held_until, store::renew_lease(&self.context.db, epoch, lease.as_secs_f64()))
                .await
            {
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
        let mut hints = self.context.nats.subscribe(self.context.config.hint_subject.clone()).await?;
        // Where the stream stood when the chain last broke on a wrong sequence.
        let mut broke_at = None;
        loop {
            let mut session = LeaderTerm::open(&self.context, epoch, patience).await?;
            suspects.taken_up(session.stored.outbox_seq);
            // If the stream still stands there, nobody else has published: a message of ours was dropped without an
            // answer. It goes out alone then, and so does a row that failed, to know which one it is.
            let dropped = broke_at.take() == Some(session.stored.stream_seq);
            session.window = if dropped || !suspects.fails.is_empty() { 1 } else { self.context.config.window };
            metrics::gauge!("outbox_halted").set(0.0);
            metrics::gauge!("outbox_leader").set(1.0);
            self.context.status.send_replace(session.status());
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
