//! The SQL of a job that replays a range of a stream.

use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use crate::pace::Pace;
use crate::store::{Act, Refused};
use crate::store_audit::audit;
use crate::store_jobs::insert;

/// An event of a range, as its stream held it when the job was asked for.
#[derive(Debug, Clone)]
pub struct Ranged {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// Its aggregate; empty when it is no event of ours.
    pub aggregate_id: String,
    /// Its id; none when it is no event of ours.
    pub event_id: Option<String>,
}

impl Ranged {
    /// Reads the event in a message, at this sequence.
    #[must_use]
    pub fn of(sequence: u64, payload: &[u8]) -> Self {
        let event: Value = serde_json::from_slice(payload).unwrap_or_default();
        let text = |name: &str| event[name].as_str().map(ToOwned::to_owned);
        Self { sequence, aggregate_id: text("partitionkey").unwrap_or_default(), event_id: text("id") }
    }
}

/// Makes a job of events of a stream, by sequence and aggregate, in the stream's order.
///
/// # Errors
/// See [`Refused`].
pub async fn create_range(
    db: &mut PgConnection,
    consumer: &str,
    selection: &Value,
    events: &[Ranged],
    pace: Pace,
    act: Act<'_>,
) -> Result<i64, Refused> {
    let mut tx = db.begin().await?;
    let job = insert(&mut tx, "range", consumer, selection, pace, events.len(), act).await?;
    for (chunk, first) in events.chunks(10_000).zip((1..).step_by(10_000)) {
        let sequences: Vec<i64> = chunk.iter().map(|event| event.sequence.cast_signed()).collect();
        let aggregates: Vec<&str> = chunk.iter().map(|event| event.aggregate_id.as_str()).collect();
        let ids: Vec<Option<&str>> = chunk.iter().map(|event| event.event_id.as_deref()).collect();
        sqlx::query(
            "insert into job_item (job, n, stream_sequence, aggregate_id, event_id) \
             select $1, $2 + n - 1, sequence, aggregate, event from unnest($3::bigint[], $4::text[], $5::text[]) \
             with ordinality as items (sequence, aggregate, event, n)",
        )
        .bind(job)
        .bind(first)
        .bind(&sequences)
        .bind(&aggregates)
        .bind(&ids)
        .execute(&mut *tx)
        .await?;
    }
    let detail = json!({"job": job, "consumer": consumer, "selection": selection});
    audit(&mut tx, act, "range", events.len() as i64, &detail).await?;
    tx.commit().await?;
    Ok(job)
}
