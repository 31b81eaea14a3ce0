//! The operations port of a service: `/metrics`, `/healthz` (the process is alive), `/readyz` (it can do its work), and the operators' gRPC
//! services ([`crate::operators`]).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tokio::net::TcpListener;

use crate::Process;
use crate::server::{self, Bounds};

/// How many connections the port accepts at once.
const CONNECTIONS: usize = 100;
/// How long an operator's call may take.
const LONGEST: Duration = Duration::from_secs(900);

/// The conditions for readiness, by name. Clones are the same readiness.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, bool>>>);

impl Readiness {
    /// Reports whether a condition holds. One that was never named does not count.
    pub fn set(&self, condition: &'static str, holds: bool) {
        if let Ok(mut conditions) = self.0.lock() {
            conditions.insert(condition, holds);
        }
    }

    /// The conditions, and whether all hold.
    #[must_use]
    pub fn get(&self) -> (bool, BTreeMap<&'static str, bool>) {
        let conditions = self.0.lock().map(|conditions| conditions.clone()).unwrap_or_default();
        (!conditions.is_empty() && conditions.values().all(|holds| *holds), conditions)
    }

    /// The answer to a readiness probe.
    pub fn answer(&self) -> (StatusCode, Json<serde_json::Value>) {
        let (ready, conditions) = self.get();
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, Json(json!({"ready": ready, "conditions": conditions})))
    }
}

/// Counts a call or request as running until it is dropped.
pub struct AtWork(metrics::Gauge);

impl AtWork {
    /// Counts it.
    #[must_use]
    pub fn new(gauge: &metrics::Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Serves the operations port until the process stops; returns its address. `/healthz` names the release.
///
/// # Errors
/// Fails when the address cannot be bound.
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
    let health = format!("ok\nrelease {release}\n");
    let router = Router::new()
        .route("/healthz", get(move || async move { health }))
        .route("/readyz", get(move || async move { readiness.answer() }))
        .route("/metrics", get(move || async move { metrics.map(|m| m.render()).unwrap_or_default() }))
        .fallback(move |request| operators.answer(request));
    let bounds = Bounds { connections: CONNECTIONS, streams: 100, http2_only: false, longest: LONGEST };
    lifecycle.spawn("operations port", server::serve(listener, router, bounds, lifecycle.stopping()));
    Ok(address)
}
