//! The spans of handlers.

use std::collections::HashMap;

use opentelemetry::trace::TraceContextExt as _;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::config::Config;
use crate::event::Event;

/// How many creation contexts a batch's span links to.
const MAX_LINKS: usize = 64;

/// The span of a batch: the child of its only event's creation, or linked to those of several
/// (OpenTelemetry semantic conventions for messaging: a parent for single messages, links for batches).
pub fn process(config: &Config, events: &[Event]) -> tracing::Span {
    let span = tracing::info_span!(
        target: "consumer::trace",
        "process",
        otel.name = format_args!("process {}", config.filter),
        otel.kind = "consumer",
        messaging.system = "nats",
        messaging.operation.name = "process",
        messaging.consumer.group.name = config.durable,
        messaging.batch.message_count = events.len(),
    );
    if span.is_disabled() {
        return span;
    }
    if let [event] = events {
        span.set_attribute("cloudevents.event_id", event.attribute("id").to_owned());
        span.set_attribute("cloudevents.event_type", event.event_type().to_owned());
        span.set_attribute("tenant", event.attribute("tenant").to_owned());
    }
    let links = events.len();
    let contexts = events.iter().filter_map(|event| event.attributes.get("traceparent")).map(|traceparent| {
        let carrier = HashMap::from([("traceparent".to_owned(), traceparent.clone())]);
        opentelemetry::global::get_text_map_propagator(|propagator| {
            propagator.extract_with_context(&opentelemetry::Context::new(), &carrier)
        })
    });
    for (index, context) in contexts.take(MAX_LINKS).enumerate() {
        if index == 0 && links == 1 {
            span.set_parent(context).ok();
        } else {
            span.add_link(context.span().span_context().clone());
        }
    }
    span
}
