//! How far the index has come, for reads that wait for a change. Nobody looks while nobody waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use consumer::Rewinder;
use service::Process;
use tokio::sync::{Notify, watch};

use crate::store::Index;

/// How often to look while somebody waits.
const LOOKS_EVERY: Duration = Duration::from_millis(50);

/// Up to which row of todo's outbox a search shows everything.
#[derive(Debug, Clone)]
pub struct Freshness {
    shown: watch::Receiver<u64>,
    waiting: Arc<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    count: AtomicUsize,
    came: Notify,
}

/// One who waits, until this is dropped.
struct Waits<'a>(&'a Waiting);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Freshness {
    /// Looks how far this consumer has come, and makes what it has written visible, while somebody waits.
    pub fn follow(process: &Process, rewinder: Rewinder, index: Index) -> Self {
        metrics::counter!("consistency_tokens_pending_total").increment(0);
        let (shows, shown) = watch::channel(0);
        let waiting = Arc::new(Waiting::default());
        let who = Arc::clone(&waiting);
        process.lifecycle.run("freshness", |stop| async move {
            while stop.run_until_cancelled(who.came.notified()).await.is_some() {
                while who.count.load(Ordering::SeqCst) > 0 && !stop.is_cancelled() {
                    let was = *shows.borrow();
                    match look(&rewinder, &index, was).await {
                        Ok(row) => drop(shows.send_replace(row)),
                        Err(error) => {
                            tracing::debug!(error = format!("{error:#}"), "how far the index is, is not known")
                        }
                    }
                    stop.run_until_cancelled(tokio::time::sleep(LOOKS_EVERY)).await;
                }
            }
        });
        Self { shown, waiting }
    }

    /// Waits until a search shows everything up to this row; false when that takes longer than this.
    pub async fn reached(&self, row: u64, within: Duration) -> bool {
        let mut shown = self.shown.clone();
        if *shown.borrow() >= row {
            return true;
        }
        self.waiting.count.fetch_add(1, Ordering::SeqCst);
        let _waits = Waits(&self.waiting);
        self.waiting.came.notify_one();
        let reached = tokio::time::timeout(within, shown.wait_for(|shown| *shown >= row)).await;
        reached.is_ok_and(|reached| reached.is_ok())
    }
}

/// Up to which row a search shows everything now.
async fn look(rewinder: &Rewinder, index: &Index, shown: u64) -> Result<u64, anyhow::Error> {
    let Some(is) = rewinder.acknowledged().await? else { return Ok(shown) };
    let floor = rewinder.anchor(is.stream_created_at, is.sequence).await?;
    let row = floor.map_or(shown, |floor| floor.row);
    if row != shown {
        index.refresh().await?;
    }
    Ok(row)
}
