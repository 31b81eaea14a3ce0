//! The SQL of the audit: functions on a tenant's transaction. They never begin or commit one.

use chrono::{DateTime, Utc};
use outbox::NewEvent;
use service::{StoreError, TenantTx};
use sqlx::{FromRow, Postgres, QueryBuilder};
use tracing::instrument;
use uuid::Uuid;

/// What somebody did to access.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Entry {
    /// The id of the event that says it whole.
    pub id: Uuid,
    /// When.
    pub time: DateTime<Utc>,
    /// Who, and for whom: the chain of actors.
    pub actor: String,
    /// What: the event's token, such as `member_updated`.
    pub action: String,
    /// Of which aggregate.
    pub subject: Uuid,
}

/// Notes what an event of a command says.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "INSERT", db.collection.name = "audit"))]
pub async fn append(tx: &mut TenantTx, event: &NewEvent, actor: &str, now: DateTime<Utc>) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let action = event.subject.split('.').nth(2).unwrap_or_default();
    sqlx::query("insert into audit (tenant, id, time, actor, action, subject) values ($1, $2, $3, $4, $5, $6::uuid)")
        .bind(tenant.as_str())
        .bind(event.id)
        .bind(now)
        .bind(actor)
        .bind(action)
        .bind(&event.aggregate_id)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// A page of the tenant's, the newest first.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "audit"))]
pub async fn list(tx: &mut TenantTx, after: Option<Uuid>, limit: usize) -> Result<Vec<Entry>, StoreError> {
    let tenant = tx.tenant();
    let mut query = QueryBuilder::<Postgres>::new("select id, time, actor, action, subject from audit where tenant = ");
    query.push_bind(tenant.to_string());
    if let Some(after) = after {
        query.push(" and id < ").push_bind(after);
    }
    query.push(" order by id desc limit ").push_bind(limit as i64);
    Ok(query.build_query_as().fetch_all(&mut **tx).await?)
}

/// Forgets all of the tenant's.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "DELETE", db.collection.name = "audit"))]
pub async fn erase(tx: &mut TenantTx) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    sqlx::query("delete from audit where tenant = $1").bind(tenant.as_str()).execute(&mut **tx).await?;
    Ok(())
}
