//! Whether a process can do its work, and how much of it is under way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Json;
use axum::http::StatusCode;
use serde_json::json;

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
