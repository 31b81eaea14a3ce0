//! The keys that sign tokens, and the set that publishes them.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::Serialize;

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// There is no line.
    #[error("there is no signing key")]
    None,
    /// A line is no base64.
    #[error("a signing key is the base64 of PKCS #8")]
    Base64(#[from] base64::DecodeError),
    /// It is another key, or the claims cannot be written.
    #[error("a signing key is one of Ed25519")]
    Key(#[from] jsonwebtoken::errors::Error),
}

/// Keys of Ed25519: the first signs, and all are published, so that one that signs no more is still known.
pub struct SigningKeys {
    first: (EncodingKey, Option<String>),
    published: JwkSet,
}

impl SigningKeys {
    /// Reads them: a line each, the base64 of PKCS #8. A key's name (`kid`) is the first eight bytes of the SHA-256 of that document, in
    /// hexadecimal: a new key has a new name.
    ///
    /// # Errors
    /// See [`SigningError`].
    pub fn read(text: &str) -> Result<Self, SigningError> {
        let mut keys = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let document = STANDARD.decode(line)?;
            let key = EncodingKey::from_ed_der(&document);
            let mut jwk = Jwk::from_encoding_key(&key, Algorithm::EdDSA)?;
            let print = digest(&SHA256, &document);
            jwk.common.key_id = Some(print.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect());
            jwk.common.public_key_use = Some(PublicKeyUse::Signature);
            keys.push((key, jwk));
        }
        let published = JwkSet { keys: keys.iter().map(|(_, jwk)| jwk.clone()).collect() };
        let (key, jwk) = keys.into_iter().next().ok_or(SigningError::None)?;
        Ok(Self { first: (key, jwk.common.key_id), published })
    }

    /// An access token (RFC 9068) with these claims, by the first key.
    ///
    /// # Errors
    /// [`SigningError::Key`]
    pub fn sign<C: Serialize>(&self, claims: &C) -> Result<String, SigningError> {
        self.sign_as("at+jwt", claims)
    }

    /// A JWT of another type.
    pub(crate) fn sign_as<C: Serialize>(&self, typ: &str, claims: &C) -> Result<String, SigningError> {
        let (key, name) = &self.first;
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(typ.to_owned());
        header.kid.clone_from(name);
        Ok(encode(&header, claims, key)?)
    }

    /// The public keys, as services fetch them.
    #[must_use]
    pub const fn published(&self) -> &JwkSet {
        &self.published
    }
}
