//! What the database holds about a tenant, and about one person in it: the tables, and the aggregates.

use contracts::UserId;
use service::operators_data::{Holds, Table};
use service::{StoreError, TenantTx};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

/// The service's own tables.
pub(crate) const TABLES: [Table; 9] = [
    Table { name: "tenant", holds: Holds::Rows { people: &["created_by"] } },
    Table { name: "member", holds: Holds::Rows { people: &["user_id"] } },
    Table { name: "invitation", holds: Holds::Rows { people: &["created_by"] } },
    Table { name: "member_group", holds: Holds::Rows { people: &["created_by"] } },
    Table { name: "service_account", holds: Holds::Rows { people: &["created_by"] } },
    Table { name: "api_key", holds: Holds::Rows { people: &["created_by"] } },
    // Ids alone, which stay when a person is erased: who gave access is the tenant's to know.
    Table { name: "audit", holds: Holds::Rows { people: &[] } },
    Table { name: "adoption", holds: Holds::Copies("whether the tenants that other services knew are adopted") },
    Table { name: "person", holds: Holds::Copies("who is who at the provider, of no tenant: an id, and no name") },
];

/// The tenant, if it is not erased; with a person, if it names that.
pub(crate) async fn tenants(
    tx: &mut TenantTx,
    person: Option<&UserId>,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Uuid>, StoreError> {
    holding(tx, ("tenant", "created_by"), (person, after, limit)).await
}

/// The same for members.
pub(crate) async fn members(
    tx: &mut TenantTx,
    person: Option<&UserId>,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Uuid>, StoreError> {
    holding(tx, ("member", "user_id"), (person, after, limit)).await
}

/// The same for invitations.
pub(crate) async fn invitations(
    tx: &mut TenantTx,
    person: Option<&UserId>,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Uuid>, StoreError> {
    holding(tx, ("invitation", "created_by"), (person, after, limit)).await
}

/// The same for groups.
pub(crate) async fn groups(
    tx: &mut TenantTx,
    person: Option<&UserId>,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Uuid>, StoreError> {
    holding(tx, ("member_group", "created_by"), (person, after, limit)).await
}

/// The same for programs.
pub(crate) async fn service_accounts(
    tx: &mut TenantTx,
    person: Option<&UserId>,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Uuid>, StoreError> {
    holding(tx, ("service_account", "created_by"), (person, after, limit)).await
}

/// The same for keys.
pub(crate) async fn api_keys(
    tx: &mut TenantTx,
    person: Option<&UserId>,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Uuid>, StoreError> {
    holding(tx, ("api_key", "created_by"), (person, after, limit)).await
}

async fn holding(
    tx: &mut TenantTx,
    (table, column): (&'static str, &'static str),
    (person, after, limit): (Option<&UserId>, Uuid, i64),
) -> Result<Vec<Uuid>, StoreError> {
    let tenant = tx.tenant();
    let sql = format!(
        "select id from {table} where tenant = $1 and id > $2 and delete_time is null \
         and ($3::text is null or {column} = $3) order by id limit $4"
    );
    let ids = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(tenant.as_str())
        .bind(after)
        .bind(person.map(UserId::as_str))
        .bind(limit)
        .fetch_all(&mut **tx)
        .await?;
    Ok(ids)
}
