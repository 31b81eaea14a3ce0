//! The issuer's keys. An unknown key triggers a fetch, one at a time and not too often. The known keys
//! stay in use while the issuer is unavailable.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use jsonwebtoken::Algorithm;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, RwLock};
use tokio::time::Instant;

/// The source of the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwksSource {
    /// An `http` or `https` address.
    Url(String),
    /// A file, read again when an unknown key is named.
    File(PathBuf),
    /// Wherever the issuer's own description says (OpenID Connect Discovery, 4).
    Discovery(String),
}

impl FromStr for JwksSource {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with("http://") || text.starts_with("https://") {
            Ok(Self::Url(text.to_owned()))
        } else if let Some(path) = text.strip_prefix("file://") {
            Ok(Self::File(path.into()))
        } else {
            Err("a key set is named by an http://, https:// or file:// address")
        }
    }
}

/// Why the keys are unavailable.
#[derive(Debug, thiserror::Error)]
pub enum JwksError {
    /// The issuer does not answer, or not with a key set.
    #[error("the key set could not be fetched")]
    Fetch(#[from] reqwest::Error),
    /// The file cannot be read.
    #[error("the key set file could not be read")]
    Read(#[from] std::io::Error),
    /// The description is another issuer's (OpenID Connect Discovery, 4.3).
    #[error("the issuer describes itself as {0}")]
    OtherIssuer(String),
    /// No key is known: none was fetched yet, and the last try is too short ago for another; or the key set is empty.
    #[error("no key of the issuer is known")]
    Unknown,
    /// The file is not a key set.
    #[error("the key set is not valid JSON")]
    Parse(#[from] serde_json::Error),
}

#[derive(Deserialize)]
struct Description {
    issuer: String,
    jwks_uri: String,
}

pub struct Jwks {
    source: JwksSource,
    http: reqwest::Client,
    known: RwLock<JwkSet>,
    /// When a fetch was last tried; locked during a fetch.
    tried: Mutex<Option<Instant>>,
    cooldown: Duration,
}

impl Jwks {
    pub fn new(source: JwksSource, cooldown: Duration) -> Result<Self, JwksError> {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(3)).no_proxy().build()?;
        Ok(Self { source, http, known: RwLock::new(JwkSet { keys: Vec::new() }), tried: Mutex::new(None), cooldown })
    }

    pub async fn refresh(&self) -> Result<(), JwksError> {
        let mut tried = self.tried.lock().await;
        *tried = Some(Instant::now());
        self.fetch().await
    }

    pub async fn find(&self, kid: &str) -> Result<Option<Jwk>, JwksError> {
        if let Some(key) = self.known.read().await.find(kid) {
            return Ok(Some(key.clone()));
        }
        let mut tried = self.tried.lock().await;
        // A caller that waited for the lock finds the keys of the fetch before it.
        if let Some(key) = self.known.read().await.find(kid) {
            return Ok(Some(key.clone()));
        }
        if tried.is_none_or(|at| at.elapsed() >= self.cooldown) {
            *tried = Some(Instant::now());
            if let Err(error) = self.fetch().await {
                if self.known.read().await.keys.is_empty() {
                    return Err(error);
                }
                tracing::warn!(%error, "the key set could not be refreshed: the known keys stay in use");
            }
        }
        let known = self.known.read().await;
        // Nobody's token is wrong because there is nothing to compare it with: also while the next fetch has to wait.
        if known.keys.is_empty() {
            return Err(JwksError::Unknown);
        }
        Ok(known.find(kid).cloned())
    }

    async fn get<T: DeserializeOwned>(&self, url: &str) -> Result<T, JwksError> {
        Ok(self.http.get(url).send().await?.error_for_status()?.json().await?)
    }

    /// Where the key set of an issuer is.
    async fn discover(&self, issuer: &str) -> Result<String, JwksError> {
        let described = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let Description { issuer: said, jwks_uri } = self.get(&described).await?;
        if said == issuer { Ok(jwks_uri) } else { Err(JwksError::OtherIssuer(said)) }
    }

    async fn fetch(&self) -> Result<(), JwksError> {
        let set: JwkSet = match &self.source {
            JwksSource::Url(url) => self.get(url).await?,
            JwksSource::Discovery(issuer) => self.get(&self.discover(issuer).await?).await?,
            JwksSource::File(path) => serde_json::from_slice(&tokio::fs::read(path).await?)?,
        };
        // One that is put up anew may have none for a moment.
        if set.keys.is_empty() {
            return Err(JwksError::Unknown);
        }
        *self.known.write().await = set;
        Ok(())
    }
}

/// The one algorithm of a key, by its kind: a key is never used with another.
pub fn algorithm(key: &Jwk) -> Option<Algorithm> {
    match &key.algorithm {
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => Some(Algorithm::EdDSA),
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => Some(Algorithm::ES256),
        AlgorithmParameters::RSA(_) => Some(Algorithm::RS256),
        _ => None,
    }
}
