//! The state of an outbox: its relay, its parked rows, its journal.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

/// A row that waits for an operator.
#[derive(Debug, Clone, FromRow, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParkedRow {
    /// Its position in the outbox.
    pub seq: i64,
    /// When it was set aside.
    pub parked_at: DateTime<Utc>,
    /// Whose event it is.
    pub tenant: String,
    /// The aggregate, all of whose later events wait behind it.
    pub aggregate_id: String,
    /// The subject it was to be published on.
    pub subject: String,
    /// The event.
    pub event_id: Uuid,
    /// Why it could not be published.
    pub reason: String,
}

/// A line of the journal.
#[derive(Debug, Clone, FromRow, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JournalLine {
    /// When.
    pub at: DateTime<Utc>,
    /// What: refill, missing, halted, resumed, parked, released, discarded, accepted, dropped.
    pub kind: String,
    /// The operator, or the relay.
    pub actor: String,
    /// The first row it is about.
    pub from_seq: Option<i64>,
    /// The last.
    pub to_seq: Option<i64>,
    /// In words.
    pub detail: String,
}

/// The state of an outbox and its relay.
#[derive(Debug, Clone, FromRow, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// The relay that leads, while its lease holds.
    pub leader: Option<Uuid>,
    /// Rises with each change of the lead and each act of an operator.
    pub epoch: i64,
    /// The newest row that is known to be stored.
    pub stored_seq: i64,
    /// The stream's sequence of it.
    pub stream_seq: i64,
    /// The newest number that a writer has taken.
    pub newest_seq: i64,
    /// The rows up to here were dropped by retention.
    pub dropped_seq: i64,
    /// How many rows are parked.
    pub parked: i64,
    /// Whether the relay has halted, and why.
    pub halted: Option<String>,
    /// When the oldest row behind the newest known one was created: it waits, or was stored since the last check.
    pub oldest_waiting: Option<DateTime<Utc>>,
}

/// Reads the state of the outbox and its relay.
///
/// # Errors
/// The database refuses.
pub async fn overview(db: &mut PgConnection) -> Result<Overview, sqlx::Error> {
    sqlx::query_as(
        "select case when expires_at > clock_timestamp() then holder end as leader, epoch, outbox_seq as stored_seq, \
         stream_seq, (select case when is_called then last_value else 0 end from outbox_seq) as newest_seq, dropped_seq, \
         (select count(*) from outbox_parked where state = 'parked') as parked, \
         (select case when kind = 'halted' then detail end from outbox_journal \
          where kind in ('halted', 'resumed', 'accepted') order by id desc limit 1) as halted, \
         (select created_at from outbox o where o.seq > r.outbox_seq \
          and o.created_at >= coalesce(r.outbox_created_at - interval '1 hour', '-infinity') order by seq limit 1) \
          as oldest_waiting \
         from outbox_relay r",
    )
    .fetch_one(db)
    .await
}

/// The newest lines of the journal, newest first.
///
/// # Errors
/// The database refuses.
pub async fn journal(db: &mut PgConnection, lines: i64) -> Result<Vec<JournalLine>, sqlx::Error> {
    sqlx::query_as("select at, kind, actor, from_seq, to_seq, detail from outbox_journal order by id desc limit $1")
        .bind(lines)
        .fetch_all(db)
        .await
}

/// The newest line of the journal of one kind.
///
/// # Errors
/// The database refuses.
pub async fn last(db: &mut PgConnection, kind: &str) -> Result<Option<JournalLine>, sqlx::Error> {
    sqlx::query_as(
        "select at, kind, actor, from_seq, to_seq, detail from outbox_journal where kind = $1 order by id desc limit 1",
    )
    .bind(kind)
    .fetch_optional(db)
    .await
}

/// The parked rows, the first 10,000 of them.
///
/// # Errors
/// The database refuses.
pub async fn parked(db: &mut PgConnection) -> Result<Vec<ParkedRow>, sqlx::Error> {
    sqlx::query_as(
        "select seq, parked_at, tenant, aggregate_id, subject, event_id, reason from outbox_parked \
         where state = 'parked' order by seq limit 10000",
    )
    .fetch_all(db)
    .await
}
