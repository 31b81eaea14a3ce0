//! The SQL of members: functions on a tenant's transaction. They never begin or commit one.

use chrono::{DateTime, Utc};
use contracts::UserId;
use contracts::events::identity::MemberId;
use service::{StoreError, TenantTx};
use sqlx::{AssertSqlSafe, FromRow, Postgres, QueryBuilder};
use tracing::instrument;
use uuid::Uuid;

use crate::member::{Member, Profile};
use crate::texts::Email;

/// The constraint by which a person is a member once.
pub const ONCE: &str = "member_once";

/// The columns that [`Row`] reads, of `member t`.
pub(crate) const COLUMNS: &str =
    "t.id, t.user_id, t.name, t.email, t.locale, t.time_zone, t.role, t.create_time, t.update_time, t.version";

#[derive(FromRow)]
pub(crate) struct Row {
    id: Uuid,
    user_id: Option<String>,
    name: String,
    email: String,
    locale: String,
    time_zone: String,
    role: String,
    create_time: DateTime<Utc>,
    update_time: DateTime<Utc>,
    version: i32,
}

impl Row {
    /// Which member it is, at which version.
    pub(crate) const fn at(&self) -> (Uuid, i32) {
        (self.id, self.version)
    }
}

impl TryFrom<Row> for Member {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let id = row.id;
        member(row).map_err(|error| StoreError::inconsistent("member", id, error))
    }
}

fn member(row: Row) -> Result<Member, anyhow::Error> {
    let Row { id, user_id, name, email, locale, time_zone, role, create_time, update_time, version } = row;
    Ok(Member {
        id: MemberId::new(id),
        user: user_id.unwrap_or_default().parse()?,
        profile: Profile { email: Email::kept(&email)?, name, locale, time_zone },
        role: role.parse().map_err(anyhow::Error::msg)?,
        create_time,
        update_time,
        version,
    })
}

/// Inserts a new member.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "INSERT", db.collection.name = "member"))]
pub async fn insert(tx: &mut TenantTx, member: &Member) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let Member { id, user, profile, role, create_time, update_time, version } = member;
    let Profile { email, name, locale, time_zone } = profile;
    sqlx::query(
        "insert into member (tenant, id, user_id, name, email, locale, time_zone, role, create_time, update_time, version) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(tenant.as_str())
    .bind(id.uuid())
    .bind(user.as_str())
    .bind(name)
    .bind(email.as_str())
    .bind(locale)
    .bind(time_zone)
    .bind(role.as_str())
    .bind(create_time)
    .bind(update_time)
    .bind(version)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Reads a member who has not left.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "member"))]
pub async fn get(tx: &mut TenantTx, id: MemberId) -> Result<Option<Member>, StoreError> {
    one(tx, "t.id = $2", id.uuid()).await
}

/// Reads a member who has not left and locks it: the next command that appends to its events waits for this transaction.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "member"))]
pub async fn get_for_update(tx: &mut TenantTx, id: MemberId) -> Result<Option<Member>, StoreError> {
    one(tx, "t.id = $2 for update", id.uuid()).await
}

async fn one(tx: &mut TenantTx, which: &'static str, id: Uuid) -> Result<Option<Member>, StoreError> {
    let tenant = tx.tenant();
    let sql = format!("select {COLUMNS} from member t where t.tenant = $1 and t.delete_time is null and {which}");
    let row: Option<Row> =
        sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.as_str()).bind(id).fetch_optional(&mut **tx).await?;
    row.map(TryInto::try_into).transpose()
}

/// How many owners there are. Lock the tenant before: nobody becomes one or ends being one meanwhile.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "member"))]
pub async fn owners(tx: &mut TenantTx) -> Result<i64, StoreError> {
    let tenant = tx.tenant();
    let count = "select count(*) from member where tenant = $1 and role = 'owner' and delete_time is null";
    Ok(sqlx::query_scalar(count).bind(tenant.as_str()).fetch_one(&mut **tx).await?)
}

/// Whether an owner has signed in: then the provider has said the address. Lock the tenant before.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "member"))]
pub async fn an_owner_came(tx: &mut TenantTx) -> Result<bool, StoreError> {
    let tenant = tx.tenant();
    let found = "select exists (select from member where tenant = $1 and role = 'owner' and email <> '' and delete_time is null)";
    Ok(sqlx::query_scalar(found).bind(tenant.as_str()).fetch_one(&mut **tx).await?)
}

