//! Stores what consumers report of dead letters and replays.

use anyhow::Context as _;
use consumer::{Batch, DeadLetterReader, DlqRecord};
use tokio_util::sync::CancellationToken;
use tracing::info;
use uuid::Uuid;

use crate::letters;
use crate::store::Store;
use crate::store_jobs;
use crate::store_kept;

/// How long the lease lasts: several poll intervals of the dead-letter reader.
const LEASE_SECONDS: f64 = 20.0;

/// Stores reports until `stop`. This process stands by while another one holds the lease.
pub(crate) async fn keep(store: &Store, reader: &DeadLetterReader, holder: Uuid, stop: &CancellationToken) {
    let position = || async {
        store.dlq_position(holder, LEASE_SECONDS).await?.context("another process keeps the letters: standing by")
    };
    reader.run(stop, position, |batch| on_records(store, holder, batch)).await;
    store.give_up_keeping(holder).await.ok();
}

/// One transaction covers a batch of reports and the new position in their stream.
async fn on_records(store: &Store, holder: Uuid, Batch { records, before, now }: Batch) -> Result<(), anyhow::Error> {
    let mut tx = store.begin().await?;
    let noted = store_kept::note_dlq_position(&mut tx, holder, before, now).await?;
    anyhow::ensure!(noted, "the database went back behind what was kept, or another process keeps the letters by now");
    for one in &records {
        match one {
            DlqRecord::Letter(letter) => store_kept::keep(&mut tx, letter).await?,
            DlqRecord::Replayed { id, outcome } => store_jobs::replayed(&mut tx, id, outcome).await?,
        }
    }
    tx.commit().await?;
    for letter in records.iter().filter_map(|one| if let DlqRecord::Letter(letter) = one { Some(letter) } else { None })
    {
        let trace_id = letters::trace_id(&letter.attributes);
        info!(
            trace_id,
            consumer = letter.consumer,
            subject = letter.subject,
            reason = letter.reason,
            "kept a dead letter"
        );
        metrics::counter!("dlq_deaths_total", "consumer" => letter.consumer.clone()).increment(1);
    }
    Ok(())
}
