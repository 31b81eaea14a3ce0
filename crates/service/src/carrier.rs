//! How a service calls another one on behalf of its own caller: identity gives it a token for the two, of the token that the caller came with
//! and of an assertion by the service's own key (RFC 8693). So it acts for nobody who has not called it, and a service that is called sees who
//! asks for whom.

use std::time::Duration;

use authz::exchange::{ACCESS_TOKEN, JWT, TOKEN_EXCHANGE};
use authz::{SigningKeys, assertion};
use contracts::UserId;
use http::HeaderValue;
use proto::identity::ExchangeTokenRequest;
use proto::identity::identity_service_client::IdentityServiceClient;
use tonic::{Code as Grpc, Request, Status};
use tonic_types::StatusExt as _;

use crate::client::{ReadsOnly, Upstream};
use crate::secret::Secret;
use crate::tokens::{Granted, Tokens};
use crate::{Code, Failure};

/// How long identity may take: less than the call has that waits for it.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// Carries callers along.
pub struct Carrier {
    identity: IdentityServiceClient<Upstream>,
    service: UserId,
    key: Secret,
    /// The issuer of the fleet's tokens.
    issuer: String,
    /// What it asks for, of what its callers may.
    scope: &'static str,
    tokens: Tokens,
}

impl std::fmt::Debug for Carrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Carrier").field("service", &self.service).finish_non_exhaustive()
    }
}

impl Carrier {
    /// A service, with its key; identity takes callers for it, within these scopes.
    #[must_use]
    pub fn new(identity: Upstream, (service, key): (UserId, &Secret), issuer: &str, scope: &'static str) -> Self {
        Self {
            identity: IdentityServiceClient::new(identity),
            service,
            key: key.clone(),
            issuer: issuer.to_owned(),
            scope,
            tokens: Tokens::default(),
        }
    }

    /// The authorization by which another service knows this one, and the caller that came with `callers`.
    ///
    /// # Errors
    /// UNAUTHENTICATED (`TOKEN_REVOKED`) where the caller's token says what is not true any more; PERMISSION_DENIED where it has not the scope;
    /// UNAVAILABLE, DEADLINE_EXCEEDED or RESOURCE_EXHAUSTED as identity answers; INTERNAL for any other refusal of it, such as of a service that
    /// it does not know.
    pub(crate) async fn carry(&self, callers: &HeaderValue) -> Result<HeaderValue, Status> {
        let callers = authz::bearer(callers.to_str().ok()).map_err(Failure::from)?;
        // It is asked for another one when the one in hand has ended: no error passes.
        self.tokens.authorization(callers, || self.exchanged(callers), |_| false).await
    }

    async fn exchanged(&self, token: &str) -> Result<Granted, Status> {
        let signed =
            SigningKeys::read(&self.key.expose()).and_then(|keys| assertion(&keys, &self.service, &self.issuer));
        let mut request = Request::new(ExchangeTokenRequest {
            grant_type: TOKEN_EXCHANGE.to_owned(),
            subject_token: token.to_owned(),
            subject_token_type: ACCESS_TOKEN.to_owned(),
            actor_token: signed.map_err(Failure::internal)?,
            actor_token_type: JWT.to_owned(),
            scope: self.scope.to_owned(),
            ..ExchangeTokenRequest::default()
        });
        // A second exchange does no more than the first.
        request.extensions_mut().insert(ReadsOnly);
        request.set_timeout(ANSWERS_WITHIN);
        let granted = self.identity.clone().exchange_token(request).await.map_err(refused)?.into_inner();
        // It ends with the caller's, which is good for this call.
        Granted::new(&granted, Duration::ZERO).map_err(|error| Failure::internal(error).into())
    }
}

/// Identity's error of an exchange, as that of the call on the way.
fn refused(status: Status) -> Status {
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    match (status.code(), reason.as_str()) {
        (_, "INVALID_SCOPE") => {
            Failure::new(Code::PermissionDenied, "PERMISSION_DENIED", "the access token lacks a scope for this").into()
        }
        (_, "INVALID_GRANT") => {
            let message = "what the token was issued for is gone, or has another role: get a new one";
            Failure::new(Code::Unauthenticated, "TOKEN_REVOKED", message).into()
        }
        (Grpc::Unavailable | Grpc::DeadlineExceeded | Grpc::ResourceExhausted, _) => status,
        _ => {
            let what = anyhow::anyhow!("identity gives no token to this service: {reason} {}", status.message());
            Failure::internal(what).into()
        }
    }
}
