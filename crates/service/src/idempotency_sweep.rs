//! Keeps the table of idempotency records small.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;

use crate::Db;

/// How often to check for old records.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// How many records to forget in one transaction.
const AT_ONCE: i32 = 1_000;
/// The pause between batches of a thousand records: callers need the connection too.
const SWEEP_PAUSE: Duration = Duration::from_millis(20);
/// After this many rounds the next one begins with the oldest record again: another process may have locked earlier records.
const ROUNDS: u32 = 360;

/// Forgets old records until `stop`. Each batch continues where the last one ended. While a long transaction holds deleted records, the
/// index still contains them, and a batch that begins with the oldest would walk over all of them. A failure is retried.
pub async fn sweep(db: Db, stop: CancellationToken) {
    let mut tick = tokio::time::interval(SWEEP_EVERY);
    let mut round: u32 = 0;
    let mut from = None;
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        if round.is_multiple_of(ROUNDS) {
            from = None;
        }
        round = round.wrapping_add(1);
        loop {
            match sweep_some(&db, from).await {
                Ok((swept, up_to)) => {
                    from = up_to.or(from);
                    if swept < i64::from(AT_ONCE)
                        || stop.run_until_cancelled(tokio::time::sleep(SWEEP_PAUSE)).await.is_none()
                    {
                        break;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "old idempotency records could not be removed");
                    break;
                }
            }
        }
    }
}

/// Forgets up to a thousand records that are older than a day, beginning with the oldest at or after `from`. Returns how many it forgot,
/// and when the last of them was made. The records belong to all tenants, and no command runs for a tenant: the database deletes them by
/// itself.
///
/// # Errors
/// Fails like any statement.
pub async fn sweep_some(db: &Db, from: Option<DateTime<Utc>>) -> Result<(i64, Option<DateTime<Utc>>), sqlx::Error> {
    let mut tx = db.begin_operator("old idempotency records").await?;
    let swept = sqlx::query_as("select swept, up_to from idempotency_sweep($1, $2)")
        .bind(AT_ONCE)
        .bind(from)
        .fetch_one(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(swept)
}
