//! The fleet's own tokens: signed here, valid for minutes, verified offline by every service (RFC 9068).

use authz::exchange::LIFETIME_SECONDS;
use authz::{SignIn, SigningKeys, StepUp};
use chrono::{DateTime, Utc};
use clap::Args;
use contracts::{ActorKind, Role, TenantId, UserId};
use serde::Serialize;
use service::secret::Secret;
use service::{Failure, clock};
use uuid::Uuid;

use crate::texts::Task;

/// Who asked for it, as RFC 9068 requires: this service, for whoever came with the credential.
const CLIENT: &str = "flotilla-identity";

/// Whom a token names, and what it allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The tenant in which it acts.
    pub tenant: TenantId,
    /// What it is.
    pub kind: ActorKind,
    /// Its id.
    pub subject: UserId,
    /// Its role in the tenant.
    pub role: Role,
    /// The scopes, with spaces between; none where the role alone counts.
    pub scope: Option<String>,
    /// The agent that acts for it, and what it is to do.
    pub agent: Option<Agent>,
    /// What it is issued for: the member; or the service account and its key.
    pub sources: Vec<Uuid>,
    /// How the person signed in, and what the tenant demands of it.
    pub sign_in: SignIn,
    /// When its tenant, role and credential had not been looked at yet: what is taken away later makes the token void.
    pub issued: DateTime<Utc>,
    /// When what it was exchanged for ends: a token lives no longer.
    pub until: DateTime<Utc>,
}

/// A program that acts for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Its id.
    pub id: UserId,
    /// What it is to do, if it said.
    pub task: Option<Task>,
}

impl Grant {
    /// How many seconds its token is valid.
    #[must_use]
    pub fn seconds(&self) -> i64 {
        // A credential may have ended within the leeway of clocks.
        (self.until - self.issued).num_seconds().clamp(1, LIFETIME_SECONDS)
    }
}

/// A signed token.
#[derive(Debug, Clone)]
pub struct Signed {
    /// The token.
    pub token: String,
    /// How many seconds it is valid.
    pub seconds: i64,
}

/// Who acts for the subject (RFC 8693, 4.1).
#[derive(Serialize)]
struct Act<'a> {
    sub: &'a str,
    kind: ActorKind,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: &'a str,
    tenant: &'a str,
    kind: ActorKind,
    role: Role,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    act: Option<Act<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<&'a str>,
    sources: &'a [Uuid],
    #[serde(skip_serializing_if = "Option::is_none")]
    acr: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_time: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step_up: Option<&'a StepUp>,
    client_id: &'a str,
    iat: i64,
    exp: i64,
    jti: String,
}

/// Signs tokens by the first of its keys. All of them are published, so that one that signs no more is still known.
#[derive(Debug, Clone)]
pub struct Signer {
    keys: Secret,
    issuer: String,
    audience: String,
}

impl Signer {
    /// Signs in the name of this issuer, for this audience.
    ///
    /// # Errors
    /// The keys cannot be read.
    pub fn new(keys: &Secret, issuer: &str, audience: &str) -> Result<Self, anyhow::Error> {
        SigningKeys::read(&keys.expose())?;
        Ok(Self { keys: keys.clone(), issuer: issuer.to_owned(), audience: audience.to_owned() })
    }

    /// Signs a token.
    ///
    /// # Errors
    /// INTERNAL when the keys have become unreadable.
    pub fn sign(&self, grant: &Grant) -> Result<Signed, Failure> {
        let Grant { tenant, kind, subject, role, scope, agent, sources, sign_in, issued, until: _ } = grant;
        let SignIn { acr, auth_time, step_up } = sign_in;
        let (issued, seconds) = (issued.timestamp(), grant.seconds());
        let claims = Claims {
            iss: &self.issuer,
            aud: &self.audience,
            sub: subject.as_str(),
            tenant: tenant.as_str(),
            kind: *kind,
            role: *role,
            scope: scope.as_deref(),
            act: agent.as_ref().map(|agent| Act { sub: agent.id.as_str(), kind: ActorKind::Agent }),
            task: agent.as_ref().and_then(|agent| agent.task.as_ref()).map(Task::as_str),
            sources,
            acr: acr.as_deref(),
            auth_time: *auth_time,
            step_up: step_up.as_ref(),
            client_id: CLIENT,
            iat: issued,
            exp: issued + seconds,
            jti: clock::new_id().to_string(),
        };
        let keys = SigningKeys::read(&self.keys.expose()).map_err(Failure::internal)?;
        let token = keys.sign(&claims).map_err(Failure::internal)?;
        Ok(Signed { token, seconds })
    }
}

/// By which keys it signs.
#[derive(Debug, Clone, Args)]
pub struct Signing {
    /// The keys that sign the fleet's tokens, a line each: the base64 of an Ed25519 key in PKCS #8. The first signs.
    #[arg(long, env = "FLOTILLA_SIGNING_KEYS", hide_env_values = true, value_parser = signing_keys)]
    pub signing_keys: Secret,
}

fn signing_keys(text: &str) -> Result<Secret, String> {
    Secret::given(text, |text| Ok(SigningKeys::read(text).map(drop)?))
}
