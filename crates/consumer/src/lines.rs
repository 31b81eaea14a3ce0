//! The log line of an event: what became of it, in which trace. Target `consumer::handled`, at INFO what was handled and at
//! WARN what was not.

use std::time::Duration;

use crate::event::Event;

/// What is kept of an event for its line while the handler has it. Nothing of its data.
pub struct Line {
    event_id: String,
    event_type: String,
    tenant: String,
    trace_id: String,
    delivered: i64,
}

impl Line {
    /// The line of an event. (It does not ask first whether the line will be written: with filters for each layer, a question
    /// without an event behind it makes the thread's next one count as filtered, tokio-rs/tracing 2519.)
    pub fn of(event: &Event) -> Self {
        Self {
            event_id: event.attribute("id").to_owned(),
            event_type: event.event_type().to_owned(),
            tenant: event.attribute("tenant").to_owned(),
            trace_id: trace_id(event.attribute("traceparent")).to_owned(),
            delivered: event.delivered,
        }
    }

    /// Writes it. `took` is the time of the handler, with all of its batch.
    pub fn write(&self, consumer: &str, outcome: &'static str, took: Duration) {
        let Self { event_id, event_type, tenant, trace_id, delivered } = self;
        let duration_ms = took.as_micros() as f64 / 1e3;
        macro_rules! line {
            ($write:ident) => {
                tracing::$write!(target: "consumer::handled", trace_id, tenant, consumer, method = event_type, outcome,
                    duration_ms, event_id, delivered, "event")
            };
        }
        if ["done", "duplicate", "discarded"].contains(&outcome) { line!(info) } else { line!(warn) }
    }
}

/// The trace of a W3C `traceparent` (<https://www.w3.org/TR/trace-context/#traceparent-header>); empty when it is none.
#[must_use]
pub fn trace_id(traceparent: &str) -> &str {
    let one = |id: &&str| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
    traceparent.split('-').nth(1).filter(one).unwrap_or_default()
}
