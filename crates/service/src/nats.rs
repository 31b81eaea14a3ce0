//! The connection to NATS.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, stream};
use async_nats::{Client, ConnectOptions, ServerAddr};
use tracing::info;

/// Connects; `url` carries the user and the password. A server that is away is waited for in the background, now and
/// later; what is asked of it meanwhile fails or waits.
///
/// # Errors
/// Fails when the address cannot be read.
pub async fn connect(name: &str, url: &str) -> Result<Client, anyhow::Error> {
    // The client does not take the login out of the address by itself.
    let address: ServerAddr = url.parse()?;
    let login = |part: Option<&str>| part.unwrap_or_default().to_owned();
    let client = ConnectOptions::new()
        .user_and_password(login(address.username()), login(address.password()))
        .name(name)
        .custom_inbox_prefix(format!("_INBOX_{name}"))
        // A dead peer is noticed after two of these.
        .ping_interval(Duration::from_secs(5))
        .client_capacity(8_192)
        .retry_on_initial_connect()
        .reconnect_delay_callback(|attempt| Duration::from_millis((attempt as u64 * 50).min(1_000)))
        .event_callback(|event| async move { info!(%event, "NATS") })
        .connect(address)
        .await?;
    Ok(client)
}

/// A stream that is only added to, and that refuses rather than drops: a record for those who do not read the database.
#[derive(Debug, Clone)]
pub struct Record {
    js: jetstream::Context,
    name: &'static str,
    subjects: &'static str,
}

impl Record {
    /// The stream `name`, which holds `subjects`. Nothing is asked yet.
    #[must_use]
    pub fn new(nats: Client, name: &'static str, subjects: &'static str) -> Self {
        let js = jetstream::ContextBuilder::new().timeout(Duration::from_secs(3)).build(nats);
        Self { js, name, subjects }
    }

    /// Makes the stream if there is none.
    ///
    /// # Errors
    /// NATS does not answer, or refuses.
    pub async fn open(&self) -> Result<(), anyhow::Error> {
        let config = stream::Config {
            name: self.name.to_owned(),
            subjects: vec![self.subjects.to_owned()],
            discard: stream::DiscardPolicy::New,
            storage: stream::StorageType::File,
            deny_delete: true,
            deny_purge: true,
            ..Default::default()
        };
        self.js.get_or_create_stream(config).await.with_context(|| format!("opening the stream {}", self.name))?;
        Ok(())
    }

    /// Adds a line; `Ok` once it is stored. Within two minutes, one of the same id is stored once.
    ///
    /// # Errors
    /// It was not stored, or that is not known.
    pub async fn add(&self, subject: String, id: &str, line: Vec<u8>) -> Result<(), anyhow::Error> {
        let message = PublishMessage::build().payload(line.into()).message_id(id).expected_stream(self.name);
        let sent = self.js.send_publish(subject, message).await.context("publishing")?;
        let stored = tokio::time::timeout(Duration::from_secs(5), sent).await.context("no acknowledgement in time")?;
        stored.with_context(|| format!("the stream {} did not store a line", self.name)).map(drop)
    }
}
