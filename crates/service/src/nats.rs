//! The connection to NATS.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream;
use async_nats::jetstream::message::PublishMessage;
use async_nats::{ConnectOptions, ServerAddr};
use clap::Args;
use outbox::connections::nats_options;
use tracing::info;

use crate::config;
use crate::tls::Authorities;

pub use async_nats::Client;

/// Where NATS is, and what a service logs in by.
#[derive(Debug, Clone, Args)]
pub struct Login {
    /// NATS: nats://host:port, or tls:// for TLS alone; or the servers of a cluster, with commas between: whichever answers.
    #[arg(id = "nats_url", long = "nats-url", value_name = "URL", env = "FLOTILLA_NATS_URL", value_parser = url)]
    pub url: String,
    /// The credentials file of this service's login there.
    #[arg(id = "nats_creds", long = "nats-creds", value_name = "FILE", env = "FLOTILLA_NATS_CREDS", value_parser = config::file)]
    pub credentials: PathBuf,
}

impl Login {
    /// Another login of the same servers.
    #[must_use]
    pub fn with(&self, credentials: &Path) -> Self {
        Self { url: self.url.clone(), credentials: credentials.to_owned() }
    }
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
    let credentials = ConnectOptions::new().credentials_file(&login.credentials).await;
    let mut options = credentials
        .with_context(|| format!("reading the credentials {}", login.credentials.display()))?
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
