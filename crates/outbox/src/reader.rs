//! Reads the outbox in the order of `seq` and never past a row that may still commit.
//!
//! Rows that follow the last one without a gap in `seq` are settled: each is there. What lies behind a gap, or the end,
//! is settled by three READ COMMITTED statements, each with a snapshot of its own: a mark (the newest number seen, or
//! the sequence's), the transactions that hold a writer's lock on the table after that, and the rows up to the mark
//! once those are gone. A transaction locks the table before it takes a `seq`, so the holder of a `seq` up to the mark is
//! among them or has ended. Most gaps close by themselves within the time of a commit, and cost only a query.
//!
//! Rows that were handed over after their commit are there as well: those that follow the position without a gap need no
//! statement at all. Those behind a gap wait for the row that closes it to be handed over, or for a query.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use crate::handle::MAX_HANDED_OFF;
use crate::position::{CLOCK_SLACK, Position};
use crate::store::{self, Created, Row};

/// How many rows a query reads to check whether a gap has closed.
const GAP_LOOK: i64 = 64;

/// What a query of the outbox returned.
#[derive(Debug)]
pub enum Next {
    /// Settled rows, and whether more may follow them already.
    Rows(Vec<Row>, bool),
    /// Nothing follows the position.
    Idle,
    /// What follows may still commit: query again after the next commit, or soon.
    Unsettled,
}

/// How far a gap is on its way to be settled.
enum Waiting {
    /// A mark was read; it may close by itself.
    Marked(i64),
    /// These were writing after the mark was read, and still are.
    Writers(i64, Vec<String>),
}

pub struct Reader {
    /// The last row that was passed. Never a number beyond it: the numbers of a rollback may be given out again after a
    /// crash of the database.
    place: Position,
    /// The mark up to which nothing follows the position, as long as the mark stands there.
    settled: i64,
    waiting: Option<Waiting>,
    batch: i64,
    /// Committed rows behind the position that writers of this process have handed over; the first may have a gap before it.
    handed: BTreeMap<i64, Row>,
}

impl Reader {
    pub const fn new(place: Position, batch: i64) -> Self {
        Self { place, settled: 0, waiting: None, batch, handed: BTreeMap::new() }
    }

    /// Every number up to this is passed, or was rolled back.
    pub fn done(&self) -> i64 {
        self.place.seq.max(self.settled)
    }

    /// Makes the next query check rolled-back numbers again.
    pub const fn forget_settled(&mut self) {
        self.settled = 0;
    }

    /// Takes in committed rows, in any order; `false` if they became too many and some were dropped, which a query finds.
    pub fn hand_over(&mut self, rows: Vec<Row>) -> bool {
        let room = self.handed.len() + rows.len() <= MAX_HANDED_OFF;
        if !room {
            self.handed.clear();
        }
        self.handed.extend(rows.into_iter().filter(|row| row.seq > self.place.seq).map(|row| (row.seq, row)));
        room
    }

    /// The handed-over rows that follow the position without a gap: what a query would find, or its beginning.
    pub fn next_handed(&mut self) -> Option<Next> {
        while self.handed.first_key_value().is_some_and(|(seq, _)| *seq <= self.place.seq) {
            self.handed.pop_first();
        }
        let gapless =
            gapless_prefix(self.place.seq, self.handed.keys().copied()).min(usize::try_from(self.batch).ok()?);
        let rows: Vec<Row> = (0..gapless).filter_map(|_| self.handed.pop_first()).map(|(_, row)| row).collect();
        (!rows.is_empty()).then(|| self.pass(rows, false))
    }

    /// Forgets the rows that were handed over; a query finds them.
    pub fn forget_handed(&mut self) {
        self.handed.clear();
    }

    /// Whether a gap holds back rows that were handed over.
    pub fn holds_back(&self) -> bool {
        !self.handed.is_empty()
    }

    /// Whether a query has found a gap that is not settled yet.
    pub const fn waits(&self) -> bool {
        self.waiting.is_some()
    }

