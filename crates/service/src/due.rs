//! Work across tenants: what is due at a time, in any tenant. A SECURITY DEFINER function, which only the operator's role may call, claims
//! some of it, fairly over tenants. It returns tenants and ids, nothing else. A command then does each item in its own tenant's
//! transaction, as the service itself.
//!
//! A claim lasts a minute, and keeps processes out of each other's way. The command ensures that the work is done once: it deletes the
//! claimed row in the transaction that does the work. A process that dies in the middle leaves the row, and another claim takes it.

use std::time::{Duration, Instant};

use authz::Caller;
use contracts::ids::IdError;
use contracts::{TenantId, UserId};
use futures::future::BoxFuture;
use metrics::{counter, gauge};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::call::{Call, Once};
use crate::{Code, Db, Failure, Process, clock};

/// How often to query what is due.
const EVERY: Duration = Duration::from_secs(1);
/// How much to claim at once: little enough to finish within a claim's minute, and to wait a minute when its process stops.
const MAX_AT_ONCE: i32 = 50;

/// The progress of a process.
struct Turn {
    /// The tenant at which the last claim ended: the next claim continues after it.
    behind: String,
    /// How late the work was at the last query.
    late: f64,
    asked: Instant,
}

/// One kind of work.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// Its name in metrics and logs.
    pub name: &'static str,
    /// Claims up to `$3` of what is due, and returns (tenant, id); the last row names the tenant to continue after, without an id. `$1`:
    /// how many seconds after its time it is due. `$2`: the tenant to continue after when there is more.
    pub claim: &'static str,
    /// For how many seconds the oldest that is not claimed might have been. `$1` as above.
    pub late: &'static str,
    /// How long after its time it is due.
    pub after: Duration,
}

impl Work {
    /// Does what is due until the process stops, as the service itself.
    ///
    /// # Errors
    /// The service's name is no id.
    pub fn spawn<A>(self, process: &Process, db: Db, act: A) -> Result<(), IdError>
    where
        A: Fn(Call, Uuid) -> BoxFuture<'static, Result<(), Failure>> + Send + Sync + 'static,
    {
        let service = process.acts_as()?;
        process.lifecycle.run(self.name, |stop| async move { self.run(&db, &service, &stop, act).await });
        Ok(())
    }

    /// Does what is due until `stop`: calls `act` with each id. Failed work is claimed again a minute later.
    pub async fn run<A>(self, db: &Db, service: &UserId, stop: &CancellationToken, act: A)
    where
        A: Fn(Call, Uuid) -> BoxFuture<'static, Result<(), Failure>> + Sync,
    {
        self.count("done", 0);
        self.count("failed", 0);
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut turn = Turn { behind: String::new(), late: 0.0, asked: Instant::now() };
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            if let Err(error) = self.until_none_is_due(db, service, stop, &mut turn, &act).await {
                self.count("failed", 1);
                // It is later now than at the last successful query.
                self.is_late(turn.late + turn.asked.elapsed().as_secs_f64());
                tracing::warn!(work = self.name, %error, "work that is due could not be claimed or done");
            }
        }
    }

    async fn until_none_is_due<A>(
        &self,
        db: &Db,
        service: &UserId,
        stop: &CancellationToken,
        turn: &mut Turn,
        act: &A,
    ) -> Result<(), Failure>
    where
        A: Fn(Call, Uuid) -> BoxFuture<'static, Result<(), Failure>> + Sync,
    {
        // For the round over all tenants that has not ended.
        let mut any = false;
        loop {
            let claimed = self.claim(db, turn).await?;
            for (tenant, id) in claimed {
                let Some(id) = id else {
                    turn.behind = tenant;
                    continue;
                };
                if stop.is_cancelled() {
                    return Ok(());
                }
                any = true;
                self.act(service, &tenant, id, act).await?;
            }
            if turn.behind.is_empty() && !std::mem::take(&mut any) {
                return Ok(());
            }
        }
    }

    async fn claim(&self, db: &Db, turn: &mut Turn) -> Result<Vec<(String, Option<Uuid>)>, sqlx::Error> {
        let mut tx = db.begin_operator(self.name).await?;
        let late: f64 = sqlx::query_scalar(self.late).bind(self.after.as_secs_f64()).fetch_one(&mut *tx).await?;
        (turn.late, turn.asked) = (late, Instant::now());
        self.is_late(late);
        let claimed = sqlx::query_as(self.claim)
            .bind(self.after.as_secs_f64())
            .bind(&turn.behind)
            .bind(MAX_AT_ONCE)
            .fetch_all(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(claimed)
    }

    /// Does one; fails when the database is unavailable, so that the others would fail as well.
    #[tracing::instrument(name = "due", skip_all, fields(work = self.name, flotilla.tenant = tenant, %id))]
    async fn act<A>(&self, service: &UserId, tenant: &str, id: Uuid, act: &A) -> Result<(), Failure>
    where
        A: Fn(Call, Uuid) -> BoxFuture<'static, Result<(), Failure>> + Sync,
    {
        let outcome = match tenant.parse::<TenantId>() {
            Ok(tenant) => act(Call::of_schedule(tenant, service.clone()), id).await,
            Err(error) => Err(Failure::internal(anyhow::anyhow!("{error}"))),
        };
        match outcome {
            Ok(()) => self.count("done", 1),
            Err(failure) if failure.code == Code::Unavailable => return Err(failure),
            Err(failure) => {
                self.count("failed", 1);
                let why = failure.source.as_ref().map(|source| format!("{source:#}"));
                tracing::warn!(work = self.name, tenant, %id, %failure, why, "not done; it is tried again in a minute");
            }
        }
        Ok(())
    }

    fn is_late(&self, seconds: f64) {
        gauge!("due_work_late_seconds", "work" => self.name).set(seconds);
    }

    fn count(&self, outcome: &'static str, by: u64) {
        counter!("due_work_total", "work" => self.name, "outcome" => outcome).increment(by);
    }
}

impl Call {
    /// The call that a service makes because something is due. The command itself ensures that this happens once.
    #[must_use]
    pub fn of_schedule(tenant: TenantId, service: UserId) -> Self {
        Self {
            caller: Caller::service(tenant, service),
            causation: None,
            correlation: clock::new_id().to_string(),
            operator: None,
            once: Once::No,
        }
    }
}
