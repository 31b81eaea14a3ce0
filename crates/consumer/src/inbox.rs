//! All SQL of the inbox: what was handled, who pulls, and which aggregates wait behind a dead letter.

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::event::Event;

/// Where a consumer's effects are, and how its transactions begin.
#[derive(Debug, Clone)]
pub struct Inbox {
    /// The database of the effects, with the tables of `schema/inbox.sql`.
    pub db: PgPool,
    /// The setting that row-level security reads the tenant from, such as `app.tenant`: set for each transaction to the
    /// event's `tenant`.
    pub tenant_setting: Option<&'static str>,
    /// Who this process is, for the lease: new for each.
    pub holder: Uuid,
    /// For how many days handled events are remembered: longer than anybody may deliver one again.
    pub keep_days: i32,
}

/// What the inbox says of an event, in the transaction that is to handle it.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nobody has handled it: it is this transaction's.
    New,
    /// It was handled, or is a stored letter.
    Handled,
    /// Another process pulls by now.
    Lost,
    /// Its aggregate waits behind this event, which is dead.
    Behind(String),
    /// It is itself the dead letter that its aggregate waits behind; why it died.
    Dead(String),
}

impl Inbox {
    /// Takes the lease if it is free or has run out; the new epoch if so.
    pub async fn lease(&self, consumer: &str, seconds: f64) -> Result<Option<i64>, sqlx::Error> {
        sqlx::query_scalar(
            "insert into inbox_lease as held (consumer, holder, epoch, expires_at) \
             values ($1, $2, 1, clock_timestamp() + make_interval(secs => $3)) on conflict (consumer) do update \
             set holder = excluded.holder, epoch = held.epoch + 1, expires_at = excluded.expires_at \
             where held.holder = excluded.holder or held.expires_at < clock_timestamp() returning epoch",
        )
        .bind(consumer)
        .bind(self.holder)
        .bind(seconds)
        .fetch_optional(&self.db)
        .await
    }

    /// Holds the lease for longer; false when another process has it by now.
    pub async fn renew(&self, consumer: &str, epoch: i64, seconds: f64) -> Result<bool, sqlx::Error> {
        let renewed = sqlx::query(
            "update inbox_lease set expires_at = clock_timestamp() + make_interval(secs => $3) \
             where consumer = $1 and epoch = $2",
        )
        .bind(consumer)
        .bind(epoch)
        .bind(seconds)
        .execute(&self.db)
        .await?;
        Ok(renewed.rows_affected() == 1)
    }

    /// Gives the lease back, so that nobody need wait for it to run out.
    pub async fn give_up(&self, consumer: &str, epoch: i64) -> Result<(), sqlx::Error> {
        sqlx::query("update inbox_lease set expires_at = '-infinity' where consumer = $1 and epoch = $2")
            .bind(consumer)
            .bind(epoch)
            .execute(&self.db)
            .await
            .map(drop)
    }

    /// Claims an event for this transaction. A second transaction that claims it waits for the first to end.
    pub async fn claim(
        &self,
        tx: &mut PgConnection,
        consumer: &str,
        epoch: i64,
        event: &Event,
    ) -> Result<Claim, sqlx::Error> {
        if let Some(setting) = self.tenant_setting {
            sqlx::query("select set_config($1, $2, true)")
                .bind(setting)
                .bind(event.attribute("tenant"))
                .execute(&mut *tx)
                .await?;
        }
        let (leads, dead, reason, claimed): (bool, Option<String>, Option<String>, bool) = sqlx::query_as(
            "with lead as (select from inbox_lease where consumer = $1 and epoch = $2), \
             done as (select from inbox where consumer = $1 and source = $4 and event_id = $5), \
             held as (select event_id, source, reason from inbox_parked where consumer = $1 and aggregate_id = $3 \
             and not exists (select from done)), \
             claimed as (insert into inbox (consumer, source, event_id) select $1, $4, $5 from lead \
             where not exists (select from held) on conflict do nothing returning 1) \
             select exists (select from lead), (select event_id from held), (select reason from held), \
             exists (select from claimed)",
        )
        .bind(consumer)
        .bind(epoch)
        .bind(event.aggregate())
        .bind(event.attribute("source"))
        .bind(event.attribute("id"))
        .fetch_one(tx)
        .await?;
        Ok(match dead {
            _ if !leads => Claim::Lost,
            Some(id) if id == event.attribute("id") => Claim::Dead(reason.unwrap_or_default()),
            Some(id) => Claim::Behind(id),
            None if claimed => Claim::New,
            None => Claim::Handled,
        })
    }

    /// Has an aggregate wait behind this event, which is dead. False when another process pulls by now.
    pub async fn park(&self, consumer: &str, epoch: i64, event: &Event, reason: &str) -> Result<bool, sqlx::Error> {
        let parked = sqlx::query(
            "insert into inbox_parked (consumer, aggregate_id, source, event_id, reason) \
             select $1, $3, $4, $5, $6 from inbox_lease where consumer = $1 and epoch = $2 \
             on conflict (consumer, aggregate_id) do update set reason = inbox_parked.reason",
        )
        .bind(consumer)
        .bind(epoch)
        .bind(event.aggregate())
        .bind(event.attribute("source"))
        .bind(event.attribute("id"))
        .bind(reason)
        .execute(&self.db)
        .await?;
        Ok(parked.rows_affected() == 1)
    }

    /// Remembers that an event's letter is stored: delivered again, it is no second letter, and takes no effect by itself
    /// once its aggregate is let through.
    pub async fn remember_letter(&self, consumer: &str, event: &Event) -> Result<(), sqlx::Error> {
        sqlx::query("insert into inbox (consumer, source, event_id) values ($1, $2, $3) on conflict do nothing")
            .bind(consumer)
            .bind(event.attribute("source"))
            .bind(event.attribute("id"))
            .execute(&self.db)
            .await
            .map(drop)
    }

    /// Forgets what was handled long ago, in batches that lock nobody out.
    pub async fn sweep(&self, consumer: &str) -> Result<u64, sqlx::Error> {
        let swept = sqlx::query(
            "delete from inbox where consumer = $1 and (source, event_id) in (select source, event_id from inbox \
             where consumer = $1 and handled_at < clock_timestamp() - make_interval(days => $2) \
             order by handled_at limit 1000)",
        )
        .bind(consumer)
        .bind(self.keep_days)
        .execute(&self.db)
        .await?;
        Ok(swept.rows_affected())
    }
}

/// Lets the events of an aggregate through again, once its dead letters have been worked. Whether it was parked.
///
/// # Errors
/// The database refuses.
pub async fn unpark(db: &mut PgConnection, consumer: &str, aggregate_id: &str) -> Result<bool, sqlx::Error> {
    let gone = sqlx::query("delete from inbox_parked where consumer = $1 and aggregate_id = $2")
        .bind(consumer)
        .bind(aggregate_id)
        .execute(db)
        .await?;
    Ok(gone.rows_affected() == 1)
}
