//! What the database holds about a tenant, and about one person in it: the tables, and the aggregates.

use contracts::UserId;
use service::operators_data::{Holds, Table};
use service::{StoreError, TenantTx};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

/// The service's own tables.
pub(crate) const TABLES: [Table; 2] = [
    Table { name: "vessel", holds: Holds::Rows { people: &["created_by"] } },
    Table { name: "logbook", holds: Holds::Rows { people: &["created_by"] } },
];

/// Vessels that are not deleted; with a person, those that name it.
pub(crate) async fn vessels(
    tx: &mut TenantTx,
    person: Option<&UserId>,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Uuid>, StoreError> {
    holding(tx, "vessel", (person, after, limit)).await
}

/// The same for logbooks.
pub(crate) async fn logbooks(
    tx: &mut TenantTx,
    person: Option<&UserId>,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Uuid>, StoreError> {
    holding(tx, "logbook", (person, after, limit)).await
}

async fn holding(
    tx: &mut TenantTx,
    table: &'static str,
    (person, after, limit): (Option<&UserId>, Uuid, i64),
) -> Result<Vec<Uuid>, StoreError> {
    let tenant = tx.tenant();
    let sql = format!(
        "select id from {table} where tenant = $1 and id > $2 and delete_time is null \
         and ($3::text is null or created_by = $3) order by id limit $4"
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
