//! Rows that were not stored, and how soon one of them may be parked.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// When nothing passes it is hardly the rows' fault: how long after a row was parked the next one may be that follows it
/// with none passing between them. Doubles with each, to at most [`MAX_PARK_PAUSE`].
const PARK_PAUSE: Duration = Duration::from_secs(30);
const MAX_PARK_PAUSE: Duration = Duration::from_secs(300);

/// What is known against rows that were not stored. It outlives leads: a lost permission for a night parks a few
/// aggregates, not all of them one by one.
pub struct PoisonTracker {
    /// How often each failed alone.
    pub fails: HashMap<i64, u32>,
    /// How many were parked with no row passing between them, and the last of them.
    in_a_row: u32,
    last_parked: i64,
    /// From when another may be.
    pub may_park_from: Instant,
}

impl PoisonTracker {
    pub fn new() -> Self {
        Self { fails: HashMap::new(), in_a_row: 0, last_parked: 0, may_park_from: Instant::now() }
    }

    /// Takes in that every row up to this is stored; whether none is suspected any more.
    pub fn passed(&mut self, seq: i64) -> bool {
        self.fails.retain(|failed, _| *failed > seq);
        (self.in_a_row, self.may_park_from) = (0, Instant::now());
        self.fails.is_empty()
    }

    /// After the position was taken again: another relay may have led meanwhile.
    pub fn taken_up(&mut self, stored: i64) {
        if stored > self.last_parked {
            (self.in_a_row, self.may_park_from) = (0, Instant::now());
        }
    }

    pub fn parked(&mut self, seq: i64) {
        self.last_parked = seq;
        let pause = PARK_PAUSE.saturating_mul(1 << self.in_a_row.min(10)).min(MAX_PARK_PAUSE);
        self.in_a_row += 1;
        self.may_park_from = Instant::now() + pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_parked_ever_more_slowly_until_one_passes() {
        let mut suspects = PoisonTracker::new();
        let mut pauses = Vec::new();
        for seq in 0..40 {
            suspects.parked(seq);
            pauses.push(suspects.may_park_from.saturating_duration_since(Instant::now()).as_secs_f64().round() as u64);
        }
        assert_eq!(pauses[..4], [30, 60, 120, 240]);
        assert_eq!(pauses[39], 300);
        suspects.taken_up(39);
        assert!(suspects.may_park_from > Instant::now(), "nothing has passed");
        suspects.taken_up(40);
        assert!(suspects.may_park_from <= Instant::now(), "another relay has led meanwhile");
        suspects.parked(41);
        suspects.fails.extend([(7, 2), (9, 1)]);
        assert!(!suspects.passed(8));
        assert!(suspects.may_park_from <= Instant::now());
        assert!(suspects.passed(9));
    }
}
