//! One call of a command: the caller, and what makes the call take effect once. A server makes it from a request with a verified token, a
//! handler from an event; the command is the same.

use std::sync::Arc;

use authz::{Caller, Denied, Permission};
use consumer::Claim;
use contracts::EventId;

use crate::idempotency::Attempt;
use crate::{clock, trace};

/// One call of a command.
#[derive(Debug, Clone)]
pub struct Call {
    /// The caller.
    pub caller: Caller,
    /// The event that caused it; none where a request did.
    pub causation: Option<EventId>,
    /// The same for everything that follows from one request.
    pub correlation: String,
    /// The operator who had the service do it; none where no operator had. Events do not name it, audits do.
    pub operator: Option<String>,
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
    /// The first line of a command that names no aggregate: may the caller do it?
    ///
    /// # Errors
    /// Role or scopes do not allow it.
    pub fn authorize(&self, permission: &Permission) -> Result<(), Denied> {
        permission.check(&self.caller)
    }

    /// The first line of a command about one aggregate: may the caller `see` it, and may it do this? A caller that may see none does not
    /// learn whether one exists. Role and scopes decide. Check relations here as well, before the transaction (OpenFGA: who owns the list,
    /// who shares it). Check what depends on the row once more when the row is locked.
    ///
    /// # Errors
    /// `unseen`, or that role or scopes do not allow it.
    pub fn authorize_on<E: From<Denied>>(
        &self,
        permission: &Permission,
        see: &Permission,
        unseen: impl FnOnce() -> E,
    ) -> Result<(), E> {
        match see.check(&self.caller) {
            Err(Denied::Role { .. }) => Err(unseen()),
            _ => Ok(permission.check(&self.caller)?),
        }
    }

    /// A call from a request, with its idempotency key if it has one.
    #[must_use]
    pub fn of_request(caller: Caller, attempt: Option<Attempt>) -> Self {
        let correlation = trace::trace_id().unwrap_or_else(|| clock::new_id().to_string());
        let once = attempt.map_or(Once::No, |attempt| Once::Key(Arc::new(attempt)));
        Self { caller, causation: None, correlation, operator: None, once }
    }

    /// The same, where this operator has the service do it.
    #[must_use]
    pub fn had_by(self, operator: String) -> Self {
        Self { operator: Some(operator), ..self }
    }

    /// Who did it, for an audit: `operator:olga` where an operator had it done, or the actors, `user:ann`.
    #[must_use]
    pub fn by(&self) -> String {
        self.operator.as_ref().map_or_else(|| self.caller.actor.to_string(), |operator| format!("operator:{operator}"))
    }
}
