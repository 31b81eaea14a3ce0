//! What there is of a tenant as operators compare it: deleted ones too, each with its state as its events carry it.

use contracts::TenantId;
use service::operators_aggregates::{Aggregates, Page, State};
use service::{OperatorTx, StoreError, TenantTx};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow};
use uuid::Uuid;

use crate::api_key::ApiKey;
use crate::group::Group;
use crate::invitation::Invitation;
use crate::member::Member;
use crate::service_account::ServiceAccount;
use crate::tenant::Tenant;
use crate::{
    outgoing, store_api_key, store_group, store_invitation, store_member, store_service_account, store_tenant,
};

#[derive(FromRow)]
struct Stood<T> {
    #[sqlx(flatten)]
    row: T,
    deleted: bool,
}

/// All tenants.
pub(crate) struct Tenants;

fn tenant(Stood { row, deleted }: Stood<store_tenant::Row>) -> State {
    let (id, version) = row.at();
    let state = || Tenant::try_from(row).map(|state| outgoing::tenant(&state)).map_err(anyhow::Error::from);
    State::new(id, version, (!deleted).then(state))
}

/// All members.
pub(crate) struct Members;

fn member(Stood { row, deleted }: Stood<store_member::Row>) -> State {
    let (id, version) = row.at();
    let state = || Member::try_from(row).map(|state| outgoing::member(&state)).map_err(anyhow::Error::from);
    State::new(id, version, (!deleted).then(state))
}

/// All invitations.
pub(crate) struct Invitations;

fn invitation(Stood { row, deleted }: Stood<store_invitation::Row>) -> State {
    let (id, version) = row.at();
    let state = || Invitation::try_from(row).map(|state| outgoing::invitation(&state)).map_err(anyhow::Error::from);
    State::new(id, version, (!deleted).then(state))
}

/// All groups.
pub(crate) struct Groups;

fn group(Stood { row, deleted }: Stood<store_group::Row>) -> State {
    let (id, version) = row.at();
    let state = || Group::try_from(row).map(|state| outgoing::group(&state)).map_err(anyhow::Error::from);
    State::new(id, version, (!deleted).then(state))
}

/// All programs.
pub(crate) struct ServiceAccounts;

fn service_account(Stood { row, deleted }: Stood<store_service_account::Row>) -> State {
    let (id, version) = row.at();
    let state =
        || ServiceAccount::try_from(row).map(|state| outgoing::service_account(&state)).map_err(anyhow::Error::from);
    State::new(id, version, (!deleted).then(state))
}

/// All keys.
pub(crate) struct ApiKeys;

fn api_key(Stood { row, deleted }: Stood<store_api_key::Row>) -> State {
    let (id, version) = row.at();
    let state = || ApiKey::try_from(row).map(|state| outgoing::api_key(&state)).map_err(anyhow::Error::from);
    State::new(id, version, (!deleted).then(state))
}

/// The next tenant behind this id, erased or not.
pub(crate) async fn next_tenant(tx: &mut OperatorTx, after: &str) -> Result<Option<TenantId>, StoreError> {
    let next: Option<String> =
        sqlx::query_scalar("select identity_next_tenant($1)").bind(after).fetch_one(&mut **tx).await?;
    next.map(|next| next.parse().map_err(|error| StoreError::inconsistent("tenant", next.clone(), error))).transpose()
}

/// A page of a table's rows, by id.
async fn page<R>(tx: &mut TenantTx, (table, columns): (&str, &str), page: Page) -> Result<Vec<Stood<R>>, StoreError>
where
    R: for<'r> FromRow<'r, PgRow> + Send + Unpin,
{
    let Page { after, from, to, limit } = page;
    let tenant = tx.tenant();
    let sql = format!(
        "select {columns}, t.delete_time is not null as deleted from {table} t where t.tenant = $1 and t.id > $2 \
         and ($3::timestamptz is null or t.update_time >= $3) and ($4::timestamptz is null or t.update_time < $4) \
         order by t.id limit $5"
    );
    let rows = sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.as_str()).bind(after).bind(from).bind(to).bind(limit);
    Ok(rows.fetch_all(&mut **tx).await?)
}

/// Those of these ids that exist.
async fn these<R>(tx: &mut TenantTx, (table, columns): (&str, &str), ids: &[Uuid]) -> Result<Vec<Stood<R>>, StoreError>
where
    R: for<'r> FromRow<'r, PgRow> + Send + Unpin,
{
    let tenant = tx.tenant();
    let sql = format!(
        "select {columns}, t.delete_time is not null as deleted from {table} t where t.tenant = $1 and t.id = any($2)"
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.as_str()).bind(ids).fetch_all(&mut **tx).await?)
}

