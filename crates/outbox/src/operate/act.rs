//! What every act has in common: who acts, why it may be refused, and the locks that it takes.

use sqlx::{Connection as _, PgConnection};

/// Why an operator's act was not done. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is no such parked aggregate or row.
    #[error("{0} is not parked: list the parked rows first")]
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

/// Keeps writers out until the transaction ends. While it waits for the lock, all writers wait behind it: for a moment each
/// time, and not for long at a stretch.
pub(super) async fn lock_out_writers(tx: &mut PgConnection) -> Result<(), Refused> {
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
pub(super) async fn look_anew(tx: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("update outbox_relay set epoch = epoch + 1").execute(tx).await.map(drop)
}
