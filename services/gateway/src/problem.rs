//! Errors, as RFC 9457 problem details with a stable `code`. Only this module turns a gRPC status into an
//! HTTP status. `docs/errors.md`, or the `errors.md` of a service, explains every code; the gateway serves all of them at `/problems`.

use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::json::camel;

/// A problem.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// Stable, for programs.
    pub code: String,
    /// For people: what is wrong and what to do.
    pub detail: String,
    /// Which fields are wrong: `{detail, pointer}`.
    pub errors: Vec<Value>,
    /// More response headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// A problem without field errors.
    pub fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), detail: detail.into(), errors: Vec::new(), headers: Vec::new() }
    }

    /// The request cannot be read.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", detail)
    }

    /// A part of the request cannot be read: `pointer` says which.
    pub fn invalid_at(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        let (pointer, detail): (String, String) = (pointer.into(), detail.into());
        let errors = vec![json!({"detail": detail, "pointer": pointer})];
        Self { errors, ..Self::invalid(detail) }
    }

    /// An internal error.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL", "something went wrong here; it has been logged")
    }

    /// The path exists, but only for other methods.
    #[must_use]
    pub fn method_not_allowed(allowed: &[&http::Method]) -> Self {
        let allowed = allowed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let detail = format!("this path takes {allowed}");
        let mut problem = Self::new(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", detail);
        problem.headers.extend(HeaderValue::from_str(&allowed).map(|value| (ALLOW, value)));
        problem
    }

    /// Adds the time after which to try again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.headers.push((RETRY_AFTER, HeaderValue::from(seconds)));
        self
    }
}

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let Some(info) = details.error_info() else { return from_transport(&status) };
        let http = match (info.reason.as_str(), status.code()) {
            // HTTP has a more precise status for these.
            ("ETAG_MISMATCH", _) => StatusCode::PRECONDITION_FAILED,
            ("IDEMPOTENCY_KEY_REUSED", _) => StatusCode::UNPROCESSABLE_ENTITY,
            ("TOO_LARGE", _) => StatusCode::PAYLOAD_TOO_LARGE,
            (_, code) => http_status(code),
        };
        let mut problem = Self::new(http, &info.reason, status.message());
        for violation in details.bad_request().into_iter().flat_map(|bad| &bad.field_violations) {
            let pointer = format!("#/{}", camel(&violation.field).replace('.', "/"));
            problem.errors.push(json!({"detail": violation.description, "pointer": pointer}));
        }
        if let Some(delay) = details.retry_info().and_then(|info| info.retry_delay) {
            problem = problem.retry_after(delay.as_secs().max(1));
        }
        if http == StatusCode::UNAUTHORIZED {
            let challenge = match info.reason.as_str() {
                "TOKEN_MISSING" => "Bearer",
                _ => r#"Bearer error="invalid_token""#,
            };
            problem.headers.push((WWW_AUTHENTICATE, HeaderValue::from_static(challenge)));
        }
        problem
    }
}

/// A status that none of our services made: the call did not get through.
fn from_transport(status: &Status) -> Problem {
    match status.code() {
        Code::Cancelled | Code::DeadlineExceeded if status.message().contains("imeout") => Problem::new(
            StatusCode::GATEWAY_TIMEOUT,
            "DEADLINE_EXCEEDED",
            "the service did not answer in time: try again",
        ),
        Code::ResourceExhausted | Code::OutOfRange => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE", "the message is too large")
        }
        _ => {
            tracing::warn!(%status, "a call did not get through");
            Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "UNAVAILABLE",
                "the service is unavailable for the moment: try again",
            )
            .retry_after(1)
        }
    }
}

/// The mapping in google/rpc/code.proto.
const fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded | Code::Cancelled => StatusCode::GATEWAY_TIMEOUT,
        Code::Internal | Code::DataLoss | Code::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "type": format!("/problems#{}", self.code.to_lowercase()),
            "title": self.status.canonical_reason().unwrap_or("Problem"),
            "status": self.status.as_u16(),
            "detail": self.detail,
            "code": self.code,
        });
        if !self.errors.is_empty() {
            body["errors"] = self.errors.into();
        }
        if let Some(trace_id) = service::trace::trace_id() {
            body["traceId"] = trace_id.into();
        }
        let mut response = (self.status, body.to_string()).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        for (name, value) in self.headers {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::Failure;

    fn problem(code: service::Code, reason: &'static str) -> Problem {
        Status::from(Failure::new(code, reason, "m")).into()
    }

    #[test]
    fn a_failure_of_a_service_keeps_its_reason_and_gets_its_status() {
        use service::Code as C;
        for (code, reason, status) in [
            (C::InvalidArgument, "INVALID_ARGUMENT", 400),
            (C::FailedPrecondition, "TODO_ALREADY_OPEN", 400),
            (C::Unauthenticated, "TOKEN_INVALID", 401),
            (C::NotFound, "TODO_NOT_FOUND", 404),
            (C::Aborted, "IDEMPOTENCY_KEY_IN_USE", 409),
            (C::Aborted, "ETAG_MISMATCH", 412),
            (C::InvalidArgument, "IDEMPOTENCY_KEY_REUSED", 422),
            (C::Unavailable, "UNAVAILABLE", 503),
            (C::Aborted, "LOCKED", 409),
            (C::ResourceExhausted, "TOO_MANY_REQUESTS", 429),
            (C::ResourceExhausted, "TOO_LARGE", 413),
            (C::DeadlineExceeded, "DEADLINE_EXCEEDED", 504),
        ] {
            let problem = problem(code, reason);
            assert_eq!((problem.status.as_u16(), problem.code.as_str()), (status, reason));
        }
    }

    #[test]
    fn a_call_that_did_not_get_through_can_be_tried_again_and_shows_no_internals() {
        let problem = Problem::from(Status::unknown("tcp connect error: 10.0.0.1:7101"));
        assert_eq!(problem.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(!problem.detail.contains("10.0.0.1"));
        assert_eq!(Problem::from(Status::cancelled("Timeout expired")).status, StatusCode::GATEWAY_TIMEOUT);
    }

    #[test]
    fn field_violations_become_pointers() {
        let problem = Problem::from(Status::from(Failure::invalid("due_time", "must not be so")));
        assert_eq!(problem.errors, [json!({"detail": "must not be so", "pointer": "#/dueTime"})]);
    }
}
