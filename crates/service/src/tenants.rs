//! What a service knows of tenants by identity's events: which of them are suspended or erased. These read, and write nothing; what the
//! service does by itself goes on: handlers, timers, erasures.

use chrono::{DateTime, Utc};
use contracts::TenantId;
use sqlx::PgConnection;
use sqlx::migrate::Migrator;

use crate::failure::{Code, Failure};
use crate::shipped;

/// The status of a tenant of which nothing is left.
pub(crate) const ERASED: &str = "erased";

/// A tenant that writes nothing now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("your tenant is suspended: it can be read and not changed, until whoever runs this fleet resumes it")]
pub struct Suspended;

impl From<Suspended> for Failure {
    fn from(suspended: Suspended) -> Self {
        Self::new(Code::PermissionDenied, "TENANT_SUSPENDED", suspended)
    }
}

/// Notes what identity says of a tenant, unless something newer is known.
#[tracing::instrument(target = "service::trace", name = "note status", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "INSERT", db.collection.name = "known_tenant"))]
pub(crate) async fn note(
    db: &mut PgConnection,
    tenant: &TenantId,
    status: &str,
    time: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into known_tenant as known (tenant, status, time) values ($1, $2, $3) \
         on conflict (tenant) do update set status = excluded.status, time = excluded.time \
         where known.status <> 'erased' and (excluded.status = 'erased' or known.time <= excluded.time)",
    )
    .bind(tenant.as_str())
    .bind(status)
    .bind(time)
    .execute(db)
    .await
    .map(drop)
}

/// Refuses a caller of a tenant that writes nothing.
#[tracing::instrument(target = "service::trace", name = "read status", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "known_tenant"))]
pub(crate) async fn refuse_suspended(db: &mut PgConnection, tenant: &TenantId) -> Result<(), Failure> {
    let known = sqlx::query_scalar("select status from known_tenant where tenant = $1 and status <> 'active'");
    let known: Option<String> = known.bind(tenant.as_str()).fetch_optional(db).await?;
    match known.as_deref() {
        None => Ok(()),
        Some(ERASED) => Err(Failure::new(Code::NotFound, "TENANT_NOT_FOUND", "your tenant is erased")),
        Some(_) => Err(Suspended.into()),
    }
}

/// Makes the tables of known tenants and members, for the service's role.
pub(crate) fn migrations(app: &str) -> Migrator {
    let steps =
        [("tenants", include_str!("../schema/tenants.sql")), ("members", include_str!("../schema/members.sql"))];
    shipped::migrations("_tenants_migrations", &steps, &[("app", app)])
}
