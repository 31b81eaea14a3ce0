//! The only place where services read the clock and make ids.

use chrono::{DateTime, Utc};
use uuid::Uuid;

/// Now, to the microsecond: what Postgres keeps.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the place")]
pub fn now() -> DateTime<Utc> {
    let now = Utc::now();
    DateTime::from_timestamp_micros(now.timestamp_micros()).unwrap_or(now)
}

/// A new UUIDv7.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the place")]
pub fn new_id() -> Uuid {
    Uuid::now_v7()
}
