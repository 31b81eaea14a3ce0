//! gRPC's own services, which answer anybody: health, and where it is wanted reflection of all that is served.

use std::collections::BTreeSet;

use axum::Router;
use service::Lifecycle;
use tonic::server::NamedService;
use tonic_health::ServingStatus;

use crate::routes::{Route, Routes};

/// The largest message of theirs that is read: a name.
const MAX_MESSAGE_BYTES: usize = 4 * 1024;

/// Whether this is the path of a method of theirs; and whether it streams.
pub fn streams(path: &str) -> Option<bool> {
    match path.strip_prefix("/grpc.health.v1.Health/") {
        Some(method) => Some(method == "Watch"),
        None => path.starts_with("/grpc.reflection.").then_some(true),
    }
}

/// The services; health says that the edge serves, until it stops.
///
/// # Errors
/// The descriptors cannot be read.
pub fn router(routes: &Routes, reflects: bool, lifecycle: &Lifecycle) -> Result<Router, anyhow::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    lifecycle.run("gRPC health", |stop| async move {
        stop.cancelled().await;
        reporter.set_service_status("", ServingStatus::NotServing).await;
    });
    let health = health.max_decoding_message_size(MAX_MESSAGE_BYTES);
    let router = Router::new().route_service(&of(&health), health);
    if !reflects {
        return Ok(router);
    }
    let descriptors = routes.descriptors()?;
    let reflection = || {
        let mut served = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(&descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.health.v1.Health");
        for name in routes.all().map(Route::service).collect::<BTreeSet<_>>() {
            served = served.with_service_name(name);
        }
        served
    };
    // Two names of the same service: some clients know only the older one.
    let newer = reflection().build_v1()?.max_decoding_message_size(MAX_MESSAGE_BYTES);
    let older = reflection().build_v1alpha()?.max_decoding_message_size(MAX_MESSAGE_BYTES);
    Ok(router.route_service(&of(&newer), newer).route_service(&of(&older), older))
}

/// The paths of a service's methods.
fn of<S: NamedService>(_: &S) -> String {
    format!("/{}/{{method}}", S::NAME)
}
