//! How fast a job goes, and when it stops by itself. Pure.

use std::time::Duration;

/// The most items in flight at once.
const WINDOW: i64 = 500;

/// How a job runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// So many go first; all of them must be settled before the rest follows.
    pub canary: i64,
    /// The most items a second. After the canary the rate doubles every second until it reaches this.
    pub rate: f64,
    /// Once the canary is settled, the job aborts itself above this share of failures among the settled items.
    pub max_failures: f64,
}

/// A job's progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Waiting to be sent.
    pub waiting: i64,
    /// In flight.
    pub sent: i64,
    /// Handled, or needing no more handling.
    pub handled: i64,
    /// Failed again.
    pub failed: i64,
    /// Left out, because an earlier item of their aggregate failed or the job was aborted.
    pub skipped: i64,
}

impl Progress {
    /// The items with a known outcome.
    #[must_use]
    pub const fn settled(&self) -> i64 {
        self.handled + self.failed
    }
}

/// What a job does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send at most so many; 0 means wait.
    Send(i64),
    /// Too many fail.
    Abort(String),
    /// Nothing waits and nothing is in flight.
    Done,
}

/// The next step. `since_ramp` counts from when the canary passed (none before that), `since_last` from the last send.
#[must_use]
pub fn step(pace: &Pace, progress: &Progress, since_ramp: Option<Duration>, since_last: Duration) -> Step {
    let (settled, failed) = (progress.settled(), progress.failed);
    if settled >= pace.canary.max(1) && failed as f64 > pace.max_failures * settled as f64 {
        return Step::Abort(format!(
            "{failed} of {settled} failed again, more than {:.0} %",
            pace.max_failures * 100.0
        ));
    }
    if progress.waiting == 0 && progress.sent == 0 {
        return Step::Done;
    }
    let Some(since_ramp) = since_ramp else {
        let out = settled + progress.sent + progress.skipped;
        return Step::Send((pace.canary - out).clamp(0, progress.waiting));
    };
    let rate = (pace.canary.max(1) as f64 * since_ramp.as_secs_f64().min(40.0).exp2()).min(pace.rate);
    // A late tick does not make up for more than a second.
    let due = rate * since_last.as_secs_f64().min(1.0);
    // A slow rate still sends one item when it is due.
    let due = if due < 1.0 { i64::from(rate * since_last.as_secs_f64() >= 1.0) } else { due as i64 };
    Step::Send(due.min(WINDOW - progress.sent).clamp(0, progress.waiting))
}

#[cfg(test)]
mod tests {
    use super::{Pace, Progress, Step, step};
    use proptest::prelude::*;
    use std::time::Duration;

    const PACE: Pace = Pace { canary: 3, rate: 100.0, max_failures: 0.2 };
    const TICK: Duration = Duration::from_millis(100);

    #[test]
    fn the_canary_goes_first_and_alone() {
        let fresh = Progress { waiting: 10, ..Progress::default() };
        assert_eq!(step(&PACE, &fresh, None, TICK), Step::Send(3));
        let out = Progress { waiting: 7, sent: 2, handled: 1, ..Progress::default() };
        assert_eq!(step(&PACE, &out, None, TICK), Step::Send(0));
    }

    #[test]
    fn the_rate_grows_to_its_limit_and_no_further() {
        let going = Progress { waiting: 1_000, handled: 3, ..Progress::default() };
        let after = |secs| step(&PACE, &going, Some(Duration::from_secs(secs)), Duration::from_secs(1));
        assert_eq!([after(0), after(2), after(20)], [Step::Send(3), Step::Send(12), Step::Send(100)]);
        let late = step(&PACE, &going, Some(Duration::from_secs(20)), Duration::from_secs(60));
        assert_eq!(late, Step::Send(100), "nothing is made up for");
        let slow = Pace { rate: 0.5, ..PACE };
        assert_eq!(step(&slow, &going, Some(Duration::from_secs(9)), Duration::from_secs(1)), Step::Send(0));
        assert_eq!(step(&slow, &going, Some(Duration::from_secs(9)), Duration::from_secs(2)), Step::Send(1));
    }

    #[test]
    fn too_many_failures_end_it_once_the_canary_is_settled() {
        let one = Progress { waiting: 9, sent: 2, failed: 1, ..Progress::default() };
        assert_eq!(step(&PACE, &one, None, TICK), Step::Send(0), "two of the canary are still out");
        let settled = Progress { waiting: 9, handled: 2, failed: 1, ..Progress::default() };
        assert!(matches!(step(&PACE, &settled, None, TICK), Step::Abort(_)));
        let few = Progress { waiting: 9, handled: 8, failed: 2, ..Progress::default() };
        assert!(matches!(step(&PACE, &few, Some(TICK), TICK), Step::Send(_)), "a fifth is still borne");
    }

    proptest! {
        #[test]
        fn no_more_than_waits_and_the_window_takes(waiting in 0_i64..2_000, sent in 0_i64..600, canary in 0_i64..50,
            rate in 0.1_f64..10_000.0, millis in 0_u64..5_000, ramp in proptest::option::of(0_u64..100)) {
            let pace = Pace { canary, rate, max_failures: 0.5 };
            let progress = Progress { waiting, sent, ..Progress::default() };
            let since_ramp = ramp.map(Duration::from_secs);
            match step(&pace, &progress, since_ramp, Duration::from_millis(millis)) {
                Step::Send(count) => {
                    prop_assert!((0..=waiting).contains(&count));
                    prop_assert!(since_ramp.is_none() || sent + count <= 500.max(sent));
                    prop_assert!(since_ramp.is_some() || count <= canary);
                }
                Step::Done => prop_assert!(waiting == 0 && sent == 0),
                Step::Abort(_) => prop_assert!(false, "nothing has failed"),
            }
        }
    }
}
