//! Limits of time, pauses, and the clock.

use std::time::Duration;

use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff as _;
use chrono::Utc;

/// How long JetStream may take to answer: its API may be slow where deliveries are not.
pub const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// How long the server waits for an acknowledgement, or for a sign that work goes on.
pub const ACK_WAIT: Duration = Duration::from_secs(30);

/// When to report progress to the server.
pub fn progress() -> tokio::time::Interval {
    let every = ACK_WAIT / 3;
    tokio::time::interval_at(tokio::time::Instant::now() + every, every)
}

pub fn pauses() -> backoff::ExponentialBackoff {
    ExponentialBackoffBuilder::new()
        .with_initial_interval(Duration::from_millis(100))
        .with_max_interval(Duration::from_secs(3))
        .with_max_elapsed_time(None)
        .build()
}

/// How long to wait after so many attempts.
pub fn delay(attempts: i64) -> Duration {
    let most = Duration::from_secs(60);
    let mut delays = ExponentialBackoffBuilder::new()
        .with_initial_interval(Duration::from_millis(250))
        .with_multiplier(2.0)
        .with_max_interval(most)
        .with_max_elapsed_time(None)
        .build();
    (0..attempts.clamp(1, 12)).filter_map(|_| delays.next_backoff()).last().unwrap_or(most)
}

/// To the microsecond, as Postgres keeps it.
#[cfg(feature = "replay")]
pub fn micros(time: chrono::DateTime<Utc>) -> chrono::DateTime<Utc> {
    chrono::DateTime::from_timestamp_micros(time.timestamp_micros()).unwrap_or(time)
}

#[expect(clippy::disallowed_methods, reason = "the age of an event is a measurement; nothing is decided by it")]
pub fn now() -> chrono::DateTime<Utc> {
    Utc::now()
}

#[cfg(test)]
mod tests {
    use super::delay;
    use std::time::Duration;

    #[test]
    fn a_retry_always_waits_and_waits_longer_in_time() {
        for delivered in [0, 1, 5, 100] {
            assert!(delay(delivered) >= Duration::from_millis(100), "{delivered}");
            assert!(delay(delivered) <= Duration::from_secs(90), "{delivered}");
        }
        assert!(delay(12) > delay(1));
    }
}
