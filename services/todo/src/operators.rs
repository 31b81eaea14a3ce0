//! What operators ask of the service.

use std::sync::Arc;

use service::{Db, Process, nats, operators_aggregates, operators_outbox};
use tonic::service::Routes;

use crate::Config;
use crate::store_states::Todos;

/// Serves it, on the operations port.
pub(crate) fn serve(config: &Config, process: &Process, db: &Db, nats: nats::Client) -> Result<(), anyhow::Error> {
    let outbox = operators_outbox::outbox(process, &config.outbox, nats)?;
    let todos = operators_aggregates::aggregates(db.clone(), Arc::new([Box::new(Todos)]));
    process.operate(&config.common.issuer, Routes::new(outbox).add_service(todos))
}
