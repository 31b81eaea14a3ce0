//! The SQL of keys: functions on a tenant's transaction. They never begin or commit one.

use chrono::{DateTime, Utc};
use contracts::events::identity::{ApiKeyId, ServiceAccountId};
use service::{StoreError, TenantTx};
use sqlx::{AssertSqlSafe, FromRow, Postgres, QueryBuilder};
use tracing::instrument;
use uuid::Uuid;

use crate::api_key::ApiKey;
use crate::texts::{Name, Scopes};

/// The columns that [`Row`] reads, of `api_key t`.
pub(crate) const COLUMNS: &str = "t.id, t.service_account, t.name, t.scopes, t.expire_time, t.last_use_time, t.create_time, t.update_time, t.created_by, t.version";

#[derive(FromRow)]
pub(crate) struct Row {
    id: Uuid,
    service_account: Uuid,
    name: String,
    scopes: Vec<String>,
    expire_time: DateTime<Utc>,
    last_use_time: Option<DateTime<Utc>>,
    create_time: DateTime<Utc>,
    update_time: DateTime<Utc>,
    created_by: String,
    version: i32,
}

#[derive(FromRow)]
struct Digested {
    #[sqlx(flatten)]
    row: Row,
    digest: Vec<u8>,
}

impl Row {
    /// Which key it is, at which version.
    pub(crate) const fn at(&self) -> (Uuid, i32) {
        (self.id, self.version)
    }
}

impl TryFrom<Row> for ApiKey {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let id = row.id;
        api_key(row).map_err(|error| StoreError::inconsistent("api_key", id, error))
    }
}

fn api_key(row: Row) -> Result<ApiKey, anyhow::Error> {
    let Row {
        id,
        service_account,
        name,
        scopes,
        expire_time,
        last_use_time,
        create_time,
        update_time,
        created_by,
        version,
    } = row;
    Ok(ApiKey {
        id: ApiKeyId::new(id),
        of: ServiceAccountId::new(service_account),
        name: Name::parse(&name)?,
        scopes: Scopes::parse(&scopes)?,
        expire_time,
        last_use_time,
        create_time,
        update_time,
        created_by: created_by.parse()?,
        version,
    })
}

/// Inserts a new key, with the digest of its secret.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "INSERT", db.collection.name = "api_key"))]
pub async fn insert(tx: &mut TenantTx, key: &ApiKey, digest: [u8; 32]) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let ApiKey { id, of, name, scopes, expire_time, last_use_time: _, create_time, update_time, created_by, version } =
        key;
    sqlx::query(
        "insert into api_key (tenant, id, service_account, name, scopes, digest, expire_time, create_time, update_time, created_by, version) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(tenant.as_str())
    .bind(id.uuid())
    .bind(of.uuid())
    .bind(name.as_str())
    .bind(scopes.as_slice())
    .bind(&digest[..])
    .bind(expire_time)
    .bind(create_time)
    .bind(update_time)
    .bind(created_by.as_str())
    .bind(version)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Reads a key that is not revoked.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "api_key"))]
pub async fn get(tx: &mut TenantTx, id: ApiKeyId) -> Result<Option<ApiKey>, StoreError> {
    one(tx, "", id).await
}

/// Reads a key that is not revoked and locks it: nobody else revokes it meanwhile.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "api_key"))]
pub async fn get_for_update(tx: &mut TenantTx, id: ApiKeyId) -> Result<Option<ApiKey>, StoreError> {
    one(tx, " for update", id).await
}

async fn one(tx: &mut TenantTx, how: &'static str, id: ApiKeyId) -> Result<Option<ApiKey>, StoreError> {
    let tenant = tx.tenant();
    let sql =
        format!("select {COLUMNS} from api_key t where t.tenant = $1 and t.id = $2 and t.delete_time is null{how}");
    let row: Option<Row> =
        sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.as_str()).bind(id.uuid()).fetch_optional(&mut **tx).await?;
    row.map(TryInto::try_into).transpose()
}

