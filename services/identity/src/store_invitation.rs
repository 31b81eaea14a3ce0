//! The SQL of invitations: functions on a tenant's transaction. They never begin or commit one.

use chrono::{DateTime, Utc};
use contracts::events::identity::InvitationId;
use service::{StoreError, TenantTx};
use sqlx::{AssertSqlSafe, FromRow, Postgres, QueryBuilder};
use tracing::instrument;
use uuid::Uuid;

use crate::invitation::Invitation;
use crate::texts::Email;

/// The columns that [`Row`] reads, of `invitation t`.
pub(crate) const COLUMNS: &str =
    "t.id, t.email, t.role, t.expire_time, t.create_time, t.update_time, t.created_by, t.version";

#[derive(FromRow)]
pub(crate) struct Row {
    id: Uuid,
    email: String,
    role: String,
    expire_time: DateTime<Utc>,
    create_time: DateTime<Utc>,
    update_time: DateTime<Utc>,
    created_by: String,
    version: i32,
}

impl Row {
    /// Which invitation it is, at which version.
    pub(crate) const fn at(&self) -> (Uuid, i32) {
        (self.id, self.version)
    }
}

impl TryFrom<Row> for Invitation {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let id = row.id;
        invitation(row).map_err(|error| StoreError::inconsistent("invitation", id, error))
    }
}

fn invitation(row: Row) -> Result<Invitation, anyhow::Error> {
    let Row { id, email, role, expire_time, create_time, update_time, created_by, version } = row;
    Ok(Invitation {
        id: InvitationId::new(id),
        email: Email::parse(&email)?,
        role: role.parse().map_err(anyhow::Error::msg)?,
        expire_time,
        create_time,
        update_time,
        created_by: created_by.parse()?,
        version,
    })
}

/// Inserts a new invitation.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "INSERT", db.collection.name = "invitation"))]
pub async fn insert(tx: &mut TenantTx, invitation: &Invitation) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let Invitation { id, email, role, expire_time, create_time, update_time, created_by, version } = invitation;
    sqlx::query(
        "insert into invitation (tenant, id, email, role, expire_time, create_time, update_time, created_by, version) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(tenant.as_str())
    .bind(id.uuid())
    .bind(email.as_str())
    .bind(role.as_str())
    .bind(expire_time)
    .bind(create_time)
    .bind(update_time)
    .bind(created_by.as_str())
    .bind(version)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Reads an invitation that is open.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "invitation"))]
pub async fn get(tx: &mut TenantTx, id: InvitationId) -> Result<Option<Invitation>, StoreError> {
    one(tx, "", id).await
}

/// Reads an invitation that is open and locks it: nobody else takes it up meanwhile.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "invitation"))]
pub async fn get_for_update(tx: &mut TenantTx, id: InvitationId) -> Result<Option<Invitation>, StoreError> {
    one(tx, " for update", id).await
}

async fn one(tx: &mut TenantTx, how: &'static str, id: InvitationId) -> Result<Option<Invitation>, StoreError> {
    let tenant = tx.tenant();
    let sql =
        format!("select {COLUMNS} from invitation t where t.tenant = $1 and t.id = $2 and t.delete_time is null{how}");
    let row: Option<Row> =
        sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.as_str()).bind(id.uuid()).fetch_optional(&mut **tx).await?;
    row.map(TryInto::try_into).transpose()
}

/// Empties the row of an invitation, at its last version. The row stays as a tombstone, which shows its last version.
///
/// # Errors
/// [`StoreError::Conflict`] when the row is not at the version before it.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "invitation"))]
pub async fn close(tx: &mut TenantTx, before: &Invitation, invitation: &Invitation) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let closed = sqlx::query(
        "update invitation set email = '', created_by = '(deleted)', delete_time = $5, update_time = $5, version = $4 \
         where tenant = $1 and id = $2 and version = $3 and delete_time is null",
    )
    .bind(tenant.as_str())
    .bind(invitation.id.uuid())
    .bind(before.version)
    .bind(invitation.version)
    .bind(invitation.update_time)
    .execute(&mut **tx)
    .await?;
    if closed.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Conflict) }
}

/// Those that are open to this address, locked.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "invitation"))]
pub async fn to_for_update(tx: &mut TenantTx, address: &Email) -> Result<Vec<Invitation>, StoreError> {
    let tenant = tx.tenant();
    let sql = format!(
        "select {COLUMNS} from invitation t where t.tenant = $1 and t.delete_time is null and t.email = $2 \
         order by t.id for update"
    );
    let rows = sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.as_str()).bind(address.as_str());
    let rows: Vec<Row> = rows.fetch_all(&mut **tx).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// A page of invitations that are open, the newest first.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "invitation"))]
pub async fn list(tx: &mut TenantTx, after: Option<InvitationId>, limit: usize) -> Result<Vec<Invitation>, StoreError> {
    let tenant = tx.tenant();
    let mut query = QueryBuilder::<Postgres>::new(format!(
        "select {COLUMNS} from invitation t where t.delete_time is null and t.tenant = "
    ));
    query.push_bind(tenant.to_string());
    if let Some(after) = after {
        query.push(" and t.id < ").push_bind(after.uuid());
    }
    query.push(" order by t.id desc limit ").push_bind(limit as i64);
    let rows: Vec<Row> = query.build_query_as().fetch_all(&mut **tx).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}
