//! What writers and observers share with a relay in their process: the rows that are handed over, and its status.

use std::ops::DerefMut;
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::PgConnection;
use tokio::sync::{Notify, watch};

use crate::store::{self, NewEvent, Row};

/// What a relay does right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Another relay leads, or a dependency is unavailable.
    Standby,
    /// This relay publishes.
    Leader {
        /// Rises with each change of the lead.
        epoch: i64,
    },
    /// Stream and outbox contradict each other: the relay waits for an operator, and checks again every few seconds.
    Halted {
        /// What contradicts what, and what to do.
        reason: String,
    },
}

/// Where a relay stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// What it does.
    pub role: Role,
    /// Every row up to this `seq` is stored in the stream, parked, or was rolled back.
    pub done: i64,
    /// The stream's last sequence.
    pub stream_seq: u64,
}

/// How many rows the hand-off may hold, and as many behind a gap; if more come, the relay queries the outbox for all. With the
/// largest events (64 KiB) that is 32 MiB.
pub(crate) const MAX_HANDED_OFF: usize = 500;

/// What was committed in this process and the relay has not taken up yet.
#[derive(Debug, Default)]
pub(crate) struct HandOff {
    pending: Mutex<Pending>,
    pub arrived: Notify,
}

#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Committed rows.
    pub rows: Vec<Row>,
    /// Whether there are more, which only a query of the outbox finds.
    pub look: bool,
}

impl HandOff {
    fn push(&self, rows: Vec<Row>, look: bool) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.rows.len() + rows.len() > MAX_HANDED_OFF {
            *pending = Pending { rows: Vec::new(), look: true };
        } else {
            pending.rows.extend(rows);
            pending.look |= look;
        }
        drop(pending);
        self.arrived.notify_one();
    }

    pub fn take(&self) -> Pending {
        std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// For writers and observers of a relay.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(crate) hand_off: Arc<HandOff>,
    pub(crate) status: watch::Receiver<Status>,
}

impl Handle {
    /// Appends these events, in their order, as the last step of a transaction, commits it, and hands the rows to the
    /// relay, which then need not query for them. Lock the aggregate's row first. `commit` is that of the transaction, for
    /// example `sqlx::Transaction::commit`. Returns the `seq` of the last row, none without events: whoever has handled it has
    /// handled every row with a smaller one.
    ///
    /// **`tx` must be the outermost transaction, and `commit` must commit it.** The relay publishes the rows once it has returned
    /// `Ok`. The commit of a savepoint, or one that does nothing, would publish what may yet be rolled back.
    ///
    /// So only a transaction that was whole to its end hands a row over: one in which a statement has failed takes no more
    /// appends. (To sqlx its COMMIT, which the database answers with a rollback, is a success.)
    ///
    /// # Errors
    /// Those of the inserts and of `commit`; if the outcome of the commit is not known, the relay finds out by itself.
    pub async fn commit<T, F>(
        &self,
        mut tx: T,
        events: Vec<NewEvent>,
        commit: impl FnOnce(T) -> F,
    ) -> Result<Option<i64>, sqlx::Error>
    where
        T: DerefMut<Target = PgConnection>,
        F: Future<Output = Result<(), sqlx::Error>>,
    {
        let mut rows = Vec::with_capacity(events.len());
        for event in events {
            rows.push(store::append_row(&mut tx, event).await?);
        }
        commit(tx).await?;
        let last = rows.last().map(|row| row.seq);
        if last.is_some() {
            self.hand_off.push(rows, false);
        }
        Ok(last)
    }

    /// Reports the commit of a transaction with an event. Never waits; if the report is lost, the poll finds the row.
    pub fn wake(&self) {
        self.hand_off.push(Vec::new(), true);
    }

    /// Where the relay stands; the receiver reports changes.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }
}
