//! Taking a durable consumer back: to its floor, to what a read model lacks, to the beginning of its stream.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::{self, consumer, stream};
use chrono::{DateTime, Utc};

use crate::records::RecordStreams;
use crate::replay;
use crate::time::micros;

const RESET_AGAIN: Duration = Duration::from_secs(1);
const RESET_LOOKS_EVERY: Duration = Duration::from_millis(25);
const RESET_TRIES: u32 = 5;

/// Takes a durable consumer back to the beginning of its stream.
#[derive(Debug, Clone)]
pub struct Rewinder {
    pub(crate) js: jetstream::Context,
    pub(crate) stream: String,
    pub(crate) durable: String,
    pub(crate) records: RecordStreams,
}

/// How far a durable consumer has acknowledged, without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    /// When the stream was created, to the microsecond.
    pub stream_created_at: DateTime<Utc>,
    /// Up to this sequence.
    pub sequence: u64,
    /// How many events are still to be acknowledged.
    pub pending: u64,
    /// Replays, up to this sequence of the stream of replays; none while that stream is unavailable.
    pub replays: Option<u64>,
}

impl Rewinder {
    /// How far this consumer has acknowledged; none while there is no durable consumer.
    ///
    /// # Errors
    /// NATS does not answer.
    pub async fn acknowledged(&self) -> Result<Option<Acknowledged>, anyhow::Error> {
        let stream = self.js.get_stream(&self.stream).await.context("opening the stream")?;
        let Some(info) = self.info(&stream).await? else { return Ok(None) };
        let replays = replay::consumer(&self.js, &self.records, &self.durable).await.ok();
        Ok(Some(Acknowledged {
            stream_created_at: micros(stream.cached_info().created),
            sequence: info.ack_floor.stream_sequence,
            pending: info.num_pending + u64::try_from(info.num_ack_pending).unwrap_or(0),
            replays: replays.map(|replays| replays.cached_info().ack_floor.stream_sequence),
        }))
    }

    /// What NATS says of the durable consumer; none where there is none.
    pub(crate) async fn info<I: Sync>(
        &self,
        stream: &stream::Stream<I>,
    ) -> Result<Option<consumer::Info>, anyhow::Error> {
        match stream.consumer_info(&self.durable).await {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("asking for the durable consumer"),
        }
    }

    /// The last sequence of the stream, and when that was created.
    ///
    /// # Errors
    /// NATS does not answer.
    pub async fn end(&self) -> Result<(DateTime<Utc>, u64), anyhow::Error> {
        let stream = self.js.get_stream(&self.stream).await.context("opening the stream")?;
        let info = stream.cached_info();
        Ok((micros(info.created), info.state.last_sequence))
    }

    /// Delivers everything behind this sequence again; returns how many events of those the stream has dropped.
    ///
    /// # Errors
    /// NATS does not answer, or does not allow it.
    pub async fn rewind_behind(&self, sequence: u64) -> Result<u64, anyhow::Error> {
        let stream = self.js.get_stream(&self.stream).await.context("opening the stream")?;
        let first = stream.cached_info().state.first_sequence;
        let from = (sequence + 1).max(first);
        reset(&stream, &self.durable, Some(from)).await.context("taking the durable consumer back")?;
        Ok(from - (sequence + 1))
    }

    /// Delivers again everything that was replayed behind this sequence of the stream of replays.
    ///
    /// # Errors
    /// NATS does not answer, or does not allow it.
    pub async fn rewind_replays_behind(&self, sequence: u64) -> Result<(), anyhow::Error> {
        let stream = replay::stream(&self.js, &self.records).await?;
        let replays = replay::consumer(&self.js, &self.records, &self.durable).await?;
        if replays.cached_info().ack_floor.stream_sequence > sequence {
            let from = (sequence + 1).max(stream.cached_info().state.first_sequence);
            reset(&stream, &self.durable, Some(from)).await.context("taking replays back")?;
        }
        Ok(())
    }

    /// Delivers everything that the stream holds again, from its first message on. Returns that message's sequence, and what it
    /// carries in this header. What was dropped from the stream before does not come again.
    ///
    /// # Errors
    /// NATS does not answer, or does not allow it. Also while the stream is empty although this consumer has had something:
    /// it may be about to be refilled.
    pub async fn rewind(&self, header: &'static str) -> Result<(u64, Option<String>), anyhow::Error> {
        let stream = self.js.get_stream(&self.stream).await.context("opening the stream")?;
        let state = &stream.cached_info().state;
        let first = state.first_sequence.max(1);
        match stream.consumer_info(&self.durable).await {
            Ok(info) if state.messages == 0 && info.delivered.stream_sequence > 0 => {
                anyhow::bail!("the stream is empty, and was not: waiting for it to be refilled")
            }
            Ok(_) => {
                reset(&stream, &self.durable, Some(first)).await.context("taking the durable consumer back")?;
            }
            // It begins there by itself, once it is made.
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => {}
            Err(error) => return Err(error).context("asking for the durable consumer"),
        }
        let message = stream.get_raw_message(first).await.ok();
        Ok((first, message.and_then(|message| message.headers.get(header).map(|value| value.as_str().to_owned()))))
    }
}

/// Takes a durable consumer to a sequence, or to its acknowledged floor, and restarts its count of deliveries. From another
/// account nats-server resets it and does not answer (2.14.0 to 2.14.3, its issue 8396): so this polls it until that shows.
pub(crate) async fn reset(stream: &stream::Stream, durable: &str, to: Option<u64>) -> Result<(), anyhow::Error> {
    let before = stream.consumer_info(durable).await.context("asking for the durable consumer")?;
    let floor = to.map_or(before.ack_floor.stream_sequence, |to| to.saturating_sub(1));
    for _ in 0..RESET_TRIES {
        let mut answer = std::pin::pin!(stream.reset_consumer(durable, to));
        let mut look = tokio::time::interval(RESET_LOOKS_EVERY);
        let tried = tokio::time::Instant::now();
        while tried.elapsed() < RESET_AGAIN {
            let info = tokio::select! {
                biased;
                answer = &mut answer => match answer {
                    Ok(_) => return Ok(()),
                    Err(error) if error.kind() == stream::ConsumerResetErrorKind::TimedOut => break,
                    Err(error) => return Err(error.into()),
                },
                // Asked behind it, on the same connection.
                info = async { look.tick().await; stream.consumer_info(durable).await } => {
                    info.context("asking for the durable consumer")?
                }
            };
            let at = (info.ack_floor.stream_sequence, info.delivered.stream_sequence, info.num_ack_pending);
            // Or somebody pulls, and has had some of it since.
            let back = info.delivered.consumer_sequence < before.delivered.consumer_sequence
                || info.ack_floor.stream_sequence < before.ack_floor.stream_sequence
                || info.delivered.stream_sequence < before.delivered.stream_sequence;
            if at == (floor, floor, 0) || back {
                return Ok(());
            }
        }
    }
    anyhow::bail!("the durable consumer {durable} was not taken to {}", floor + 1)
}
