//! Reads the dead letters, and the outcomes of replays, to keep them beside the broker.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::stream::{Info, Stream};
use async_nats::jetstream::{self, AckKind};
use backoff::backoff::Backoff as _;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::pull::{self, messages};
use crate::records::RecordStreams;
use crate::rewind::reset;
use crate::time::{ACK_WAIT, ANSWERS_WITHIN, micros, now, pauses};
use crate::{event, replay};

/// The most that are handed over at once.
const BATCH: usize = 200;
/// When what could not be kept is delivered again.
const REFUSED_AGAIN: Duration = Duration::from_secs(5);
/// How often to check whether what was kept is still there.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// A dead letter, as the stream of dead letters holds it.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Its name: that of one failed event. The same failure reported twice has the same name.
    pub key: String,
    /// Its sequence in the stream of dead letters.
    pub sequence: u64,
    /// When that stored it.
    pub died_at: DateTime<Utc>,
    /// The consumer that failed.
    pub consumer: String,
    /// The stream of the event.
    pub stream: String,
    /// Its sequence there.
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

/// A record for a dead-letter reader.
#[derive(Debug, Clone)]
pub enum DlqRecord {
    /// An event became a dead letter.
    Letter(Box<DeadLetter>),
    /// A replayed event needs no more handling.
    Replayed {
        /// The replay.
        id: String,
        /// `done`, `duplicate`, `skipped` or `discarded`.
        outcome: String,
    },
}

/// How far a reader has come in the stream of dead letters. It is stored beside what is kept, in the same transaction: a
/// database that went back has an older one, and what was kept since comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DlqPosition {
    /// When the stream was created, to the microsecond; none of whichever stream it was.
    pub stream_created_at: Option<DateTime<Utc>>,
    /// Every letter up to here is kept.
    pub sequence: u64,
}

/// What is to be kept together.
#[derive(Debug)]
pub struct Batch {
    /// The records to keep.
    pub records: Vec<DlqRecord>,
    /// How far this reader knows that it had come before.
    pub before: DlqPosition,
    /// How far it has come with this: to be written down in the transaction that keeps it, which must fail when what is
    /// written down is less than `before`.
    pub now: DlqPosition,
}

/// Reads dead letters and the outcomes of replays, by durable consumers of its name.
pub struct DeadLetterReader {
    js: jetstream::Context,
    durable: String,
    records: RecordStreams,
}

impl DeadLetterReader {
    /// A reader that acts as the user of `nats`.
    #[must_use]
    pub fn new(nats: async_nats::Client, records: RecordStreams, durable: &str) -> Self {
        let js = jetstream::ContextBuilder::new().timeout(ANSWERS_WITHIN).build(nats);
        Self { js, durable: durable.to_owned(), records }
    }

