//! When to leave a replica out, and when to try it again. Pure: the time is an argument.

use std::time::{Duration, Instant};

use crate::retry::Delays;

/// So many failures in a row open it.
const FAILURES: u32 = 3;
/// How long it stays open, the first time and at most.
const FIRST: Duration = Duration::from_millis(250);
const MOST: Duration = Duration::from_secs(2);

/// Closed: calls go to the replica. Open: none does. Half open: one does, to see how it is.
#[derive(Debug)]
pub(crate) struct Breaker {
    state: State,
    failures: u32,
    delays: Delays,
}

/// As it is told in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Closed,
    /// Until its probe has an outcome.
    HalfOpen,
    Open {
        until: Instant,
    },
}

impl State {
    /// 0 closed, 1 half open, 2 open.
    pub(crate) const fn gauge(self) -> f64 {
        match self {
            Self::Closed => 0.0,
            Self::HalfOpen => 1.0,
            Self::Open { .. } => 2.0,
        }
    }
}

impl Breaker {
    pub(crate) fn new() -> Self {
        Self { state: State::Closed, failures: 0, delays: Delays::new(FIRST, MOST) }
    }

    pub(crate) const fn state(&self) -> State {
        self.state
    }

    /// Whether a call would be let through now.
    pub(crate) fn would_admit(&self, now: Instant) -> bool {
        match self.state {
            State::Closed => true,
            State::HalfOpen => false,
            State::Open { until } => now >= until,
        }
    }

    /// Lets a call through if it may: then its outcome must be told.
    pub(crate) fn admit(&mut self, now: Instant) -> bool {
        let admits = self.would_admit(now);
        if admits && self.state != State::Closed {
            self.state = State::HalfOpen;
        }
        admits
    }

    /// A call was answered, whatever the answer.
    pub(crate) fn answered(&mut self) {
        *self = Self::new();
    }

    /// A call was not answered. `away`: nobody listens there, which needs no second proof.
    pub(crate) fn failed(&mut self, now: Instant, away: bool) {
        self.failures = self.failures.saturating_add(1);
        // What was let through before it opened says nothing new.
        let proven = away || self.failures >= FAILURES || self.state == State::HalfOpen;
        if proven && !matches!(self.state, State::Open { until } if until > now) {
            self.state = State::Open { until: now + self.delays.next_delay() };
        }
    }

    /// A call was given up by whoever waited for it: that says nothing. Another one may probe.
    pub(crate) fn abandoned(&mut self, now: Instant) {
        if self.state == State::HalfOpen {
            self.state = State::Open { until: now };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_closes_by_its_probe() {
        let (mut breaker, start) = (Breaker::new(), Instant::now());
        breaker.failed(start, false);
        breaker.failed(start, false);
        breaker.answered();
        for _ in 0..2 {
            breaker.failed(start, false);
            assert!(breaker.admit(start), "not in a row");
        }
        breaker.failed(start, false);
        assert!(!breaker.admit(start));
        let later = start + MOST;
        assert!(breaker.admit(later), "the probe");
        assert!(!breaker.admit(later), "one at a time");
        breaker.abandoned(later);
        assert!(breaker.admit(later), "another one");
        breaker.answered();
        assert_eq!(breaker.state(), State::Closed);
        breaker.failed(later, true);
        assert!(!breaker.admit(later), "nobody listens");
    }

    proptest! {
        /// Whatever happens, a replica that answers is used again, and one that does not is asked no more often than once in each
        /// time that it is left out.
        #[test]
        fn whatever_happens_it_never_stays_shut_and_never_lets_a_crowd_through(
            steps in prop::collection::vec((0_u8..4, 0_u64..3_000, any::<bool>()), 1..200)
        ) {
            let (mut breaker, mut now) = (Breaker::new(), Instant::now());
            let mut probing = false;
            for (step, passed, away) in steps {
                now += Duration::from_millis(passed);
                match step {
                    0 => {
                        let was = breaker.state();
                        let admitted = breaker.admit(now);
                        prop_assert!(!(probing && admitted && was != State::Closed), "a second probe");
                        probing = breaker.state() == State::HalfOpen;
                    }
                    1 => { breaker.answered(); probing = false; }
                    2 => { breaker.failed(now, away); probing = breaker.state() == State::HalfOpen; }
                    _ => { breaker.abandoned(now); probing = false; }
                }
                if let State::Open { until } = breaker.state() {
                    prop_assert!(until <= now + MOST * 2, "open for {:?}", until - now);
                }
            }
            breaker.abandoned(now);
            prop_assert!(breaker.admit(now + MOST * 2));
        }
    }
}
