//! Who is calling, and what the role in its token allows: RFC 9068 access tokens, verified offline against a JSON Web Key Set.
//!
//! The tenant comes from the verified token and from nowhere else. Each command checks a [`Permission`] first.

mod jwks;
mod permission;
mod verified;

pub use jwks::{JwksError, JwksSource};
pub use permission::{Denied, Permission, Role};

use std::time::Duration;

use contracts::text::is_misleading_name;
use contracts::{Actor, ActorKind, TenantId, UserId, actor};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;

/// Signature algorithms that are accepted; never `none`, never a shared secret (RFC 8725).
const ALGORITHMS: [Algorithm; 3] = [Algorithm::EdDSA, Algorithm::ES256, Algorithm::RS256];
/// How far clocks may differ.
const LEEWAY_SECONDS: u64 = 30;
/// The longest validity of a token: a client that needs longer asks for a new one.
const MAX_LIFETIME_SECONDS: f64 = 24.0 * 3_600.0;
/// The longest chain of actors, in bytes of its text: the chain is a part of keys.
const MAX_ACTOR_BYTES: usize = 2_000;
/// The longest token that is accepted, in bytes.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

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
}

impl Caller {
    /// A service of the fleet that acts on its own behalf, in a handler of a tenant's event.
    #[must_use]
    pub const fn service(tenant: TenantId, name: UserId) -> Self {
        Self { tenant, actor: Actor::new(ActorKind::Service, name), role: None, scopes: None }
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
    keys: jwks::Jwks,
    verified: verified::Verified,
    issuer: String,
    audience: String,
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
        let keys = jwks::Jwks::new(source, Duration::from_secs(5))?;
        Ok(Self {
            keys,
            verified: verified::Verified::default(),
            issuer: issuer.to_owned(),
            audience: audience.to_owned(),
        })
    }

    /// Fetches the keys now.
    ///
    /// # Errors
    /// Fails when the keys are unavailable; the known ones stay in use.
    pub async fn refresh(&self) -> Result<(), JwksError> {
        self.keys.refresh().await
    }

    /// Verifies the value of an `Authorization` header; returns the caller.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub async fn verify(&self, authorization: Option<&str>) -> Result<Caller, TokenError> {
        let (scheme, token) = authorization.and_then(|value| value.split_once(' ')).ok_or(TokenError::Missing)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(TokenError::Missing);
        }
        let token = token.trim();
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed("it is too long"));
        }
        let now = verified::Now::read();
        if let Some(caller) = self.verified.get(token, now) {
            return Ok(caller);
        }
        let header = decode_header(token).map_err(|_| TokenError::Malformed("its header is not that of a JWT"))?;
        let access_token =
            |typ: &str| typ.eq_ignore_ascii_case("at+jwt") || typ.eq_ignore_ascii_case("application/at+jwt");
        if !header.typ.as_deref().is_some_and(access_token) {
            return Err(TokenError::Malformed("its header does not say typ: at+jwt (RFC 9068)"));
        }
        // A recipient that does not understand a critical extension must refuse the token (RFC 7515, 4.1.11). None is known here.
        if header.crit.is_some() {
            return Err(TokenError::Malformed("its header has a crit, and no extension is understood here"));
        }
        if !ALGORITHMS.contains(&header.alg) {
            return Err(TokenError::Untrusted("its algorithm is not accepted"));
        }
        let kid = header.kid.as_deref().ok_or(TokenError::Malformed("its header names no key (kid)"))?;
        let key = self.keys.find(kid).await.map_err(TokenError::Keys)?;
        let key = key.ok_or(TokenError::Untrusted("its key is not one of the issuer's"))?;
        if jwks::algorithm(&key) != Some(header.alg) {
            return Err(TokenError::Untrusted("its algorithm is not that of its key"));
        }
        let key = DecodingKey::from_jwk(&key).map_err(|_| TokenError::Untrusted("its key cannot be used"))?;
        let mut validation = Validation::new(header.alg);
        validation.set_audience(&[&self.audience]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        let claims = decode::<Claims>(token, &key, &validation).map_err(|error| rejection(error.kind()))?.claims;
        if claims.iat > now.unix_seconds() + LEEWAY_SECONDS as f64 {
            return Err(TokenError::Expired);
        }
        if claims.exp - claims.iat > MAX_LIFETIME_SECONDS {
            return Err(TokenError::Untrusted("it is valid for more than a day"));
        }
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
        let caller = Caller { tenant: claims.tenant, actor, role: claims.role, scopes };
        self.verified.put(token, caller.clone(), claims.exp + LEEWAY_SECONDS as f64, now);
        Ok(caller)
    }
}

fn rejection(kind: &ErrorKind) -> TokenError {
    match kind {
        ErrorKind::ExpiredSignature | ErrorKind::ImmatureSignature => TokenError::Expired,
        ErrorKind::InvalidIssuer => TokenError::Untrusted("its issuer is not the one this service trusts"),
        ErrorKind::InvalidAudience => TokenError::Untrusted("it is meant for another audience"),
        ErrorKind::InvalidSignature => TokenError::Untrusted("its signature does not fit"),
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) | ErrorKind::Json(_) => {
            TokenError::Malformed(
                "a claim of sub, tenant, client_id, iss, aud, exp, iat or jti is missing, or one of them or of role, scope, kind and act is malformed",
            )
        }
        _ => TokenError::Malformed("it is not a JWT"),
    }
}
