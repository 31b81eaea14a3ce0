//! All SQL of the outbox. Writers call [`append`]; everything else is the relay's.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgRow;
use sqlx::{Connection as _, Executor as _, FromRow, PgConnection, PgExecutor, PgPool, Row as _};
use uuid::Uuid;

use crate::position::Position;

/// The advisory lock for removing from the stream what the outbox does not know: no halt is written down meanwhile.
pub const ACCEPTING: i64 = 0x006f_7574_626f_7861;
const HOUR: f64 = 3_600.0;

/// An event to be published once its transaction has committed.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// The event's id: a resend keeps it.
    pub id: Uuid,
    /// Whose event it is; kept for row-level security.
    pub tenant: String,
    /// The aggregate: its events are published in the order of their appends.
    pub aggregate_id: String,
    /// The NATS subject to publish on.
    pub subject: String,
    /// The W3C trace context of the command, if it is traced.
    pub traceparent: Option<String>,
    /// The bytes that will be published.
    pub payload: Vec<u8>,
}

impl NewEvent {
    /// An event with a new id, of no tenant and in no trace.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "an event without an id of the caller's gets one here")]
    pub fn new(aggregate_id: impl Into<String>, subject: impl Into<String>, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            id: Uuid::now_v7(),
            tenant: String::new(),
            aggregate_id: aggregate_id.into(),
            subject: subject.into(),
            traceparent: None,
            payload: payload.into(),
        }
    }
}

/// Appends an event to the outbox, in the caller's transaction. Lock the aggregate's row first. In the process of the
/// relay, [`crate::Handle::commit`] is quicker.
///
/// # Errors
/// Fails as any insert does; the transaction is then unusable.
pub async fn append(tx: &mut PgConnection, event: &NewEvent) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into outbox (event_id, tenant, aggregate_id, subject, traceparent, payload) values ($1, $2, $3, $4, $5, $6)",
    )
    .bind(event.id)
    .bind(&event.tenant)
    .bind(&event.aggregate_id)
    .bind(&event.subject)
    .bind(&event.traceparent)
    .bind(&event.payload)
    .execute(tx)
    .await?;
    Ok(())
}

/// As [`append`]; the row, once the transaction has committed.
pub async fn append_row(tx: &mut PgConnection, event: NewEvent) -> Result<Row, sqlx::Error> {
    let (seq, created_at) = sqlx::query_as(
        "insert into outbox (event_id, tenant, aggregate_id, subject, traceparent, payload) values ($1, $2, $3, $4, $5, $6) \
         returning seq, created_at",
    )
    .bind(event.id)
    .bind(&event.tenant)
    .bind(&event.aggregate_id)
    .bind(&event.subject)
    .bind(&event.traceparent)
    .bind(&event.payload)
    .fetch_one(tx)
    .await?;
    let NewEvent { id: event_id, tenant, aggregate_id, subject, traceparent, payload } = event;
    Ok(Row { seq, created_at, event_id, tenant, aggregate_id, subject, traceparent, payload })
}

/// A committed row of the outbox.
#[derive(Debug, Clone)]
pub struct Row {
    pub seq: i64,
    pub created_at: DateTime<Utc>,
    pub event_id: Uuid,
    pub tenant: String,
    pub aggregate_id: String,
    pub subject: String,
    pub traceparent: Option<String>,
    pub payload: Vec<u8>,
}

/// By position: column names would be resolved again for each row.
impl FromRow<'_, PgRow> for Row {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            seq: row.try_get(0)?,
            created_at: row.try_get(1)?,
            event_id: row.try_get(2)?,
            tenant: row.try_get(3)?,
            aggregate_id: row.try_get(4)?,
            subject: row.try_get(5)?,
            traceparent: row.try_get(6)?,
            payload: row.try_get(7)?,
        })
    }
}

/// The sequence's high mark. No row above it had its `seq` before this call.
pub async fn mark(db: impl PgExecutor<'_>) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("select case when is_called then last_value else 0 end from outbox_seq").fetch_one(db).await
}

/// When the rows that are read may have been created. It keeps the partitions of other days closed.
#[derive(Debug, Clone, Copy)]
pub enum Created {
    /// From then until a little from now.
    From(DateTime<Utc>),
    /// Whenever.
    Ever,
}

