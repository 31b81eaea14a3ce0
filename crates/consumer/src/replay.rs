//! Replaying, as a consumer sees it: an event comes to it again, by a stream of its own, and its outcome goes back by the same
//! stream. The subjects are `replay.<consumer>.<the event's subject>` and `replayed.<consumer>`. A replay that fails
//! becomes a dead letter that names it.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::jetstream;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::Stream;

use crate::config::Config;
use crate::origin::ID;
use crate::records::RecordStreams;

const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const OUTCOME: &str = "Replay-Outcome";

/// A header of a message.
pub fn header<'a>(headers: Option<&'a HeaderMap>, name: &'static str) -> Option<&'a str> {
    headers?.get(name).map(|value| value.as_str())
}

/// The replay whose outcome a message reports, and the outcome.
#[cfg(feature = "operate")]
pub fn outcome(headers: Option<&HeaderMap>) -> Option<(String, String)> {
    Some((header(headers, ID)?.to_owned(), header(headers, OUTCOME)?.to_owned()))
}

/// The stream of replays.
pub async fn stream(js: &jetstream::Context, records: &RecordStreams) -> Result<Stream, anyhow::Error> {
    js.get_stream(&records.replays).await.context("opening the stream of replays")
}

/// The durable consumer by which a consumer reads its replays.
pub async fn consumer(
    js: &jetstream::Context,
    records: &RecordStreams,
    durable: &str,
) -> Result<PullConsumer, anyhow::Error> {
    js.get_consumer_from_stream(durable, &records.replays).await.context("opening the consumer of replays")
}

/// Reports the outcome of a replayed message; `Ok` only once that is stored.
pub async fn report(
    js: &jetstream::Context,
    config: &Config,
    message: &jetstream::Message,
    verdict: &str,
) -> Result<(), anyhow::Error> {
    let id = header(message.headers.as_ref(), ID).unwrap_or_default();
    let answer = PublishMessage::build()
        .header(ID, id)
        .header(OUTCOME, verdict)
        .message_id(format!("{id}:{verdict}"))
        .expected_stream(&config.records.replays);
    stored(js, config.records.replayed(&config.durable), answer).await.map(drop)
}

/// Publishes to the stream of replays; returns the sequence at which it stored the message.
pub async fn stored(js: &jetstream::Context, subject: String, message: PublishMessage) -> Result<u64, anyhow::Error> {
    let sent = js.send_publish(subject, message).await.context("publishing to the stream of replays")?;
    let ack =
        tokio::time::timeout(ANSWER_WITHIN, sent).await.context("the stream of replays did not answer in time")?;
    Ok(ack.context("the stream of replays did not store the message")?.sequence)
}
