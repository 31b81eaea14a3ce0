//! The fleet's own tokens: signed here, valid for minutes, verified offline by every service (RFC 9068).

use authz::exchange::LIFETIME_SECONDS;
use authz::{ServiceKeys, SignIn, SigningKeys, StepUp};
use chrono::{DateTime, Utc};
use clap::Args;
use contracts::{Actor, ActorKind, Role, TenantId};
use serde::Serialize;
use service::secret::Secret;
use service::{Failure, clock, config};
use uuid::Uuid;

use crate::texts::Task;

/// Who asked for it, as RFC 9068 requires: this service, for whoever came with the credential.
const CLIENT: &str = "flotilla-identity";

/// Whom a token names, and what it allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The tenant in which it acts.
    pub tenant: TenantId,
    /// Who acts, and for whom.
    pub actor: Actor,
    /// What the agent is to do that acts, if it said.
    pub task: Option<Task>,
    /// The role in the tenant of the one for whom all is done.
    pub role: Role,
    /// The scopes, with spaces between; none where the role alone counts.
    pub scope: Option<String>,
    /// What it is issued for: the member; or the service account and its key; of an agent the member and its key.
    pub sources: Vec<Uuid>,
    /// How the person signed in, and what the tenant demands of it.
    pub sign_in: SignIn,
    /// When its tenant, role and credential had not been looked at yet: what is taken away later makes the token void.
    pub issued: DateTime<Utc>,
    /// When what it was exchanged for ends: a token lives no longer.
    pub until: DateTime<Utc>,
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

/// Who acts for the subject, and within it the one that it acts for (RFC 8693, 4.1).
#[derive(Serialize)]
struct Act<'a> {
    sub: &'a str,
    kind: ActorKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    act: Option<Box<Self>>,
}

impl<'a> Act<'a> {
    /// Those who act for the last of the chain.
    fn of(actor: &'a Actor) -> Option<Box<Self>> {
        let acts_for = actor.acts_for.as_deref()?;
        Some(Box::new(Self { sub: actor.id.as_str(), kind: actor.kind, act: Self::of(acts_for) }))
    }
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
    act: Option<Box<Act<'a>>>,
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
        let Grant { tenant, actor, task, role, scope, sources, sign_in, issued, until: _ } = grant;
        let SignIn { acr, auth_time, step_up } = sign_in;
        let (issued, seconds, subject) = (issued.timestamp(), grant.seconds(), actor.subject());
        let claims = Claims {
            iss: &self.issuer,
            aud: &self.audience,
            sub: subject.id.as_str(),
            tenant: tenant.as_str(),
            kind: subject.kind,
            role: *role,
            scope: scope.as_deref(),
            act: Act::of(actor),
            task: task.as_ref().map(Task::as_str),
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

/// By which keys it signs, and by which it knows services.
#[derive(Debug, Clone, Args)]
pub struct Signing {
    /// The keys that sign the fleet's tokens, a line each: the base64 of an Ed25519 key in PKCS #8. The first signs.
    #[arg(long, env = "FLOTILLA_SIGNING_KEYS", hide_env_values = true, value_parser = config::signing_keys)]
    pub signing_keys: Secret,
    /// The public keys of the services that call others on behalf of their own callers: a JSON object with a key set for each service's name.
    /// Without it, no service gets a token for its caller.
    #[arg(long, env = "FLOTILLA_SERVICE_KEYS", hide_env_values = true, value_parser = service_keys)]
    pub service_keys: Option<Secret>,
}

fn service_keys(text: &str) -> Result<Secret, String> {
    Secret::given(text, |text| Ok(ServiceKeys::read(text).map(drop)?))
}
