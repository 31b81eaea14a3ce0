//! How many calls of all callers a process works on at once, and who is refused beyond. Half as many may wait, so that a call that is let in
//! takes at most half as long again; a tenant that has its share of the places waits for none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::{Code, Failure};

/// How long a call waits for its turn.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// The places at work of a process.
#[derive(Debug)]
pub(crate) struct Places {
    most: usize,
    at_work: Arc<Semaphore>,
    waiting: Semaphore,
    /// How many calls of each tenant are at work, or wait.
    tenants: Mutex<HashMap<String, usize>>,
}

/// A place at work, until this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _counted: Counted,
    _at_work: OwnedSemaphorePermit,
}

/// Counts for its tenant.
#[derive(Debug)]
struct Counted {
    places: Arc<Places>,
    tenant: String,
}

impl Places {
    /// So many, all free.
    pub fn new(most: usize) -> Arc<Self> {
        metrics::counter!("calls_refused_total", "scope" => "process", "why" => "at work").increment(0);
        let (at_work, waiting) = (Arc::new(Semaphore::new(most)), Semaphore::new(most.div_ceil(2)));
        Arc::new(Self { most, at_work, waiting, tenants: Mutex::default() })
    }

    /// A place for a call of this tenant.
    ///
    /// # Errors
    /// UNAVAILABLE where all are taken, and its tenant has its share of them, or as many wait as may, or none is free in time.
    pub async fn take(self: &Arc<Self>, tenant: &str, until: Instant) -> Result<Place, Failure> {
        let (counted, within_its_share) = self.count(tenant);
        if let Ok(at_work) = Arc::clone(&self.at_work).try_acquire_owned() {
            return Ok(Place { _counted: counted, _at_work: at_work });
        }
        let waits = self.waiting.try_acquire().ok().filter(|_| within_its_share);
        let Some(_waits) = waits else { return Err(shed()) };
        let at_work = timeout_at(until, Arc::clone(&self.at_work).acquire_owned()).await;
        let at_work = at_work.ok().and_then(Result::ok).ok_or_else(shed)?;
        Ok(Place { _counted: counted, _at_work: at_work })
    }

    /// Counts a call; and says whether its tenant has no more than its share with it: as many places as all who are there would each have.
    fn count(self: &Arc<Self>, tenant: &str) -> (Counted, bool) {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let of_it = tenants.entry(tenant.to_owned()).or_default();
        *of_it += 1;
        let of_it = *of_it;
        let share = (self.most / tenants.len()).max(1);
        (Counted { places: Arc::clone(self), tenant: tenant.to_owned() }, of_it <= share)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut tenants = self.places.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_it) = tenants.get_mut(&self.tenant) {
            *of_it -= 1;
            if *of_it == 0 {
                tenants.remove(&self.tenant);
            }
        }
    }
}

fn shed() -> Failure {
    metrics::counter!("calls_refused_total", "scope" => "process", "why" => "at work").increment(1);
    let what = "there are more calls here than can be answered soon: try again";
    Failure::new(Code::Unavailable, "UNAVAILABLE", what).retry_after(PATIENCE)
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_has_its_share_is_refused_at_once_and_others_are_next() {
        let places = Places::new(4);
        let until = || Instant::now() + PATIENCE;
        let began = Instant::now();
        let mut held = join_all((0..9).map(|_| places.take("loud", until()))).await;
        let (refused, held): (Vec<_>, Vec<_>) = held.drain(..).partition(Result::is_err);
        assert_eq!((refused.len(), held.len(), began.elapsed()), (5, 4, Duration::ZERO));
        assert!(refused.into_iter().all(|shed| shed.unwrap_err().retry_after == Some(PATIENCE)));
        // Two of another wait; it has half of the places then, and no third one waits.
        let quiet = join_all((0..3).map(|_| places.take("quiet", until())));
        let (quiet, ()) = tokio::join!(quiet, async { drop(held) });
        assert_eq!(quiet.iter().filter(|taken| taken.is_ok()).count(), 2);
        drop(quiet);
        // All of it is free again, for one alone as well.
        let all = join_all((0..4).map(|_| places.take("loud", until()))).await;
        assert!(all.iter().all(Result::is_ok));
        // Nobody waits for longer than it may.
        let began = Instant::now();
        assert!(places.take("quiet", until()).await.is_err());
        assert_eq!(began.elapsed(), PATIENCE);
        assert_eq!(places.tenants.lock().unwrap().len(), 1);
    }
}