#[tonic::async_trait]
impl Aggregates for Tenants {
    fn kind(&self) -> &'static str {
        "tenant"
    }

    async fn next_tenant(&self, tx: &mut OperatorTx, after: &str) -> Result<Option<TenantId>, StoreError> {
        next_tenant(tx, after).await
    }

    async fn page(&self, tx: &mut TenantTx, asked: Page) -> Result<Vec<State>, StoreError> {
        Ok(page(tx, ("tenant", store_tenant::COLUMNS), asked).await?.into_iter().map(tenant).collect())
    }

    async fn these(&self, tx: &mut TenantTx, ids: &[Uuid]) -> Result<Vec<State>, StoreError> {
        Ok(these(tx, ("tenant", store_tenant::COLUMNS), ids).await?.into_iter().map(tenant).collect())
    }
}

#[tonic::async_trait]
impl Aggregates for Members {
    fn kind(&self) -> &'static str {
        "member"
    }

    async fn next_tenant(&self, tx: &mut OperatorTx, after: &str) -> Result<Option<TenantId>, StoreError> {
        next_tenant(tx, after).await
    }

    async fn page(&self, tx: &mut TenantTx, asked: Page) -> Result<Vec<State>, StoreError> {
        Ok(page(tx, ("member", store_member::COLUMNS), asked).await?.into_iter().map(member).collect())
    }

    async fn these(&self, tx: &mut TenantTx, ids: &[Uuid]) -> Result<Vec<State>, StoreError> {
        Ok(these(tx, ("member", store_member::COLUMNS), ids).await?.into_iter().map(member).collect())
    }
}

#[tonic::async_trait]
impl Aggregates for Invitations {
    fn kind(&self) -> &'static str {
        "invitation"
    }

    async fn next_tenant(&self, tx: &mut OperatorTx, after: &str) -> Result<Option<TenantId>, StoreError> {
        next_tenant(tx, after).await
    }

    async fn page(&self, tx: &mut TenantTx, asked: Page) -> Result<Vec<State>, StoreError> {
        Ok(page(tx, ("invitation", store_invitation::COLUMNS), asked).await?.into_iter().map(invitation).collect())
    }

    async fn these(&self, tx: &mut TenantTx, ids: &[Uuid]) -> Result<Vec<State>, StoreError> {
        Ok(these(tx, ("invitation", store_invitation::COLUMNS), ids).await?.into_iter().map(invitation).collect())
    }
}

#[tonic::async_trait]
impl Aggregates for Groups {
    fn kind(&self) -> &'static str {
        "group"
    }

    async fn next_tenant(&self, tx: &mut OperatorTx, after: &str) -> Result<Option<TenantId>, StoreError> {
        next_tenant(tx, after).await
    }

    async fn page(&self, tx: &mut TenantTx, asked: Page) -> Result<Vec<State>, StoreError> {
        Ok(page(tx, ("member_group", store_group::COLUMNS), asked).await?.into_iter().map(group).collect())
    }

    async fn these(&self, tx: &mut TenantTx, ids: &[Uuid]) -> Result<Vec<State>, StoreError> {
        Ok(these(tx, ("member_group", store_group::COLUMNS), ids).await?.into_iter().map(group).collect())
    }
}

#[tonic::async_trait]
impl Aggregates for ServiceAccounts {
    fn kind(&self) -> &'static str {
        "service_account"
    }

    async fn next_tenant(&self, tx: &mut OperatorTx, after: &str) -> Result<Option<TenantId>, StoreError> {
        next_tenant(tx, after).await
    }

    async fn page(&self, tx: &mut TenantTx, asked: Page) -> Result<Vec<State>, StoreError> {
        Ok(page(tx, ("service_account", store_service_account::COLUMNS), asked)
            .await?
            .into_iter()
            .map(service_account)
            .collect())
    }

    async fn these(&self, tx: &mut TenantTx, ids: &[Uuid]) -> Result<Vec<State>, StoreError> {
        Ok(these(tx, ("service_account", store_service_account::COLUMNS), ids)
            .await?
            .into_iter()
            .map(service_account)
            .collect())
    }
}

#[tonic::async_trait]
impl Aggregates for ApiKeys {
    fn kind(&self) -> &'static str {
        "api_key"
    }

    async fn next_tenant(&self, tx: &mut OperatorTx, after: &str) -> Result<Option<TenantId>, StoreError> {
        next_tenant(tx, after).await
    }

    async fn page(&self, tx: &mut TenantTx, asked: Page) -> Result<Vec<State>, StoreError> {
        Ok(page(tx, ("api_key", store_api_key::COLUMNS), asked).await?.into_iter().map(api_key).collect())
    }

    async fn these(&self, tx: &mut TenantTx, ids: &[Uuid]) -> Result<Vec<State>, StoreError> {
        Ok(these(tx, ("api_key", store_api_key::COLUMNS), ids).await?.into_iter().map(api_key).collect())
    }
}
