//! How far the index has come, for reads that wait for a change. Nobody looks while nobody waits.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use consumer::Rewinder;
use contracts::TenantId;
use service::{Process, consistency};
use tokio::sync::{Notify, watch};

use crate::store::Index;

/// How often to look while somebody waits; and how seldom where nothing moves.
const LOOKS_EVERY: Duration = Duration::from_millis(50);
const LOOKS_AT_LEAST: Duration = Duration::from_millis(400);
/// How long a look may take.
const LOOKS_FOR: Duration = Duration::from_secs(1);
/// How many reads of one tenant wait at once. Each holds a place at work meanwhile: others of that tenant go on.
const MOST_OF_TENANT: usize = 2;

/// Up to which row of todo's outbox a search shows everything.
#[derive(Debug, Clone)]
pub struct Freshness {
    /// 0 while it is not known.
    shown: watch::Receiver<u64>,
    waiting: Arc<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Who waits, and for which row.
    wanted: Mutex<Vec<(TenantId, u64)>>,
    came: Notify,
}

impl Waiting {
    fn with<T>(&self, with: impl FnOnce(&mut Vec<(TenantId, u64)>) -> T) -> T {
        with(&mut self.wanted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The first row that is waited for.
    fn first(&self) -> Option<u64> {
        self.with(|wanted| wanted.iter().map(|(_, row)| *row).min())
    }
}

/// One who waits, until this is dropped.
struct Waits<'a>(&'a Waiting, (TenantId, u64));

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.with(|wanted| {
            if let Some(at) = wanted.iter().position(|one| *one == self.1) {
                wanted.swap_remove(at);
            }
        });
    }
}

impl Freshness {
    /// Looks how far this consumer has come, and makes what it has written visible, while somebody waits.
    pub fn follow(process: &Process, rewinder: Rewinder, index: Index) -> Self {
        metrics::counter!(consistency::PENDING_METRIC).increment(0);
        let (shows, shown) = watch::channel(0);
        let waiting = Arc::new(Waiting::default());
        let who = Arc::clone(&waiting);
        process.lifecycle.run("freshness", |stop| async move {
            while stop.run_until_cancelled(who.came.notified()).await.is_some() {
                let (mut was, mut pause) = (None, LOOKS_EVERY);
                while let Some(first) = who.first().filter(|_| !stop.is_cancelled()) {
                    let shown = *shows.borrow();
                    let look = tokio::time::timeout(LOOKS_FOR, look(&rewinder, &index, (first, shown)));
                    let Some(looked) = stop.run_until_cancelled(look).await else { break };
                    let row = looked.unwrap_or_else(|late| Err(late.into())).unwrap_or_else(|error| {
                        tracing::debug!(error = format!("{error:#}"), "how far the index is, is not known");
                        None
                    });
                    if let Some(row) = row.filter(|row| *row >= first) {
                        shows.send_replace(row);
                    }
                    pause = if row == was { (2 * pause).min(LOOKS_AT_LEAST) } else { LOOKS_EVERY };
                    was = row;
                    stop.run_until_cancelled(tokio::time::sleep(pause)).await;
                }
                // The index may be another one by the time that somebody waits again.
                shows.send_replace(0);
            }
        });
        Self { shown, waiting }
    }

    /// Waits until a search shows everything up to this row; false when that takes longer than this, or enough others of its tenant wait.
    pub async fn reached(&self, tenant: &TenantId, row: u64, within: Duration) -> bool {
        let me = (tenant.clone(), row);
        let mut shown = self.shown.clone();
        let enters = self.waiting.with(|wanted| {
            let has_room = wanted.iter().filter(|(other, _)| other == tenant).count() < MOST_OF_TENANT;
            if has_room {
                wanted.push(me.clone());
            }
            has_room
        });
        if !enters {
            return *shown.borrow() >= row;
        }
        let _waits = Waits(&self.waiting, me);
        self.waiting.came.notify_one();
        let reached = tokio::time::timeout(within, shown.wait_for(|shown| *shown >= row)).await;
        reached.is_ok_and(|reached| reached.is_ok())
    }
}

/// Up to which row the index has everything, if that is known. Where it has the first row that is waited for, and more than it showed, a search
/// shows it from now on.
async fn look(rewinder: &Rewinder, index: &Index, (first, shown): (u64, u64)) -> Result<Option<u64>, anyhow::Error> {
    let row = rewinder.handled_row().await?;
    if row.is_some_and(|row| row >= first && row != shown) {
        index.refresh().await?;
    }
    Ok(row)
}
