//! Delays between attempts: exponential, with jitter, without an end. The only user of the `backoff` crate.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use tracing::warn;

/// A source of delays.
#[derive(Debug)]
pub struct Delays(ExponentialBackoff);

impl Delays {
    /// From `first`, doubling, up to `most`, each by half more or less.
    #[must_use]
    pub fn new(first: Duration, most: Duration) -> Self {
        Self(
            ExponentialBackoffBuilder::new()
                .with_initial_interval(first)
                .with_multiplier(2.0)
                .with_max_interval(most)
                .with_max_elapsed_time(None)
                .build(),
        )
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        self.0.next_backoff().unwrap_or(self.0.max_interval)
    }
}

/// Retries until it succeeds, and logs what it waits for: how a service starts while a dependency is down.
pub async fn retry_forever<T, E: Display, F: Future<Output = Result<T, E>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> T {
    let mut delays = Delays::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) => {
                let delay = delays.next_delay();
                warn!(%error, what, ?delay, "not there yet: trying again");
                tokio::time::sleep(delay).await;
            }
        }
    }
}