/// A key that is not revoked, with the digest of its secret.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "api_key"))]
pub async fn with_digest(tx: &mut TenantTx, id: ApiKeyId) -> Result<Option<(ApiKey, Vec<u8>)>, StoreError> {
    let tenant = tx.tenant();
    let sql = format!(
        "select {COLUMNS}, t.digest from api_key t where t.tenant = $1 and t.id = $2 and t.delete_time is null"
    );
    let found = sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.as_str()).bind(id.uuid());
    let found: Option<Digested> = found.fetch_optional(&mut **tx).await?;
    found.map(|Digested { row, digest }| Ok((row.try_into()?, digest))).transpose()
}

/// Notes that a key is exchanged, once a minute: it writes nothing at most exchanges.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "api_key"))]
pub async fn used(tx: &mut TenantTx, id: ApiKeyId, now: DateTime<Utc>) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    sqlx::query(
        "update api_key set last_use_time = $3 where tenant = $1 and id = $2 and delete_time is null \
         and (last_use_time is null or last_use_time < $3 - interval '1 minute')",
    )
    .bind(tenant.as_str())
    .bind(id.uuid())
    .bind(now)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// The keys of a program that are not revoked, locked.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "api_key"))]
pub async fn of_for_update(tx: &mut TenantTx, of: ServiceAccountId) -> Result<Vec<ApiKey>, StoreError> {
    let tenant = tx.tenant();
    let sql = format!(
        "select {COLUMNS} from api_key t where t.tenant = $1 and t.service_account = $2 and t.delete_time is null \
         order by t.id for update"
    );
    let keys = sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.as_str()).bind(of.uuid());
    let rows: Vec<Row> = keys.fetch_all(&mut **tx).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Writes the next version of a key.
///
/// # Errors
/// [`StoreError::Conflict`] when the row is not at the version before it.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "api_key"))]
pub async fn save(tx: &mut TenantTx, before: &ApiKey, key: &ApiKey) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let saved = sqlx::query(
        "update api_key set created_by = $5, update_time = $6, version = $4, expire_time = $7 \
         where tenant = $1 and id = $2 and version = $3 and delete_time is null",
    )
    .bind(tenant.as_str())
    .bind(key.id.uuid())
    .bind(before.version)
    .bind(key.version)
    .bind(key.created_by.as_str())
    .bind(key.update_time)
    .bind(key.expire_time)
    .execute(&mut **tx)
    .await?;
    if saved.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Conflict) }
}

/// Empties the row of a key, at its last version. The row stays as a tombstone, which shows its last version.
///
/// # Errors
/// [`StoreError::Conflict`] when the row is not at the version before it.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "api_key"))]
pub async fn revoke(tx: &mut TenantTx, before: &ApiKey, key: &ApiKey) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let revoked = sqlx::query(
        "update api_key set name = '(deleted)', digest = '', created_by = '(deleted)', delete_time = $5, update_time = $5, version = $4 \
         where tenant = $1 and id = $2 and version = $3 and delete_time is null",
    )
    .bind(tenant.as_str())
    .bind(key.id.uuid())
    .bind(before.version)
    .bind(key.version)
    .bind(key.update_time)
    .execute(&mut **tx)
    .await?;
    if revoked.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Conflict) }
}

/// A page of keys that are not revoked, the newest first.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "api_key"))]
pub async fn list(tx: &mut TenantTx, after: Option<ApiKeyId>, limit: usize) -> Result<Vec<ApiKey>, StoreError> {
    let tenant = tx.tenant();
    let mut query = QueryBuilder::<Postgres>::new(format!(
        "select {COLUMNS} from api_key t where t.delete_time is null and t.tenant = "
    ));
    query.push_bind(tenant.to_string());
    if let Some(after) = after {
        query.push(" and t.id < ").push_bind(after.uuid());
    }
    query.push(" order by t.id desc limit ").push_bind(limit as i64);
    let rows: Vec<Row> = query.build_query_as().fetch_all(&mut **tx).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}
