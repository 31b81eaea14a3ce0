//! The log line of an event: what became of it, in which trace. Target `consumer::handled`; a process that wants none of
//! these switches it off at no cost.

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
    /// That of an event; None where lines are not written.
    pub fn of(event: &Event) -> Option<Self> {
        tracing::enabled!(target: "consumer::handled", tracing::Level::INFO).then(|| Self {
            event_id: event.attribute("id").to_owned(),
            event_type: event.event_type().to_owned(),
            tenant: event.attribute("tenant").to_owned(),
            trace_id: trace_id(event.attribute("traceparent")).to_owned(),
            delivered: event.delivered,
        })
    }

    /// Writes it. `took` is the time of the handler, with all of its batch.
    pub fn write(&self, consumer: &str, outcome: &'static str, took: Duration) {
        let Self { event_id, event_type, tenant, trace_id, delivered } = self;
        let duration_ms = took.as_micros() as f64 / 1e3;
        tracing::info!(target: "consumer::handled", trace_id, tenant, consumer, method = event_type, outcome, duration_ms,
            event_id, delivered, "event");
    }
}

/// The trace of a W3C `traceparent`; empty when it is none.
pub fn trace_id(traceparent: &str) -> &str {
    traceparent.split('-').nth(1).filter(|id| id.len() == 32).unwrap_or_default()
}
