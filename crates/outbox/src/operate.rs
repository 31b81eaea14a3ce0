//! What operators do with an outbox: look at it, work parked rows, and go on behind a stream that is ahead. As the
//! owner of the tables; every act is one transaction that writes its line into the journal, and makes the relay look
//! anew.

use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{Connection as _, FromRow, PgConnection};
use uuid::Uuid;

use crate::place::{micros, origin};
use crate::store::{self, Entry};

/// Why an operator's act was not done. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is no such parked aggregate or row.
    #[error("{0} is not parked; `flotilla outbox parked` lists what is")]
    NotParked(String),
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
    /// Its place in the outbox.
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

/// How an outbox and its relay are.
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
    /// When the oldest row behind the newest known one was created: what waits, or was stored since the last look.
    pub oldest_waiting: Option<DateTime<Utc>>,
}

/// How the outbox and its relay are.
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
/// ids. How many. What cannot be published this time either is parked again.
///
/// # Errors
/// See [`Refused`].
pub async fn release(db: &mut PgConnection, aggregate_id: &str, act: Act<'_>) -> Result<u64, Refused> {
    let mut tx = db.begin().await?;
    // No writer is open while this looks, so no event of the aggregate commits behind its back.
    sqlx::query("set local lock_timeout = '5s'").execute(&mut *tx).await?;
    sqlx::query("lock table outbox in share row exclusive mode").execute(&mut *tx).await?;
    look_anew(&mut tx).await?;
    let first: Option<i64> =
        sqlx::query_scalar("select min(seq) from outbox_parked where aggregate_id = $1 and state = 'parked'")
            .bind(aggregate_id)
            .fetch_one(&mut *tx)
            .await?;
    let Some(first) = first else {
        // Now, and not when the connection is used again: others wait for these locks.
        tx.rollback().await?;
        return Err(Refused::NotParked(format!("the aggregate {aggregate_id}")));
    };
    // All its rows from the first parked one on are unpublished: behind a parked row, none goes out.
    let rows: Vec<i64> = sqlx::query_scalar(
        "select seq from outbox o where aggregate_id = $1 and seq >= $2 and not exists (\
         select from outbox_parked p where p.seq = o.seq and p.state <> 'parked') order by seq",
    )
    .bind(aggregate_id)
    .bind(first)
    .fetch_all(&mut *tx)
    .await?;
    sqlx::query(
        "insert into outbox_parked (seq, created_at, event_id, tenant, aggregate_id, subject, reason, epoch, state) \
         select seq, created_at, event_id, tenant, aggregate_id, subject, 'it was behind a released one', 0, 'released' \
         from outbox where seq = any($1) on conflict (seq) do update set state = 'released'",
    )
    .bind(&rows)
    .execute(&mut *tx)
    .await?;
    let copied = sqlx::query(
        "insert into outbox (event_id, tenant, aggregate_id, subject, traceparent, payload) \
         select event_id, tenant, aggregate_id, subject, traceparent, payload from outbox where seq = any($1) order by seq",
    )
    .bind(&rows)
    .execute(&mut *tx)
    .await?
    .rows_affected();
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

/// What a stream holds beyond the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Beyond {
    /// The first message that the outbox does not know.
    pub from: u64,
    /// The last message of the stream.
    pub to: u64,
    /// The newest row that both have; 0 when they share none.
    pub outbox_seq: i64,
    /// When the stream was created: another stream is another matter.
    pub stream_created_at: DateTime<Utc>,
}

/// Looks backwards from the stream's end for the newest message that the outbox knows.
///
/// # Errors
/// See [`Refused`].
pub async fn beyond(db: &mut PgConnection, stream: &Stream) -> Result<Beyond, Refused> {
    let info = stream.get_info().await.map_err(|error| Refused::Stream(error.into()))?;
    let (first, last) = (info.state.first_sequence, info.state.last_sequence);
    let mut beyond = Beyond { from: last + 1, to: 0, outbox_seq: 0, stream_created_at: micros(info.created) };
    for sequence in (first.max(1)..=last).rev() {
        let message = match stream.get_raw_message(sequence).await {
            Ok(message) => message,
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => continue,
            Err(error) => return Err(Refused::Stream(error.into())),
        };
        if let Some((place, id)) = origin(&message) {
            let event: Option<Uuid> =
                sqlx::query_scalar("select event_id from outbox where seq = $1 and created_at = $2")
                    .bind(place.seq)
                    .bind(place.created_at)
                    .fetch_optional(&mut *db)
                    .await?;
            if event.is_some_and(|event| event.to_string() == id) {
                beyond.outbox_seq = place.seq;
                break;
            }
        }
        beyond.from = sequence;
        beyond.to = beyond.to.max(sequence);
    }
    if beyond.to == 0 { Err(Refused::NotAhead) } else { Ok(beyond) }
}

/// Vouches for a stream that is ahead: the relay goes on behind it, with the rows that follow the newest common one.
/// What lies beyond stays in the stream, and with those who have read it.
///
/// # Errors
/// See [`Refused`].
pub async fn accept(db: &mut PgConnection, beyond: &Beyond, act: Act<'_>) -> Result<(), Refused> {
    let mut tx = db.begin().await?;
    sqlx::query(
        "update outbox_relay set accepted_stream_seq = $1, accepted_stream_created_at = $2, accepted_outbox_seq = $3",
    )
    .bind(beyond.to.cast_signed())
    .bind(beyond.stream_created_at)
    .bind(beyond.outbox_seq)
    .execute(&mut *tx)
    .await?;
    let detail = format!(
        "messages {} to {} of the stream, which the outbox does not know; it goes on behind row {}: {}",
        beyond.from, beyond.to, beyond.outbox_seq, act.reason
    );
    let entry =
        Entry { kind: "accepted", actor: act.actor, from_seq: None, to_seq: Some(beyond.outbox_seq), detail: &detail };
    store::journal(&mut *tx, &entry).await?;
    tx.commit().await?;
    Ok(())
}

/// Has the leader take its place anew: what it holds in memory is no longer so. Serialized with its parking.
async fn look_anew(tx: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("update outbox_relay set epoch = epoch + 1").execute(tx).await.map(drop)
}
