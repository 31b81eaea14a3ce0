//! Who is calling, and what the role in its token allows: RFC 9068 access tokens, verified offline against a JSON Web Key Set.
//!
//! The tenant comes from the verified token and from nowhere else. Each command checks a [`Permission`] first.

pub mod exchange;
mod jwks;
mod operator;
mod permission;
mod person;
mod service_keys;
mod signing;
mod step_up;
mod trusted;
mod verified;

pub use contracts::Role;
pub use jsonwebtoken::jwk::JwkSet;
pub use jwks::{JwksError, JwksSource};
pub use operator::{OPERATORS_AUDIENCE, Operator, OperatorRole, Operators};
pub use permission::{Denied, Permission};
pub use person::{MAX_SUBJECT_BYTES, People, Person, is_acr};
pub use service_keys::{ServiceKeys, assertion};
pub use signing::{SigningError, SigningKeys};
pub use step_up::{Insufficient, SignIn, StepUp};
pub use trusted::{Typ, bearer, issuer_named};

use std::sync::Arc;

use contracts::text::is_misleading_name;
use contracts::{Actor, ActorKind, TenantId, UserId, actor};
use serde::Deserialize;
use uuid::Uuid;

use crate::trusted::{LEEWAY_SECONDS, Trusted};

/// The longest chain of actors, in bytes of its text: the chain is a part of keys.
const MAX_ACTOR_BYTES: usize = 2_000;

/// A verified caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The tenant in which it acts.
    pub tenant: TenantId,
    /// Who acts, and for whom.
    pub actor: Actor,
    /// Its role in the tenant. Without one it may do nothing.
    pub role: Option<Role>,
    /// The scopes of its token; none where the role alone counts.
    pub scopes: Option<Vec<String>>,
    /// How the person signed in; none of whoever did not.
    pub sign_in: Option<Arc<SignIn>>,
    /// When identity issued the token, and for what; none of a token that does not say so.
    pub issued: Option<Arc<Issued>>,
    /// When its token ends, in seconds since 1970; 0 of whoever came with none.
    pub expires_unix_seconds: i64,
}

/// When identity issued a token, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// When, in seconds since 1970: before the rest was looked at.
    pub unix_seconds: i64,
    /// The ids of the member; or of the service account, and of its key. Of an agent: the member for whom it acts, and its key.
    pub sources: Vec<Uuid>,
    /// What the agent is to do that acts; none where there is none, or it did not say.
    pub task: Option<String>,
}

impl Caller {
    /// A service of the fleet that acts on its own behalf, in a handler of a tenant's event.
    #[must_use]
    pub const fn service(tenant: TenantId, name: UserId) -> Self {
        Self {
            tenant,
            actor: Actor::new(ActorKind::Service, name),
            role: None,
            scopes: None,
            sign_in: None,
            issued: None,
            expires_unix_seconds: 0,
        }
    }

    /// The caller as a text, unique within the tenant. A person is its bare id. Any other caller begins with a control character
    /// that no id holds.
    #[must_use]
    pub fn key(&self) -> String {
        if self.actor.is_person() { self.actor.id.to_string() } else { format!("\u{1f}{}", self.actor) }
    }
}

