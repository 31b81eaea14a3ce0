//! The SQL of programs: functions on a tenant's transaction. They never begin or commit one.

use chrono::{DateTime, Utc};
use contracts::UserId;
use contracts::events::identity::ServiceAccountId;
use service::{StoreError, TenantTx};
use sqlx::{AssertSqlSafe, FromRow, Postgres, QueryBuilder};
use tracing::instrument;
use uuid::Uuid;

use crate::service_account::ServiceAccount;
use crate::texts::Name;

/// The columns that [`Row`] reads, of `service_account t`.
pub(crate) const COLUMNS: &str = "t.id, t.name, t.role, t.create_time, t.update_time, t.created_by, t.version";

#[derive(FromRow)]
pub(crate) struct Row {
    id: Uuid,
    name: String,
    role: String,
    create_time: DateTime<Utc>,
    update_time: DateTime<Utc>,
    created_by: String,
    version: i32,
}

impl Row {
    /// Which one it is, at which version.
    pub(crate) const fn at(&self) -> (Uuid, i32) {
        (self.id, self.version)
    }
}

impl TryFrom<Row> for ServiceAccount {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let id = row.id;
        service_account(row).map_err(|error| StoreError::inconsistent("service_account", id, error))
    }
}

fn service_account(row: Row) -> Result<ServiceAccount, anyhow::Error> {
    let Row { id, name, role, create_time, update_time, created_by, version } = row;
    Ok(ServiceAccount {
        id: ServiceAccountId::new(id),
        name: Name::parse(&name)?,
        role: role.parse().map_err(anyhow::Error::msg)?,
        create_time,
        update_time,
        created_by: created_by.parse()?,
        version,
    })
}

/// Inserts a new one.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "INSERT", db.collection.name = "service_account"))]
pub async fn insert(tx: &mut TenantTx, account: &ServiceAccount) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let ServiceAccount { id, name, role, create_time, update_time, created_by, version } = account;
    sqlx::query(
        "insert into service_account (tenant, id, name, role, create_time, update_time, created_by, version) \
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(tenant.as_str())
    .bind(id.uuid())
    .bind(name.as_str())
    .bind(role.as_str())
    .bind(create_time)
    .bind(update_time)
    .bind(created_by.as_str())
    .bind(version)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Reads one that is let in.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "service_account"))]
pub async fn get(tx: &mut TenantTx, id: ServiceAccountId) -> Result<Option<ServiceAccount>, StoreError> {
    one(tx, "", id).await
}

/// Reads one that is let in and locks it: the next command that appends to its events waits for this transaction.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "service_account"))]
pub async fn get_for_update(tx: &mut TenantTx, id: ServiceAccountId) -> Result<Option<ServiceAccount>, StoreError> {
    one(tx, " for update", id).await
}

async fn one(tx: &mut TenantTx, how: &'static str, id: ServiceAccountId) -> Result<Option<ServiceAccount>, StoreError> {
    let tenant = tx.tenant();
    let sql = format!(
        "select {COLUMNS} from service_account t where t.tenant = $1 and t.id = $2 and t.delete_time is null{how}"
    );
    let row: Option<Row> =
        sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.as_str()).bind(id.uuid()).fetch_optional(&mut **tx).await?;
    row.map(TryInto::try_into).transpose()
}

/// Writes the next version of one.
///
/// # Errors
/// [`StoreError::Conflict`] when the row is not at the version before it.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "service_account"))]
pub async fn save(tx: &mut TenantTx, before: &ServiceAccount, account: &ServiceAccount) -> Result<(), StoreError> {
    write(tx, before, account, false).await
}

/// Writes the last version of one. The row stays as a tombstone.
///
/// # Errors
/// As [`save`].
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "service_account"))]
pub async fn delete(tx: &mut TenantTx, before: &ServiceAccount, account: &ServiceAccount) -> Result<(), StoreError> {
    write(tx, before, account, true).await
}

async fn write(
    tx: &mut TenantTx,
    before: &ServiceAccount,
    account: &ServiceAccount,
    last: bool,
) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let saved = sqlx::query(
        "update service_account set name = $4, role = $5, created_by = $6, update_time = $7, version = $8, \
         delete_time = case when $9 then $7 end \
         where tenant = $1 and id = $2 and version = $3 and delete_time is null",
    )
    .bind(tenant.as_str())
    .bind(account.id.uuid())
    .bind(before.version)
    .bind(if last { Name::erased() } else { account.name.clone() }.as_str())
    .bind(account.role.as_str())
    .bind(if last { UserId::erased() } else { account.created_by.clone() }.as_str())
    .bind(account.update_time)
    .bind(account.version)
    .bind(last)
    .execute(&mut **tx)
    .await?;
    if saved.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Conflict) }
}

/// A page of those that are let in, the newest first.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "service_account"))]
pub async fn list(
    tx: &mut TenantTx,
    after: Option<ServiceAccountId>,
    limit: usize,
) -> Result<Vec<ServiceAccount>, StoreError> {
    let tenant = tx.tenant();
    let mut query = QueryBuilder::<Postgres>::new(format!(
        "select {COLUMNS} from service_account t where t.delete_time is null and t.tenant = "
    ));
    query.push_bind(tenant.to_string());
    if let Some(after) = after {
        query.push(" and t.id < ").push_bind(after.uuid());
    }
    query.push(" order by t.id desc limit ").push_bind(limit as i64);
    let rows: Vec<Row> = query.build_query_as().fetch_all(&mut **tx).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}
