//! The service's answers to operators.

use std::sync::Arc;

use contracts::{TodoId, UserId};
use service::operators_data::{Data, Erase};
use service::{
    Call, Failure, Process, StoreError, TenantTx, nats, operators_aggregates, operators_data, operators_outbox,
};
use tonic::service::Routes;
use uuid::Uuid;

use crate::commands::{self, App};
use crate::store_states::Todos;
use crate::{Config, MIGRATIONS, store_data};

/// Serves the operators' services, on the operations port.
pub(crate) fn serve(config: &Config, process: &Process, app: &App, nats: nats::Client) -> Result<(), anyhow::Error> {
    let outbox = operators_outbox::outbox(process, &config.outbox, nats)?;
    let todos = operators_aggregates::aggregates(app.db.clone(), Arc::new([Box::new(Todos)]));
    let data =
        Data { own: &store_data::TABLES, migrations: MIGRATIONS, kinds: Arc::new([Box::new(Erased(app.clone()))]) };
    let data = operators_data::data(process, app.db.clone(), data)?;
    process.operate(&config.common.issuer, Routes::new(outbox).add_service(todos).add_service(data))
}

/// How the service erases todos.
struct Erased(App);

#[tonic::async_trait]
impl Erase for Erased {
    fn kind(&self) -> &'static str {
        "todo"
    }

    async fn holding(
        &self,
        tx: &mut TenantTx,
        person: Option<&UserId>,
        after: Uuid,
        limit: i64,
    ) -> Result<Vec<Uuid>, StoreError> {
        store_data::holding(tx, person, after, limit).await
    }

    async fn erase(&self, call: &Call, person: Option<&UserId>, id: Uuid) -> Result<bool, Failure> {
        let erased = match person {
            None => commands::erase(&self.0, call, TodoId::new(id)).await,
            Some(person) => commands::forget(&self.0, call, TodoId::new(id), person).await,
        };
        Ok(erased?)
    }
}
