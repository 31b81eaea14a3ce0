//! Publishes the lines of the audit on `audit.<action>` in the stream `AUDIT`, for those who keep their own.

use std::time::Duration;

use serde_json::json;
use service::nats::Record;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::store::Store;
use crate::store_audit::AuditLine;

/// The stream with the subjects `audit.>`.
pub(crate) const STREAM: &str = "AUDIT";
const EVERY: Duration = Duration::from_secs(1);
/// The server's `max_payload`, 1 MiB, bounds a message.
const MAX: usize = 500_000;

/// Publishes lines until `stop`. Retries while a backing service is unavailable.
pub(crate) async fn audit(store: &Store, record: &Record, stop: &CancellationToken) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut said = false;
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        match round(store, record).await {
            Ok(()) => said = false,
            Err(error) if !said => {
                warn!(error = format!("{error:#}"), "the audit is not written: trying again");
                said = true;
            }
            Err(_) => {}
        }
    }
}

async fn round(store: &Store, record: &Record) -> Result<(), anyhow::Error> {
    let lines = store.unpublished().await?;
    if lines.is_empty() {
        return Ok(());
    }
    for (id, line) in lines {
        let subject = format!("audit.{}", line.action.replace(' ', "-"));
        let mut text = serde_json::to_vec(&line)?;
        if text.len() > MAX {
            let job = &line.detail["job"];
            let left = json!({"job": job, "left": format!("{} bytes, see the table audit", text.len())});
            text = serde_json::to_vec(&AuditLine { detail: left, ..line })?;
        }
        record.add(subject, &format!("audit-{id}"), text).await?;
        store.mark_published(id).await?;
    }
    Ok(())
}
