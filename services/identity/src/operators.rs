//! The service's API for operators.

use std::sync::Arc;

use contracts::UserId;
use contracts::events::identity::{ApiKeyId, GroupId, InvitationId, MemberId, ServiceAccountId};
use service::operators_aggregates::Kinds;
use service::operators_data::{Data, Erase, Erased};
use service::{
    Call, Failure, Process, StoreError, TenantTx, nats, operators_aggregates, operators_data, operators_outbox,
};
use tonic::service::Routes;
use uuid::Uuid;

use crate::commands::App;
use crate::store_states::{ApiKeys, Groups, Invitations, Members, ServiceAccounts, Tenants};
use crate::{
    Config, MIGRATIONS, commands, commands_groups, commands_invitations, commands_programs, commands_tenant,
    operators_tenants, store_data,
};

/// Serves it on the operations port.
pub(crate) fn serve(config: &Config, process: &Process, app: &App, nats: nats::Client) -> Result<(), anyhow::Error> {
    let outbox = operators_outbox::outbox(process, &config.outbox, nats)?;
    let kinds: Kinds = Arc::new([
        Box::new(Tenants),
        Box::new(Members),
        Box::new(Invitations),
        Box::new(Groups),
        Box::new(ServiceAccounts),
        Box::new(ApiKeys),
    ]);
    let aggregates = operators_aggregates::aggregates(app.db.clone(), kinds);
    // The tenant last: it is there as long as anything of it is.
    let erased: Erased = Arc::new([
        Box::new(EraseApiKeys(app.clone())),
        Box::new(EraseServiceAccounts(app.clone())),
        Box::new(EraseGroups(app.clone())),
        Box::new(EraseInvitations(app.clone())),
        Box::new(EraseMembers(app.clone())),
        Box::new(EraseTenants(app.clone())),
    ]);
    let data = Data { own: &store_data::TABLES, migrations: MIGRATIONS, kinds: erased };
    let data = operators_data::data(process, app.db.clone(), data)?;
    let tenants = operators_tenants::tenants(process, app.clone(), config)?;
    let routes = Routes::new(outbox).add_service(aggregates).add_service(data).add_service(tenants);
    process.operate(&config.common.issuer, routes)
}

struct EraseTenants(App);

#[tonic::async_trait]
impl Erase for EraseTenants {
    fn kind(&self) -> &'static str {
        "tenant"
    }

    async fn holding(
        &self,
        tx: &mut TenantTx,
        person: Option<&UserId>,
        after: Uuid,
        limit: i64,
    ) -> Result<Vec<Uuid>, StoreError> {
        store_data::tenants(tx, person, after, limit).await
    }

    async fn erase(&self, call: &Call, person: Option<&UserId>, _id: Uuid) -> Result<bool, Failure> {
        Ok(commands_tenant::erase_tenant(&self.0, call, person).await?)
    }
}

struct EraseMembers(App);

#[tonic::async_trait]
impl Erase for EraseMembers {
    fn kind(&self) -> &'static str {
        "member"
    }

    async fn holding(
        &self,
        tx: &mut TenantTx,
        person: Option<&UserId>,
        after: Uuid,
        limit: i64,
    ) -> Result<Vec<Uuid>, StoreError> {
        store_data::members(tx, person, after, limit).await
    }

    async fn erase(&self, call: &Call, person: Option<&UserId>, id: Uuid) -> Result<bool, Failure> {
        Ok(commands::erase_member(&self.0, call, MemberId::new(id), person).await?)
    }
}

struct EraseInvitations(App);

#[tonic::async_trait]
impl Erase for EraseInvitations {
    fn kind(&self) -> &'static str {
        "invitation"
    }

    async fn holding(
        &self,
        tx: &mut TenantTx,
        person: Option<&UserId>,
        after: Uuid,
        limit: i64,
    ) -> Result<Vec<Uuid>, StoreError> {
        store_data::invitations(tx, person, after, limit).await
    }

    async fn erase(&self, call: &Call, person: Option<&UserId>, id: Uuid) -> Result<bool, Failure> {
        Ok(commands_invitations::erase_invitation(&self.0, call, InvitationId::new(id), person).await?)
    }
}

struct EraseGroups(App);

#[tonic::async_trait]
impl Erase for EraseGroups {
    fn kind(&self) -> &'static str {
        "group"
    }

    async fn holding(
        &self,
        tx: &mut TenantTx,
        person: Option<&UserId>,
        after: Uuid,
        limit: i64,
    ) -> Result<Vec<Uuid>, StoreError> {
        store_data::groups(tx, person, after, limit).await
    }

    async fn erase(&self, call: &Call, person: Option<&UserId>, id: Uuid) -> Result<bool, Failure> {
        Ok(commands_groups::erase_group(&self.0, call, GroupId::new(id), person).await?)
    }
}

struct EraseApiKeys(App);

#[tonic::async_trait]
impl Erase for EraseApiKeys {
    fn kind(&self) -> &'static str {
        "api_key"
    }

    async fn holding(
        &self,
        tx: &mut TenantTx,
        person: Option<&UserId>,
        after: Uuid,
        limit: i64,
    ) -> Result<Vec<Uuid>, StoreError> {
        store_data::api_keys(tx, person, after, limit).await
    }

    async fn erase(&self, call: &Call, person: Option<&UserId>, id: Uuid) -> Result<bool, Failure> {
        Ok(commands_programs::erase_api_key(&self.0, call, ApiKeyId::new(id), person).await?)
    }
}

struct EraseServiceAccounts(App);

#[tonic::async_trait]
impl Erase for EraseServiceAccounts {
    fn kind(&self) -> &'static str {
        "service_account"
    }

    async fn holding(
        &self,
        tx: &mut TenantTx,
        person: Option<&UserId>,
        after: Uuid,
        limit: i64,
    ) -> Result<Vec<Uuid>, StoreError> {
        store_data::service_accounts(tx, person, after, limit).await
    }

    async fn erase(&self, call: &Call, person: Option<&UserId>, id: Uuid) -> Result<bool, Failure> {
        Ok(commands_programs::erase_service_account(&self.0, call, ServiceAccountId::new(id), person).await?)
    }
}
