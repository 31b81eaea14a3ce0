//! Which users are members of a tenant, as a service knows it by identity's events: at most seconds after identity does.

use chrono::{DateTime, Utc};
use contracts::UserId;
use contracts::events::identity::MemberId;

use crate::TenantTx;

/// Whether a user is a member of the transaction's tenant.
///
/// # Errors
/// The database does not answer.
#[tracing::instrument(target = "service::trace", name = "read member", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "known_member"))]
pub async fn is_member(tx: &mut TenantTx, user: &UserId) -> Result<bool, sqlx::Error> {
    let tenant = tx.tenant();
    sqlx::query_scalar("select exists (select from known_member where tenant = $1 and user_id = $2)")
        .bind(tenant.as_str())
        .bind(user.as_str())
        .fetch_one(&mut **tx)
        .await
}

/// Notes that a member is this user, or has left, unless something newer is known.
#[tracing::instrument(target = "service::trace", name = "note member", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "INSERT", db.collection.name = "known_member"))]
pub(crate) async fn note(
    tx: &mut TenantTx,
    member: MemberId,
    user: Option<&UserId>,
    time: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let tenant = tx.tenant();
    // Of two changes at one time, the one that takes away stands.
    sqlx::query(
        "insert into known_member as known (tenant, id, user_id, time) values ($1, $2, $3, $4) \
         on conflict (tenant, id) do update set user_id = excluded.user_id, time = excluded.time \
         where known.time < excluded.time or (known.time = excluded.time and excluded.user_id is null)",
    )
    .bind(tenant.as_str())
    .bind(member.uuid())
    .bind(user.map(UserId::as_str))
    .bind(time)
    .execute(&mut **tx)
    .await
    .map(drop)
}

/// Removes every user of a tenant that is erased.
#[tracing::instrument(target = "service::trace", name = "forget members", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "known_member"))]
pub(crate) async fn forget(tx: &mut TenantTx) -> Result<(), sqlx::Error> {
    let tenant = tx.tenant();
    let forget = sqlx::query("update known_member set user_id = null where tenant = $1 and user_id is not null");
    forget.bind(tenant.as_str()).execute(&mut **tx).await.map(drop)
}
