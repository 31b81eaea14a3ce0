//! Errors, as RFC 9457 problem details with a stable `code`. Only this module turns a gRPC status into an
//! HTTP status. `docs/errors.md`, or the `errors.md` of a service, explains every code; the gateway serves all of them at `/problems`.

use std::collections::HashMap;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};
use service::Failure;
use service::failure::{ACR_VALUES, MAX_AGE};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::json::camel;
use crate::rates;

/// A problem, as JSON Schema.
pub const PROBLEM_SCHEMA: &str = r##"{
    "type": "object",
    "description": "What went wrong (RFC 9457).",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference", "description": "The page that explains it.", "examples": ["/problems#todo_not_found"]},
        "title": {"type": "string", "description": "The status, in words.", "examples": ["Not Found"]},
        "status": {"type": "integer", "description": "The HTTP status.", "minimum": 400, "maximum": 599, "examples": [404]},
        "detail": {"type": "string", "description": "For people: what is wrong, and what to do.", "examples": ["there is no todo with this id"]},
        "code": {"type": "string", "pattern": "^[A-Z][A-Z0-9_]+$", "description": "For programs: it stays the same.", "examples": ["TODO_NOT_FOUND"]},
        "errors": {
            "type": "array",
            "description": "Which parts of the request are wrong.",
            "items": {
                "type": "object",
                "required": ["detail", "pointer"],
                "properties": {
                    "detail": {"type": "string", "description": "What is wrong with it."},
                    "pointer": {"type": "string", "description": "Where it is (RFC 6901), in the body or among the parameters.", "examples": ["#/dueTime"]}
                }
            }
        },
        "traceId": {"type": "string", "pattern": "^[0-9a-f]{32}$", "description": "What to name when you ask for help."}
    }
}"##;

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
        let mut problem = Self::new(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", "");
        problem.headers.extend(self::allowed(allowed));
        let named = problem.headers.first().and_then(|(_, value)| value.to_str().ok()).unwrap_or_default();
        problem.detail = format!("this path takes {named}");
        problem
    }

    /// Adds the time after which to try again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.headers.push((RETRY_AFTER, HeaderValue::from(seconds)));
        self
    }
}

/// These methods and OPTIONS, as `Allow`.
pub fn allowed(methods: &[&http::Method]) -> Option<(HeaderName, HeaderValue)> {
    let mut names: Vec<&str> = Vec::with_capacity(methods.len() + 1);
    for name in methods.iter().map(|method| method.as_str()).chain(["OPTIONS"]) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Some((ALLOW, HeaderValue::try_from(names.join(", ")).ok()?))
}

/// The errors of OAuth (RFC 6749, 5.2; RFC 8693, 2.2.2) that a service gives as its reason, in capitals.
const OAUTH: [&str; 5] =
    ["INVALID_GRANT", "INVALID_REQUEST", "INVALID_SCOPE", "INVALID_TARGET", "UNSUPPORTED_GRANT_TYPE"];

impl Problem {
    /// The answer of a method that takes a form: OAuth's error, in place of a problem.
    #[must_use]
    pub fn into_oauth_response(self) -> Response {
        let error = match self.status {
            _ if OAUTH.contains(&self.code.as_str()) => self.code.to_ascii_lowercase(),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                "temporarily_unavailable".to_owned()
            }
            status if status.is_server_error() => "server_error".to_owned(),
            _ => "invalid_request".to_owned(),
        };
        // The characters that it may have.
        let plain = |c: char| if matches!(c, ' '..='~') && c != '"' && c != '\\' { c } else { '\'' };
        let detail: String = self.detail.chars().map(plain).collect();
        let body = json!({"error": error, "error_description": detail});
        answered(self.status, "application/json", &body, self.headers)
    }
}

fn answered(
    status: StatusCode,
    media: &'static str,
    body: &Value,
    headers: Vec<(HeaderName, HeaderValue)>,
) -> Response {
    let mut response = (status, body.to_string()).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    for (name, value) in headers {
        response.headers_mut().insert(name, value);
    }
    response
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
            ("UNSUPPORTED_MEDIA_TYPE", _) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ("REQUEST_TIMEOUT", _) => StatusCode::REQUEST_TIMEOUT,
            ("HEADERS_TOO_LARGE", _) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            (_, code) => http_status(code),
        };
        let mut problem = Self::new(http, &info.reason, status.message());
        for violation in details.bad_request().into_iter().flat_map(|bad| &bad.field_violations) {
            let pointer = format!("#/{}", camel(&violation.field).replace('.', "/"));
            problem.errors.push(json!({"detail": violation.description, "pointer": pointer}));
        }
        if let Some(delay) = details.retry_info().and_then(|info| info.retry_delay) {
            let seconds = delay.as_secs().max(1);
            problem = problem.retry_after(seconds);
            problem.headers.extend(rates::of_refusal(&info.metadata, seconds));
        }
        if http == StatusCode::UNAUTHORIZED {
            let challenge = match info.reason.as_str() {
                "TOKEN_MISSING" => "Bearer".to_owned(),
                "INSUFFICIENT_USER_AUTHENTICATION" => step_up(&info.metadata),
                _ => r#"Bearer error="invalid_token""#.to_owned(),
            };
            problem.headers.extend(HeaderValue::try_from(challenge).map(|value| (WWW_AUTHENTICATE, value)));
        }
        problem
    }
}

