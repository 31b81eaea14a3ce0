//! The SQL of groups: functions on a tenant's transaction. They never begin or commit one.

use chrono::{DateTime, Utc};
use contracts::UserId;
use contracts::events::identity::{GroupId, MemberId};
use service::{StoreError, TenantTx};
use sqlx::{AssertSqlSafe, FromRow, Postgres, QueryBuilder};
use tracing::instrument;
use uuid::Uuid;

use crate::group::{Group, Members};
use crate::texts::Name;

/// The columns that [`Row`] reads, of `member_group t`.
pub(crate) const COLUMNS: &str = "t.id, t.name, t.members, t.create_time, t.update_time, t.created_by, t.version";

#[derive(FromRow)]
pub(crate) struct Row {
    id: Uuid,
    name: String,
    members: Vec<Uuid>,
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

impl TryFrom<Row> for Group {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let id = row.id;
        group(row).map_err(|error| StoreError::inconsistent("member_group", id, error))
    }
}

fn group(row: Row) -> Result<Group, anyhow::Error> {
    let Row { id, name, members, create_time, update_time, created_by, version } = row;
    Ok(Group {
        id: GroupId::new(id),
        name: Name::parse(&name)?,
        members: Members::new(members.into_iter().map(MemberId::new).collect())?,
        create_time,
        update_time,
        created_by: created_by.parse()?,
        version,
    })
}

fn ids(members: &Members) -> Vec<Uuid> {
    members.as_slice().iter().map(|member| member.uuid()).collect()
}

/// Inserts a new one.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "INSERT", db.collection.name = "member_group"))]
pub async fn insert(tx: &mut TenantTx, group: &Group) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let Group { id, name, members, create_time, update_time, created_by, version } = group;
    sqlx::query(
        "insert into member_group (tenant, id, name, members, create_time, update_time, created_by, version) \
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(tenant.as_str())
    .bind(id.uuid())
    .bind(name.as_str())
    .bind(ids(members))
    .bind(create_time)
    .bind(update_time)
    .bind(created_by.as_str())
    .bind(version)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Reads one that is there.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "member_group"))]
pub async fn get(tx: &mut TenantTx, id: GroupId) -> Result<Option<Group>, StoreError> {
    one(tx, "", id).await
}

/// Reads one that is there and locks it: the next command that appends to its events waits for this transaction.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "member_group"))]
pub async fn get_for_update(tx: &mut TenantTx, id: GroupId) -> Result<Option<Group>, StoreError> {
    one(tx, " for update", id).await
}

async fn one(tx: &mut TenantTx, how: &'static str, id: GroupId) -> Result<Option<Group>, StoreError> {
    let tenant = tx.tenant();
    let sql = format!(
        "select {COLUMNS} from member_group t where t.tenant = $1 and t.id = $2 and t.delete_time is null{how}"
    );
    let row: Option<Row> =
        sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.as_str()).bind(id.uuid()).fetch_optional(&mut **tx).await?;
    row.map(TryInto::try_into).transpose()
}

/// How many are there. Lock the tenant before: none is made meanwhile.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "member_group"))]
pub async fn count(tx: &mut TenantTx) -> Result<i64, StoreError> {
    let tenant = tx.tenant();
    let count = "select count(*) from member_group where tenant = $1 and delete_time is null";
    Ok(sqlx::query_scalar(count).bind(tenant.as_str()).fetch_one(&mut **tx).await?)
}

/// Writes the next version of one.
///
/// # Errors
/// [`StoreError::Conflict`] when the row is not at the version before it.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "member_group"))]
pub async fn save(tx: &mut TenantTx, before: &Group, group: &Group) -> Result<(), StoreError> {
    write(tx, before, group, false).await
}

/// Writes the last version of one. The row stays as a tombstone.
///
/// # Errors
/// As [`save`].
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "member_group"))]
pub async fn delete(tx: &mut TenantTx, before: &Group, group: &Group) -> Result<(), StoreError> {
    write(tx, before, group, true).await
}

async fn write(tx: &mut TenantTx, before: &Group, group: &Group, last: bool) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let saved = sqlx::query(
        "update member_group set name = $4, members = $5, created_by = $6, update_time = $7, version = $8, \
         delete_time = case when $9 then $7 end \
         where tenant = $1 and id = $2 and version = $3 and delete_time is null",
    )
    .bind(tenant.as_str())
    .bind(group.id.uuid())
    .bind(before.version)
    .bind(if last { Name::erased() } else { group.name.clone() }.as_str())
    .bind(if last { Vec::new() } else { ids(&group.members) })
    .bind(if last { UserId::erased() } else { group.created_by.clone() }.as_str())
    .bind(group.update_time)
    .bind(group.version)
    .bind(last)
    .execute(&mut **tx)
    .await?;
    if saved.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Conflict) }
}

/// A page of those that are there, the newest first.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "member_group"))]
pub async fn list(tx: &mut TenantTx, after: Option<GroupId>, limit: usize) -> Result<Vec<Group>, StoreError> {
    let tenant = tx.tenant();
    let mut query = QueryBuilder::<Postgres>::new(format!(
        "select {COLUMNS} from member_group t where t.delete_time is null and t.tenant = "
    ));
    query.push_bind(tenant.to_string());
    if let Some(after) = after {
        query.push(" and t.id < ").push_bind(after.uuid());
    }
    query.push(" order by t.id desc limit ").push_bind(limit as i64);
    let rows: Vec<Row> = query.build_query_as().fetch_all(&mut **tx).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Those that a member belongs to, locked: whoever leaves the tenant leaves them. Lock the tenant before: none is made meanwhile.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "member_group"))]
pub async fn of_member_for_update(tx: &mut TenantTx, member: MemberId) -> Result<Vec<Group>, StoreError> {
    let tenant = tx.tenant();
    let sql = format!(
        "select {COLUMNS} from member_group t where t.tenant = $1 and t.delete_time is null and $2 = any(t.members) order by t.id for update"
    );
    let rows: Vec<Row> =
        sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.as_str()).bind(member.uuid()).fetch_all(&mut **tx).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}
