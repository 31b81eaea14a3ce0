//! What a durable consumer gives, as one stream of messages: rebuilt by its caller when it falls silent.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream;
use async_nats::jetstream::consumer::PullConsumer;
#[cfg(feature = "replay")]
use backoff::backoff::Backoff as _;
use futures::stream::{self as streams, BoxStream, StreamExt as _};
#[cfg(feature = "replay")]
use tracing::warn;

#[cfg(feature = "replay")]
use crate::time::pauses;

const PULL_EXPIRES: Duration = Duration::from_secs(5);
/// How often the server says that a pull is alive.
pub const HEARTBEAT: Duration = Duration::from_secs(2);
/// The pause behind a pull of replays that has broken.
#[cfg(feature = "replay")]
const REPLAYS_AGAIN: Duration = Duration::from_secs(1);

/// Messages of one pull: the stream's, and what is replayed to this consumer.
pub type Messages<'a> = BoxStream<'a, Result<jetstream::Message, anyhow::Error>>;

/// What a durable consumer gives; an error when the pull is broken: after two missed heartbeats, or at its end.
pub async fn messages(consumer: &PullConsumer, batch: usize) -> Result<Messages<'static>, anyhow::Error> {
    let pull = consumer.stream().max_messages_per_batch(batch * 2).expires(PULL_EXPIRES).heartbeat(HEARTBEAT);
    let messages = pull.messages().await.context("pulling")?;
    let end = streams::once(std::future::ready(Err(anyhow::anyhow!("the pull has ended"))));
    let mut missed = 0;
    let messages = messages.filter_map(move |message| {
        missed = if message.is_ok() { 0 } else { missed + 1 };
        let passes = message.is_ok() || missed >= 2;
        std::future::ready(passes.then(|| message.context("the pull is broken")))
    });
    Ok(messages.chain(end).boxed())
}

/// What is replayed, by pulls that `open` begins: a new one whenever one has failed. It never ends and never fails, so that the
/// events go on while the stream of replays is unavailable.
#[cfg(feature = "replay")]
pub fn replays<'a, F>(durable: &'a str, open: impl Fn() -> F + Send + 'a) -> Messages<'a>
where
    F: Future<Output = Result<Messages<'static>, anyhow::Error>> + Send + 'a,
{
    let pulls = streams::unfold((open, pauses(), Duration::ZERO), move |(open, mut pauses, pause)| async move {
        tokio::time::sleep(pause).await;
        match open().await {
            Ok(messages) => {
                let messages = messages.take_while(move |message| {
                    if let Err(error) = message {
                        warn!(consumer = durable, error = format!("{error:#}"), "the pull of replays is broken");
                    }
                    std::future::ready(message.is_ok())
                });
                pauses.reset();
                Some((messages.boxed(), (open, pauses, REPLAYS_AGAIN)))
            }
            Err(error) => {
                warn!(consumer = durable, error = format!("{error:#}"), "replays cannot be pulled: trying again");
                let pause = pauses.next_backoff().unwrap_or(HEARTBEAT);
                Some((streams::empty().boxed(), (open, pauses, pause)))
            }
        }
    });
    pulls.flatten().boxed()
}

/// The events and what is replayed, until the events end.
#[cfg(feature = "replay")]
pub fn both<'a>(events: Messages<'a>, replays: Messages<'a>) -> Messages<'a> {
    let events = events.map(Some).chain(streams::once(std::future::ready(None)));
    let both = streams::select(events, replays.map(Some));
    both.take_while(|message| std::future::ready(message.is_some())).filter_map(std::future::ready).boxed()
}
