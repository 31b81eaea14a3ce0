//! What consumers tell of dead letters and replays, into rows.

use consumer::{Batch, Keeper, Told};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::store::{self, Store};
use crate::store_jobs;

/// Keeps what is told, until `stop`.
pub(crate) async fn keep(store: &Store, keeper: &Keeper, stop: &CancellationToken) {
    keeper.run(stop, || async { Ok(store.kept().await?) }, |batch| on_told(store, batch)).await;
}

/// One transaction for what came together, and for how far that is.
async fn on_told(store: &Store, Batch { told, before, now }: Batch) -> Result<(), anyhow::Error> {
    let mut tx = store.begin().await?;
    anyhow::ensure!(store::note_kept(&mut tx, before, now).await?, "the database went back behind what was kept");
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
