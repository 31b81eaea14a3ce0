//! Setup before a service starts: creates the stream that a relay publishes to. A relay only checks it.

use anyhow::Context as _;
use async_nats::jetstream::{self, stream};
use tracing::warn;

use crate::config::StreamSpec;
use crate::stream::republished;

/// The most durable consumers of one stream: each holds memory of the server for what it has in hand.
const MOST_CONSUMERS: i32 = 500;

/// Creates a relay's stream. Changes an existing one only where that removes no event: its subjects, replicas, discard
/// policy, and how it is read. The age limit is an operator's to change: a shorter one removes events, and behind a longer one an empty stream
/// looks purged.
///
/// # Errors
/// NATS does not answer, or refuses.
pub async fn stream(js: &jetstream::Context, spec: &StreamSpec) -> Result<(), anyhow::Error> {
    let wanted = stream::Config {
        name: spec.name.clone(),
        subjects: spec.subjects.clone(),
        max_age: spec.max_age,
        max_consumers: MOST_CONSUMERS,
        num_replicas: spec.replicas,
        // Refuse rather than drop: only age may remove an event.
        discard: stream::DiscardPolicy::New,
        storage: stream::StorageType::File,
        republish: republished(spec),
        // Readers ask for many messages at once.
        allow_direct: true,
        ..Default::default()
    };
    let stream = js.get_or_create_stream(wanted.clone()).await;
    let stream = stream.with_context(|| format!("making the stream {}", spec.name))?;
    let is = &stream.cached_info().config;
    let ours = stream::Config {
        subjects: wanted.subjects,
        num_replicas: wanted.num_replicas,
        discard: wanted.discard,
        republish: wanted.republish,
        allow_direct: wanted.allow_direct,
        ..is.clone()
    };
    if *is != ours {
        warn!(stream = spec.name, ?is, ?ours, "the stream is not as it was asked for: changing it");
        js.update_stream(ours).await.with_context(|| format!("changing the stream {}", spec.name))?;
    }
    Ok(())
}