/// The challenge of RFC 9470, 3: what to ask the provider for. The values hold no quote.
fn step_up(demanded: &HashMap<String, String>) -> String {
    let named = [ACR_VALUES, MAX_AGE].into_iter().filter_map(|name| Some((name, demanded.get(name)?)));
    let parameters: String = named.map(|(name, value)| format!(r#", {name}="{value}""#)).collect();
    format!(r#"Bearer error="insufficient_user_authentication"{parameters}"#)
}

/// What the edge itself finds wrong with a call of gRPC's.
impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        use service::Code;
        let (code, reason) = match problem.code.as_str() {
            "TOO_LARGE" => (Code::ResourceExhausted, "TOO_LARGE"),
            "HEADERS_TOO_LARGE" => (Code::ResourceExhausted, "HEADERS_TOO_LARGE"),
            "REQUEST_TIMEOUT" => (Code::DeadlineExceeded, "REQUEST_TIMEOUT"),
            "DEADLINE_EXCEEDED" => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
            "UNAVAILABLE" => (Code::Unavailable, "UNAVAILABLE"),
            "IDEMPOTENCY_KEY_MALFORMED" => (Code::InvalidArgument, "IDEMPOTENCY_KEY_MALFORMED"),
            _ => (Code::InvalidArgument, "INVALID_ARGUMENT"),
        };
        let failure = Failure::new(code, reason, problem.detail);
        let again = problem.headers.iter().any(|(name, _)| name == RETRY_AFTER);
        if again { failure.retry_after(Duration::from_secs(1)) } else { failure }.into()
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

impl Problem {
    /// The problem as JSON.
    #[must_use]
    pub fn body(&self) -> Value {
        let mut body = json!({
            "type": format!("/problems#{}", self.code.to_lowercase()),
            "title": self.status.canonical_reason().unwrap_or("Problem"),
            "status": self.status.as_u16(),
            "detail": self.detail,
            "code": self.code,
        });
        if !self.errors.is_empty() {
            body["errors"] = self.errors.clone().into();
        }
        if let Some(trace_id) = service::trace::trace_id() {
            body["traceId"] = trace_id.into();
        }
        body
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = self.body();
        answered(self.status, "application/problem+json", &body, self.headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use authz::Insufficient;
    use futures::FutureExt as _;
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
    fn a_step_up_says_what_to_ask_the_provider_for() {
        let challenge = |acr_values: &[&str], max_age| {
            let acr_values = acr_values.iter().map(|&acr| acr.to_owned()).collect();
            let problem: Problem = Status::from(Failure::from(Insufficient { acr_values, max_age })).into();
            let (_, value) = problem.headers.into_iter().find(|(name, _)| name == WWW_AUTHENTICATE).unwrap();
            (problem.status.as_u16(), value.to_str().unwrap().to_owned())
        };
        let said = |more: &str| (401, format!(r#"Bearer error="insufficient_user_authentication"{more}"#));
        assert_eq!(challenge(&["a", "b"], Some(60)), said(r#", acr_values="a b", max_age="60""#));
        assert_eq!(challenge(&["a"], None), said(r#", acr_values="a""#));
        assert_eq!(challenge(&[], Some(60)), said(r#", max_age="60""#));
    }

    #[test]
    fn a_call_that_did_not_get_through_can_be_tried_again_and_shows_no_internals() {
        let problem = Problem::from(Status::unknown("tcp connect error: 10.0.0.1:7101"));
        assert_eq!(problem.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(!problem.detail.contains("10.0.0.1"));
        assert_eq!(Problem::from(Status::cancelled("Timeout expired")).status, StatusCode::GATEWAY_TIMEOUT);
    }

    #[test]
    fn a_method_that_takes_a_form_answers_with_the_errors_of_oauth() {
        use service::Code as C;
        for (code, reason, error) in [
            (C::InvalidArgument, "INVALID_GRANT", "invalid_grant"),
            (C::InvalidArgument, "INVALID_TARGET", "invalid_target"),
            (C::InvalidArgument, "INVALID_ARGUMENT", "invalid_request"),
            (C::NotFound, "TODO_NOT_FOUND", "invalid_request"),
            (C::Unavailable, "UNAVAILABLE", "temporarily_unavailable"),
            (C::ResourceExhausted, "TOO_MANY_REQUESTS", "temporarily_unavailable"),
            (C::Internal, "INTERNAL", "server_error"),
        ] {
            let failure = Failure::new(code, reason, "say \"ä\"");
            let problem: Problem = Status::from(failure).into();
            let (status, response) = (problem.status, problem.into_oauth_response());
            assert_eq!(response.status(), status);
            assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
            let body = axum::body::to_bytes(response.into_body(), 1_024).now_or_never().unwrap().unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["error"], error, "{reason}");
            let said = body["error_description"].as_str().unwrap();
            assert!(said.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\'), "{said}");
        }
    }

    #[test]
    fn field_violations_become_pointers() {
        let problem = Problem::from(Status::from(Failure::invalid("due_time", "must not be so")));
        assert_eq!(problem.errors, [json!({"detail": "must not be so", "pointer": "#/dueTime"})]);
    }
}
