//! Reading the dead letters, and what became of replays, for whoever keeps them beside the broker.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, AckKind};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::stream::{self as streams, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::pull::{messages, pauses};
use crate::settle::now;
use crate::{dead_letter, event, replay};
use backoff::backoff::Backoff as _;

/// How many are handed over at once, at most.
const BATCH: usize = 200;
const ACK_WAIT: Duration = Duration::from_secs(30);

/// A dead letter, as the stream of dead letters holds it.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Its name: that of one death. The same death told twice has the same.
    pub key: String,
    /// Its place in the stream of dead letters.
    pub sequence: u64,
    /// When that stored it.
    pub died_at: DateTime<Utc>,
    /// The consumer that failed.
    pub consumer: String,
    /// The stream of the event.
    pub stream: String,
    /// Its place there.
    pub stream_sequence: u64,
    /// When that stored it.
    pub stored_at: DateTime<Utc>,
    /// The subject of the event.
    pub subject: String,
    /// How often it was tried.
    pub attempts: i64,
    /// When the first of these failed.
    pub first_failed_at: DateTime<Utc>,
    /// Which code failed.
    pub version: String,
    /// Why.
    pub reason: String,
    /// The replay that failed, if it was one.
    pub replay: Option<String>,
    /// The event's own headers.
    pub headers: Vec<(String, String)>,
    /// The event; none when it was too large for a letter and is only in its stream.
    pub payload: Option<Bytes>,
    /// Its CloudEvents attributes; none when it is no event.
    pub attributes: BTreeMap<String, String>,
}

/// What a keeper is told.
#[derive(Debug, Clone)]
pub enum Told {
    /// An event has died.
    Letter(Box<DeadLetter>),
    /// A replayed event needs no more handling.
    Replayed {
        /// The replay.
        id: String,
        /// `done`, `duplicate`, `skipped` or `discarded`.
        outcome: String,
    },
}

/// Reads both, by durable consumers of its name.
pub struct Keeper {
    js: jetstream::Context,
    durable: String,
}

impl Keeper {
    /// A keeper that acts as the user of `nats`.
    #[must_use]
    pub fn new(nats: async_nats::Client, durable: &str) -> Self {
        let js = jetstream::ContextBuilder::new().timeout(Duration::from_secs(3)).build(nats);
        Self { js, durable: durable.to_owned() }
    }

