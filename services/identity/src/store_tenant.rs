//! The SQL of what is known of tenants: functions on a tenant's transaction. They never begin or commit one.

use authz::StepUp;
use chrono::{DateTime, Utc};
use contracts::UserId;
use service::{OperatorTx, StoreError, TenantTx};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, FromRow};
use tracing::instrument;
use uuid::Uuid;

use crate::tenant::Tenant;
use crate::texts::{Country, Currency, Email, Name, TimeZone};

/// The constraint by which a slug is given once.
pub const ONCE: &str = "tenant_pkey";

/// The columns that [`Row`] reads, of `tenant t`.
pub(crate) const COLUMNS: &str = "t.tenant, t.id, t.name, t.time_zone, t.country, t.currency, t.billing_email, t.status, t.step_up, t.create_time, t.update_time, t.created_by, t.version";

#[derive(FromRow)]
pub(crate) struct Row {
    tenant: String,
    id: Uuid,
    name: String,
    time_zone: String,
    country: String,
    currency: String,
    billing_email: String,
    status: String,
    step_up: Option<Json<StepUp>>,
    create_time: DateTime<Utc>,
    update_time: DateTime<Utc>,
    created_by: String,
    version: i32,
}

impl Row {
    /// Which record it is, at which version.
    pub(crate) const fn at(&self) -> (Uuid, i32) {
        (self.id, self.version)
    }
}

impl TryFrom<Row> for Tenant {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let id = row.id;
        tenant(row).map_err(|error| StoreError::inconsistent("tenant", id, error))
    }
}

fn tenant(row: Row) -> Result<Tenant, anyhow::Error> {
    let Row {
        tenant,
        id: _,
        name,
        time_zone,
        country,
        currency,
        billing_email,
        status,
        step_up,
        create_time,
        update_time,
        created_by,
        version,
    } = row;
    Ok(Tenant {
        slug: tenant.parse()?,
        name: Name::parse(&name)?,
        time_zone: TimeZone::parse(&time_zone)?,
        country: Country::parse(&country)?,
        currency: Currency::parse(&currency)?,
        billing_email: if billing_email.is_empty() { None } else { Some(Email::parse(&billing_email)?) },
        status: status.parse().map_err(anyhow::Error::msg)?,
        step_up: step_up.map(|Json(step_up)| step_up),
        create_time,
        update_time,
        created_by: created_by.parse()?,
        version,
    })
}

fn address(tenant: &Tenant) -> &str {
    tenant.billing_email.as_ref().map_or("", Email::as_str)
}

/// Inserts a new tenant, which was signed up or adopted.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "INSERT", db.collection.name = "tenant"))]
pub async fn insert(tx: &mut TenantTx, tenant: &Tenant, adopted: bool) -> Result<(), StoreError> {
    let Tenant {
        slug,
        name,
        time_zone,
        country,
        currency,
        billing_email: _,
        status,
        step_up,
        create_time,
        update_time,
        created_by,
        version,
    } = tenant;
    sqlx::query(
        "insert into tenant (tenant, id, name, time_zone, country, currency, billing_email, create_time, update_time, created_by, version, status, adopted, step_up) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
    )
    .bind(slug.as_str())
    .bind(tenant.record().uuid())
    .bind(name.as_str())
    .bind(time_zone.as_str())
    .bind(country.as_str())
    .bind(currency.as_str())
    .bind(address(tenant))
    .bind(create_time)
    .bind(update_time)
    .bind(created_by.as_str())
    .bind(version)
    .bind(status.as_str())
    .bind(adopted)
    .bind(step_up.as_ref().map(Json))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Reads the tenant, if it is not erased.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "tenant"))]
pub async fn get(tx: &mut TenantTx) -> Result<Option<Tenant>, StoreError> {
    one(tx, "").await
}

/// Reads the tenant and locks it: whoever adds, changes or removes a member waits for this transaction.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "tenant"))]
pub async fn get_for_update(tx: &mut TenantTx) -> Result<Option<Tenant>, StoreError> {
    one(tx, " for update").await
}