    /// Hands over the records, in batches, until `stop`. A batch is acknowledged once `keep` has it, and else comes again:
    /// it may come more than once. `position` says how far that is written down; it is asked at the start, and every few
    /// seconds. When it says less than it did, the letters from there on come again.
    pub async fn run<P, G, K, F>(&self, stop: &CancellationToken, position: P, mut keep: K)
    where
        P: Fn() -> G,
        G: Future<Output = Result<DlqPosition, anyhow::Error>>,
        K: FnMut(Batch) -> F,
        F: Future<Output = Result<(), anyhow::Error>>,
    {
        let (mut pauses, mut said) = (pauses(), String::new());
        while !stop.is_cancelled() {
            let mut any = false;
            let read = stop.run_until_cancelled(Box::pin(self.read(&position, &mut keep, &mut any))).await;
            if any {
                pauses.reset();
            }
            let Some(Err(error)) = read else { continue };
            let error = format!("{error:#}");
            // Once, however long it lasts: standing by is one of the reasons.
            if any || error != said {
                warn!(error, "dead letters are not read: trying again");
            }
            said = error;
            let pause = pauses.next_backoff().unwrap_or(ACK_WAIT);
            stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
    }

    async fn read<P, G, K, F>(&self, position: &P, keep: &mut K, any: &mut bool) -> Result<(), anyhow::Error>
    where
        P: Fn() -> G,
        G: Future<Output = Result<DlqPosition, anyhow::Error>>,
        K: FnMut(Batch) -> F,
        F: Future<Output = Result<(), anyhow::Error>>,
    {
        let (stream, letters) = self.consumer(&self.records.dead_letters).await?;
        let created = micros(stream.cached_info().created);
        let is = position().await.context("asking how far letters are kept")?;
        let acknowledged = letters.cached_info().ack_floor.stream_sequence;
        let mut known = DlqPosition { stream_created_at: Some(created), sequence: is.sequence };
        if is.stream_created_at.is_some_and(|of| of != created) {
            // Nothing of this stream is written down, whatever was acknowledged.
            known.sequence = 0;
        }
        if known.sequence < acknowledged {
            error!(
                kept = known.sequence,
                acknowledged, "the database of the letters went back: those of between are read again"
            );
            let from = (known.sequence + 1).max(stream.cached_info().state.first_sequence);
            reset(&stream, &self.durable, Some(from)).await.context("taking the reader's consumer back")?;
        }
        // New ones come in their order, without a gap; what is passed over is on its way for a second time.
        let newest = known.sequence.max(stream.cached_info().state.first_sequence.saturating_sub(1));
        let mut progress = Progress { records: &self.records, known, missing: BTreeSet::new(), newest };
        // Letters are kept while the stream of replays is unavailable.
        let replays = pull::replays(&self.durable, || async {
            messages(&self.consumer(&self.records.replays).await?.1, BATCH).await
        });
        let mut batches = pull::both(messages(&letters, BATCH).await?, replays).ready_chunks(BATCH);
        let mut look = tokio::time::interval_at(tokio::time::Instant::now() + CHECK_EVERY, CHECK_EVERY);
        loop {
            let batch = tokio::select! {
                batch = batches.next() => batch,
                _ = look.tick() => {
                    let info = stream.get_info().await.context("asking how full the stream of dead letters is")?;
                    tell_how_full(&info);
                    let is = position().await.context("asking how far letters are kept")?;
                    let known = progress.known.sequence;
                    let went_back = is.stream_created_at == Some(created) && is.sequence < known;
                    anyhow::ensure!(!went_back, "letters were kept up to {known}, now up to {}", is.sequence);
                    continue;
                }
            };
            let Some(batch) = batch else { return Ok(()) };
            let batch: Vec<jetstream::Message> = batch.into_iter().collect::<Result<_, _>>()?;
            progress.arrived(&batch);
            if progress.keep(&batch, keep).await?.is_err() {
                // One that cannot be kept must not hold up the others.
                progress.keep_one_by_one(&batch, keep).await?;
            }
            *any = true;
        }
    }

    async fn consumer(&self, stream: &str) -> Result<(Stream, PullConsumer), anyhow::Error> {
        let stream = self.js.get_stream(stream).await.context("opening a stream to keep")?;
        let consumer = stream.get_consumer(&self.durable).await.map_err(|error| anyhow::anyhow!(error));
        Ok((stream, consumer.context("opening the reader's consumer")?))
    }
}

/// How far a reader is in the stream of dead letters.
struct Progress<'a> {
    records: &'a RecordStreams,
    /// What is written down.
    known: DlqPosition,
    /// Those up to `newest` that are not kept.
    missing: BTreeSet<u64>,
    newest: u64,
}

