//! The SQL of what is known before a tenant is chosen: people, where they are members, and whose an invitation or a key is.

use authz::Person;
use chrono::{DateTime, Utc};
use contracts::events::identity::{ApiKeyId, InvitationId, MemberId};
use contracts::{Role, TenantId, UserId};
use service::{OperatorTx, StoreError, TenantTx};
use sqlx::FromRow;
use tracing::instrument;
use uuid::Uuid;

/// Where a person is a member, and as what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The tenant.
    pub tenant: TenantId,
    /// The member there.
    pub member: MemberId,
    /// The user, in every tenant the same.
    pub user: UserId,
    /// What the member may do.
    pub role: Role,
}

#[derive(FromRow)]
struct Row {
    tenant: String,
    member_id: Uuid,
    user_id: String,
    role: String,
}

impl TryFrom<Row> for Membership {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let id = row.member_id;
        let membership = || -> Result<Self, anyhow::Error> {
            let Row { tenant, member_id, user_id, role } = row;
            let role = role.parse().map_err(anyhow::Error::msg)?;
            Ok(Self { tenant: tenant.parse()?, member: MemberId::new(member_id), user: user_id.parse()?, role })
        };
        membership().map_err(|error| StoreError::inconsistent("member", id, error))
    }
}

/// The user that a person is; who was never seen becomes `new`.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "INSERT", db.collection.name = "person"))]
pub async fn user(
    tx: &mut TenantTx,
    (issuer, subject): (&str, &str),
    new: &UserId,
    now: DateTime<Utc>,
) -> Result<UserId, StoreError> {
    sqlx::query(
        "insert into person (id, issuer, subject, create_time) values ($1, $2, $3, $4) on conflict (issuer, subject) do nothing",
    )
    .bind(new.as_str())
    .bind(issuer)
    .bind(subject)
    .bind(now)
    .execute(&mut **tx)
    .await?;
    of(tx, (issuer, subject)).await?.ok_or(StoreError::Conflict)
}

/// The user that a person is; none of one who was never seen.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "person"))]
pub async fn of(tx: &mut TenantTx, (issuer, subject): (&str, &str)) -> Result<Option<UserId>, StoreError> {
    let found = sqlx::query_scalar("select id from person where issuer = $1 and subject = $2");
    user_id(found.bind(issuer).bind(subject).fetch_optional(&mut **tx).await?)
}

fn user_id(found: Option<String>) -> Result<Option<UserId>, StoreError> {
    found.map(|id| id.parse().map_err(|error| StoreError::inconsistent("person", id.clone(), error))).transpose()
}

/// The same, before a tenant is chosen.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "person"))]
pub async fn known(tx: &mut OperatorTx, person: &Person) -> Result<Option<UserId>, StoreError> {
    let found = sqlx::query_scalar("select identity_user($1, $2)").bind(&person.issuer).bind(&person.subject);
    user_id(found.fetch_one(&mut **tx).await?)
}

/// Whether somebody is this user.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "person"))]
pub async fn is_user(tx: &mut TenantTx, id: &UserId) -> Result<bool, StoreError> {
    let found = sqlx::query_scalar("select exists (select from person where id = $1)").bind(id.as_str());
    Ok(found.fetch_one(&mut **tx).await?)
}

/// Where a person is a member: in this tenant, or without one in any, two at most.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "member"))]
pub async fn memberships(
    tx: &mut OperatorTx,
    person: &Person,
    tenant: Option<&TenantId>,
) -> Result<Vec<Membership>, StoreError> {
    let rows: Vec<Row> =
        sqlx::query_as("select tenant, member_id, user_id, role from identity_memberships($1, $2, $3)")
            .bind(&person.issuer)
            .bind(&person.subject)
            .bind(tenant.map(TenantId::as_str))
            .fetch_all(&mut **tx)
            .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// The tenant of an invitation, also of one that is closed.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "invitation"))]
pub async fn tenant_of_invitation(tx: &mut OperatorTx, id: InvitationId) -> Result<Option<TenantId>, StoreError> {
    let found = sqlx::query_scalar("select identity_tenant_of_invitation($1)").bind(id.uuid());
    tenant(found.fetch_one(&mut **tx).await?)
}

/// The tenant of a key that is not revoked.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "api_key"))]
pub async fn tenant_of_key(tx: &mut OperatorTx, id: ApiKeyId) -> Result<Option<TenantId>, StoreError> {
    tenant(sqlx::query_scalar("select identity_tenant_of_key($1)").bind(id.uuid()).fetch_one(&mut **tx).await?)
}

fn tenant(found: Option<String>) -> Result<Option<TenantId>, StoreError> {
    found.map(|slug| slug.parse().map_err(|error| StoreError::inconsistent("tenant", slug.clone(), error))).transpose()
}
