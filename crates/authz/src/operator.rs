//! Operators: members of no tenant, who see and do what belongs to whoever runs the fleet. Their tokens are for an audience of their own.

use contracts::UserId;
use contracts::text::is_misleading_name;
use serde::Deserialize;
use serde_json::Value;

use crate::TokenError;
use crate::jwks::{JwksError, JwksSource};
use crate::trusted::{self, Trusted, Typ};
use crate::verified::Now;

/// The audience of operators' tokens, unless another is configured.
pub const OPERATORS_AUDIENCE: &str = "flotilla-ops";

/// What an operator may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OperatorRole {
    /// Reads.
    Viewer,
    /// Reads, and acts.
    Operator,
}

impl OperatorRole {
    /// Its spelling in tokens.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
        }
    }
}

/// The role of this spelling; none for any other.
fn role(text: &str) -> Option<OperatorRole> {
    [OperatorRole::Viewer, OperatorRole::Operator].into_iter().find(|role| role.as_str() == text)
}

/// A verified operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// The person, by the subject of the token.
    pub name: UserId,
    /// The role. Without one the operator may do nothing.
    pub role: Option<OperatorRole>,
}

#[derive(Deserialize)]
struct Claims {
    sub: UserId,
    role: Option<Value>,
    aud: Value,
    /// What a token of a tenant has, and an operator's has not.
    tenant: Option<Value>,
    act: Option<Value>,
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

/// Verifies the access tokens of operators.
pub struct Operators {
    trusted: Trusted,
    audience: String,
}

impl Operators {
    /// Without keys; the first token, or [`Operators::refresh`], fetches them.
    ///
    /// # Errors
    /// Fails when the HTTP client cannot be made.
    pub fn new(source: JwksSource, issuer: &str, audience: &str) -> Result<Self, JwksError> {
        let trusted = Trusted::new(source, issuer, (audience, Typ::AccessToken))?;
        Ok(Self { trusted, audience: audience.to_owned() })
    }

    /// Fetches the keys now.
    ///
    /// # Errors
    /// Fails when the keys are unavailable; the known ones stay in use.
    pub async fn refresh(&self) -> Result<(), JwksError> {
        self.trusted.refresh().await
    }

    /// Verifies the value of an `Authorization` header; returns the operator.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub async fn verify(&self, authorization: Option<&str>) -> Result<Operator, TokenError> {
        let token = trusted::bearer(authorization)?;
        let times = |claims: &Claims| (claims.iat, claims.exp);
        let claims: Claims = self.trusted.claims(token, Now::read(), times).await?;
        let Claims { sub: name, role, aud, tenant, act, .. } = claims;
        // One role of a tenant is spelled as one of ours.
        if tenant.is_some() || act.is_some() || !trusted::is_only(&aud, &self.audience) {
            return Err(TokenError::Untrusted("it is a tenant's, or an agent's, or for others too"));
        }
        let role = role.as_ref().and_then(Value::as_str).and_then(self::role);
        if is_misleading_name(name.as_str()) {
            return Err(TokenError::Malformed("a sub of it holds what cannot be seen"));
        }
        Ok(Operator { name, role })
    }
}
