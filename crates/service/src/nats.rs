//! The connection to NATS.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::jetstream;
use async_nats::jetstream::message::PublishMessage;
use async_nats::{Auth, AuthError, ConnectOptions, ServerAddr};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use nkeys::KeyPair;
use outbox::connections::nats_options;
use secrecy::ExposeSecret as _;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::clock;
use crate::secret::Secret;
use crate::tls::Authorities;

pub use async_nats::Client;

/// How long they may take to be read for a connection: the server waits two seconds. Those of a command are there for the next try.
const LOOKS_WITHIN: Duration = Duration::from_secs(1);
/// How long new credentials wait for the connection that they change.
const CONNECTS_AFTER: Duration = Duration::from_secs(1);

/// Where NATS is, and what a service logs in by.
#[derive(Debug, Clone, Args)]
pub struct Login {
    /// NATS: nats://host:port, or tls:// for TLS alone; or the servers of a cluster, with commas between: whichever answers.
    #[arg(id = "nats_url", long = "nats-url", value_name = "URL", env = "FLOTILLA_NATS_URL", value_parser = url)]
    pub url: String,
    /// The credentials of this service's login there: a JWT, and the seed of its key.
    #[arg(
        id = "nats_creds",
        long = "nats-creds",
        value_name = "TEXT",
        env = "FLOTILLA_NATS_CREDS",
        hide_env_values = true,
        value_parser = credentials
    )]
    pub credentials: Secret,
}

impl Login {
    /// Another login of the same servers.
    #[must_use]
    pub fn with(&self, credentials: &Secret) -> Self {
        Self { url: self.url.clone(), credentials: credentials.clone() }
    }
}

/// Parses credentials: later ones that are none do not take their place.
pub(crate) fn credentials(text: &str) -> Result<Secret, String> {
    Secret::given(text, |text| auth(text, &[]).map(drop))
}

fn url(text: &str) -> Result<String, String> {
    addresses(text).map(|_| text.to_owned()).map_err(|error| format!("{error:#}"))
}

/// The servers that a text names, with commas between.
///
/// # Errors
/// Names what is no address.
pub fn addresses(url: &str) -> Result<Vec<ServerAddr>, anyhow::Error> {
    url.split(',').map(|address| address.parse().with_context(|| format!("the address {address}"))).collect()
}

/// Connects. It waits for an unavailable server in the background, now and later; requests meanwhile fail or wait.
///
/// # Errors
/// Fails when the address or the credentials cannot be read.
pub async fn connect(name: &str, login: &Login, authorities: &Authorities) -> Result<Client, anyhow::Error> {
    let addresses = addresses(&login.url)?;
    auth(&login.credentials.expose(), &[]).context("the credentials of NATS")?;
    let credentials = login.credentials.clone();
    let mut options = ConnectOptions::with_auth_callback(move |nonce| {
        let credentials = credentials.clone();
        async move {
            // Whatever they are now: those before may be why it connects anew.
            tokio::time::timeout(LOOKS_WITHIN, credentials.look_now()).await.ok();
            auth(&credentials.expose(), &nonce).map_err(AuthError::new)
        }
    });
    options = options
        .name(name)
        .custom_inbox_prefix(format!("_INBOX_{name}"))
        .event_callback(|event| async move { info!(%event, "NATS") });
    if let Some(file) = &authorities.file {
        // Read at each connection.
        options = options.add_root_certificates(file.clone());
    }
    let client = nats_options(options).connect(addresses).await?;
    Ok(client)
}

/// Connects anew whenever the credentials have changed, until `stop`: those before may be revoked afterwards.
pub(crate) async fn follow(client: &Client, credentials: &Secret, stop: &CancellationToken) {
    let mut used = credentials.get();
    let connects = async {
        let mut tick = tokio::time::interval(CONNECTS_AFTER);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            let now = credentials.get();
            if now.expose_secret() != used.expose_secret() {
                // Only a client that has ended refuses.
                drop(client.force_reconnect().await);
                used = now;
            }
        }
    };
    tokio::join!(credentials.look_until(stop), connects);
}

/// What the server asks for: the JWT, and its nonce signed by the key of its seed.
fn auth(credentials: &str, nonce: &[u8]) -> Result<Auth, anyhow::Error> {
    let after = |title: &str| {
        let mut lines = credentials.lines().skip_while(|line| !line.contains(title));
        lines.nth(1).map(str::trim).with_context(|| format!("there is no `-----BEGIN {title}-----`"))
    };
    let (jwt, seed) = (after("NATS USER JWT")?, after("USER NKEY SEED")?);
    let key = KeyPair::from_seed(seed).context("its seed is none")?;
    let claims = jwt.split('.').nth(1).and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok());
    let claims: Value = claims.and_then(|claims| serde_json::from_slice(&claims).ok()).context("its JWT is none")?;
    ensure!(claims["sub"] == key.public_key(), "its JWT is of another key than its seed");
    let ends = claims["exp"].as_i64().filter(|ends| *ends != 0);
    ensure!(ends.is_none_or(|ends| ends > clock::now().timestamp()), "its JWT has expired");
    let mut auth = Auth::new();
    (auth.jwt, auth.signature) = (Some(jwt.to_owned()), Some(key.sign(nonce)?));
    Ok(auth)
}

/// An append-only stream that refuses rather than drops: a record for readers without access to the database.
#[derive(Debug, Clone)]
pub struct Record {
    js: jetstream::Context,
    name: &'static str,
}

impl Record {
    /// The stream `name`. Sends no request yet.
    #[must_use]
    pub fn new(nats: Client, name: &'static str) -> Self {
        let js = jetstream::ContextBuilder::new().timeout(Duration::from_secs(3)).build(nats);
        Self { js, name }
    }

    /// Adds a line; `Ok` once it is stored. Within two minutes, lines of the same id are stored once.
    ///
    /// # Errors
    /// It was not stored, or the outcome is not known.
    pub async fn add(&self, subject: String, id: &str, line: Vec<u8>) -> Result<(), anyhow::Error> {
        let message = PublishMessage::build().payload(line.into()).message_id(id).expected_stream(self.name);
        let sent = self.js.send_publish(subject, message).await.context("publishing")?;
        let stored = tokio::time::timeout(Duration::from_secs(5), sent).await.context("no acknowledgement in time")?;
        stored.with_context(|| format!("the stream {} did not store a line", self.name)).map(drop)
    }
}
