//! When to leave a replica out, and when to try it again. Pure: the time is an argument.

use std::time::{Duration, Instant};

use crate::retry::Delays;

/// The number of failures in a row that opens it.
const FAILURES: u32 = 3;
/// How long it stays open, the first time and at most, each by half more or less.
const FIRST: Duration = Duration::from_millis(250);
const MAX: Duration = Duration::from_secs(1);
/// A probe without an outcome after this time blocks no other call.
const PROBE: Duration = Duration::from_secs(2);

/// Closed: calls go to the replica. Open: none does. Half open: one does, to see how it is.
#[derive(Debug)]
pub(crate) struct Breaker {
    state: State,
    failures: u32,
    delays: Delays,
    probes: u64,
}

/// What a breaker does with a call; [`State::gauge`] is its value in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Closed,
    HalfOpen {
        /// Then another probe may go.
        until: Instant,
        probe: u64,
    },
    Open {
        until: Instant,
    },
}

/// A call that was let through, and its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    /// Which probe it is, if it is one.
    probe: Option<u64>,
}

impl Ticket {
    pub(crate) const fn is_probe(self) -> bool {
        self.probe.is_some()
    }
}

impl State {
    /// 0 closed, 1 half open, 2 open.
    pub(crate) const fn gauge(self) -> f64 {
        match self {
            Self::Closed => 0.0,
            Self::HalfOpen { .. } => 1.0,
            Self::Open { .. } => 2.0,
        }
    }
}

impl Breaker {
    pub(crate) fn new() -> Self {
        Self { state: State::Closed, failures: 0, delays: Delays::new(FIRST, MAX), probes: 0 }
    }

    pub(crate) const fn state(&self) -> State {
        self.state
    }

    /// Whether a call would be let through now.
    pub(crate) fn would_admit(&self, now: Instant) -> bool {
        match self.state {
            State::Closed => true,
            State::HalfOpen { until, .. } | State::Open { until } => now >= until,
        }
    }

    /// Lets a call through, if it may.
    pub(crate) fn admit(&mut self, now: Instant) -> Option<Ticket> {
        if !self.would_admit(now) {
            return None;
        }
        if self.state == State::Closed {
            return Some(Ticket { probe: None });
        }
        self.probes += 1;
        self.state = State::HalfOpen { until: now + PROBE, probe: self.probes };
        Some(Ticket { probe: Some(self.probes) })
    }

    /// A call was answered, whatever the answer: the replica is alive.
    pub(crate) fn answered(&mut self) {
        *self = Self { probes: self.probes, ..Self::new() };
    }

    /// A call was not answered. `away`: nothing listens there, which needs no second proof.
    pub(crate) fn failed(&mut self, ticket: Ticket, now: Instant, away: bool) {
        let opens = match self.state {
            State::Closed => {
                self.failures += 1;
                away || self.failures >= FAILURES
            }
            State::HalfOpen { probe, .. } => ticket.probe == Some(probe),
            // The outcome of a call from before the state changed says nothing new.
            State::Open { .. } => false,
        };
        if opens {
            self.state = State::Open { until: now + self.delays.next_delay() };
        }
    }

    /// The caller gave up on a call: that says nothing about the replica, and another call may probe.
    pub(crate) fn abandoned(&mut self, ticket: Ticket, now: Instant) {
        if let State::HalfOpen { probe, .. } = self.state
            && ticket.probe == Some(probe)
        {
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
        let ticket = breaker.admit(start).unwrap();
        breaker.failed(ticket, start, false);
        breaker.failed(ticket, start, false);
        breaker.answered();
        for _ in 0..2 {
            breaker.failed(ticket, start, false);
            assert!(breaker.admit(start).is_some(), "not in a row");
        }
        breaker.failed(ticket, start, false);
        assert_eq!(breaker.admit(start), None);
        let later = start + MAX;
        let probe = breaker.admit(later).unwrap();
        assert_eq!(breaker.admit(later), None, "one at a time");
        breaker.failed(ticket, later, false);
        breaker.abandoned(ticket, later);
        assert_eq!(breaker.admit(later), None, "an older call is no probe");
        breaker.abandoned(probe, later);
        let second = breaker.admit(later).unwrap();
        assert!(breaker.admit(later + PROBE).is_some(), "a probe that hangs");
        breaker.failed(second, later + PROBE, true);
        assert!(matches!(breaker.state(), State::HalfOpen { .. }), "it was given up");
        breaker.answered();
        assert_eq!(breaker.state(), State::Closed);
        breaker.failed(ticket, later, true);
        assert_eq!(breaker.admit(later), None, "nobody listens");
    }

    proptest! {
        /// Calls come, take their time and end in any order. A replica that is left out is asked by one call in each time; one that
        /// answers is used again.
        #[test]
        fn whatever_happens_it_never_stays_shut_and_never_lets_a_crowd_through(
            steps in prop::collection::vec((0_u8..4, any::<prop::sample::Index>(), 0_u64..1_500, any::<bool>()), 1..300)
        ) {
            let (mut breaker, mut now) = (Breaker::new(), Instant::now());
            let (mut at_work, mut last_probe): (Vec<Ticket>, Option<Instant>) = (Vec::new(), None);
            for (step, which, passed, away) in steps {
                now += Duration::from_millis(passed);
                if step == 0 {
                    let was = breaker.state();
                    if let Some(ticket) = breaker.admit(now) {
                        if was == State::Closed {
                            prop_assert_eq!(ticket.probe, None);
                        } else {
                            let hangs = last_probe.is_none_or(|last| now >= last + PROBE);
                            let over = matches!(was, State::Open { .. });
                            prop_assert!(hangs || over, "a second probe");
                            last_probe = Some(now);
                        }
                        at_work.push(ticket);
                    }
                } else if !at_work.is_empty() {
                    let ticket = at_work.swap_remove(which.index(at_work.len()));
                    let was = breaker.state();
                    match step {
                        1 => breaker.answered(),
                        2 => breaker.failed(ticket, now, away),
                        _ => breaker.abandoned(ticket, now),
                    }
                    let ended = matches!(was, State::HalfOpen { probe, .. } if ticket.probe == Some(probe));
                    prop_assert!(ended || step == 1 || was == State::Closed || was == breaker.state(), "another's outcome");
                }
                if let State::Open { until } | State::HalfOpen { until, .. } = breaker.state() {
                    prop_assert!(until <= now + MAX * 2, "shut for {:?}", until - now);
                }
            }
            prop_assert!(breaker.admit(now + MAX * 2).is_some());
            breaker.answered();
            prop_assert_eq!(breaker.state(), State::Closed);
        }
    }
}
