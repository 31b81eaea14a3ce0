//! What a call leaves word of while it is answered, for its answer's headers and its log line; and as whom it was called.

use std::cell::{Cell, RefCell};
use std::future::Future;

use http::HeaderValue;
use uuid::Uuid;

/// What was noted.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// The answer is that of an earlier request with the same key.
    pub replayed: bool,
    /// The events that the call has written.
    pub events: Vec<Uuid>,
    /// The parts that the answer was made without.
    pub degraded: Vec<&'static str>,
}

impl Notes {
    /// The parts that the answer was made without, with commas.
    pub(crate) fn degraded(&self) -> Option<String> {
        (!self.degraded.is_empty()).then(|| self.degraded.join(", "))
    }
}

#[derive(Default)]
struct Open {
    authorization: Option<HeaderValue>,
    replayed: Cell<bool>,
    events: RefCell<Vec<Uuid>>,
    degraded: RefCell<Vec<&'static str>>,
}

tokio::task_local! {
    static NOTES: Open;
}

/// Runs a call that came with this authorization; its outcome, and what it has noted.
pub(crate) async fn noting<F: Future>(authorization: Option<HeaderValue>, call: F) -> (F::Output, Notes) {
    let noted = async {
        let outcome = call.await;
        let notes = NOTES.with(|notes| Notes {
            replayed: notes.replayed.get(),
            events: notes.events.take(),
            degraded: notes.degraded.take(),
        });
        (outcome, notes)
    };
    NOTES.scope(Open { authorization, ..Open::default() }, noted).await
}

/// The authorization that the call at work here came with: what it calls in turn, it calls as the same.
pub(crate) fn authorization() -> Option<HeaderValue> {
    NOTES.try_with(|notes| notes.authorization.clone()).ok().flatten()
}

/// Notes that the call's answer is an earlier one's.
pub(crate) fn replayed() {
    NOTES.try_with(|notes| notes.replayed.set(true)).ok();
}

/// Notes the events that the call has committed. Outside of a call nobody reads it.
pub fn wrote(events: impl Iterator<Item = Uuid>) {
    NOTES.try_with(|notes| notes.events.borrow_mut().extend(events)).ok();
}

/// Notes that the call is answered without this part. It is counted, stands in the call's line, and its caller sees it in the
/// trailer [`crate::DEGRADED`].
pub fn degraded(part: &'static str) {
    metrics::counter!("degraded_answers_total", "part" => part).increment(1);
    NOTES.try_with(|notes| notes.degraded.borrow_mut().push(part)).ok();
}
