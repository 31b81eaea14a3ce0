//! The spans of the relay.

use std::collections::HashMap;

use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::store::Row;

/// The span of one publish, a child of the command that caused the event. The target lets a process that exports no
/// spans switch it off at no cost.
pub fn publish(row: &Row) -> tracing::Span {
    let span = tracing::info_span!(
        target: "outbox::trace",
        "send",
        otel.name = format_args!("send {}", row.subject.rsplit_once('.').map_or("", |(template, _)| template)),
        otel.kind = "producer",
        messaging.system = "nats",
        messaging.operation.name = "send",
        messaging.destination.name = row.subject,
        cloudevents.event_id = %row.event_id,
        tenant = row.tenant,
    );
    if let (false, Some(traceparent)) = (span.is_disabled(), &row.traceparent) {
        let carrier = HashMap::from([("traceparent".to_owned(), traceparent.clone())]);
        let parent = opentelemetry::global::get_text_map_propagator(|propagator| {
            propagator.extract_with_context(&opentelemetry::Context::new(), &carrier)
        });
        span.set_parent(parent).ok();
    }
    span
}