/// The committed rows in `(after, up_to]`, in order, or all behind `after`.
pub async fn rows(
    db: &mut PgConnection,
    after: i64,
    up_to: Option<i64>,
    created: Created,
    limit: i64,
) -> Result<Vec<Row>, sqlx::Error> {
    let (from, ahead) = match created {
        Created::From(from) => (from, HOUR),
        Created::Ever => (DateTime::UNIX_EPOCH, 1e9),
    };
    sqlx::query_as(
        "select seq, created_at, event_id, tenant, aggregate_id, subject, traceparent, payload from outbox \
         where seq > $1 and seq <= $2 and created_at >= $3 and created_at < now() + make_interval(secs => $4) \
         order by seq limit $5",
    )
    .bind(after)
    .bind(up_to.unwrap_or(i64::MAX))
    .bind(from)
    .bind(ahead)
    .bind(limit)
    .fetch_all(db)
    .await
}

/// Makes this connection's reads always follow the index on `seq`, by a plan that is made once. A plan made while a day's
/// partition is still empty would scan it, and be kept while it grows. A new plan for each query costs several times
/// the query, over all the days' partitions. (The days that a query is not about are left out when it begins.) What cannot
/// follow an index, such as reading the sequence, then seems dear to the planner, and must not be compiled for it: 10 to
/// 130 ms each time.
///
/// For as long as the connection lasts, or for its transaction (`locally`).
pub async fn pin_index_plan(db: &mut PgConnection, locally: bool) -> Result<(), sqlx::Error> {
    sqlx::query(
        "select set_config(name, value, $1) from (values ('enable_seqscan', 'off'), ('enable_bitmapscan', 'off'), \
         ('enable_sort', 'off'), ('jit', 'off'), ('plan_cache_mode', 'force_generic_plan')) as settings (name, value)",
    )
    .bind(locally)
    .execute(db)
    .await
    .map(drop)
}

/// Who is writing to the outbox now: the virtual transactions (and prepared ones) that hold a writer's lock on it.
pub async fn writers(db: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "select distinct virtualtransaction from pg_locks where locktype = 'relation' and granted \
         and database = (select oid from pg_database where datname = current_database()) \
         and relation = 'outbox'::regclass and mode = 'RowExclusiveLock'",
    )
    .fetch_all(db)
    .await
}

/// The event of one row, if the outbox still holds it.
pub async fn event_at(
    db: impl PgExecutor<'_>,
    seq: i64,
    created_at: DateTime<Utc>,
) -> Result<Option<Uuid>, sqlx::Error> {
    sqlx::query_scalar("select event_id from outbox where seq = $1 and created_at = $2")
        .bind(seq)
        .bind(created_at)
        .fetch_optional(db)
        .await
}

/// When the first day begins whose rows were published after this time and long after they were written, as after a halt.
pub async fn published_late_since(
    db: impl PgExecutor<'_>,
    from: DateTime<Utc>,
) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    sqlx::query_scalar(
        "select min(day)::timestamp at time zone 'UTC' from outbox_passed \
         where at > $1 and at > (day + 1)::timestamp at time zone 'UTC' + interval '2 hours'",
    )
    .bind(from)
    .fetch_one(db)
    .await
}

/// A row that has a number which the relay has passed.
#[derive(Debug, Clone, FromRow, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Misnumbered {
    /// The row's number.
    pub seq: i64,
    /// When it was written.
    pub created_at: DateTime<Utc>,
    /// Its event.
    pub event_id: Uuid,
    /// The aggregate.
    pub aggregate_id: String,
}

/// Whether one of the newest numbers up to this has been given out twice.
pub async fn numbered_twice(db: impl PgExecutor<'_>, seq: i64) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select count(*) > count(distinct seq) from outbox where seq > $1 - 16 and seq <= $1")
        .bind(seq)
        .fetch_one(db)
        .await
}

/// Rows up to a position that were created after it, oldest first.
pub async fn created_after(
    db: &mut PgConnection,
    place: Position,
    limit: i64,
) -> Result<Vec<Misnumbered>, sqlx::Error> {
    // Only asked when something is wrong; then it may take what it takes.
    let mut tx = db.begin().await?;
    tx.execute("set local statement_timeout = '5min'").await?;
    let rows = sqlx::query_as(
        "select seq, created_at, event_id, aggregate_id from outbox where seq <= $1 and created_at > $2 \
         order by created_at, seq limit $3",
    )
    .bind(place.seq)
    .bind(place.created_at)
    .bind(limit)
    .fetch_all(&mut *tx)
    .await?;
    tx.rollback().await?;
    Ok(rows)
}

