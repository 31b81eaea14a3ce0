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
    /// It is dead itself, and its letter may not have been stored; why it died.
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

    /// Claims an event for this transaction. A second transaction that claims it waits for the first to end. A replayed
    /// event is claimed although it is dead, once no event of its aggregate that died before it is left.
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
        let replayed = event.replay.is_some();
        let (leads, handled, itself, stored, first, claimed): (bool, bool, Option<String>, bool, Option<String>, bool) =
            sqlx::query_as(
                "with lead as (select from inbox_lease where consumer = $1 and epoch = $2), \
                 done as (select from inbox where consumer = $1 and source = $4 and event_id = $5), \
                 itself as (select number, reason, letter_stored from inbox_dead \
                 where consumer = $1 and source = $4 and event_id = $5), \
                 first as (select event_id from inbox_dead d where consumer = $1 and aggregate_id = $3 \
                 and (source, event_id) <> ($4, $5) \
                 and not ($6 and d.number > coalesce((select number from itself), 9223372036854775807)) \
                 order by number limit 1), \
                 claimed as (insert into inbox (consumer, source, event_id) select $1, $4, $5 from lead \
                 where not exists (select from first) and ($6 or not exists (select from itself)) \
                 on conflict do nothing returning 1), \
                 alive as (delete from inbox_dead where consumer = $1 and source = $4 and event_id = $5 \
                 and exists (select from claimed)) \
                 select exists (select from lead), exists (select from done), (select reason from itself), \
                 coalesce((select letter_stored from itself), false), (select event_id from first), \
                 exists (select from claimed)",
            )
            .bind(consumer)
            .bind(epoch)
            .bind(event.aggregate())
            .bind(event.attribute("source"))
            .bind(event.attribute("id"))
            .bind(replayed)
            .fetch_one(tx)
            .await?;
        Ok(match (itself, first) {
            _ if !leads => Claim::Lost,
            _ if handled => Claim::Handled,
            _ if claimed => Claim::New,
            (Some(_), _) if stored && !replayed => Claim::Handled,
            (Some(reason), _) if !replayed => Claim::Dead(reason),
            (_, Some(id)) => Claim::Behind(id),
            // Handled by a transaction that ended while this one waited.
            _ => Claim::Handled,
        })
    }

    /// Writes down that an event is dead: its aggregate waits behind it. False when another process pulls by now.
    pub async fn die(&self, consumer: &str, epoch: i64, event: &Event, reason: &str) -> Result<bool, sqlx::Error> {
        let dead = sqlx::query(
            "insert into inbox_dead (consumer, aggregate_id, source, event_id, reason) \
             select $1, $3, $4, $5, $6 from inbox_lease where consumer = $1 and epoch = $2 \
             on conflict (consumer, source, event_id) do update set reason = excluded.reason",
        )
        .bind(consumer)
        .bind(epoch)
        .bind(event.aggregate())
        .bind(event.attribute("source"))
        .bind(event.attribute("id"))
        .bind(reason.replace('\0', "\u{fffd}"))
        .execute(&self.db)
        .await?;
        Ok(dead.rows_affected() == 1)
    }

    /// Remembers that a dead event's letter is stored: delivered again, it is no second letter.
    pub async fn remember_letter(&self, consumer: &str, event: &Event) -> Result<(), sqlx::Error> {
        sqlx::query("update inbox_dead set letter_stored = true where consumer = $1 and source = $2 and event_id = $3")
            .bind(consumer)
            .bind(event.attribute("source"))
            .bind(event.attribute("id"))
            .execute(&self.db)
            .await
            .map(drop)
    }

    /// Takes a discarded event for handled, without its effect. False when another process pulls by now.
    pub async fn discard(&self, consumer: &str, epoch: i64, event: &Event) -> Result<bool, sqlx::Error> {
        sqlx::query_scalar(
            "with lead as (select from inbox_lease where consumer = $1 and epoch = $2), \
             gone as (delete from inbox_dead where consumer = $1 and source = $3 and event_id = $4 \
             and exists (select from lead)), \
             handled as (insert into inbox (consumer, source, event_id) select $1, $3, $4 from lead on conflict do nothing) \
             select exists (select from lead)",
        )
        .bind(consumer)
        .bind(epoch)
        .bind(event.attribute("source"))
        .bind(event.attribute("id"))
        .fetch_one(&self.db)
        .await
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

/// Gives up all dead events of an aggregate, without their effect: the later ones are let through again. Whether there
/// were any. Where letters are worked by replay, nobody needs this.
///
/// # Errors
/// The database refuses.
pub async fn unpark(db: &mut PgConnection, consumer: &str, aggregate_id: &str) -> Result<bool, sqlx::Error> {
    let gone = sqlx::query(
        "with gone as (delete from inbox_dead where consumer = $1 and aggregate_id = $2 returning source, event_id) \
         insert into inbox (consumer, source, event_id) select $1, source, event_id from gone \
         on conflict (consumer, source, event_id) do update set handled_at = clock_timestamp()",
    )
    .bind(consumer)
    .bind(aggregate_id)
    .execute(db)
    .await?;
    Ok(gone.rows_affected() > 0)
}
