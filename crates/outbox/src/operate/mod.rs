//! Operator actions on an outbox: inspect it, resolve parked rows, and resume behind a stream that is ahead. They run as
//! the owner of the tables. Each is one transaction that writes its line into the journal, and makes the relay take its
//! position again.

mod ahead;

use async_nats::jetstream::stream::Stream;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{Connection as _, FromRow, PgConnection};
use uuid::Uuid;

use crate::reader::Position;
use crate::resume::{self, origin};
use crate::store::{self, Entry, Misnumbered};

pub use ahead::{ACCEPTING, Beyond, accept, beyond, is_removed, remove};

/// Why an operator's act was not done. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is no such parked aggregate or row.
    #[error("{0} is not parked; `flotilla outbox parked` lists what is")]
    NotParked(String),
    /// The outbox does not hold a row, or no longer.
    #[error("the outbox has no row {0}")]
    NoRow(i64),
    /// No row is numbered behind the stream, and the sequence is ahead of it.
    #[error(
        "no row is numbered behind what the stream holds, and neither is the sequence: there is nothing to renumber"
    )]
    NothingBehind,
    /// Writers or readers hold the outbox.
    #[error("the outbox is in use all the time: try again")]
    InUse,
    /// Nothing is beyond the outbox.
    #[error("the stream holds nothing that the outbox does not know: there is nothing to accept")]
    NotAhead,
    /// The stream could not be read.
    #[error("the stream cannot be read")]
    Stream(#[source] anyhow::Error),
    /// The database refused.
    #[error("the outbox cannot be changed")]
    Database(#[from] sqlx::Error),
}

/// Who acts, and why.
#[derive(Debug, Clone, Copy)]
pub struct Act<'a> {
    /// The operator.
    pub actor: &'a str,
    /// The reason, for those who read the journal later.
    pub reason: &'a str,
}

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

/// Appends the parked rows of an aggregate again, and its later ones behind them: under new `seq`, with the same event
/// ids. Returns how many. A row that still cannot be published is parked again.
///
/// # Errors
/// See [`Refused`].
pub async fn release(db: &mut PgConnection, aggregate_id: &str, act: Act<'_>) -> Result<u64, Refused> {
    let mut tx = db.begin().await?;
    // Others wait for what this locks.
    store::pin_index_plan(&mut tx, true).await?;
    // No writer is open during this query, so no event of the aggregate commits unseen.
    if let Err(refused) = lock_out_writers(&mut tx).await {
        tx.rollback().await?;
        return Err(refused);
    }
    look_anew(&mut tx).await?;
    let first: Option<i64> =
        sqlx::query_scalar("select min(seq) from outbox_parked where aggregate_id = $1 and state = 'parked'")
            .bind(aggregate_id)
            .fetch_one(&mut *tx)
            .await?;
    let Some(first) = first else {
        // Roll back now, not when the connection is used again: others wait for these locks.
        tx.rollback().await?;
        return Err(Refused::NotParked(format!("the aggregate {aggregate_id}")));
    };
    // All its rows from the first parked one on are unpublished: behind a parked row, none goes out. The relay has written down
    // those that it has passed; the others are behind its checkpoint, in the backlog and not in the history.
    let mut rows: Vec<i64> = sqlx::query_scalar(
        "select seq from outbox_parked where aggregate_id = $1 and state = 'parked' \
         union select seq from outbox o where o.aggregate_id = $1 and o.seq >= $2 \
         and o.seq > (select outbox_seq from outbox_relay) and o.created_at >= (select coalesce(outbox_created_at - interval '1 hour', '-infinity') from outbox_relay) \
         and not exists (select from outbox_parked p where p.seq = o.seq and p.state <> 'parked')",
    )
    .bind(aggregate_id)
    .bind(first)
    .fetch_all(&mut *tx)
    .await?;
    rows.sort_unstable();
    sqlx::query(
        "insert into outbox_parked (seq, created_at, event_id, tenant, aggregate_id, subject, reason, epoch, state) \
         select seq, created_at, event_id, tenant, aggregate_id, subject, 'it was behind a released one', 0, 'released' \
         from outbox where seq = any($1) on conflict (seq) do update set state = 'released'",
    )
    .bind(&rows)
    .execute(&mut *tx)
    .await?;
    let copied = append_again(&mut tx, &rows).await?;
    let detail = format!("aggregate {aggregate_id}, {copied} rows: {}", act.reason);
    let (from_seq, to_seq) = (rows.first().copied(), rows.last().copied());
    store::journal(&mut *tx, &Entry { kind: "released", actor: act.actor, from_seq, to_seq, detail: &detail }).await?;
    tx.commit().await?;
    Ok(copied)
}

