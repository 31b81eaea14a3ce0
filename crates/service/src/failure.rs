//! What a caller sees when a call fails: one closed set of codes, a stable reason, and a remedy.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use authz::{Denied, Insufficient};
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};
use tracing::error;

/// A lock was not acquired within `lock_timeout` (SQLSTATE).
pub(crate) const LOCK_NOT_AVAILABLE: &str = "55P03";
/// A deadlock, and a serialization failure (SQLSTATE): a retry helps.
pub(crate) const DEADLOCK: &str = "40P01";
const SERIALIZATION: &str = "40001";

/// What a step-up (RFC 9470) demands, by the names in the metadata: classes with spaces between, and seconds.
pub const ACR_VALUES: &str = "acr_values";
/// See [`ACR_VALUES`].
pub const MAX_AGE: &str = "max_age";

/// The kinds of failure. Each is one gRPC code; the gateway derives the HTTP status from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The request is wrong, whatever the state.
    InvalidArgument,
    /// No valid access token.
    Unauthenticated,
    /// The caller lacks the permission.
    PermissionDenied,
    /// It does not exist, or the caller may not see it.
    NotFound,
    /// It exists already.
    AlreadyExists,
    /// The state does not allow it; a retry will not help.
    FailedPrecondition,
    /// It changed meanwhile, or somebody is changing it: read it again, or retry.
    Aborted,
    /// Too much.
    ResourceExhausted,
    /// It exceeded its deadline; whether it has happened is not known.
    DeadlineExceeded,
    /// There is no such method.
    Unimplemented,
    /// A dependency is unavailable: retry later.
    Unavailable,
    /// A fault of ours.
    Internal,
}

impl Code {
    const fn grpc(self) -> tonic::Code {
        match self {
            Self::InvalidArgument => tonic::Code::InvalidArgument,
            Self::Unauthenticated => tonic::Code::Unauthenticated,
            Self::PermissionDenied => tonic::Code::PermissionDenied,
            Self::NotFound => tonic::Code::NotFound,
            Self::AlreadyExists => tonic::Code::AlreadyExists,
            Self::FailedPrecondition => tonic::Code::FailedPrecondition,
            Self::Aborted => tonic::Code::Aborted,
            Self::ResourceExhausted => tonic::Code::ResourceExhausted,
            Self::DeadlineExceeded => tonic::Code::DeadlineExceeded,
            Self::Unimplemented => tonic::Code::Unimplemented,
            Self::Unavailable => tonic::Code::Unavailable,
            Self::Internal => tonic::Code::Internal,
        }
    }
}

/// A failed call.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The kind.
    pub code: Code,
    /// What exactly, stable for programs: `[A-Z][A-Z0-9_]+`.
    pub reason: &'static str,
    /// For people: what is wrong and what to do.
    pub message: String,
    /// Which field is wrong, and how.
    pub violations: Vec<(String, String)>,
    /// What a program needs besides the reason, by name (`google.rpc.ErrorInfo.metadata`).
    pub metadata: Vec<(&'static str, String)>,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// Why, for the log; the caller never sees it.
    #[source]
    pub source: Option<anyhow::Error>,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(code: Code, reason: &'static str, message: impl Display) -> Self {
        Self {
            code,
            reason,
            message: message.to_string(),
            violations: Vec::new(),
            metadata: Vec::new(),
            retry_after: None,
            source: None,
        }
    }

    /// A field of the request is wrong; `what` follows the field's name.
    pub fn invalid(field: &str, what: impl Display) -> Self {
        let mut failure = Self::new(Code::InvalidArgument, "INVALID_ARGUMENT", format_args!("{field} {what}"));
        failure.violations.push((field.to_owned(), what.to_string()));
        failure
    }

    /// An unexpected failure.
    pub fn internal(source: impl Into<anyhow::Error>) -> Self {
        let mut failure = Self::new(Code::Internal, "INTERNAL", "something went wrong here; it has been logged");
        failure.source = Some(source.into());
        failure
    }

    /// A dependency is unavailable.
    pub fn unavailable(what: &str, source: impl Into<anyhow::Error>) -> Self {
        let mut failure = Self::new(Code::Unavailable, "UNAVAILABLE", format_args!("{what} is unavailable: try again"));
        failure.retry_after = Some(Duration::from_secs(1));
        failure.source = Some(source.into());
        failure
    }

    /// A call exceeded its deadline; whether it has happened is not known.
    pub(crate) fn late() -> Self {
        let what = "the call was not done in its time, and may have happened: ask, or try again with the same key";
        Self::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", what)
    }

    /// Sets the time after which to retry.
    #[must_use]
    pub const fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }
}

impl From<Denied> for Failure {
    fn from(denied: Denied) -> Self {
        let reason = match denied {
            Denied::Scope(_) => "INSUFFICIENT_SCOPE",
            Denied::Role { .. } | Denied::This(_) => "PERMISSION_DENIED",
        };
        Self::new(Code::PermissionDenied, reason, denied)
    }
}

impl From<Insufficient> for Failure {
    fn from(insufficient: Insufficient) -> Self {
        let mut failure = Self::new(Code::Unauthenticated, "INSUFFICIENT_USER_AUTHENTICATION", &insufficient);
        let Insufficient { acr_values, max_age } = insufficient;
        failure.metadata.extend((!acr_values.is_empty()).then(|| (ACR_VALUES, acr_values.join(" "))));
        failure.metadata.extend(max_age.map(|seconds| (MAX_AGE, seconds.to_string())));
        failure
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|db| db.code());
        if code.is_some_and(|code| [LOCK_NOT_AVAILABLE, DEADLOCK, SERIALIZATION].contains(&&*code)) {
            // Without a source: a caller can make as many of these as it likes, and none is our fault.
            let what = "something else is changing the same at this moment: try again";
            return Self::new(Code::Aborted, "LOCKED", what).retry_after(Duration::from_secs(1));
        }
        let away = match &error {
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Tls(_) => true,
            // Connection exceptions, operator intervention, insufficient resources, timeouts of locks, statements and idle transactions. A
            // read-only server, too: another server accepts writes by now.
            sqlx::Error::Database(db) => db.code().is_some_and(|code| {
                ["08", "57", "53", "55", "25006", "25P03"].iter().any(|class| code.starts_with(class))
            }),
            _ => false,
        };
        if away { Self::unavailable("the database", error) } else { Self::internal(error) }
    }
}

impl From<Failure> for Status {
    /// The one place where a failure is logged and turned into what the caller sees.
    fn from(failure: Failure) -> Self {
        if let Some(source) = &failure.source {
            error!(reason = failure.reason, error = format!("{source:#}"), "a call failed");
        }
        // A status travels in headers, whose size is bounded: so whatever it names of the request must be bounded, too.
        let short = |text: &str| text.chars().take(300).collect::<String>();
        let mut details = ErrorDetails::new();
        let metadata: HashMap<_, _> =
            failure.metadata.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        details.set_error_info(failure.reason, "flotilla", metadata);
        for (field, what) in &failure.violations {
            details.add_bad_request_violation(field, short(what));
        }
        if let Some(delay) = failure.retry_after {
            details.set_retry_info(Some(delay));
        }
        Self::with_error_details(failure.code.grpc(), short(&failure.message), details)
    }
}
