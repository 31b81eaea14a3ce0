//! What operators ask of the service.

use service::{Process, nats, operators_outbox};
use tonic::service::Routes;

use crate::Config;

/// Serves it, on the operations port.
pub(crate) fn serve(config: &Config, process: &Process, nats: nats::Client) -> Result<(), anyhow::Error> {
    let outbox = operators_outbox::outbox(process, &config.outbox, nats)?;
    process.operate(&config.common.issuer, Routes::new(outbox))
}
