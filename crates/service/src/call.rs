//! One call of a command: who calls, and what makes it take effect once. A server makes it of a request with a verified token,
//! a handler of an event; the command is the same.

use std::sync::Arc;

use authz::Caller;
use consumer::Claim;
use contracts::EventId;

use crate::idempotency::Attempt;
use crate::{clock, telemetry};

/// One call of a command.
#[derive(Debug, Clone)]
pub struct Call {
    /// Who calls.
    pub caller: Caller,
    /// The event that caused it; none where a request did.
    pub causation: Option<EventId>,
    /// The same for all that follows from one request.
    pub correlation: String,
    pub(crate) once: Once,
}

/// What makes a call take effect once, however often it comes.
#[derive(Debug, Clone)]
pub(crate) enum Once {
    /// Nothing: it reads, or may be repeated.
    No,
    /// Its idempotency key.
    Key(Arc<Attempt>),
    /// The event that it handles.
    Event(Claim),
}

impl Call {
    /// A call of a request's, with its idempotency key if it has one.
    #[must_use]
    pub fn of_request(caller: Caller, attempt: Option<Attempt>) -> Self {
        let correlation = telemetry::trace_id().unwrap_or_else(|| clock::new_id().to_string());
        let once = attempt.map_or(Once::No, |attempt| Once::Key(Arc::new(attempt)));
        Self { caller, causation: None, correlation, once }
    }
}
