//! The operations port of a service: `/metrics`, `/healthz` (the process is alive), `/readyz` (it can do its work), and the operators' gRPC
//! services ([`crate::operators`]).

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

use crate::Process;
use crate::clock;
use crate::server::{self, Bounds};
use crate::tls::Speaks;

/// How many connections the port accepts at once.
const CONNECTIONS: usize = 100;
/// How long an operator's call may take.
const LONGEST: Duration = Duration::from_secs(900);

/// The metrics, among them this process' clock: whoever reads them compares it with their own.
fn read(metrics: &PrometheusHandle) -> String {
    metrics::gauge!("clock_seconds").set(clock::now().timestamp_millis() as f64 / 1e3);
    metrics.render()
}

/// Serves the operations port until the process stops; returns its address. `/healthz` names the release.
///
/// # Errors
/// The address cannot be bound.
pub async fn serve(
    process: &Process,
    listen: SocketAddr,
    metrics: Option<PrometheusHandle>,
) -> Result<SocketAddr, anyhow::Error> {
    let Process { lifecycle, readiness, release, operators, .. } = process.clone();
    let listener = TcpListener::bind(listen).await.map_err(|e| anyhow::anyhow!("the operations port {listen}: {e}"))?;
    let address = listener.local_addr()?;
    if let Some(metrics) = metrics.clone() {
        lifecycle.run("metrics upkeep", |stop| async move {
            let mut tick = tokio::time::interval(Duration::from_secs(5));
            while stop.run_until_cancelled(tick.tick()).await.is_some() {
                metrics.run_upkeep();
            }
        });
    }
    let tls = process.acceptor(Speaks::Both)?;
    let health = format!("ok\nrelease {release}\n");
    let router = Router::new()
        .route("/healthz", get(move || async move { health }))
        .route("/readyz", get(move || async move { readiness.answer() }))
        .route("/metrics", get(move || async move { metrics.map(|m| read(&m)).unwrap_or_default() }))
        .fallback(move |request| operators.answer(request));
    let bounds = Bounds { connections: CONNECTIONS, streams: 100, http2_only: false, longest: LONGEST };
    lifecycle.spawn("operations port", server::serve(listener, router, (bounds, tls), lifecycle.stopping()));
    Ok(address)
}
