//! The current trace: continued from a request, passed on in another, and what a span says.

use authz::Caller;
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry::{Context, global};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The longest `tracestate` that is forwarded.
const MAX_TRACESTATE_BYTES: usize = 512;
struct Headers<'a>(&'a http::HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut http::HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (http::HeaderName::try_from(key), http::HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}

/// Makes a span the child of the one that a request's headers name.
pub fn continue_trace(span: &Span, headers: &http::HeaderMap) {
    if !span.is_disabled() {
        let parent = global::get_text_map_propagator(|p| p.extract_with_context(&Context::new(), &Headers(headers)));
        span.set_parent(parent).ok();
    }
}

/// Sets an attribute of a span that is known only at its end. (A field that is recorded late costs the log, which shows no spans by
/// then, the reading and writing of all its fields.)
pub fn set(span: &Span, key: &'static str, value: impl Into<opentelemetry::Value>) {
    span.set_attribute(key, value);
}

/// Marks a span as failed, with the reason: a code of docs/errors.md or a status.
pub fn set_error(span: &Span, code: &str) {
    set(span, "error.type", code.to_owned());
}

/// Sets the caller of a span.
pub fn set_caller(span: &Span, who: &Caller) {
    set(span, "user.id", who.actor.subject().id.to_string());
    set(span, "flotilla.actor", who.actor.to_string());
    set(span, "flotilla.tenant", who.tenant.to_string());
}

/// Puts the current span into the headers of a request.
pub fn pass_trace(headers: &mut http::HeaderMap) {
    let context = Span::current().context();
    global::get_text_map_propagator(|p| p.inject_context(&context, &mut HeadersMut(headers)));
    // A caller's value goes no further than the specification asks (W3C Trace Context, 3.3.1.5): heads are bounded.
    if headers.get("tracestate").is_some_and(|state| state.len() > MAX_TRACESTATE_BYTES) {
        headers.remove("tracestate");
    }
}

/// The current span as a `traceparent`, where it is traced.
#[must_use]
pub fn traceparent() -> Option<String> {
    let mut headers = http::HeaderMap::new();
    pass_trace(&mut headers);
    headers.get("traceparent").and_then(|value| value.to_str().ok()).map(ToOwned::to_owned)
}

/// The id of the current trace, 32 hex digits, where it is traced.
#[must_use]
pub fn trace_id() -> Option<String> {
    let context = Span::current().context();
    let span = context.span();
    let id = span.span_context();
    id.is_valid().then(|| id.trace_id().to_string())
}
