//! Rows that are numbered behind what the stream holds already.

use async_nats::jetstream::stream::Stream;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use super::act::{Act, Refused, lock_out_writers, look_anew};
use crate::position::Position;
use crate::resume::{self, origin};
use crate::store::{self, Entry, Misnumbered};

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