/// The position just before the first row that was created after `from`, and that row's time. `slack` is by how much an
/// earlier row may have been stamped later.
///
/// Only `seq` is indexed, and both rise together. So this is a binary search, one index lookup a step, and then a forward
/// read through the slack. A scan for it would read the day at the age limit from its beginning.
pub async fn first_after(
    db: &mut PgConnection,
    from: DateTime<Utc>,
    slack: TimeDelta,
) -> Result<Option<(i64, DateTime<Utc>)>, sqlx::Error> {
    let mut tx = db.begin().await?;
    tx.execute("set local statement_timeout = 0").await?;
    let Some((mut older, first)) = row_from(&mut tx, i64::MIN).await? else { return Ok(None) };
    if first < from - slack {
        let mut younger: i64 = sqlx::query_scalar("select seq + 1 from outbox order by seq desc limit 1")
            .fetch_optional(&mut *tx)
            .await?
            .unwrap_or(older);
        while older + 1 < younger {
            let middle = older + (younger - older) / 2;
            match row_from(&mut tx, middle).await? {
                Some((seq, created_at)) if created_at < from - slack => older = seq,
                _ => younger = middle,
            }
        }
    }
    let found = sqlx::query_as(
        "select seq - 1, created_at from outbox where seq >= $1 and created_at >= $2 order by seq limit 1",
    )
    .bind(older)
    .bind(from)
    .fetch_optional(&mut *tx)
    .await?;
    tx.rollback().await?;
    Ok(found)
}

/// The first row that has this number or a higher one, and when it was written.
async fn row_from(db: &mut PgConnection, seq: i64) -> Result<Option<(i64, DateTime<Utc>)>, sqlx::Error> {
    sqlx::query_as("select seq, created_at from outbox where seq >= $1 order by seq limit 1")
        .bind(seq)
        .fetch_optional(db)
        .await
}

/// How far the relay is known to have come, and what retention and operators have said of what lies beyond.
#[derive(Debug, Clone, FromRow)]
pub struct Checkpoint {
    pub outbox_seq: i64,
    pub outbox_created_at: Option<DateTime<Utc>>,
    pub stream_seq: i64,
    pub stream_created_at: Option<DateTime<Utc>>,
    pub dropped_seq: i64,
}

pub async fn checkpoint(db: impl PgExecutor<'_>) -> Result<Checkpoint, sqlx::Error> {
    sqlx::query_as("select outbox_seq, outbox_created_at, stream_seq, stream_created_at, dropped_seq from outbox_relay")
        .fetch_one(db)
        .await
}

/// Writes the checkpoint, unless another relay leads by now.
pub async fn save_checkpoint(
    db: &PgPool,
    epoch: i64,
    place: Position,
    stream_seq: u64,
    stream_created_at: DateTime<Utc>,
    durably: bool,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update outbox_relay set outbox_seq = $2, outbox_created_at = $3, stream_seq = $4, stream_created_at = $5, \
         checkpoint_at = clock_timestamp() where epoch = $1 and set_config('synchronous_commit', $6, true) <> ''",
    )
    .bind(epoch)
    .bind(place.seq)
    .bind(place.created_at)
    .bind(stream_seq.cast_signed())
    .bind(stream_created_at)
    .bind(if durably { "on" } else { "off" })
    .execute(db)
    .await?;
    Ok(())
}

/// Takes the lease if it is free or has run out, on the database's clock; returns the new epoch if so.
pub async fn take_lease(db: &PgPool, holder: Uuid, seconds: f64) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "update outbox_relay set holder = $1, epoch = epoch + 1, expires_at = clock_timestamp() + make_interval(secs => $2) \
         where holder is null or holder = $1 or expires_at < clock_timestamp() returning epoch",
    )
    .bind(holder)
    .bind(seconds)
    .fetch_optional(db)
    .await
}

/// Holds the lease for longer; false when another relay has it by now.
pub async fn renew_lease(db: &PgPool, epoch: i64, seconds: f64) -> Result<bool, sqlx::Error> {
    let renewed = sqlx::query(
        "update outbox_relay set expires_at = clock_timestamp() + make_interval(secs => $2) where epoch = $1",
    )
    .bind(epoch)
    .bind(seconds)
    .execute(db)
    .await?;
    Ok(renewed.rows_affected() == 1)
}

/// Gives the lease back, so that a standby need not wait for it to run out.
pub async fn give_up_lease(db: &PgPool, epoch: i64) -> Result<(), sqlx::Error> {
    sqlx::query("update outbox_relay set holder = null, expires_at = '-infinity' where epoch = $1")
        .bind(epoch)
        .execute(db)
        .await?;
    Ok(())
}