/// Why a token does not identify a caller. The texts are for the caller; none holds a part of the token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The `Authorization: Bearer` header is missing.
    #[error("no access token: send the header Authorization: Bearer <token>")]
    Missing,
    /// It cannot be read as a signed access token, or a claim is missing or malformed.
    #[error("the access token is not one this service can read: {0}")]
    Malformed(&'static str),
    /// The token has expired, or is not valid yet.
    #[error("the access token is expired or not yet valid: get a new one")]
    Expired,
    /// No trusted key has signed it, or it is for another issuer or audience.
    #[error("the access token is not trusted here: {0}")]
    Untrusted(&'static str),
    /// The keys are unavailable, so the token cannot be verified.
    #[error("access tokens cannot be verified right now")]
    Keys(#[source] JwksError),
}

/// Verifies access tokens of one issuer for one audience.
pub struct Verifier {
    trusted: Trusted,
    verified: verified::Verified,
}

#[derive(Deserialize)]
struct Claims {
    sub: UserId,
    tenant: TenantId,
    /// The kind of `sub`; a person where it is absent.
    kind: Option<ActorKind>,
    /// Who acts for `sub` (RFC 8693, 4.1).
    act: Option<Act>,
    role: Option<Role>,
    scope: Option<String>,
    acr: Option<String>,
    auth_time: Option<i64>,
    step_up: Option<StepUp>,
    #[serde(default)]
    sources: Vec<Uuid>,
    task: Option<String>,
    #[serde(rename = "client_id")]
    _client_id: String,
    #[serde(rename = "jti")]
    _jti: String,
    // The library does not refuse a list, which is no issuer (RFC 7519, 4.1.1).
    #[serde(rename = "iss")]
    _iss: String,
    iat: f64,
    exp: f64,
}

/// An actor, and within it the one that it acts for; the innermost acts for the token's subject.
#[derive(Deserialize)]
struct Act {
    sub: UserId,
    kind: ActorKind,
    act: Option<Box<Act>>,
}

impl Act {
    /// The chain that ends in `subject`; none when it is too long.
    fn chain(self, subject: Actor, room: usize) -> Option<Actor> {
        let room = room.checked_sub(1)?;
        let acts_for = match self.act {
            Some(inner) => inner.chain(subject, room)?,
            None => subject,
        };
        Some(Actor { kind: self.kind, id: self.sub, acts_for: Some(Box::new(acts_for)) })
    }
}

impl Verifier {
    /// A verifier without keys; the first token, or [`Verifier::refresh`], fetches them.
    ///
    /// # Errors
    /// Fails when the HTTP client cannot be made.
    pub fn new(source: JwksSource, issuer: &str, audience: &str) -> Result<Self, JwksError> {
        let trusted = Trusted::new(source, issuer, (audience, Typ::AccessToken))?;
        Ok(Self { trusted, verified: verified::Verified::default() })
    }

    /// Fetches the keys now.
    ///
    /// # Errors
    /// Fails when the keys are unavailable; the known ones stay in use.
    pub async fn refresh(&self) -> Result<(), JwksError> {
        self.trusted.refresh().await
    }

    /// Verifies the value of an `Authorization` header; returns the caller.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub async fn verify(&self, authorization: Option<&str>) -> Result<Caller, TokenError> {
        let token = trusted::bearer(authorization)?;
        let now = verified::Now::read();
        if let Some(caller) = self.verified.get(token, now) {
            return Ok(caller);
        }
        let claims: Claims = self.trusted.claims(token, now, |claims: &Claims| (claims.iat, claims.exp)).await?;
        let subject = Actor::new(claims.kind.unwrap_or(ActorKind::User), claims.sub);
        let actor = match claims.act {
            Some(act) => act
                .chain(subject, actor::MAX_CHAIN - 1)
                .ok_or(TokenError::Malformed("its act names more actors than one acts through"))?,
            None => subject,
        };
        // Only a process of the fleet is a service on its own behalf; a token makes nobody one.
        if actor.kind == ActorKind::Service && actor.acts_for.is_none() {
            return Err(TokenError::Untrusted("it names a service that acts for nobody"));
        }
        if actor.to_string().len() > MAX_ACTOR_BYTES {
            return Err(TokenError::Malformed("the names of those who act are too long together"));
        }
        // In a log or a list the name would pass for another.
        if actor.chain().any(|actor| is_misleading_name(actor.id.as_str())) {
            return Err(TokenError::Malformed("a sub of it holds what cannot be seen"));
        }
        let scopes = claims.scope.map(|scope| scope.split(' ').map(ToOwned::to_owned).collect());
        let Claims { acr, auth_time, step_up, sources, task, iat, .. } = claims;
        let issued = Issued { unix_seconds: iat as i64, sources, task };
        let issued = (!issued.sources.is_empty()).then(|| Arc::new(issued));
        let sign_in = SignIn { acr, auth_time, step_up };
        let sign_in = (sign_in != SignIn::default()).then(|| Arc::new(sign_in));
        let expires_unix_seconds = claims.exp as i64;
        let caller =
            Caller { tenant: claims.tenant, actor, role: claims.role, scopes, sign_in, issued, expires_unix_seconds };
        self.verified.put(token, caller.clone(), claims.exp + LEEWAY_SECONDS as f64, now);
        Ok(caller)
    }
}
