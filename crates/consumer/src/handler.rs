//! A handler is somebody else's code: what panics in it, or takes longer than it may, is a failed attempt and not the end of
//! the process, which would have the same event again.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use futures::FutureExt as _;

/// Why a handler did not handle an event. Its transaction is rolled back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It failed this time: try it again later.
    #[error("{0}")]
    Retry(String),
    /// What it needs is unavailable, or in somebody else's hands: try again later, however often. This counts as no attempt.
    #[error("{0}")]
    Away(String),
    /// It can never succeed: make it a dead letter now.
    #[error("{0}")]
    Reject(String),
}

/// What the database says is not the event's fault: again later.
#[cfg(feature = "inbox")]
impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Retry(error.to_string())
    }
}

/// Begins an attempt.
pub fn begin<F>(start: impl FnOnce() -> F) -> Result<F, String> {
    catch_unwind(AssertUnwindSafe(start)).map_err(panicked)
}

/// The outcome of an attempt, or why there is none. A handler that computes without end holds its thread, and is not stopped by
/// `within`: the alarm for that is a floor that stands still.
pub async fn outcome<F: Future>(begun: Result<F, String>, within: Option<Duration>) -> Result<F::Output, String> {
    let work = AssertUnwindSafe(begun?).catch_unwind();
    let ended = match within {
        Some(most) => {
            let timed = tokio::time::timeout(most, work).await;
            timed.map_err(|_| format!("the handler did not end within {most:?}"))?
        }
        None => work.await,
    };
    ended.map_err(panicked)
}

fn panicked(what: Box<dyn Any + Send>) -> String {
    let said = what.downcast_ref::<&str>().copied().or_else(|| what.downcast_ref::<String>().map(String::as_str));
    format!("the handler panicked: {}", said.unwrap_or("it did not say why"))
}
