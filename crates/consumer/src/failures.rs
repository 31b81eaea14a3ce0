//! How often each event in hand has failed.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

use crate::time::now;

/// Where a message is: whether in the stream of replays, and at which sequence.
pub type Place = (bool, u64);

/// How an event has failed so far.
#[derive(Debug, Clone, Copy)]
pub struct Failed {
    /// How often.
    pub times: i64,
    /// When it did for the first time, as this process knows it.
    pub first: DateTime<Utc>,
}

/// How often each event in hand has failed, by its position. Counted here: the server counts deliveries, and what waits here
/// for long through nobody's fault is delivered again and again.
#[derive(Default)]
pub struct Failures(Mutex<Known>);

#[derive(Default)]
struct Known {
    failed: HashMap<Place, Failed>,
    /// Those that may be why a batch had no verdicts.
    suspects: HashSet<Place>,
}

impl Failures {
    /// More than can be in hand; some may have gone to another process.
    const MAX: usize = 100_000;

    /// Counts a failure; returns all so far.
    pub fn one_more(&self, place: Place) -> Failed {
        let mut known = self.known();
        if known.failed.len() >= Self::MAX {
            known.failed.clear();
        }
        let failed = known.failed.entry(place).or_insert_with(|| Failed { times: 0, first: now() });
        failed.times += 1;
        *failed
    }

    /// Forgets an event that is settled.
    pub fn forget(&self, place: Place) {
        let mut known = self.known();
        known.failed.remove(&place);
        known.suspects.remove(&place);
    }

    /// Marks this event as a possible reason why those which were handled together have no outcome.
    pub fn suspect(&self, place: Place) {
        let mut known = self.known();
        if known.suspects.len() >= Self::MAX {
            known.suspects.clear();
        }
        known.suspects.insert(place);
    }

    /// Whether an event is to be handled alone: it may be why a batch had no verdicts. `place` is asked only where there are such.
    pub fn is_suspect(&self, place: impl FnOnce() -> Place) -> bool {
        let known = self.known();
        !known.suspects.is_empty() && known.suspects.contains(&place())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
