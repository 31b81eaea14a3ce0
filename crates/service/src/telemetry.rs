//! Logs as JSON on standard output, metrics for Prometheus, spans over OTLP where an endpoint is set.

use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::Base;
use crate::lines::{self, Lines};

/// Buckets for durations, in seconds.
const BUCKETS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// What has been set up, to be flushed at the end.
pub struct Telemetry {
    metrics: PrometheusHandle,
    spans: SdkTracerProvider,
}

impl Telemetry {
    /// Sets up logs, metrics and spans for this process. Call once, inside the runtime.
    ///
    /// # Errors
    /// Fails when the exporter cannot be made, or when it was called before.
    pub fn init(service: &'static str, base: &Base) -> Result<Self, anyhow::Error> {
        let Base { log, otlp_endpoint, release, sample: share, .. } = base;
        let share = *share;
        let otlp_endpoint = otlp_endpoint.as_deref();
        let spans = provider(service, release, otlp_endpoint, share)?;
        // Without an export, calls still have trace ids (events and problems carry them), but the spans that serve tracing alone are not
        // made.
        let traced = match otlp_endpoint {
            Some(_) => {
                "info,request=off,outbox::published=off,consumer::handled=off,h2=off,hyper=off,tonic=off,tower=off,opentelemetry=off"
            }
            None => "off,service::grpc=info,gateway::http=info",
        };
        let traced: Targets = traced.parse()?;
        // A span is entered at each step of a call: recording that costs more than it is worth.
        let layer = tracing_opentelemetry::layer()
            .with_tracer(spans.tracer(service))
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_location(false)
            .with_threads(false)
            .with_filter(traced);
        global::set_text_map_propagator(TraceContextPropagator::new());
        // Filters by target only: filters that read spans run at each step of each request.
        let log: Targets = format!("{log},outbox::trace=off,consumer::trace=off,service::trace=off").parse()?;
        let (writer, writes) = lines::writer();
        tracing_subscriber::registry()
            .with(layer)
            .with(
                tracing_subscriber::fmt::layer()
                    .json()
                    .event_format(Lines::new(service, release, share))
                    .with_writer(writer)
                    .with_filter(log),
            )
            .try_init()?;
        lines::keep(writes);
        let metrics =
            PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)?;
        let metrics = metrics.install_recorder()?;
        metrics::gauge!("build_info", "service" => service, "release" => release.clone()).set(1.0);
        Ok(Self { metrics, spans })
    }

    /// The metrics, for the operations port.
    #[must_use]
    pub fn metrics(&self) -> PrometheusHandle {
        self.metrics.clone()
    }

    /// Sends and writes what has not been yet.
    pub async fn flush(self) {
        tokio::task::spawn_blocking(move || self.spans.shutdown_with_timeout(Duration::from_secs(3))).await.ok();
        lines::write_waiting();
    }
}

fn provider(
    service: &'static str,
    release: &str,
    otlp_endpoint: Option<&str>,
    share: f64,
) -> Result<SdkTracerProvider, anyhow::Error> {
    let release = KeyValue::new("service.version", release.to_owned());
    let resource = Resource::builder().with_service_name(service).with_attribute(release).build();
    // The id alone decides, whatever the caller's flag says: the same traces as everywhere, and as in the log.
    let mut provider =
        SdkTracerProvider::builder().with_resource(resource).with_sampler(Sampler::TraceIdRatioBased(share));
    if let Some(endpoint) = otlp_endpoint {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(Duration::from_secs(3))
            .build()?;
        let batch = BatchConfigBuilder::default().with_scheduled_delay(Duration::from_secs(1)).build();
        provider = provider.with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batch).build());
    }
    let provider = provider.build();
    global::set_tracer_provider(provider.clone());
    Ok(provider)
}