    /// The next settled rows. After a pause (`settle`) it also takes the next step towards passing a gap.
    pub async fn next(&mut self, db: &mut PgConnection, settle: bool) -> Result<Next, sqlx::Error> {
        // While a gap is open, keep the query cheap.
        let limit = if self.waiting.is_some() { self.batch.min(GAP_LOOK) } else { self.batch };
        let mut rows =
            store::rows(db, self.place.seq, None, Created::From(self.place.created_at - CLOCK_SLACK), limit).await?;
        let gapless = gapless_prefix(self.place.seq, rows.iter().map(|row| row.seq));
        if gapless > 0 {
            let more = gapless < rows.len() || rows.len() as i64 == limit;
            rows.truncate(gapless);
            return Ok(self.pass(rows, more));
        }
        match self.waiting.take() {
            None => {
                let mark = match rows.last() {
                    Some(last) => last.seq,
                    None => store::mark(&mut *db).await?,
                };
                if mark <= self.place.seq || mark == self.settled {
                    return Ok(Next::Idle);
                }
                self.waiting = Some(Waiting::Marked(mark));
            }
            Some(Waiting::Marked(mark)) if settle => {
                self.waiting = Some(Waiting::Writers(mark, store::writers(db).await?));
            }
            Some(Waiting::Writers(mark, mut open)) if settle && !open.is_empty() => {
                let still = store::writers(db).await?;
                open.retain(|writer| still.contains(writer));
                // A transaction that was prepared meanwhile goes on under another name.
                open.extend(still.into_iter().filter(|writer| writer.starts_with("-1/")));
                open.sort_unstable();
                open.dedup();
                self.waiting = Some(Waiting::Writers(mark, open));
            }
            waiting => self.waiting = waiting,
        }
        match &self.waiting {
            Some(Waiting::Writers(mark, open)) if open.is_empty() => {
                let mark = *mark;
                self.waiting = None;
                // Without a bound in time: should a clock have been set back by more than the slack, this finds the rows.
                let rows = store::rows(db, self.place.seq, Some(mark), Created::Ever, self.batch).await?;
                if (rows.len() as i64) < self.batch {
                    // All up to the mark is settled, whether the last numbers became rows or were rolled back.
                    self.settled = mark;
                }
                Ok(if rows.is_empty() { Next::Idle } else { self.pass(rows, true) })
            }
            _ => Ok(Next::Unsettled),
        }
    }

    fn pass(&mut self, rows: Vec<Row>, more: bool) -> Next {
        if let Some(last) = rows.last() {
            self.place = Position { seq: last.seq, created_at: last.created_at };
        }
        self.waiting = None;
        Next::Rows(rows, more)
    }
}

/// How many of the numbers follow `after` without a gap.
fn gapless_prefix(after: i64, seqs: impl Iterator<Item = i64>) -> usize {
    seqs.zip(after + 1..).take_while(|(seq, wanted)| seq == wanted).count()
}

#[cfg(test)]
mod tests {
    use super::{Next, Position, Reader, gapless_prefix};
    use crate::store::Row;
    use chrono::DateTime;
    use proptest::prelude::*;

    fn row(seq: i64) -> Row {
        Row {
            seq,
            created_at: DateTime::UNIX_EPOCH,
            event_id: uuid::Uuid::nil(),
            tenant: String::new(),
            aggregate_id: String::new(),
            subject: String::new(),
            traceparent: None,
            payload: Vec::new(),
        }
    }

    fn handed(reader: &mut Reader) -> Vec<i64> {
        let next = std::iter::from_fn(|| reader.next_handed());
        let rows = |next| if let Next::Rows(rows, _) = next { rows } else { Vec::new() };
        next.flat_map(rows).map(|row| row.seq).collect()
    }

    proptest! {
        #[test]
        fn rows_that_are_handed_over_in_any_order_come_in_theirs_and_never_past_a_gap(
            order in Just((1_i64..=12).collect::<Vec<_>>()).prop_shuffle(), missing in 1_i64..=13, at_once in 1_usize..5
        ) {
            let place = Position { seq: 0, created_at: DateTime::UNIX_EPOCH };
            let mut reader = Reader::new(place, 3);
            let mut seen = Vec::new();
            for rows in order.chunks(at_once) {
                // One of a query's rows may be handed over after the query; it was passed then.
                reader.hand_over([-1, 0].iter().chain(rows).filter(|seq| **seq != missing).map(|seq| row(*seq)).collect());
                seen.extend(handed(&mut reader));
                prop_assert_eq!(&seen, &(1..=seen.len() as i64).collect::<Vec<_>>());
            }
            prop_assert_eq!(seen.len() as i64, missing - 1);
            prop_assert_eq!(reader.holds_back(), missing < 12);
        }

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
