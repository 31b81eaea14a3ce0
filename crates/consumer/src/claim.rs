//! An event as a handler that has transactions of its own gets it: claimed within one of them, so that the effect happens if and
//! only if the event counts as handled.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use sqlx::PgConnection;

use crate::event::Event;
use crate::handler::{self, Failure};
use crate::inbox::{Claimed, Inbox};

/// What [`crate::Consumer::run_claims`] asks of a handler, written once.
pub trait Handler: Fn(Claim) -> BoxFuture<'static, Result<(), Failure>> + Send + Sync {}

impl<H> Handler for H where H: Fn(Claim) -> BoxFuture<'static, Result<(), Failure>> + Send + Sync {}

/// What came of an attempt in order.
pub enum Outcome {
    Done,
    Duplicate,
    Discarded,
    Failed(Failure),
    /// Why the aggregate waits, and the dead event that it waits behind.
    Behind(String),
    /// It is dead already; its letter may not have been stored.
    Dead(String),
    Lost,
}

impl Outcome {
    /// The word for it in logs and metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Duplicate => "duplicate",
            Self::Discarded => "discarded",
            Self::Failed(Failure::Retry(_) | Failure::Away(_)) => "retry",
            Self::Failed(Failure::Reject(_)) | Self::Dead(_) => "reject",
            Self::Behind(_) => "behind",
            Self::Lost => "lost",
        }
    }
}

/// The right to handle an event once. Clones are the same claim.
#[derive(Debug, Clone)]
pub struct Claim(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    inbox: Inbox,
    consumer: String,
    epoch: i64,
    event: Arc<Event>,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Default)]
enum State {
    #[default]
    Open,
    /// A transaction has claimed it; whether that has committed is not known.
    Taken,
    Refused(Claimed),
    Committed,
}

/// What is made of an event that was not to be claimed.
fn refusal(refused: Claimed) -> Outcome {
    match refused {
        Claimed::New | Claimed::Handled => Outcome::Duplicate,
        Claimed::Lost => Outcome::Lost,
        Claimed::Behind(id) => Outcome::Behind(format!("an earlier event of its aggregate is a dead letter: {id}")),
        Claimed::Dead(reason) => Outcome::Dead(reason),
    }
}

/// An event that is not this transaction's to handle: roll it back and return. The consumer knows why, and whether the event comes
/// again; what the handler says of it is not asked.
#[derive(Debug, thiserror::Error)]
pub enum NotClaimed {
    /// It was handled, its aggregate waits, or another process pulls.
    #[error("the event is not this handler's to handle")]
    Refused,
    /// A transaction of this handler has committed already: one handler, one transaction.
    #[error("the event was claimed by a transaction that has committed")]
    Committed,
    /// The database did not answer.
    #[error("the event could not be claimed")]
    Database(#[from] sqlx::Error),
}

impl From<NotClaimed> for Failure {
    fn from(error: NotClaimed) -> Self {
        Self::Retry(error.to_string())
    }
}

impl Claim {
    /// The event.
    #[must_use]
    pub fn event(&self) -> &Event {
        &self.0.event
    }

    /// Claims the event for this transaction, as the first that it does. A second one that claims it waits for the first to end.
    ///
    /// # Errors
    /// See [`NotClaimed`].
    pub async fn take(&self, tx: &mut PgConnection) -> Result<(), NotClaimed> {
        if matches!(*self.state(), State::Committed) {
            return Err(NotClaimed::Committed);
        }
        let Inner { inbox, consumer, epoch, event, .. } = &*self.0;
        let claimed = inbox.claim(tx, consumer, *epoch, event).await?;
        if claimed == Claimed::New {
            *self.state() = State::Taken;
            return Ok(());
        }
        *self.state() = State::Refused(claimed);
        Err(NotClaimed::Refused)
    }

    /// Reports that the transaction that claimed the event has committed. Without it the event is claimed once more when the handler
    /// has ended: so is one that needed no transaction.
    pub fn committed(&self) {
        *self.state() = State::Committed;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One attempt: the handler, and what came of its claim.
pub async fn attempt<H: Handler>(
    inbox: &Inbox,
    consumer: &str,
    epoch: i64,
    event: &Arc<Event>,
    handler: &H,
    within: Option<Duration>,
) -> Result<Outcome, sqlx::Error> {
    let inner = Inner {
        inbox: inbox.clone(),
        consumer: consumer.to_owned(),
        epoch,
        event: Arc::clone(event),
        state: Mutex::default(),
    };
    let claim = Claim(Arc::new(inner));
    let begun = handler::begin(|| handler(claim.clone()));
    let ended = handler::outcome(begun, within).await;
    let state = claim.state().clone();
    let failed = match (state, ended) {
        (State::Refused(refused), _) => return Ok(refusal(refused)),
        (State::Committed, _) => return Ok(Outcome::Done),
        (State::Taken, Ok(Err(failure))) => return Ok(Outcome::Failed(failure)),
        (State::Taken, Err(reason)) => return Ok(Outcome::Failed(Failure::Retry(reason))),
        (State::Open, Ok(Err(failure))) => Some(failure),
        (State::Open, Err(reason)) => Some(Failure::Retry(reason)),
        (State::Open | State::Taken, Ok(Ok(()))) => None,
    };
    // It has said so before it claimed anything: what the inbox knows comes first.
    let asked = async {
        let mut tx = inbox.begin().await?;
        let claimed = claim.take(&mut tx).await;
        claimed.map(|()| tx)
    };
    let (asked, state) = (asked.await, claim.state().clone());
    match (asked, state, failed) {
        (_, State::Refused(refused), _) => Ok(refusal(refused)),
        (_, _, Some(failure)) => Ok(Outcome::Failed(failure)),
        (Ok(tx), ..) => tx.commit().await.map(|()| Outcome::Done),
        (Err(NotClaimed::Database(error)), ..) => Err(error),
        (Err(NotClaimed::Refused | NotClaimed::Committed), ..) => Ok(Outcome::Duplicate),
    }
}
