//! The connection to NATS.

use std::time::Duration;

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
