//! What consumers tell of dead letters and replays, into rows.

use consumer::{Keeper, Told};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::store::{self, Store};
use crate::store_jobs;

/// Keeps what is told, until `stop`.
pub(crate) async fn keep(store: &Store, keeper: &Keeper, stop: &CancellationToken) {
    keeper.run(stop, |told| on_told(store, told)).await;
}

/// One transaction for what came together.
async fn on_told(store: &Store, told: Vec<Told>) -> Result<(), anyhow::Error> {
    let mut tx = store.begin().await?;
    for one in &told {
        match one {
            Told::Letter(letter) => store::keep(&mut tx, letter).await?,
            Told::Replayed { id, outcome } => store_jobs::replayed(&mut tx, id, outcome).await?,
        }
    }
    tx.commit().await?;
    for letter in told.iter().filter_map(|one| if let Told::Letter(letter) = one { Some(letter) } else { None }) {
        info!(consumer = letter.consumer, subject = letter.subject, reason = letter.reason, "kept a dead letter");
        metrics::counter!("dlq_deaths_total", "consumer" => letter.consumer.clone()).increment(1);
    }
    Ok(())
}
