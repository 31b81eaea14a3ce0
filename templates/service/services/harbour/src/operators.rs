//! The service's API for operators.

use std::sync::Arc;

use contracts::UserId;
use contracts::events::harbour::{LogbookId, VesselId};
use service::operators_aggregates::Kinds;
use service::operators_data::{Data, Erase, Erased};
use service::{
    Call, Failure, Process, StoreError, TenantTx, nats, operators_aggregates, operators_data, operators_outbox,
};
use tonic::service::Routes;
use uuid::Uuid;

use crate::commands::{self, App};
use crate::store_states::{Logbooks, Vessels};
use crate::{Config, MIGRATIONS, store_data};

/// Serves it on the operations port.
pub(crate) fn serve(config: &Config, process: &Process, app: &App, nats: nats::Client) -> Result<(), anyhow::Error> {
    let outbox = operators_outbox::outbox(process, &config.outbox, nats)?;
    let kinds: Kinds = Arc::new([Box::new(Vessels), Box::new(Logbooks)]);
    let aggregates = operators_aggregates::aggregates(app.db.clone(), kinds);
    // Logbooks first: otherwise the handler deletes them, with an event that carries what they held.
    let erased: Erased = Arc::new([Box::new(EraseLogbooks(app.clone())), Box::new(EraseVessels(app.clone()))]);
    let data = Data { own: &store_data::TABLES, migrations: MIGRATIONS, kinds: erased };
    let data = operators_data::data(process, app.db.clone(), data)?;
    process.operate(&config.common.issuer, Routes::new(outbox).add_service(aggregates).add_service(data))
}

struct EraseVessels(App);

struct EraseLogbooks(App);

#[tonic::async_trait]
impl Erase for EraseVessels {
    fn kind(&self) -> &'static str {
        "vessel"
    }

    async fn holding(
        &self,
        tx: &mut TenantTx,
        person: Option<&UserId>,
        after: Uuid,
        limit: i64,
    ) -> Result<Vec<Uuid>, StoreError> {
        store_data::vessels(tx, person, after, limit).await
    }

    async fn erase(&self, call: &Call, person: Option<&UserId>, id: Uuid) -> Result<bool, Failure> {
        Ok(commands::erase_vessel(&self.0, call, VesselId::new(id), person).await?)
    }
}

#[tonic::async_trait]
impl Erase for EraseLogbooks {
    fn kind(&self) -> &'static str {
        "logbook"
    }

    async fn holding(
        &self,
        tx: &mut TenantTx,
        person: Option<&UserId>,
        after: Uuid,
        limit: i64,
    ) -> Result<Vec<Uuid>, StoreError> {
        store_data::logbooks(tx, person, after, limit).await
    }

    async fn erase(&self, call: &Call, person: Option<&UserId>, id: Uuid) -> Result<bool, Failure> {
        Ok(commands::erase_logbook(&self.0, call, LogbookId::new(id), person).await?)
    }
}
