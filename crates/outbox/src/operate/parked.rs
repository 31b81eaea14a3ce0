//! Parked rows, and rows that a hole in the stream has lost: appended again, or given up.

use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use super::act::{Act, Refused, lock_out_writers, look_anew};
use crate::store::{self, Entry};

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

/// Copies rows under new numbers, in their order; returns how many.
async fn append_again(tx: &mut PgConnection, seqs: &[i64]) -> Result<u64, sqlx::Error> {
    let copied = sqlx::query(
        "insert into outbox (event_id, tenant, aggregate_id, subject, traceparent, payload) \
         select event_id, tenant, aggregate_id, subject, traceparent, payload from outbox where seq = any($1) order by seq",
    );
    Ok(copied.bind(seqs).execute(tx).await?.rows_affected())
}
