//! Where events go that cannot be handled: a stream that refuses rather than drops, each letter whole and with its
//! story in headers. The subject is `dlq.<consumer>.<the event's subject>`.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, stream};

/// The dead-letter stream of the fleet.
pub const STREAM: &str = "DLQ";

/// Why and how an event died.
pub struct Story<'a> {
    pub stream: &'a str,
    pub consumer: &'a str,
    pub reason: &'a str,
    pub delivered: i64,
}

/// Makes the dead-letter stream if there is none.
pub async fn open(js: &jetstream::Context) -> Result<(), anyhow::Error> {
    let config = stream::Config {
        name: STREAM.to_owned(),
        subjects: vec!["dlq.>".to_owned()],
        discard: stream::DiscardPolicy::New,
        storage: stream::StorageType::File,
        deny_delete: true,
        deny_purge: true,
        ..Default::default()
    };
    js.get_or_create_stream(config).await.context("opening the dead-letter stream")?;
    Ok(())
}

/// Stores a letter; `Ok` only once the stream has acknowledged it.
pub async fn store(
    js: &jetstream::Context,
    message: &jetstream::Message,
    story: &Story<'_>,
) -> Result<(), anyhow::Error> {
    let info = message.info().map_err(|error| anyhow::anyhow!(error))?;
    let mut headers = HeaderMap::new();
    for (name, values) in message.headers.iter().flat_map(HeaderMap::iter) {
        let text: &str = name.as_ref();
        // What steers the server is not the event's: it would steer the letter.
        if !text.to_ascii_lowercase().starts_with("nats-") {
            values.iter().for_each(|value| headers.append(name.clone(), value.clone()));
        }
    }
    // NATS headers hold one line; the reason is bounded so that a letter always fits.
    let reason: String = story.reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(2_000).collect();
    headers.insert("Dlq-Consumer", story.consumer);
    headers.insert("Dlq-Stream", story.stream);
    headers.insert("Dlq-Stream-Sequence", info.stream_sequence.to_string());
    headers.insert("Dlq-Stored-At", info.published.to_rfc3339());
    headers.insert("Dlq-Subject", message.subject.as_str());
    headers.insert("Dlq-Delivered", story.delivered.to_string());
    headers.insert("Dlq-Reason", reason);
    let letter = PublishMessage::build()
        .payload(message.payload.clone())
        .headers(headers)
        .message_id(format!("{}:{}:{}", story.stream, story.consumer, info.stream_sequence))
        .expected_stream(STREAM);
    let subject = format!("dlq.{}.{}", story.consumer, message.subject);
    let sent = js.send_publish(subject, letter).await.context("publishing to the dead-letter stream")?;
    tokio::time::timeout(Duration::from_secs(5), sent)
        .await
        .context("the dead-letter stream did not answer in time")?
        .context("the dead-letter stream did not store the letter")?;
    Ok(())
}
