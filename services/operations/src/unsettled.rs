//! The unsettled letters, as metrics.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::store::Store;

const EVERY: Duration = Duration::from_secs(1);

/// Counts them until `stop`.
pub(crate) async fn count(store: &Store, stop: &CancellationToken) {
    let mut tick = tokio::time::interval(EVERY);
    let mut known = Vec::new();
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        match store.unsettled().await {
            Ok(unsettled) => set(&unsettled, &mut known),
            Err(error) => warn!(%error, "the letters cannot be counted"),
        }
    }
}

/// Sets the metrics; a kind without letters is zero.
fn set(unsettled: &[(String, String, i64, f64)], known: &mut Vec<(String, String)>) {
    for (consumer, event_type, _, _) in unsettled {
        let kind = (consumer.clone(), event_type.clone());
        if !known.contains(&kind) {
            known.push(kind);
        }
    }
    for (consumer, event_type) in &*known {
        let one = unsettled.iter().find(|one| (&one.0, &one.1) == (consumer, event_type));
        let (count, age) = one.map_or((0, 0.0), |one| (one.2, one.3));
        let labels = [("consumer", consumer.clone()), ("event_type", event_type.clone())];
        metrics::gauge!("dlq_unsettled_letters", &labels).set(count as f64);
        metrics::gauge!("dlq_oldest_unsettled_seconds", &labels).set(age);
    }
}
