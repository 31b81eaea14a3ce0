//! Whether the stream still holds what effects were made of. A restore of the producer's database takes events back that
//! were handled; once the stream is restored, emptied or created again with it, only the effects still know of them.

use anyhow::Context as _;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{Info, RawMessageErrorKind, Stream};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::event;
use crate::rewind::Rewinder;
use crate::time::{micros, now};

/// By this header a message says which row of its producer's outbox it is (crate `outbox`). The rows of a stream are in order,
/// also when it is restored or created and filled again, at other sequences; except newer ones at its beginning, which came
/// between a purge and the refill.
const ROW: &str = "Outbox-Seq";

/// An event that was handled, as it is noted beside the effects. For as long as the stream lacks it, or has another event of
/// its row, the effects are of a history that was undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// Its sequence in the stream; the search for it begins there.
    pub sequence: u64,
    /// Its row in its producer's outbox.
    pub row: u64,
    /// Its id.
    pub event: String,
    /// When the stream stored it.
    pub stored_at: DateTime<Utc>,
}

impl Anchor {
    /// The anchor of a message; none of what is no event, or comes from no outbox.
    fn of(message: &StreamMessage) -> Option<Self> {
        let (mut attributes, _) = event::parse(Some(&message.headers), &message.payload).ok()?;
        let event = attributes.remove("id")?;
        Some(Self { sequence: message.sequence, row: row(message)?, event, stored_at: message.time })
    }

    fn is(&self, message: &StreamMessage) -> bool {
        Self::of(message).is_some_and(|of| (of.row, &of.event) == (self.row, &self.event))
    }
}

fn row(message: &StreamMessage) -> Option<u64> {
    message.headers.get(ROW)?.as_str().parse().ok()
}

impl Rewinder {
    /// The event at this sequence of the stream, up to which all was handled just now; none when there is none that could be
    /// searched for again, or the stream is another one by now.
    ///
    /// # Errors
    /// NATS does not answer, or does not allow it.
    pub async fn anchor(
        &self,
        stream_created_at: DateTime<Utc>,
        sequence: u64,
    ) -> Result<Option<Anchor>, anyhow::Error> {
        let stream = self.stream().await?;
        let anchor = at(&stream, sequence).await?.as_ref().and_then(Anchor::of);
        let created = stream.get_info().await.context("asking when the stream was created")?.created;
        Ok(anchor.filter(|_| micros(created) == stream_created_at))
    }

    /// The row, in its producer's outbox, of the event up to which this consumer has acknowledged everything; none where there is no durable
    /// consumer, or no such event any more.
    ///
    /// # Errors
    /// NATS does not answer, or does not allow it.
    pub async fn handled_row(&self) -> Result<Option<u64>, anyhow::Error> {
        let stream = self.stream().await?;
        let Some(info) = self.info(&stream).await? else { return Ok(None) };
        Ok(at(&stream, info.ack_floor.stream_sequence).await?.as_ref().and_then(row))
    }

    /// Whether the stream holds this event, or may have dropped it as others before it.
    ///
    /// # Errors
    /// NATS does not answer, or does not allow it.
    pub async fn holds(&self, anchor: &Anchor) -> Result<bool, anyhow::Error> {
        let stream = self.stream().await?;
        if at(&stream, anchor.sequence).await?.is_some_and(|message| anchor.is(&message)) {
            return Ok(true);
        }
        let info = stream.get_info().await.context("asking what the stream holds")?;
        if has_aged(anchor, &info) || by_row(&stream, &info, anchor.row).await?.is_some_and(|found| anchor.is(&found)) {
            return Ok(true);
        }
        // One that begins with a newer row: what was before is gone, whatever it was.
        let first = at(&stream, info.state.first_sequence).await?;
        Ok(first.as_ref().and_then(row).is_some_and(|first| first > anchor.row))
    }

    async fn stream(&self) -> Result<Stream<()>, anyhow::Error> {
        self.js.get_stream_no_info(&self.stream).await.context("opening the stream")
    }
}

fn has_aged(anchor: &Anchor, info: &Info) -> bool {
    let max_age = info.config.max_age;
    let age = (now() - anchor.stored_at).max(TimeDelta::zero()).to_std().unwrap_or_default();
    !max_age.is_zero() && age >= max_age
}

async fn at(stream: &Stream<()>, sequence: u64) -> Result<Option<StreamMessage>, anyhow::Error> {
    // The server takes 0 for no sequence at all.
    if sequence == 0 {
        return Ok(None);
    }
    match stream.get_raw_message(sequence).await {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error).context("reading an event of the stream"),
    }
}

/// Finds the message of a row, by binary search.
async fn by_row(stream: &Stream<()>, info: &Info, wanted: u64) -> Result<Option<StreamMessage>, anyhow::Error> {
    let (mut from, mut to) = (info.state.first_sequence.max(1), info.state.last_sequence + 1);
    while info.state.messages > 0 && from < to {
        let middle = from + (to - from) / 2;
        // Some may have been taken out: the next that is there.
        let next = match stream.get_first_raw_message_by_subject(">", middle).await {
            Ok(message) => Some(message).filter(|message| message.sequence < to),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => None,
            Err(error) => return Err(error).context("looking for a row in the stream"),
        };
        let Some(next) = next else {
            to = middle;
            continue;
        };
        match row(&next) {
            Some(row) if row == wanted => return Ok(Some(next)),
            Some(row) if row > wanted => to = middle,
            // What comes from no outbox stands behind what was there when it came.
            _ => from = next.sequence + 1,
        }
    }
    Ok(None)
}