/// Gives up a parked row: it is never published. Later rows of its aggregate stay parked until they are released.
///
/// # Errors
/// See [`Refused`].
pub async fn discard(db: &mut PgConnection, seq: i64, act: Act<'_>) -> Result<(), Refused> {
    let mut tx = db.begin().await?;
    look_anew(&mut tx).await?;
    let discarded: Option<(String, Uuid)> = sqlx::query_as(
        "update outbox_parked set state = 'discarded' where seq = $1 and state = 'parked' returning aggregate_id, event_id",
    )
    .bind(seq)
    .fetch_optional(&mut *tx)
    .await?;
    let Some((aggregate, event)) = discarded else {
        tx.rollback().await?;
        return Err(Refused::NotParked(format!("row {seq}")));
    };
    let detail = format!("event {event} of aggregate {aggregate}: {}", act.reason);
    let entry = Entry { kind: "discarded", actor: act.actor, from_seq: Some(seq), to_seq: Some(seq), detail: &detail };
    store::journal(&mut *tx, &entry).await?;
    tx.commit().await?;
    Ok(())
}

/// Appends rows again under new numbers, with the same event ids: what a hole in the stream has lost. They come after newer
/// events of their aggregates. Returns how many.
///
/// # Errors
/// See [`Refused`].
pub async fn requeue(db: &mut PgConnection, seqs: &[i64], act: Act<'_>) -> Result<u64, Refused> {
    let mut tx = db.begin().await?;
    store::pin_index_plan(&mut tx, true).await?;
    let there: Vec<i64> = sqlx::query_scalar("select distinct seq from outbox where seq = any($1)")
        .bind(seqs)
        .fetch_all(&mut *tx)
        .await?;
    if let Some(missing) = seqs.iter().find(|seq| !there.contains(seq)) {
        tx.rollback().await?;
        return Err(Refused::NoRow(*missing));
    }
    let copied = append_again(&mut tx, seqs).await?;
    let detail = format!("{copied} rows appended again: {}", act.reason);
    let (from_seq, to_seq) = (seqs.iter().min().copied(), seqs.iter().max().copied());
    store::journal(&mut *tx, &Entry { kind: "refill", actor: act.actor, from_seq, to_seq, detail: &detail }).await?;
    tx.commit().await?;
    Ok(copied)
}

/// What is numbered behind the stream's last row, and where the sequence stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Behind {
    /// The newest row that is in the stream.
    pub published_seq: i64,
    /// Where the sequence stands.
    pub sequence: i64,
    /// The rows, oldest first, at most 1,000 of them.
    pub rows: Vec<Misnumbered>,
}

/// Finds rows that are numbered behind what the stream holds.
///
/// # Errors
/// See [`Refused`].
pub async fn numbered_behind(db: &mut PgConnection, stream: &Stream) -> Result<Behind, Refused> {
    let read = async {
        let info = stream.get_info().await?;
        let tail = resume::newest(stream, &info).await?;
        anyhow::Ok((info, tail))
    };
    let (info, tail) = read.await.map_err(Refused::Stream)?;
    // What was known to be published before anything fell back; an empty stream says nothing.
    let checkpoint = store::checkpoint(&mut *db).await?;
    let known = checkpoint.outbox_created_at.map(|created_at| Position { seq: checkpoint.outbox_seq, created_at });
    let tail = tail.as_ref().and_then(origin).map(|(place, _)| place);
    let Some(published) = known.into_iter().chain(tail).min_by_key(|place| place.seq) else {
        return Err(Refused::NothingBehind);
    };
    let sequence = store::mark(&mut *db).await?;
    let rows = resume::misnumbered(db, stream, &info, published).await.map_err(Refused::Stream)?;
    if rows.is_empty() && sequence >= published.seq {
        return Err(Refused::NothingBehind);
    }
    Ok(Behind { published_seq: published.seq, sequence, rows })
}

