//! Which users are members of a tenant, as a service knows it by identity's events: at most seconds after identity does. Where that is too
//! late, it asks identity.

use std::time::Duration;

use chrono::{DateTime, Utc};
use contracts::UserId;
use contracts::events::identity::MemberId;
use proto::identity::ListMembersRequest;
use proto::identity::identity_service_client::IdentityServiceClient;
use proto::identity::identity_service_server::SERVICE_NAME;
use tonic::{Code as Grpc, Request};

use crate::client::{ReadsOnly, Upstream};
use crate::config::{Calls, Common};
use crate::upstreams::Upstreams;
use crate::{Code, Failure, Process, TenantTx};

/// How long the question may take, with the exchange before it: less than the call has that waits.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// The scope that a caller needs, and for which it is carried along.
const SCOPE: &str = "identity:read";

/// Identity itself.
#[derive(Debug, Clone, Default)]
pub struct Directory(Option<IdentityServiceClient<Upstream>>);

impl Directory {
    /// Identity, as a service calls it on behalf of its callers. Of one that is configured to call nobody, nobody is a member whom events
    /// have not named.
    ///
    /// # Errors
    /// As those of [`Upstreams::on_behalf`].
    pub fn of(process: &Process, config: &Calls, common: &Common) -> Result<Self, anyhow::Error> {
        let upstreams = Upstreams::on_behalf(process, config, common, SCOPE)?;
        Ok(Self(upstreams.get(SERVICE_NAME).cloned().map(IdentityServiceClient::new)))
    }

    /// Whether a user is a member of the caller's tenant now, as far as the caller may know. Not within a transaction: it waits for another
    /// service.
    ///
    /// # Errors
    /// UNAVAILABLE where identity does not answer, TOO_MANY_REQUESTS where it is asked too much; INTERNAL where it answers with another error, or
    /// gives this service no token.
    pub async fn has(&self, user: &UserId) -> Result<bool, Failure> {
        let Some(identity) = &self.0 else { return Ok(false) };
        let mut request = Request::new(ListMembersRequest { user: user.to_string(), ..ListMembersRequest::default() });
        request.extensions_mut().insert(ReadsOnly);
        request.set_timeout(ANSWERS_WITHIN);
        match identity.clone().list_members(request).await {
            // One of the release before does not know the filter, and lists everybody.
            Ok(found) => Ok(found.into_inner().members.iter().any(|member| member.user == user.as_str())),
            // Who may not ask, or has not called: what events said is all that it may rest on.
            Err(status) if matches!(status.code(), Grpc::PermissionDenied | Grpc::Unauthenticated) => Ok(false),
            Err(status) if matches!(status.code(), Grpc::Unavailable | Grpc::DeadlineExceeded) => {
                Err(Failure::unavailable("the directory of members", status))
            }
            Err(status) if status.code() == Grpc::ResourceExhausted => {
                let message = "too many ask who is a member: try again later";
                let refused = Failure::new(Code::ResourceExhausted, "TOO_MANY_REQUESTS", message);
                Err(refused.retry_after(Duration::from_secs(1)))
            }
            Err(status) => Err(Failure::internal(status)),
        }
    }
}

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
