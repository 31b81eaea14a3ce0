//! The SQL of logbooks: functions on a tenant's transaction. They never begin or commit one.
//!
//! Every statement names the tenant although row-level security would do: the indexes begin with it, and two guards
//! are better than one.

use chrono::{DateTime, Utc};
use contracts::events::harbour::{LogbookId, VesselId};
use service::{StoreError, TenantTx};
use sqlx::{AssertSqlSafe, FromRow, Postgres, QueryBuilder};
use tracing::instrument;
use uuid::Uuid;

use crate::logbook::{Logbook, LogbookFilter};
use crate::texts::Notes;

/// The constraint by which each vessel has one logbook.
pub const ONCE: &str = "logbook_once";

/// The columns that [`Row`] reads, of `logbook t`.
pub(crate) const COLUMNS: &str = "t.id, t.vessel_id, t.notes, t.create_time, t.update_time, t.created_by, t.version";

#[derive(FromRow)]
pub(crate) struct Row {
    id: Uuid,
    vessel_id: Uuid,
    notes: String,
    create_time: DateTime<Utc>,
    update_time: DateTime<Utc>,
    created_by: String,
    version: i32,
}

impl Row {
    /// Which logbook it is, at which version.
    pub(crate) const fn at(&self) -> (Uuid, i32) {
        (self.id, self.version)
    }
}

impl TryFrom<Row> for Logbook {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let id = row.id;
        logbook(row).map_err(|error| StoreError::inconsistent("logbook", id, error))
    }
}

fn logbook(row: Row) -> Result<Logbook, anyhow::Error> {
    let Row { id, vessel_id, notes, create_time, update_time, created_by, version } = row;
    Ok(Logbook {
        id: LogbookId::new(id),
        vessel_id: VesselId::new(vessel_id),
        notes: Notes::parse(&notes)?,
        create_time,
        update_time,
        created_by: created_by.parse()?,
        version,
    })
}

/// Inserts a new logbook.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "INSERT", db.collection.name = "logbook"))]
pub async fn insert(tx: &mut TenantTx, logbook: &Logbook) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let Logbook { id, vessel_id, notes, create_time, update_time, created_by, version } = logbook;
    sqlx::query(
        r"
        insert into logbook (tenant, id, vessel_id, notes, create_time, update_time, created_by, version)
        values ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(tenant.as_str())
    .bind(id.uuid())
    .bind(vessel_id.uuid())
    .bind(notes.as_str())
    .bind(create_time)
    .bind(update_time)
    .bind(created_by.as_str())
    .bind(version)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Reads a logbook that is not deleted.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "logbook"))]
pub async fn get(tx: &mut TenantTx, id: LogbookId) -> Result<Option<Logbook>, StoreError> {
    one(tx, "t.id = $2 and t.delete_time is null", id.uuid()).await
}

/// Reads a logbook that is not deleted and locks it: the next command that appends to its events waits for this transaction.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "logbook"))]
pub async fn get_for_update(tx: &mut TenantTx, id: LogbookId) -> Result<Option<Logbook>, StoreError> {
    one(tx, "t.id = $2 and t.delete_time is null for update", id.uuid()).await
}

/// Reads the logbook of a vessel and locks it.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "logbook"))]
pub async fn get_of_for_update(tx: &mut TenantTx, vessel_id: VesselId) -> Result<Option<Logbook>, StoreError> {
    one(tx, "t.vessel_id = $2 and t.delete_time is null for update", vessel_id.uuid()).await
}

async fn one(tx: &mut TenantTx, which: &'static str, id: Uuid) -> Result<Option<Logbook>, StoreError> {
    let tenant = tx.tenant();
    let sql = format!("select {COLUMNS} from logbook t where t.tenant = $1 and {which}");
    let row: Option<Row> =
        sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.as_str()).bind(id).fetch_optional(&mut **tx).await?;
    row.map(TryInto::try_into).transpose()
}

/// Writes the next version of a logbook.
///
/// # Errors
/// [`StoreError::Conflict`] when the row is not at the version before it.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "logbook"))]
pub async fn save(tx: &mut TenantTx, before: &Logbook, logbook: &Logbook) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let Logbook { id, vessel_id: _, notes, create_time: _, update_time, created_by, version } = logbook;
    let saved = sqlx::query(
        r"
        update logbook set notes = $4, update_time = $5, created_by = $6, version = $7
        where tenant = $1 and id = $2 and version = $3",
    )
    .bind(tenant.as_str())
    .bind(id.uuid())
    .bind(before.version)
    .bind(notes.as_str())
    .bind(update_time)
    .bind(created_by.as_str())
    .bind(version)
    .execute(&mut **tx)
    .await?;
    if saved.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Conflict) }
}

/// Empties the row of a logbook, at its last version. The row stays as a tombstone, which shows its last version.
///
/// # Errors
/// [`StoreError::Conflict`] when the row is not at the version before it.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "logbook"))]
pub async fn delete(tx: &mut TenantTx, before: &Logbook, logbook: &Logbook) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let deleted = sqlx::query(
        r"
        update logbook set notes = '', created_by = '(deleted)', delete_time = $5, update_time = $5, version = $4
        where tenant = $1 and id = $2 and version = $3 and delete_time is null",
    )
    .bind(tenant.as_str())
    .bind(logbook.id.uuid())
    .bind(before.version)
    .bind(logbook.version)
    .bind(logbook.update_time)
    .execute(&mut **tx)
    .await?;
    if deleted.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Conflict) }
}

/// A page of logbooks that are not deleted, newest first.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "logbook"))]
pub async fn list(
    tx: &mut TenantTx,
    filter: &LogbookFilter,
    after: Option<LogbookId>,
    limit: usize,
) -> Result<Vec<Logbook>, StoreError> {
    let tenant = tx.tenant();
    let LogbookFilter { vessel_id } = filter;
    let mut query = QueryBuilder::<Postgres>::new(format!("select {COLUMNS} from logbook t where t.delete_time is null and t.tenant = "));
    query.push_bind(tenant.to_string());
    if let Some(vessel_id) = vessel_id {
        query.push(" and t.vessel_id = ").push_bind(vessel_id.uuid());
    }
    if let Some(after) = after {
        query.push(" and t.id < ").push_bind(after.uuid());
    }
    query.push(" order by t.id desc limit ").push_bind(limit as i64);
    let rows: Vec<Row> = query.build_query_as().fetch_all(&mut **tx).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}