impl Progress<'_> {
    fn arrived(&mut self, batch: &[jetstream::Message]) {
        for sequence in batch.iter().filter_map(|message| letter(message, self.records)) {
            self.missing.extend(self.newest + 1..=sequence);
            self.missing.insert(sequence);
            self.newest = self.newest.max(sequence);
        }
    }

    /// Has some kept together, and acknowledges them; the inner error is that of `keep`: nothing of them is kept.
    async fn keep<K, F>(
        &mut self,
        batch: &[jetstream::Message],
        keep: &mut K,
    ) -> Result<Result<(), anyhow::Error>, anyhow::Error>
    where
        K: FnMut(Batch) -> F,
        F: Future<Output = Result<(), anyhow::Error>>,
    {
        let mut left = self.missing.clone();
        for sequence in batch.iter().filter_map(|message| letter(message, self.records)) {
            left.remove(&sequence);
        }
        let up_to = left.first().map_or(self.newest, |first| first - 1);
        let now = DlqPosition { sequence: up_to.max(self.known.sequence), ..self.known };
        let records = batch.iter().filter_map(|message| record(message, self.records)).collect();
        if let Err(error) = keep(Batch { records, before: self.known, now }).await {
            return Ok(Err(error));
        }
        settle(batch, AckKind::Ack).await?;
        (self.missing, self.known) = (left, now);
        Ok(Ok(()))
    }

    /// Has each kept by itself; what is refused comes again later. An error if none is kept: it may be another database by then.
    async fn keep_one_by_one<K, F>(&mut self, batch: &[jetstream::Message], keep: &mut K) -> Result<(), anyhow::Error>
    where
        K: FnMut(Batch) -> F,
        F: Future<Output = Result<(), anyhow::Error>>,
    {
        let (mut wrong, mut any) = (None, false);
        for message in batch.chunks(1) {
            match self.keep(message, keep).await? {
                Ok(()) => any = true,
                Err(error) => {
                    settle(message, AckKind::Nak(Some(REFUSED_AGAIN))).await?;
                    wrong = Some(error);
                }
            }
        }
        match wrong {
            Some(error) if !any => Err(error),
            Some(error) => {
                warn!(error = format!("{error:#}"), "a record cannot be kept: again later");
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// Reports how full a stream is; 0 without a bound.
fn tell_how_full(info: &Info) {
    let bound = info.config.max_bytes;
    let used = if bound > 0 { info.state.bytes as f64 / bound as f64 } else { 0.0 };
    metrics::gauge!("dlq_stream_used").set(used);
}

/// The sequence of a letter; none of a replay's outcome.
fn letter(message: &jetstream::Message, records: &RecordStreams) -> Option<u64> {
    let info = message.info().ok()?;
    (info.stream == records.dead_letters).then_some(info.stream_sequence)
}

async fn settle(messages: &[jetstream::Message], ack: AckKind) -> Result<(), anyhow::Error> {
    for message in messages {
        message.ack_with(ack).await.map_err(|error| anyhow::anyhow!(error))?;
    }
    Ok(())
}

/// The record in a message. None when it holds nothing that anybody here has written.
fn record(message: &jetstream::Message, records: &RecordStreams) -> Option<DlqRecord> {
    let info = message.info().ok()?;
    if info.stream == records.replays {
        let (id, outcome) = replay::outcome(message.headers.as_ref())?;
        return Some(DlqRecord::Replayed { id, outcome });
    }
    let empty = HeaderMap::new();
    let headers = message.headers.as_ref().unwrap_or(&empty);
    let text = |name: &'static str| headers.get(name).map(|value| value.as_str().to_owned());
    let time = |name| text(name).and_then(|text| text.parse().ok());
    let number = |name| text(name).and_then(|text| text.parse::<i64>().ok());
    let left = text("Dlq-Payload-Left").is_some();
    let parts = event::parse(Some(headers), &message.payload);
    let own = |name: &str| !["nats-", "dlq-"].iter().any(|ours| name.to_ascii_lowercase().starts_with(ours));
    let consumer = text("Dlq-Consumer").or_else(|| records.consumer(&message.subject).map(ToOwned::to_owned))?;
    Some(DlqRecord::Letter(Box::new(DeadLetter {
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