/// Writes the next version of a member.
///
/// # Errors
/// [`StoreError::Conflict`] when the row is not at the version before it.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "member"))]
pub async fn save(tx: &mut TenantTx, before: &Member, member: &Member) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let Member { id, user: _, profile, role, create_time: _, update_time, version } = member;
    let Profile { email, name, locale, time_zone } = profile;
    let saved = sqlx::query(
        "update member set name = $4, email = $5, locale = $6, time_zone = $7, role = $8, update_time = $9, version = $10 \
         where tenant = $1 and id = $2 and version = $3 and delete_time is null",
    )
    .bind(tenant.as_str())
    .bind(id.uuid())
    .bind(before.version)
    .bind(name)
    .bind(email.as_str())
    .bind(locale)
    .bind(time_zone)
    .bind(role.as_str())
    .bind(update_time)
    .bind(version)
    .execute(&mut **tx)
    .await?;
    if saved.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Conflict) }
}

/// Empties the row of a member, at its last version. The row stays as a tombstone, which shows its last version.
///
/// # Errors
/// As [`save`].
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "member"))]
pub async fn delete(tx: &mut TenantTx, before: &Member, member: &Member) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let deleted = sqlx::query(
        "update member set user_id = null, name = '', email = '', locale = '', time_zone = '', delete_time = $5, update_time = $5, \
         version = $4 where tenant = $1 and id = $2 and version = $3 and delete_time is null",
    )
    .bind(tenant.as_str())
    .bind(member.id.uuid())
    .bind(before.version)
    .bind(member.version)
    .bind(member.update_time)
    .execute(&mut **tx)
    .await?;
    if deleted.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Conflict) }
}

/// A page of members who have not left, the newest first.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "member"))]
pub async fn list(tx: &mut TenantTx, after: Option<MemberId>, limit: usize) -> Result<Vec<Member>, StoreError> {
    let tenant = tx.tenant();
    let mut query = QueryBuilder::<Postgres>::new(format!(
        "select {COLUMNS} from member t where t.delete_time is null and t.tenant = "
    ));
    query.push_bind(tenant.to_string());
    if let Some(after) = after {
        query.push(" and t.id < ").push_bind(after.uuid());
    }
    query.push(" order by t.id desc limit ").push_bind(limit as i64);
    let rows: Vec<Row> = query.build_query_as().fetch_all(&mut **tx).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// A page of members, the newest first, locked; and whether each is there, or has left and is without a user.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "member"))]
pub async fn all_for_update(
    tx: &mut TenantTx,
    after: Option<MemberId>,
    limit: usize,
) -> Result<Vec<(Member, bool)>, StoreError> {
    let tenant = tx.tenant();
    let sql = format!(
        "select {COLUMNS} from member t where t.tenant = $1 and ($2::uuid is null or t.id < $2) order by t.id desc limit $3 for update"
    );
    let page = sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.as_str()).bind(after.map(|id| id.uuid()));
    let rows: Vec<Row> = page.bind(limit as i64).fetch_all(&mut **tx).await?;
    let read = |row: Row| {
        let there = row.user_id.is_some();
        let user_id = row.user_id.or_else(|| Some(UserId::erased().to_string()));
        Ok((Row { user_id, ..row }.try_into()?, there))
    };
    rows.into_iter().map(read).collect()
}

/// Writes the next version of a member who has left.
///
/// # Errors
/// As [`save`].
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "member"))]
pub async fn delete_again(tx: &mut TenantTx, before: &Member, member: &Member) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let deleted = sqlx::query(
        "update member set update_time = $5, version = $4 \
         where tenant = $1 and id = $2 and version = $3 and delete_time is not null",
    )
    .bind(tenant.as_str())
    .bind(member.id.uuid())
    .bind(before.version)
    .bind(member.version)
    .bind(member.update_time)
    .execute(&mut **tx)
    .await?;
    if deleted.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Conflict) }
}

/// The member that a user is.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "member"))]
pub async fn of_user(tx: &mut TenantTx, user: &UserId) -> Result<Option<Member>, StoreError> {
    let tenant = tx.tenant();
    let sql =
        format!("select {COLUMNS} from member t where t.tenant = $1 and t.user_id = $2 and t.delete_time is null");
    let row: Option<Row> =
        sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.as_str()).bind(user.as_str()).fetch_optional(&mut **tx).await?;
    row.map(TryInto::try_into).transpose()
}

/// Which of these members are there: they have not left.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "member"))]
pub async fn these(tx: &mut TenantTx, members: &[MemberId]) -> Result<Vec<MemberId>, StoreError> {
    let tenant = tx.tenant();
    let ids: Vec<Uuid> = members.iter().map(|member| member.uuid()).collect();
    let there: Vec<Uuid> =
        sqlx::query_scalar("select id from member where tenant = $1 and id = any($2) and delete_time is null")
            .bind(tenant.as_str())
            .bind(ids)
            .fetch_all(&mut **tx)
            .await?;
    Ok(there.into_iter().map(MemberId::new).collect())
}