/// Sets the sequence right and gives rows that were numbered behind the stream new numbers, in the order in which they were
/// written: the relay then publishes them.
///
/// # Errors
/// See [`Refused`].
pub async fn renumber(db: &mut PgConnection, behind: &Behind, act: Act<'_>) -> Result<u64, Refused> {
    let mut tx = db.begin().await?;
    if let Err(refused) = lock_out_writers(&mut tx).await {
        tx.rollback().await?;
        return Err(refused);
    }
    look_anew(&mut tx).await?;
    sqlx::query(
        "select setval('outbox_seq', greatest($1, (select coalesce(max(seq), 1) from outbox), (select last_value from outbox_seq)))",
    )
    .bind(behind.published_seq)
    .execute(&mut *tx)
    .await?;
    let seqs: Vec<i64> = behind.rows.iter().map(|row| row.seq).collect();
    let created: Vec<DateTime<Utc>> = behind.rows.iter().map(|row| row.created_at).collect();
    let ids: Vec<Uuid> = behind.rows.iter().map(|row| row.event_id).collect();
    // An insert-only table but for this: left where they are, a refill would publish them out of order.
    let moved = sqlx::query(
        "with moved as (delete from outbox o using unnest($1::bigint[], $2::timestamptz[], $3::uuid[]) as m (seq, created_at, event_id) \
         where o.seq = m.seq and o.created_at = m.created_at and o.event_id = m.event_id \
         returning o.seq, o.created_at, o.event_id, o.tenant, o.aggregate_id, o.subject, o.traceparent, o.payload) \
         insert into outbox (event_id, tenant, aggregate_id, subject, traceparent, payload) \
         select event_id, tenant, aggregate_id, subject, traceparent, payload from moved order by created_at, seq",
    )
    .bind(&seqs)
    .bind(&created)
    .bind(&ids)
    .execute(&mut *tx)
    .await?
    .rows_affected();
    let detail = format!(
        "{moved} rows that were numbered behind row {}, which was published, have new numbers; the sequence stood at {}: {}",
        behind.published_seq, behind.sequence, act.reason
    );
    let (from_seq, to_seq) = (seqs.iter().min().copied(), seqs.iter().max().copied());
    store::journal(&mut *tx, &Entry { kind: "refill", actor: act.actor, from_seq, to_seq, detail: &detail }).await?;
    tx.commit().await?;
    Ok(moved)
}

/// Copies rows under new numbers, in their order; returns how many.
async fn append_again(tx: &mut PgConnection, seqs: &[i64]) -> Result<u64, sqlx::Error> {
    let copied = sqlx::query(
        "insert into outbox (event_id, tenant, aggregate_id, subject, traceparent, payload) \
         select event_id, tenant, aggregate_id, subject, traceparent, payload from outbox where seq = any($1) order by seq",
    );
    Ok(copied.bind(seqs).execute(tx).await?.rows_affected())
}

/// Keeps writers out until the transaction ends. While it waits for the lock, all writers wait behind it: for a moment each
/// time, and not for long at a stretch.
async fn lock_out_writers(tx: &mut PgConnection) -> Result<(), Refused> {
    sqlx::query("set local lock_timeout = '100ms'").execute(&mut *tx).await?;
    for _ in 0..100 {
        let mut attempt = tx.begin().await?;
        match sqlx::query("lock table outbox in share row exclusive mode").execute(&mut *attempt).await {
            Ok(_) => {
                attempt.commit().await?;
                return Ok(());
            }
            // lock_not_available
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("55P03") => {
                attempt.rollback().await?;
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(Refused::InUse)
}

/// Makes the leader take its position again: what it holds in memory is out of date. Serialized with its parking.
async fn look_anew(tx: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("update outbox_relay set epoch = epoch + 1").execute(tx).await.map(drop)
}
