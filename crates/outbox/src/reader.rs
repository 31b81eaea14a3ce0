//! Reads the outbox in the order of `seq` and never past a row that may still commit.
//!
//! Three READ COMMITTED statements, each with a snapshot of its own: the sequence's high mark, the transactions that
//! hold a writer's lock on the table at that moment, and the rows up to the mark once those are gone. A transaction
//! locks the table before it takes a `seq`, so whoever holds a `seq` up to the mark is among them or has ended.
//! While `seq` has no gap the locks need not be looked at.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgPool;

use crate::store::{self, Row};

/// How much earlier than the row before it a row may have been stamped: clocks may be set back, a writer may pause
/// between its `seq` and its time.
const CLOCK_SLACK: TimeDelta = TimeDelta::hours(1);

/// A place in the outbox: every row up to `seq` has been passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub seq: i64,
    pub created_at: DateTime<Utc>,
}

pub struct Reader {
    /// The last row that was passed. Never a number beyond it: the numbers of a rollback may be given out again after a
    /// crash of the database.
    place: Place,
    /// The mark up to which nothing follows the place, as long as the mark stands there.
    settled: i64,
    batch: i64,
}

impl Reader {
    pub const fn new(place: Place, batch: i64) -> Self {
        Self { place, settled: 0, batch }
    }

    /// Every number up to this is passed, or was rolled back.
    pub fn done(&self) -> i64 {
        self.place.seq.max(self.settled)
    }

    /// Looks again at numbers that had been rolled back.
    pub const fn forget_settled(&mut self) {
        self.settled = 0;
    }

    /// The next settled rows; fewer than a batch, or none, when there are no more.
    pub async fn next(&mut self, db: &PgPool) -> Result<Vec<Row>, sqlx::Error> {
        let mark = store::mark(db).await?;
        metrics::gauge!("outbox_backlog_rows").set((mark - self.done()).max(0) as f64);
        if mark <= self.place.seq || mark == self.settled {
            return Ok(Vec::new());
        }
        let mut rows = self.read(db, mark, self.place.created_at - CLOCK_SLACK).await?;
        let gapless = gapless_prefix(self.place.seq, rows.iter().map(|row| row.seq));
        if gapless > 0 {
            rows.truncate(gapless);
        } else {
            wait_for_writers(db).await?;
            // Without a bound in time: should a clock have been set back by more than the slack, this finds the rows.
            rows = self.read(db, mark, DateTime::UNIX_EPOCH).await?;
            if (rows.len() as i64) < self.batch {
                // All up to the mark is settled, whether the last numbers became rows or were rolled back.
                self.settled = mark;
            }
        }
        if let Some(last) = rows.last() {
            self.place = Place { seq: last.seq, created_at: last.created_at };
        }
        Ok(rows)
    }

    async fn read(&self, db: &PgPool, mark: i64, created_from: DateTime<Utc>) -> Result<Vec<Row>, sqlx::Error> {
        store::rows(db, self.place.seq, mark, created_from, self.batch).await
    }
}

/// How many of the numbers follow `after` without a gap.
fn gapless_prefix(after: i64, seqs: impl Iterator<Item = i64>) -> usize {
    seqs.zip(after + 1..).take_while(|(seq, wanted)| seq == wanted).count()
}

/// Waits until every transaction that writes to the outbox now has ended. The services' roles bound how long that is.
async fn wait_for_writers(db: &PgPool) -> Result<(), sqlx::Error> {
    let mut open = store::writers(db).await?;
    let mut pause = Duration::from_millis(1);
    while !open.is_empty() {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
        let still = store::writers(db).await?;
        open.retain(|writer| still.contains(writer));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::gapless_prefix;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_prefix_has_no_gap_and_is_the_longest(after in 0_i64..100, gaps in prop::collection::vec(1_i64..3, 0..20)) {
            let seqs: Vec<i64> = gaps.iter().scan(after, |at, gap| { *at += gap; Some(*at) }).collect();
            let prefix = gapless_prefix(after, seqs.iter().copied());
            prop_assert!(seqs[..prefix].iter().zip(after + 1..).all(|(seq, wanted)| *seq == wanted));
            if let Some(next) = seqs.get(prefix) {
                prop_assert_ne!(*next, after + prefix as i64 + 1);
            }
        }
    }
}
