//! What a call leaves word of while it is answered, for its answer's headers and its log line.

use std::cell::{Cell, RefCell};
use std::future::Future;

use uuid::Uuid;

/// What was noted.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// The answer is that of an earlier request with the same key.
    pub replayed: bool,
    /// The events that the call has written.
    pub events: Vec<Uuid>,
}

#[derive(Default)]
struct Open {
    replayed: Cell<bool>,
    events: RefCell<Vec<Uuid>>,
}

tokio::task_local! {
    static NOTES: Open;
}

/// Runs a call; its outcome, and what it has noted.
pub(crate) async fn noting<F: Future>(call: F) -> (F::Output, Notes) {
    let noted = async {
        let outcome = call.await;
        let notes = NOTES.with(|notes| Notes { replayed: notes.replayed.get(), events: notes.events.take() });
        (outcome, notes)
    };
    NOTES.scope(Open::default(), noted).await
}

/// Notes that the call's answer is an earlier one's.
pub(crate) fn replayed() {
    NOTES.try_with(|notes| notes.replayed.set(true)).ok();
}

/// Notes the events that the call has committed. Outside of a call nobody reads it.
pub fn wrote(events: impl Iterator<Item = Uuid>) {
    NOTES.try_with(|notes| notes.events.borrow_mut().extend(events)).ok();
}
