//! Units of a shared rate that a process has in hand for a caller: whoever asks often is given some ahead, so that not each of its calls asks Redis.
//! What is in hand wanes as fast as the rate comes back, so that a caller never has more than its rate, wherever its units are.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::shared_rates::Standing;

/// So many parts of a second's units are given ahead at once.
const PARTS: u32 = 32;
/// Who asks again within this time asks often: longer than it takes until all that was given has waned.
const OFTEN: Duration = Duration::from_millis(62);
/// After so many questions in a row, so that a page that sends some calls takes nothing from others of its tenant.
const IN_A_ROW: u32 = 8;

/// Of one caller.
#[derive(Debug, Default)]
pub(crate) struct Reserve(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    asked: Option<Instant>,
    in_a_row: u32,
    /// Only one question at a time is for units ahead.
    asking: bool,
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    units: u32,
    since: Instant,
    /// How many units of the fastest of its rates come back in a second.
    wanes: u32,
    standing: Vec<Standing>,
}

impl Held {
    /// How many are still to be had.
    fn left(&self, now: Instant) -> u32 {
        let micros = now.saturating_duration_since(self.since).as_micros();
        let waned = (micros * u128::from(self.wanes)).div_ceil(1_000_000);
        self.units.saturating_sub(u32::try_from(waned).unwrap_or(u32::MAX))
    }

    /// What its caller has left, these among it.
    fn standing(&self) -> Vec<Standing> {
        let with =
            |standing: &Standing| Standing { remaining: standing.remaining.saturating_add(self.units), ..*standing };
        self.standing.iter().map(with).collect()
    }
}

/// A question of a caller, until it is answered or given up.
pub(crate) struct Question<'a> {
    reserve: &'a Reserve,
    asked: Instant,
    /// How many units to ask for beyond what the call costs.
    pub ahead: u32,
}

impl Reserve {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pays a call with what is in hand; returns what is left then.
    pub fn pay(&self, cost: u32) -> Option<Vec<Standing>> {
        let mut inner = self.inner();
        let held = inner.held.as_mut()?;
        if held.left(Instant::now()) < cost {
            return None;
        }
        held.units -= cost;
        Some(held.standing())
    }

    /// A question to Redis about a call of a caller with these rates.
    pub fn ask(&self, cost: u32, rates: impl Iterator<Item = u32>) -> Question<'_> {
        let (mut inner, now) = (self.inner(), Instant::now());
        let again = inner.asked.replace(now).is_some_and(|before| now - before < OFTEN);
        inner.in_a_row = if again { inner.in_a_row.saturating_add(1) } else { 0 };
        let often = inner.in_a_row >= IN_A_ROW;
        let ahead = rates.min().map_or(0, |slowest| slowest / PARTS);
        let ahead = if often && !inner.asking && ahead > cost { ahead } else { 0 };
        inner.asking |= ahead > 0;
        Question { reserve: self, asked: now, ahead }
    }
}

impl Question<'_> {
    /// Puts into hand what was given ahead; returns what its caller has left.
    pub fn given(&self, ahead: u32, standing: Vec<Standing>) -> Vec<Standing> {
        if ahead == 0 {
            return standing;
        }
        let mut inner = self.reserve.inner();
        // By the time of the question: Redis has counted from a later one.
        let units = ahead + inner.held.as_ref().map_or(0, |held| held.left(self.asked));
        let wanes = standing.iter().map(|standing| standing.quota).max().unwrap_or(u32::MAX);
        inner.held.insert(Held { units, since: self.asked, wanes, standing }).standing()
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        if self.ahead > 0 {
            self.reserve.inner().asking = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn standing(remaining: u32) -> Vec<Standing> {
        let of = |scope, quota, remaining| Standing { scope, quota, remaining };
        vec![of("principal", 320, remaining), of("tenant", 640, remaining + 100)]
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_often_is_given_units_that_wane() {
        let reserve = Reserve::default();
        let ask = || reserve.ask(1, [320, 640].into_iter());
        for _ in 0..IN_A_ROW {
            assert_eq!((reserve.pay(1), ask().ahead), (None, 0));
            advance(Duration::from_millis(60)).await;
        }
        let question = ask();
        assert_eq!((question.ahead, ask().ahead), (10, 0), "one at a time");
        assert_eq!(question.given(10, standing(200)), standing(210));
        drop(question);
        assert_eq!(reserve.pay(1), Some(standing(209)));
        assert_eq!(reserve.pay(10), None);
        // The tenant's come back at 640 a second.
        advance(Duration::from_millis(5)).await;
        assert_eq!(reserve.pay(6), None);
        assert_eq!(reserve.pay(5), Some(standing(204)));
        advance(Duration::from_millis(2)).await;
        assert_eq!(reserve.pay(1), None);
        // Nothing is left; what is given next is all there is.
        let question = ask();
        question.given(question.ahead, standing(100));
        drop(question);
        assert_eq!(reserve.pay(10), Some(standing(100)));
        // A question that is given up is none.
        drop(ask());
        assert_eq!(ask().ahead, 10);
        // Of few units, none are given ahead.
        assert_eq!((reserve.ask(1, [32].into_iter()).ahead, reserve.ask(20, [320].into_iter()).ahead), (0, 0));
        // Who rests begins anew.
        advance(Duration::from_millis(70)).await;
        assert_eq!((ask().ahead, ask().ahead), (0, 0));
    }
}
