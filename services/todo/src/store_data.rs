//! What the database holds of a tenant, or of one person in it: table by table, and which todos.

use contracts::UserId;
use service::operators_data::{Holds, Table};
use service::{StoreError, TenantTx};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::store::HOLDS;

/// The service's own tables.
pub(crate) const TABLES: [Table; 4] = [
    Table { name: "todo", holds: Holds::Rows { people: &["created_by", "assignee"] } },
    Table { name: "todo_label", holds: Holds::Rows { people: &[] } },
    // Ids and numbers: they stay, so that a series can continue.
    Table { name: "todo_occurrence", holds: Holds::Rows { people: &[] } },
    Table { name: "todo_timer", holds: Holds::Rows { people: &[] } },
];

/// Todos that are not emptied, deleted ones too; with a person, those that name it.
pub(crate) async fn holding(
    tx: &mut TenantTx,
    person: Option<&UserId>,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Uuid>, StoreError> {
    let tenant = tx.tenant();
    let ids = sqlx::query_scalar(AssertSqlSafe(format!(
        r"
        select id from todo
        where tenant = $1 and id > $2 and case when $3::text is null then {HOLDS} else created_by = $3 or assignee = $3 end
        order by id limit $4",
    )))
    .bind(tenant.as_str())
    .bind(after)
    .bind(person.map(UserId::as_str))
    .bind(limit)
    .fetch_all(&mut **tx)
    .await?;
    Ok(ids)
}
