//! The SQL of vessels: functions on a tenant's transaction. They never begin or commit one.
//!
//! Every statement names the tenant although row-level security would do: the indexes begin with it, and two guards
//! are better than one.

use chrono::{DateTime, Utc};
use contracts::events::harbour::VesselId;
use service::list::{Found, Place, Query};
use service::{StoreError, TenantTx};
use sqlx::{AssertSqlSafe, FromRow};
use tracing::instrument;
use uuid::Uuid;

use crate::texts::{Name, Notes};
use crate::vessel::Vessel;

/// The columns that [`Row`] reads, of `vessel t`.
pub(crate) const COLUMNS: &str = "t.id, t.name, t.notes, t.create_time, t.update_time, t.created_by, t.version";

#[derive(FromRow)]
pub(crate) struct Row {
    id: Uuid,
    name: String,
    notes: String,
    create_time: DateTime<Utc>,
    update_time: DateTime<Utc>,
    created_by: String,
    version: i32,
}

impl Row {
    /// Which vessel it is, at which version.
    pub(crate) const fn at(&self) -> (Uuid, i32) {
        (self.id, self.version)
    }
}

impl TryFrom<Row> for Vessel {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let id = row.id;
        vessel(row).map_err(|error| StoreError::inconsistent("vessel", id, error))
    }
}

fn vessel(row: Row) -> Result<Vessel, anyhow::Error> {
    let Row { id, name, notes, create_time, update_time, created_by, version } = row;
    Ok(Vessel {
        id: VesselId::new(id),
        name: Name::parse(&name)?,
        notes: Notes::parse(&notes)?,
        create_time,
        update_time,
        created_by: created_by.parse()?,
        version,
    })
}

/// Inserts a new vessel.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "INSERT", db.collection.name = "vessel"))]
pub async fn insert(tx: &mut TenantTx, vessel: &Vessel) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let Vessel { id, name, notes, create_time, update_time, created_by, version } = vessel;
    sqlx::query(
        r"
        insert into vessel (tenant, id, name, notes, create_time, update_time, created_by, version)
        values ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(tenant.as_str())
    .bind(id.uuid())
    .bind(name.as_str())
    .bind(notes.as_str())
    .bind(create_time)
    .bind(update_time)
    .bind(created_by.as_str())
    .bind(version)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Reads a vessel that is not deleted.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "vessel"))]
pub async fn get(tx: &mut TenantTx, id: VesselId) -> Result<Option<Vessel>, StoreError> {
    one(tx, "t.id = $2 and t.delete_time is null", id.uuid()).await
}

/// Reads a vessel that is not deleted and locks it: the next command that appends to its events waits for this transaction.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "vessel"))]
pub async fn get_for_update(tx: &mut TenantTx, id: VesselId) -> Result<Option<Vessel>, StoreError> {
    one(tx, "t.id = $2 and t.delete_time is null for update", id.uuid()).await
}

async fn one(tx: &mut TenantTx, which: &'static str, id: Uuid) -> Result<Option<Vessel>, StoreError> {
    let tenant = tx.tenant();
    let sql = format!("select {COLUMNS} from vessel t where t.tenant = $1 and {which}");
    let row: Option<Row> =
        sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.as_str()).bind(id).fetch_optional(&mut **tx).await?;
    row.map(TryInto::try_into).transpose()
}

/// Writes the next version of a vessel.
///
/// # Errors
/// [`StoreError::Conflict`] when the row is not at the version before it.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "vessel"))]
pub async fn save(tx: &mut TenantTx, before: &Vessel, vessel: &Vessel) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let Vessel { id, name, notes, create_time: _, update_time, created_by, version } = vessel;
    let saved = sqlx::query(
        r"
        update vessel set name = $4, notes = $5, update_time = $6, created_by = $7, version = $8
        where tenant = $1 and id = $2 and version = $3",
    )
    .bind(tenant.as_str())
    .bind(id.uuid())
    .bind(before.version)
    .bind(name.as_str())
    .bind(notes.as_str())
    .bind(update_time)
    .bind(created_by.as_str())
    .bind(version)
    .execute(&mut **tx)
    .await?;
    if saved.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Conflict) }
}

/// Empties the row of a vessel, at its last version. The row stays as a tombstone, which shows its last version.
///
/// # Errors
/// [`StoreError::Conflict`] when the row is not at the version before it.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "vessel"))]
pub async fn delete(tx: &mut TenantTx, before: &Vessel, vessel: &Vessel) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let deleted = sqlx::query(
        r"
        update vessel set name = '(deleted)', notes = '', created_by = '(deleted)', delete_time = $5, update_time = $5, version = $4
        where tenant = $1 and id = $2 and version = $3 and delete_time is null",
    )
    .bind(tenant.as_str())
    .bind(vessel.id.uuid())
    .bind(before.version)
    .bind(vessel.version)
    .bind(vessel.update_time)
    .execute(&mut **tx)
    .await?;
    if deleted.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Conflict) }
}

/// A page of vessels that are not deleted.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "vessel"))]
pub async fn list(
    tx: &mut TenantTx,
    query: &Query,
    after: Option<&Place>,
    size: usize,
) -> Result<Found<Vessel>, StoreError> {
    query.fetch::<Row, Vessel>(tx, COLUMNS, after, size).await
}