/// Sets a row aside, with a line for the journal if `actor` is given. False when another relay leads by now: nothing was
/// recorded, and nothing behind it may go out.
///
/// # Errors
/// Fails as any insert does.
pub async fn park(db: &PgPool, epoch: i64, row: &Row, reason: &str, actor: Option<&str>) -> Result<bool, sqlx::Error> {
    // One statement: a process that freezes holds no lock. The share lock makes this and a release, or a new lead, wait
    // for each other.
    let parked: i64 = sqlx::query_scalar(
        "with lead as (select from outbox_relay where epoch = $1 for share), \
         parked as (insert into outbox_parked (seq, created_at, event_id, tenant, aggregate_id, subject, reason, epoch) \
         select $2, $3, $4, $5, $6, $7, $8, $1 from lead \
         on conflict (seq) do update set epoch = excluded.epoch returning seq), \
         line as (insert into outbox_journal (kind, actor, from_seq, to_seq, detail) \
         select 'parked', $9, seq, seq, 'aggregate ' || $6 || ': ' || $8 from parked where $9::text is not null) \
         select count(*) from parked",
    )
    .bind(epoch)
    .bind(row.seq)
    .bind(row.created_at)
    .bind(row.event_id)
    .bind(&row.tenant)
    .bind(&row.aggregate_id)
    .bind(&row.subject)
    .bind(reason)
    .bind(actor)
    .fetch_one(db)
    .await?;
    Ok(parked == 1)
}

/// The aggregates that have parked rows, and the first of them: what came before it is not held up.
pub async fn parked_aggregates(db: &PgPool) -> Result<Vec<(String, i64)>, sqlx::Error> {
    sqlx::query_as("select aggregate_id, min(seq) from outbox_parked where state = 'parked' group by aggregate_id")
        .fetch_all(db)
        .await
}

/// The rows that were parked once and no longer are: the relay passes over them.
pub async fn worked(db: &PgPool) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar("select seq from outbox_parked where state <> 'parked'").fetch_all(db).await
}

/// How many rows are parked.
pub async fn parked_count(db: &PgPool) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("select count(*) from outbox_parked where state = 'parked'").fetch_one(db).await
}

/// Creates the partitions of the coming days; returns how many were missing.
pub async fn create_partitions(db: &PgPool) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar("select outbox_create_partitions(8)").fetch_one(db).await
}

/// Drops the partitions that retention allows; returns how many. `None` when the lock is not available: try again.
pub async fn drop_partitions(db: &PgPool, keep_days: i32) -> Result<Option<i32>, sqlx::Error> {
    let dropped = sqlx::query_scalar("select outbox_drop_partitions($1)").bind(keep_days).fetch_one(db).await;
    match dropped {
        // lock_not_available
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("55P03") => Ok(None),
        dropped => dropped.map(Some),
    }
}

/// A line for the journal.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    pub kind: &'static str,
    pub actor: &'a str,
    pub from_seq: Option<i64>,
    pub to_seq: Option<i64>,
    pub detail: &'a str,
}

/// Writes down why the relay of this epoch has halted, unless the journal says so already, an operator is removing what it found
/// in the stream, or has done so since its check.
pub async fn journal_halt(db: &PgPool, entry: &Entry<'_>, epoch: i64) -> Result<(), sqlx::Error> {
    let mut tx = db.begin().await?;
    let nobody_accepts: bool =
        sqlx::query_scalar("select pg_try_advisory_xact_lock_shared($1)").bind(ACCEPTING).fetch_one(&mut *tx).await?;
    let still = sqlx::query_scalar("select exists (select from outbox_relay where epoch = $1)").bind(epoch);
    if nobody_accepts && still.fetch_one(&mut *tx).await? {
        journal(&mut *tx, entry).await?;
    }
    tx.commit().await
}

/// Writes a line into the journal; not a second time what it says already of a halt or of missing rows. Returns whether it did.
pub async fn journal(db: impl PgExecutor<'_>, entry: &Entry<'_>) -> Result<bool, sqlx::Error> {
    let written = sqlx::query(
        "insert into outbox_journal (kind, actor, from_seq, to_seq, detail) select $1, $2, $3, $4, $5 \
         where case $1 when 'halted' then (select (kind, detail) from outbox_journal \
         where kind in ('halted', 'resumed', 'accepted') order by id desc limit 1) is distinct from ($1, $5) \
         when 'missing' then not exists (select from outbox_journal \
         where kind = 'missing' and from_seq = $3 and to_seq = $4) else true end",
    )
    .bind(entry.kind)
    .bind(entry.actor)
    .bind(entry.from_seq)
    .bind(entry.to_seq)
    .bind(entry.detail)
    .execute(db)
    .await?;
    Ok(written.rows_affected() == 1)
}

/// Whether the journal's newest word is that the relay has halted.
pub async fn halted(db: &PgPool) -> Result<bool, sqlx::Error> {
    let newest: Option<String> = sqlx::query_scalar(
        "select kind from outbox_journal where kind in ('halted', 'resumed', 'accepted') order by id desc limit 1",
    )
    .fetch_optional(db)
    .await?;
    Ok(newest.as_deref() == Some("halted"))
}
