//! A person as an OpenID provider knows one: by an access token for the fleet's directory, before any tenant is chosen.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::TokenError;
use crate::jwks::{JwksError, JwksSource};
use crate::trusted::{self, Trusted, Typ};
use crate::verified::Now;

/// The longest subject (OpenID Connect Core, 2), in bytes.
pub const MAX_SUBJECT_BYTES: usize = 255;

/// A person, as the provider's token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// The provider.
    pub issuer: String,
    /// The person's id there.
    pub subject: String,
    /// The e-mail address, if the provider has verified it.
    pub email: Option<String>,
    /// The full name.
    pub name: Option<String>,
    /// The language, as BCP 47 has it.
    pub locale: Option<String>,
    /// The time zone, by its name in the IANA database.
    pub time_zone: Option<String>,
    /// The class of authentication by which the person signed in: 1 to 200 visible characters of ASCII. None: the provider does not say.
    pub acr: Option<String>,
    /// When the person signed in, in seconds since 1970. None: the provider does not say.
    pub auth_time: Option<i64>,
    /// When the token was issued, in seconds since 1970.
    pub issued_unix_seconds: i64,
    /// When the token ends, in seconds since 1970.
    pub expires_unix_seconds: i64,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    email: Option<String>,
    name: Option<String>,
    locale: Option<String>,
    zoneinfo: Option<String>,
    iat: f64,
    exp: f64,
    // The library does not refuse a list, which is no issuer (RFC 7519, 4.1.1).
    #[serde(rename = "iss")]
    _iss: String,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// Whether a text may be a class of authentication, as it is asked for in a header (RFC 9470, 3).
#[must_use]
pub fn is_acr(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && c != '"' && c != '\\';
    (1..=200).contains(&text.len()) && text.chars().all(plain)
}

/// Verifies the access tokens of a provider.
pub struct People {
    trusted: Trusted,
    /// The claim that says whether the address is verified.
    verified: String,
}

impl Person {
    /// The issuer, and the subject there: who it is.
    #[must_use]
    pub fn named(&self) -> (&str, &str) {
        (&self.issuer, &self.subject)
    }
}

impl People {
    /// Without keys; the first token, or [`People::refresh`], fetches them. Tokens name this audience, and are marked so.
    ///
    /// # Errors
    /// Fails when the HTTP client cannot be made.
    pub fn new(source: JwksSource, issuer: &str, audience: (&str, Typ)) -> Result<Self, JwksError> {
        Ok(Self { trusted: Trusted::new(source, issuer, audience)?, verified: "email_verified".to_owned() })
    }

    /// The same, where another claim than `email_verified` says that the address is verified.
    #[must_use]
    pub fn verified_by(self, claim: &str) -> Self {
        Self { verified: claim.to_owned(), ..self }
    }

    /// Fetches the keys now.
    ///
    /// # Errors
    /// Fails when the keys are unavailable; the known ones stay in use.
    pub async fn refresh(&self) -> Result<(), JwksError> {
        self.trusted.refresh().await
    }

    /// Verifies the value of an `Authorization` header; returns the person.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub async fn verify(&self, authorization: Option<&str>) -> Result<Person, TokenError> {
        self.read(trusted::bearer(authorization)?).await
    }

    /// Verifies a token; returns the person.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub async fn read(&self, token: &str) -> Result<Person, TokenError> {
        if token.len() > trusted::MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed("it is too long"));
        }
        let claims: Claims =
            self.trusted.claims(token, Now::read(), |claims: &Claims| (claims.iat, claims.exp)).await?;
        let sub = &claims.sub;
        if sub.is_empty() || sub.len() > MAX_SUBJECT_BYTES || sub.chars().any(char::is_control) {
            return Err(TokenError::Malformed("its sub has no character, more than 255, or a control character"));
        }
        // Some providers say it as a text: that is no promise of theirs.
        let verified = claims.others.get(&self.verified) == Some(&Value::Bool(true));
        Ok(Person {
            issuer: self.trusted.issuer.clone(),
            subject: claims.sub,
            email: claims.email.filter(|_| verified),
            name: claims.name,
            locale: claims.locale,
            time_zone: claims.zoneinfo,
            acr: claims.others.get("acr").and_then(Value::as_str).filter(|acr| is_acr(acr)).map(ToOwned::to_owned),
            auth_time: claims.others.get("auth_time").and_then(Value::as_f64).map(|at| at as i64),
            issued_unix_seconds: claims.iat as i64,
            expires_unix_seconds: claims.exp as i64,
        })
    }
}