    /// Hands over what is told, in batches, until `stop`. A batch is acknowledged once `keep` has it, and else comes again:
    /// it may come more than once.
    pub async fn run<K, F>(&self, stop: &CancellationToken, mut keep: K)
    where
        K: FnMut(Vec<Told>) -> F,
        F: Future<Output = Result<(), anyhow::Error>>,
    {
        let mut pauses = pauses();
        while !stop.is_cancelled() {
            let mut kept = false;
            let read = stop.run_until_cancelled(Box::pin(self.read(&mut keep, &mut kept))).await;
            if kept {
                pauses.reset();
            }
            let Some(Err(error)) = read else { continue };
            warn!(error = format!("{error:#}"), "dead letters are not read: trying again");
            let pause = pauses.next_backoff().unwrap_or(ACK_WAIT);
            stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
    }

    async fn read<K, F>(&self, keep: &mut K, kept: &mut bool) -> Result<(), anyhow::Error>
    where
        K: FnMut(Vec<Told>) -> F,
        F: Future<Output = Result<(), anyhow::Error>>,
    {
        dead_letter::open(&self.js).await?;
        replay::open(&self.js).await?;
        let letters = self.consumer(dead_letter::STREAM, "dlq.>").await?;
        let replays = self.consumer(replay::STREAM, "replayed.*").await?;
        let both = streams::select(messages(&letters, BATCH).await?, messages(&replays, BATCH).await?);
        let mut batches = both.ready_chunks(BATCH);
        while let Some(batch) = batches.next().await {
            let batch: Vec<jetstream::Message> = batch.into_iter().collect::<Result<_, _>>()?;
            let mut wrong = None;
            match keep(batch.iter().filter_map(told).collect()).await {
                Ok(()) => settle(&batch, AckKind::Ack).await?,
                // One that cannot be kept must not hold up the others.
                Err(_) => {
                    for message in &batch {
                        match keep(told(message).into_iter().collect()).await {
                            Ok(()) => settle(std::slice::from_ref(message), AckKind::Ack).await?,
                            Err(error) => {
                                let again = AckKind::Nak(Some(Duration::from_secs(5)));
                                settle(std::slice::from_ref(message), again).await?;
                                wrong = Some(error);
                            }
                        }
                    }
                }
            }
            if let Some(error) = wrong {
                warn!(error = format!("{error:#}"), "something that was told cannot be kept: again later");
            }
            *kept = true;
        }
        Ok(())
    }

    async fn consumer(&self, stream: &str, filter: &str) -> Result<PullConsumer, anyhow::Error> {
        let config = pull::Config {
            durable_name: Some(self.durable.clone()),
            filter_subject: filter.to_owned(),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_deliver: -1,
            ..Default::default()
        };
        let stream = self.js.get_stream(stream).await.context("opening a stream to keep")?;
        stream.get_or_create_consumer(&self.durable, config).await.context("opening the keeper's consumer")
    }
}

async fn settle(messages: &[jetstream::Message], ack: AckKind) -> Result<(), anyhow::Error> {
    for message in messages {
        message.ack_with(ack).await.map_err(|error| anyhow::anyhow!(error))?;
    }
    Ok(())
}

/// What a message tells. None when it tells nothing that anybody here has written.
fn told(message: &jetstream::Message) -> Option<Told> {
    let info = message.info().ok()?;
    if info.stream == replay::STREAM {
        let (id, outcome) = replay::outcome(message.headers.as_ref())?;
        return Some(Told::Replayed { id, outcome });
    }
    let empty = HeaderMap::new();
    let headers = message.headers.as_ref().unwrap_or(&empty);
    let text = |name: &'static str| headers.get(name).map(|value| value.as_str().to_owned());
    let time = |name| text(name).and_then(|text| text.parse().ok());
    let number = |name| text(name).and_then(|text| text.parse::<i64>().ok());
    let left = text("Dlq-Payload-Left").is_some();
    let parts = event::parse(Some(headers), &message.payload);
    let own = |name: &str| !["nats-", "dlq-"].iter().any(|ours| name.to_ascii_lowercase().starts_with(ours));
    let consumer = text("Dlq-Consumer").or_else(|| message.subject.split('.').nth(1).map(ToOwned::to_owned))?;
    Some(Told::Letter(Box::new(DeadLetter {
        key: text("Dlq-Key")
            .or_else(|| text("Nats-Msg-Id"))
            .unwrap_or_else(|| format!("{}:{}", info.published, info.stream_sequence)),
        sequence: info.stream_sequence,
        died_at: info.published,
        consumer,
        stream: text("Dlq-Stream").unwrap_or_default(),
        stream_sequence: number("Dlq-Stream-Sequence").unwrap_or_default().cast_unsigned(),
        stored_at: time("Dlq-Stored-At").unwrap_or(info.published),
        subject: text("Dlq-Subject").unwrap_or_default(),
        attempts: number("Dlq-Delivered").unwrap_or_default(),
        first_failed_at: time("Dlq-First-Failed-At").unwrap_or_else(|| info.published.min(now())),
        version: text("Dlq-Version").unwrap_or_default(),
        reason: text("Dlq-Reason").unwrap_or_default(),
        replay: text("Dlq-Replay"),
        headers: headers
            .iter()
            .filter(|(name, _)| own((*name).as_ref()))
            .flat_map(|(name, values)| values.iter().map(move |value| (name.to_string(), value.as_str().to_owned())))
            .collect(),
        payload: (!left).then(|| message.payload.clone()),
        attributes: parts.map(|(attributes, _)| attributes).unwrap_or_default(),
    })))
}
