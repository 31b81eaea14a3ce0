//! Real backing services for tests. All test runs of a clone share one PostgreSQL and one OpenSearch, which the hidden command
//! `flotilla test-parts` keeps for as long as a test is connected, and a little longer; each test has a database made
//! from a template, an index name and a nats-server of its own. Nothing is left behind.

#![expect(clippy::unwrap_used, reason = "a test harness fails by panicking")]

pub mod catalog;

pub mod certificates;

pub mod database;

pub mod nats;

pub mod permissions;

pub mod backing;

pub mod proxy;

pub mod relay;

pub mod slow;

pub mod stable;

pub mod token;

pub use backing::Backing;
pub use certificates::TestCertificates;
pub use database::TestDatabase;
#[doc(hidden)]
pub use insta;
pub use nats::TestNats;
pub use proxy::TestProxy;
pub use relay::assert_caught_up;
pub use slow::SlowApi;
pub use stable::stable;
pub use token::TestIssuer;

use std::future::Future;
use std::task::Poll;
use std::time::Duration;

/// How long an event may take before a test fails. A passing test never takes so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until a condition holds.
///
/// # Panics
/// It does not hold within [`PATIENCE`].
pub async fn until<F: Future<Output = bool>>(what: &str, is_so: impl FnMut() -> F) {
    until_within(PATIENCE, what, is_so).await;
}

/// Waits until a condition holds, for at most this time.
///
/// # Panics
/// It does not hold in that time.
pub async fn until_within<F: Future<Output = bool>>(patience: Duration, what: &str, mut is_so: impl FnMut() -> F) {
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        tick.tick().await;
        if is_so().await {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what}: not so within {patience:?}");
    }
}

/// The output of a future that is dropped after so many turns, wherever it is by then; None if that was first.
pub async fn within_turns<T>(turns: u64, future: impl Future<Output = T>) -> Option<T> {
    let mut left = turns;
    let cut = std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    });
    tokio::select! {
        biased;
        output = future => Some(output),
        () = cut => None,
    }
}

/// None, one, and each twice as many as before: an answer of a database takes hundreds of thousands on a busy machine.
pub fn turns() -> impl Iterator<Item = u64> {
    std::iter::once(0).chain((0..40).map(|doubled| 1 << doubled))
}

/// A name that no other test has.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "tests make ids like the edge of a process")]
pub fn unique(prefix: &str) -> String {
    format!("{prefix}{}", uuid::Uuid::now_v7().simple())
}
