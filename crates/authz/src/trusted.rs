//! A signed token of one issuer for one audience: its header, its key, its signature and its times (RFC 9068, RFC 8725).

use std::time::Duration;

use jsonwebtoken::dangerous::insecure_decode_claims;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::TokenError;
use crate::jwks::{self, Jwks, JwksError, JwksSource};
use crate::verified::Now;

/// Signature algorithms that are accepted; never `none`, never a shared secret (RFC 8725).
const ALGORITHMS: [Algorithm; 3] = [Algorithm::EdDSA, Algorithm::ES256, Algorithm::RS256];
/// How far clocks may differ.
pub const LEEWAY_SECONDS: u64 = 30;
/// The longest validity of a token: a client that needs longer asks for a new one.
const MAX_LIFETIME_SECONDS: f64 = 24.0 * 3_600.0;
/// The longest token that is accepted, in bytes.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// How an issuer marks its access tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Typ {
    /// `typ: at+jwt` (RFC 9068).
    AccessToken,
    /// Not: `typ: JWT`, as its ID tokens have too. Then the audience alone tells them apart, so that it must be the only one.
    Jwt,
}

/// The keys of an issuer, and the audience that its tokens must name.
pub struct Trusted {
    keys: Jwks,
    pub issuer: String,
    audience: String,
    typ: Typ,
}

/// By what an ID token (OpenID Connect Core, 2 and 3.3.2.11), a logout token, and what Keycloak names otherwise are known; and by what an
/// access token is: it has scopes, and is for another audience than its client.
#[derive(Deserialize)]
struct Marks {
    aud: Value,
    scope: Option<Value>,
    scp: Option<Value>,
    azp: Option<Value>,
    client_id: Option<Value>,
    nonce: Option<Value>,
    at_hash: Option<Value>,
    c_hash: Option<Value>,
    s_hash: Option<Value>,
    events: Option<Value>,
    typ: Option<Value>,
}

impl Marks {
    /// Checks that a token for this audience is for no other, and is an access token.
    fn check(&self, audience: &str) -> Result<(), TokenError> {
        let Self { aud: _, scope, scp, azp, client_id, nonce, at_hash, c_hash, s_hash, events, typ } = self;
        let of_another_kind = [nonce, at_hash, c_hash, s_hash, events].into_iter().any(Option::is_some)
            || scope.is_none() && scp.is_none()
            || [azp, client_id].into_iter().flatten().any(|client| client == audience);
        if !is_only(&self.aud, audience) {
            return Err(TokenError::Untrusted("it is meant for others, too, and its header does not say typ: at+jwt"));
        }
        if of_another_kind || typ.as_ref().is_some_and(|typ| typ != "Bearer") {
            return Err(TokenError::Untrusted("it is no access token, such as an ID token"));
        }
        Ok(())
    }
}

/// Whether an `aud` names this audience and no other.
pub fn is_only(aud: &Value, audience: &str) -> bool {
    match aud {
        Value::Array(all) => all.len() == 1 && all[0] == audience,
        one => one == audience,
    }
}

/// The token in an `Authorization` header.
///
/// # Errors
/// [`TokenError::Missing`], or a token that is too long.
pub fn bearer(authorization: Option<&str>) -> Result<&str, TokenError> {
    let (scheme, token) = authorization.and_then(|value| value.split_once(' ')).ok_or(TokenError::Missing)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(TokenError::Missing);
    }
    let token = token.trim();
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::Malformed("it is too long"));
    }
    Ok(token)
}

/// The issuer that a token names, which nobody has verified; none for what is no JWT.
#[must_use]
pub fn issuer_named(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Claims {
        iss: String,
    }
    insecure_decode_claims::<Claims>(token).ok().map(|claims| claims.iss)
}

impl Trusted {
    pub fn new(source: JwksSource, issuer: &str, (audience, typ): (&str, Typ)) -> Result<Self, JwksError> {
        let keys = Jwks::new(source, Duration::from_secs(5))?;
        Ok(Self { keys, issuer: issuer.to_owned(), audience: audience.to_owned(), typ })
    }

    pub async fn refresh(&self) -> Result<(), JwksError> {
        self.keys.refresh().await
    }

    /// Verifies a token; returns its claims. `times` are its `iat` and its `exp`.
    pub async fn claims<C: DeserializeOwned>(
        &self,
        token: &str,
        now: Now,
        times: impl Fn(&C) -> (f64, f64) + Send,
    ) -> Result<C, TokenError> {
        let header = decode_header(token).map_err(|_| TokenError::Malformed("its header is not that of a JWT"))?;
        let says =
            |any: &[&str]| any.iter().any(|it| header.typ.as_deref().is_some_and(|typ| typ.eq_ignore_ascii_case(it)));
        let marked = says(&["at+jwt", "application/at+jwt"]);
        match self.typ {
            _ if marked => {}
            Typ::Jwt if header.typ.is_none() || says(&["JWT"]) => {}
            _ => return Err(TokenError::Malformed("its header does not say typ: at+jwt (RFC 9068)")),
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
        let claims = decode::<C>(token, &key, &validation).map_err(|error| rejection(error.kind()))?.claims;
        if !marked {
            let marks = decode::<Marks>(token, &key, &validation).map_err(|error| rejection(error.kind()))?.claims;
            marks.check(&self.audience)?;
        }
        let (iat, exp) = times(&claims);
        if iat > now.unix_seconds() + LEEWAY_SECONDS as f64 {
            return Err(TokenError::Expired);
        }
        if exp - iat > MAX_LIFETIME_SECONDS {
            return Err(TokenError::Untrusted("it is valid for more than a day"));
        }
        Ok(claims)
    }
}

pub fn rejection(kind: &ErrorKind) -> TokenError {
    match kind {
        ErrorKind::ExpiredSignature | ErrorKind::ImmatureSignature => TokenError::Expired,
        ErrorKind::InvalidIssuer => TokenError::Untrusted("its issuer is not the one this service trusts"),
        ErrorKind::InvalidAudience => TokenError::Untrusted("it is meant for another audience"),
        ErrorKind::InvalidSignature => TokenError::Untrusted("its signature does not fit"),
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) | ErrorKind::Json(_) => {
            TokenError::Malformed(
                "a claim that it must have is missing, or one is malformed (RFC 9068; for the fleet's own: docs/deploying.md)",
            )
        }
        _ => TokenError::Malformed("it is not a JWT"),
    }
}
