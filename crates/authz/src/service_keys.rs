//! By what a service of the fleet says who it is: an assertion (RFC 7523, 3) that it signs by a key of its own, for identity alone.

use std::collections::BTreeMap;

use contracts::UserId;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::{Deserialize, Serialize};

use crate::signing::SigningError;
use crate::trusted::{LEEWAY_SECONDS, MAX_TOKEN_BYTES, issuer_named, rejection};
use crate::verified::Now;
use crate::{SigningKeys, TokenError};

/// How long an assertion is valid, in seconds: it is made for one request.
const LIFETIME_SECONDS: f64 = 60.0;
/// The `typ` of its header: no access token, and no ID token.
const TYP: &str = "flotilla-service+jwt";

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: UserId,
    aud: String,
    iat: f64,
    exp: f64,
}

/// An assertion that its bearer is this service, for the issuer of the fleet's tokens.
///
/// # Errors
/// It cannot be signed.
pub fn assertion(keys: &SigningKeys, service: &UserId, issuer: &str) -> Result<String, SigningError> {
    let iat = Now::read().unix_seconds().floor();
    let exp = iat + LIFETIME_SECONDS;
    keys.sign_as(TYP, &Claims { iss: service.to_string(), sub: service.clone(), aud: issuer.to_owned(), iat, exp })
}

/// The public keys of the services that call others, by the services' names.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServiceKeys(BTreeMap<String, JwkSet>);

impl FromIterator<(String, JwkSet)> for ServiceKeys {
    fn from_iter<I: IntoIterator<Item = (String, JwkSet)>>(all: I) -> Self {
        Self(all.into_iter().collect())
    }
}

impl ServiceKeys {
    /// Reads them: a JSON object with a key set for each name.
    ///
    /// # Errors
    /// It is none.
    pub fn read(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The service that made an assertion for this issuer.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn verify(&self, assertion: &str, issuer: &str) -> Result<UserId, TokenError> {
        let now = Now::read().unix_seconds();
        if assertion.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed("it is too long"));
        }
        let header = decode_header(assertion).map_err(|_| TokenError::Malformed("its header is not that of a JWT"))?;
        if header.typ.as_deref() != Some(TYP) || header.alg != Algorithm::EdDSA || header.crit.is_some() {
            return Err(TokenError::Malformed("its header is not that of a service's assertion"));
        }
        let name = issuer_named(assertion).ok_or(TokenError::Malformed("it names no service"))?;
        let keys = self.0.get(&name).ok_or(TokenError::Untrusted("it is no service's that calls others"))?;
        let kid = header.kid.as_deref().ok_or(TokenError::Malformed("its header names no key (kid)"))?;
        let key = keys.find(kid).ok_or(TokenError::Untrusted("its key is not one of the service's"))?;
        let key = DecodingKey::from_jwk(key).map_err(|_| TokenError::Untrusted("its key cannot be used"))?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[issuer]);
        validation.set_issuer(&[&name]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.leeway = LEEWAY_SECONDS;
        let claims = decode::<Claims>(assertion, &key, &validation).map_err(|error| rejection(error.kind()))?.claims;
        if claims.sub.as_str() != name {
            return Err(TokenError::Untrusted("it says that its maker is another service"));
        }
        if claims.iat > now + LEEWAY_SECONDS as f64 {
            return Err(TokenError::Expired);
        }
        if claims.exp - claims.iat > LIFETIME_SECONDS {
            return Err(TokenError::Untrusted("it is valid for more than a minute"));
        }
        Ok(claims.sub)
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::Ed25519KeyPair;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::{Value, json};

    use super::*;

    const ISSUER: &str = "https://identity.example";

    fn drawn() -> SigningKeys {
        SigningKeys::read(&STANDARD.encode(Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).unwrap())).unwrap()
    }

    fn name(text: &str) -> UserId {
        text.parse().unwrap()
    }

    #[test]
    fn an_assertion_names_the_service_whose_key_signed_it_and_no_other() {
        let (todo, billing, stranger) = (drawn(), drawn(), drawn());
        let published = |name: &str, keys: &SigningKeys| (name.to_owned(), keys.published().clone());
        let keys: ServiceKeys = [published("todo", &todo), published("billing", &billing)].into_iter().collect();
        // As it lies in a file.
        let keys = ServiceKeys::read(&serde_json::to_string(&keys).unwrap()).unwrap();
        let verify = |text: &str| keys.verify(text, ISSUER).ok().map(|service| service.to_string());
        assert_eq!(verify(&assertion(&todo, &name("todo"), ISSUER).unwrap()).as_deref(), Some("todo"));
        for (signs, says, of) in
            [(&todo, "billing", ISSUER), (&stranger, "todo", ISSUER), (&todo, "todo", "https://other.example")]
        {
            assert_eq!(verify(&assertion(signs, &name(says), of).unwrap()), None, "{says} for {of}");
        }
        assert_eq!(verify("nonsense"), None);
        assert_eq!(verify(&"x".repeat(9_000)), None);
    }

    #[test]
    fn an_assertion_is_of_its_own_type_lives_a_minute_and_speaks_of_its_maker_alone() {
        let todo = drawn();
        let keys: ServiceKeys = [("todo".to_owned(), todo.published().clone())].into_iter().collect();
        let now = Now::read().unix_seconds().floor();
        let good = json!({"iss": "todo", "sub": "todo", "aud": ISSUER, "iat": now, "exp": now + 60.0});
        let with = |claim: &str, value: Value| {
            let mut claims = good.clone();
            claims[claim] = value;
            keys.verify(&todo.sign_as(TYP, &claims).unwrap(), ISSUER).is_ok()
        };
        assert!(with("iat", json!(now)));
        for (claim, value) in [
            ("sub", json!("billing")),
            ("exp", json!(now - 40.0)),
            ("exp", json!(now + 600.0)),
            ("iat", json!(now - 600.0)),
            ("aud", json!("flotilla")),
            ("iss", json!(["todo"])),
        ] {
            assert!(!with(claim, value.clone()), "{claim}: {value}");
        }
        // One for later is not made in advance.
        let later = json!({"iss": "todo", "sub": "todo", "aud": ISSUER, "iat": now + 600.0, "exp": now + 660.0});
        assert!(keys.verify(&todo.sign_as(TYP, &later).unwrap(), ISSUER).is_err());
        // An access token that the same key signed is none.
        assert!(keys.verify(&todo.sign(&good).unwrap(), ISSUER).is_err());
    }
}
