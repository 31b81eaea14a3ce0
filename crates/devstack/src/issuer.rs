//! A token issuer for the local stack alone: its key is made at the first start and never leaves the stack's folder.

use std::net::Ipv4Addr;

use anyhow::Context as _;
use authz::{JwkSet, OperatorRole, ServiceKeys, SigningKeys};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::Ed25519KeyPair;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::stack_dir::StackDir;
use crate::supervisor;

/// The issuer that its tokens name.
pub const ISSUER: &str = "https://issuer.flotilla.localhost";
/// The audience that its tokens name.
pub const AUDIENCE: &str = "flotilla";
pub use authz::OPERATORS_AUDIENCE as OPERATORS;

/// The file of its keys, a line each: the first signs, and all are published.
pub const KEYS: &str = fleet::SIGNING_KEYS;

/// The development provider of people, in place of an OpenID provider: its name in tokens, the audience that they name, and its keys.
pub const PROVIDER: &str = "https://people.flotilla.localhost";
/// See [`PROVIDER`].
pub const PROVIDER_AUDIENCE: &str = "flotilla-identity";
const PROVIDER_KEYS: &str = "provider-key";
/// Where its key set is, below the issuer's address.
pub const PROVIDER_JWKS: &str = "/people/jwks.json";

/// The development issuer.
pub struct Issuer(SigningKeys);

impl Issuer {
    /// Reads the keys, or makes the first.
    ///
    /// # Errors
    /// The key file cannot be read or written.
    pub fn open(home: &StackDir) -> Result<Self, anyhow::Error> {
        Self::by(home, KEYS)
    }

    /// The same of the provider of people.
    ///
    /// # Errors
    /// As those of [`open`](Self::open).
    pub fn of_people(home: &StackDir) -> Result<Self, anyhow::Error> {
        Self::by(home, PROVIDER_KEYS)
    }

    fn by(home: &StackDir, file: &str) -> Result<Self, anyhow::Error> {
        let lines = home.lines(file, draw)?;
        Ok(Self(SigningKeys::read(&lines.join("\n")).context("reading the issuer's keys")?))
    }

    /// An access token of RFC 9068's shape, of an owner of the tenant.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn token(&self, tenant: &str, user: &str, lifetime: chrono::TimeDelta) -> Result<String, anyhow::Error> {
        self.token_with(tenant, user, &json!({"role": "owner"}), lifetime)
    }

    /// The same with these further claims: `role`, `scope`, `kind`, `act`.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn token_with(
        &self,
        tenant: &str,
        user: &str,
        claims: &Value,
        lifetime: chrono::TimeDelta,
    ) -> Result<String, anyhow::Error> {
        self.signed(AUDIENCE, tenant, user, claims, lifetime)
    }

    /// A token for the operator commands, of an operator with this role: its audience is another, which the fleet's public API refuses.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn operator_token(
        &self,
        user: &str,
        role: OperatorRole,
        lifetime: chrono::TimeDelta,
    ) -> Result<String, anyhow::Error> {
        self.operator_token_with(user, &json!({"role": role.as_str()}), lifetime)
    }

    /// The same with these further claims.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn operator_token_with(
        &self,
        user: &str,
        claims: &Value,
        lifetime: chrono::TimeDelta,
    ) -> Result<String, anyhow::Error> {
        let own = json!({"iss": ISSUER, "aud": OPERATORS, "sub": user, "client_id": "flotilla-cli"});
        self.sign(own, claims, lifetime)
    }

    /// A provider's access token of a person, by [`of_people`](Self::of_people), with these further claims: `email`, `email_verified`, `name`,
    /// `locale`, `zoneinfo`.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn person_token(
        &self,
        subject: &str,
        further: &Value,
        lifetime: chrono::TimeDelta,
    ) -> Result<String, anyhow::Error> {
        let claims = json!({"iss": PROVIDER, "aud": PROVIDER_AUDIENCE, "sub": subject, "client_id": "flotilla-cli"});
        self.sign(claims, further, lifetime)
    }

    fn signed(
        &self,
        audience: &str,
        tenant: &str,
        user: &str,
        further: &Value,
        lifetime: chrono::TimeDelta,
    ) -> Result<String, anyhow::Error> {
        let claims =
            json!({"iss": ISSUER, "aud": audience, "sub": user, "tenant": tenant, "client_id": "flotilla-cli"});
        self.sign(claims, further, lifetime)
    }

    fn sign(&self, mut claims: Value, further: &Value, lifetime: chrono::TimeDelta) -> Result<String, anyhow::Error> {
        let now = supervisor::now();
        claims["iat"] = now.timestamp().into();
        claims["exp"] = (now + lifetime).timestamp().into();
        claims["jti"] = format!("{:x}", now.timestamp_nanos_opt().unwrap_or_default()).into();
        for (name, value) in further.as_object().into_iter().flatten() {
            claims[name] = value.clone();
        }
        Ok(self.0.sign(&claims)?)
    }

    /// The public keys, as services fetch them.
    #[must_use]
    pub const fn jwks(&self) -> &JwkSet {
        self.0.published()
    }

    /// Serves discovery and the key set of a folder until `stop`.
    ///
    /// # Errors
    /// The port cannot be bound, or the keys cannot be read.
    pub async fn serve(home: StackDir, port: u16, stop: CancellationToken) -> Result<(), anyhow::Error> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.context("the issuer's port")?;
        Self::open(&home)?;
        Self::of_people(&home)?;
        // Read for each request: they may have changed.
        let answer = |read: Result<Self, anyhow::Error>| {
            let read = read.map(|issuer| Json(issuer.jwks().clone())).map_err(|error| format!("{error:#}"));
            async move { read.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error)) }
        };
        let people = home.clone();
        let (jwks, people) = (move || answer(Self::open(&home)), move || answer(Self::of_people(&people)));
        let jwks_uri = format!("http://127.0.0.1:{port}/jwks.json");
        let discovery =
            json!({"issuer": ISSUER, "jwks_uri": jwks_uri, "id_token_signing_alg_values_supported": ["EdDSA"]});
        let router = Router::new()
            .route("/jwks.json", get(jwks))
            .route(PROVIDER_JWKS, get(people))
            .route("/.well-known/openid-configuration", get(move || async move { Json(discovery) }));
        tokio_util::task::TaskTracker::new().spawn(async move {
            axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await }).await
        });
        Ok(())
    }
}

/// Writes the keys of the services that carry callers along, and for identity the public ones. Those that are there stay.
///
/// # Errors
/// A file cannot be read or written.
pub fn write_service_keys(home: &StackDir) -> Result<(), anyhow::Error> {
    let keys = fleet::SERVICES.iter().filter_map(|service| Some((service.name, service.service_key()?)));
    let published = |(name, file): (&str, String)| Ok((name.to_owned(), Issuer::by(home, &file)?.jwks().clone()));
    let published = keys.map(published).collect::<Result<ServiceKeys, anyhow::Error>>()?;
    home.write_secret(fleet::SERVICE_KEYS, &serde_json::to_string(&published)?).map(drop)
}

/// A new key, as a line of the file.
///
/// # Errors
/// The machine has no randomness.
pub fn draw() -> Result<String, anyhow::Error> {
    Ok(STANDARD.encode(Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new())?))
}
