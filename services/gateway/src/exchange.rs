//! Exchanges a credential that an HTTP caller comes with, a key or a token of the people's provider, for a token of the fleet's. Services take
//! nothing else.

use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::Context as _;
use authz::exchange::{ACCESS_TOKEN, API_KEY, API_KEY_PREFIX, TOKEN_EXCHANGE};
use authz::issuer_named;
use http::HeaderValue;
use proto::identity::ExchangeTokenRequest;
use proto::identity::identity_service_client::IdentityServiceClient;
use proto::identity::identity_service_server::SERVICE_NAME;
use service::client::{ReadsOnly, Upstream};
use service::policy::Policy;
use service::tokens::{Granted, Tokens};
use service::upstreams::Upstreams;
use service::{Code, Failure};
use tonic::{Request, Status};
use tonic_types::StatusExt as _;

/// How long identity may take: less than the call has that waits for it.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);
/// What says that a credential is not good for the token in hand any more.
const REFUSALS: [tonic::Code; 5] = [
    tonic::Code::InvalidArgument,
    tonic::Code::FailedPrecondition,
    tonic::Code::OutOfRange,
    tonic::Code::Unauthenticated,
    tonic::Code::PermissionDenied,
];
/// How long before its end a token is exchanged again: it must last for a whole call.
const BEFORE_ITS_END: Duration = Duration::from_secs(60);

/// Exchanges credentials, and caches the tokens.
pub struct Exchange {
    identity: IdentityServiceClient<Upstream>,
    /// What an exchange costs the address that it is for.
    pub cost: NonZeroU32,
    /// The people's provider, as its tokens name it.
    provider: String,
    tokens: Tokens,
}

impl Exchange {
    /// Exchanges the tokens of this provider, and keys.
    ///
    /// # Errors
    /// No address is known for identity.
    pub fn new(upstreams: &Upstreams, provider: &str) -> Result<Self, anyhow::Error> {
        let service = proto::POOL.get_service_by_name(SERVICE_NAME).context("no descriptor of identity")?;
        let rpc = service.methods().find(|rpc| rpc.name() == "ExchangeToken").context("identity exchanges nothing")?;
        Ok(Self {
            identity: IdentityServiceClient::new(upstreams.of(SERVICE_NAME)?),
            cost: Policy::of(&rpc).cost,
            provider: provider.to_owned(),
            tokens: Tokens::default(),
        })
    }

    /// The type of what is to be exchanged; none for a token of the fleet's, and for what is nobody's.
    fn kind(&self, credential: &str) -> Option<&'static str> {
        if credential.starts_with(API_KEY_PREFIX) {
            return Some(API_KEY);
        }
        issuer_named(credential).filter(|issuer| *issuer == self.provider).map(|_| ACCESS_TOKEN)
    }

    /// The authorization by which services know the caller of this one; none where it is to be taken as it is. `charged` comes before
    /// identity is asked: whoever guesses keys pays.
    ///
    /// # Errors
    /// 401 for a credential that is not valid, 403 where it does not say for which tenant it is, those of `charged`, 503 when identity is down.
    pub async fn authorization<T: Send>(
        &self,
        authorization: Option<&str>,
        charged: impl Future<Output = Result<T, Failure>> + Send,
    ) -> Result<Option<HeaderValue>, Status> {
        let Ok(credential) = authz::bearer(authorization) else { return Ok(None) };
        let Some(kind) = self.kind(credential) else { return Ok(None) };
        let exchanged = || async {
            let _charged = charged.await?;
            self.exchanged(credential, kind).await
        };
        // While identity is away, busy, or the address has no allowance, a token in hand lives out its minutes.
        let passes = |status: &Status| !REFUSALS.contains(&status.code());
        self.tokens.authorization(credential, exchanged, passes).await.map(Some)
    }

    /// Gives up the token in hand for a credential, if it is the one that was refused.
    pub async fn give_up(&self, authorization: Option<&str>, refused: Option<&HeaderValue>) {
        let Ok(credential) = authz::bearer(authorization) else { return };
        self.tokens.give_up(credential, refused).await;
    }

    async fn exchanged(&self, credential: &str, kind: &str) -> Result<Granted, Status> {
        let mut request = Request::new(ExchangeTokenRequest {
            grant_type: TOKEN_EXCHANGE.to_owned(),
            subject_token: credential.to_owned(),
            subject_token_type: kind.to_owned(),
            ..ExchangeTokenRequest::default()
        });
        // A second exchange does no more than the first.
        request.extensions_mut().insert(ReadsOnly);
        request.set_timeout(ANSWERS_WITHIN);
        let granted = self.identity.clone().exchange_token(request).await;
        let granted = granted.map_err(refused)?.into_inner();
        Granted::new(&granted, BEFORE_ITS_END).map_err(|error| Failure::internal(error).into())
    }
}

/// Identity's error of an exchange, as that of an API call.
fn refused(status: Status) -> Status {
    let Some(info) = status.get_details_error_info() else { return status };
    let failure = match info.reason.as_str() {
        "INVALID_GRANT" => {
            let message = "the access token or key is not valid: sign in again, or ask for another key";
            Failure::new(Code::Unauthenticated, "TOKEN_INVALID", message)
        }
        "INVALID_TARGET" => {
            let said = status.message();
            let message = format!("{said}; exchange the token at POST /v1/token, and send the fleet's");
            Failure::new(Code::PermissionDenied, "TENANT_UNCLEAR", message)
        }
        // The call itself has not begun.
        "DEADLINE_EXCEEDED" => {
            let message = "who you are cannot be looked up for the moment: try again";
            Failure::new(Code::Unavailable, "UNAVAILABLE", message).retry_after(Duration::from_secs(1))
        }
        _ => return status,
    };
    failure.into()
}
