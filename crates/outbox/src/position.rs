//! A position in the outbox.

use chrono::{DateTime, TimeDelta, Utc};

/// How much earlier than the row before it a row may have been stamped: clocks may be set back, a writer may pause
/// between its `seq` and its time.
pub const CLOCK_SLACK: TimeDelta = TimeDelta::hours(1);

/// A position in the outbox: every row up to `seq` has been passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub seq: i64,
    pub created_at: DateTime<Utc>,
}
