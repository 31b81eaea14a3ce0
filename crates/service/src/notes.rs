//! What a call notes while it runs, for its answer's headers and its log line; and the authorization that it came with.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::time::{Duration, Instant};

use http::HeaderValue;
use uuid::Uuid;

/// What was noted.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// The answer is that of an earlier request with the same key.
    pub replayed: bool,
    /// The events that the call has written.
    pub events: Vec<Uuid>,
    /// The backing services that the answer was made without.
    pub degraded: Vec<&'static str>,
    /// The place in the outbox behind which nothing of the call stands.
    pub place: Option<i64>,
    /// Whether the copy that was read lacks what the caller has asked for.
    pub pending: bool,
}

impl Notes {
    /// The backing services that the answer was made without, separated by commas.
    pub(crate) fn degraded(&self) -> Option<String> {
        (!self.degraded.is_empty()).then(|| self.degraded.join(", "))
    }
}

#[derive(Default)]
struct Open {
    authorization: Option<HeaderValue>,
    /// By when the call's answer is of use.
    until: Option<Instant>,
    replayed: Cell<bool>,
    events: RefCell<Vec<Uuid>>,
    degraded: RefCell<Vec<&'static str>>,
    place: Cell<Option<i64>>,
    pending: Cell<bool>,
}

tokio::task_local! {
    static NOTES: Open;
}

/// Runs a call that came with this authorization, and whose answer is of use until then; returns its outcome and its notes.
pub(crate) async fn noting<F: Future>(
    (authorization, until): (Option<HeaderValue>, Instant),
    call: F,
) -> (F::Output, Notes) {
    let noted = async {
        let outcome = call.await;
        let notes = NOTES.with(|notes| Notes {
            replayed: notes.replayed.get(),
            events: notes.events.take(),
            degraded: notes.degraded.take(),
            place: notes.place.get(),
            pending: notes.pending.get(),
        });
        (outcome, notes)
    };
    NOTES.scope(Open { authorization, until: Some(until), ..Open::default() }, noted).await
}

/// The authorization of the current call: its caller is carried along by the calls that it makes.
pub(crate) fn authorization() -> Option<HeaderValue> {
    NOTES.try_with(|notes| notes.authorization.clone()).ok().flatten()
}

/// How long the answer of the current call is still of use; none outside of a call. A backing service need not work longer.
pub fn left() -> Option<Duration> {
    let until = NOTES.try_with(|notes| notes.until).ok().flatten()?;
    Some(until.saturating_duration_since(Instant::now()))
}

/// Notes that the call's answer is the answer of an earlier one.
pub(crate) fn replayed() {
    NOTES.try_with(|notes| notes.replayed.set(true)).ok();
}

/// Notes the events that the call has committed. Outside of a call this does nothing.
pub fn wrote(events: impl Iterator<Item = Uuid>) {
    NOTES.try_with(|notes| notes.events.borrow_mut().extend(events)).ok();
}

/// Notes that the call is answered without this backing service. A metric counts it, the call's line names it, and its caller sees it in
/// the trailer [`crate::DEGRADED`].
pub fn degraded(part: &'static str) {
    metrics::counter!("degraded_answers_total", "part" => part).increment(1);
    NOTES.try_with(|notes| notes.degraded.borrow_mut().push(part)).ok();
}

/// Notes the place in the outbox behind which nothing of the call stands: its consistency token.
pub(crate) fn stands_at(place: i64) {
    NOTES.try_with(|notes| notes.place.set(notes.place.get().max(Some(place)))).ok();
}

/// Notes that the copy that was read lacks what the caller has asked for.
pub fn pending() {
    metrics::counter!(crate::consistency::PENDING_METRIC).increment(1);
    NOTES.try_with(|notes| notes.pending.set(true)).ok();
}

/// Whether there is a call, whose answer says what is noted.
pub(crate) fn is_call() -> bool {
    NOTES.try_with(|_| ()).is_ok()
}