async fn one(tx: &mut TenantTx, how: &'static str) -> Result<Option<Tenant>, StoreError> {
    let slug = tx.tenant();
    let sql = format!("select {COLUMNS} from tenant t where t.tenant = $1 and t.delete_time is null{how}");
    let row: Option<Row> = sqlx::query_as(AssertSqlSafe(sql)).bind(slug.as_str()).fetch_optional(&mut **tx).await?;
    row.map(TryInto::try_into).transpose()
}

/// Writes the next version of the tenant.
///
/// # Errors
/// [`StoreError::Conflict`] when the row is not at the version before it.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "tenant"))]
pub async fn save(tx: &mut TenantTx, before: &Tenant, tenant: &Tenant) -> Result<(), StoreError> {
    write(tx, before, tenant, None).await
}

/// Writes the last version of the tenant. The row stays: its slug is never given again.
///
/// # Errors
/// As [`save`].
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "tenant"))]
pub async fn delete(tx: &mut TenantTx, before: &Tenant, tenant: &Tenant) -> Result<(), StoreError> {
    write(tx, before, tenant, Some(tenant.update_time)).await
}

async fn write(
    tx: &mut TenantTx,
    before: &Tenant,
    tenant: &Tenant,
    deleted: Option<DateTime<Utc>>,
) -> Result<(), StoreError> {
    let Tenant {
        slug,
        name,
        time_zone,
        country,
        currency,
        billing_email: _,
        status,
        step_up,
        create_time: _,
        update_time,
        created_by,
        version,
    } = tenant;
    let saved = sqlx::query(
        "update tenant set name = $4, time_zone = $5, country = $6, currency = $7, billing_email = $8, update_time = $9, \
         created_by = $10, version = $11, delete_time = $12, status = $13, step_up = $14 where tenant = $1 and id = $2 and version = $3 and delete_time is null",
    )
    .bind(slug.as_str())
    .bind(tenant.record().uuid())
    .bind(before.version)
    .bind(name.as_str())
    .bind(time_zone.as_str())
    .bind(country.as_str())
    .bind(currency.as_str())
    .bind(address(tenant))
    .bind(update_time)
    .bind(created_by.as_str())
    .bind(version)
    .bind(deleted)
    .bind(status.as_str())
    .bind(step_up.as_ref().map(Json))
    .execute(&mut **tx)
    .await?;
    if saved.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Conflict) }
}

/// Whoever signs up at the same time waits until this one has ended.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "tenant"))]
pub async fn sign_up_alone(tx: &mut TenantTx) -> Result<(), StoreError> {
    sqlx::query("select pg_advisory_xact_lock(hashtext('identity.sign_up'))").execute(&mut **tx).await?;
    Ok(())
}

/// How many tenants were signed up since then, and how many by this user.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "tenant"))]
pub async fn signed_up(tx: &mut TenantTx, by: &UserId, since: DateTime<Utc>) -> Result<(i64, i64), StoreError> {
    let counted = sqlx::query_as("select everybody, one from identity_signed_up($1, $2)").bind(since).bind(by.as_str());
    Ok(counted.fetch_one(&mut **tx).await?)
}

/// Notes that the tenants of other services are adopted.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "INSERT", db.collection.name = "adoption"))]
pub async fn note_adoption(tx: &mut OperatorTx, now: DateTime<Utc>) -> Result<(), StoreError> {
    sqlx::query("select identity_note_adoption($1)").bind(now).execute(&mut **tx).await?;
    Ok(())
}

/// Whether they are.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "adoption"))]
pub async fn adoption(tx: &mut OperatorTx) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar("select identity_is_adopted()").fetch_one(&mut **tx).await?)
}

/// The same, for whoever signs up.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "adoption"))]
pub async fn is_adopted(tx: &mut TenantTx) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar("select exists (select from adoption)").fetch_one(&mut **tx).await?)
}
