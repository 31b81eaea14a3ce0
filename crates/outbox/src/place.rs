//! Where a session goes on: behind the row of the stream's last message. Also what that says of the stream: that it has
//! lost messages, which are then refilled, or that it holds what the outbox does not, which stops the relay.

use anyhow::Context as _;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{self, RawMessageErrorKind};
use chrono::{DateTime, TimeDelta, Utc};
use tracing::{error, warn};

use crate::chain::Fault;
use crate::reader::Place;
use crate::relay::{Relay, Trouble};
use crate::store::{self, Checkpoint, Entry};
use crate::{CREATED_HEADER, EVENT_ID_HEADER, SEQ_HEADER};

/// Before the first row.
const BEGINNING: Place = Place { seq: 0, created_at: DateTime::UNIX_EPOCH };

/// Takes the place from the stream's tail, and writes into the journal what was found to be lost.
pub async fn find(relay: &Relay, epoch: i64, stream: &stream::Stream, info: &stream::Info) -> Result<Place, Trouble> {
    let checkpoint = store::checkpoint(&relay.db).await?;
    let created = micros(info.created);
    let same = checkpoint.stream_created_at == Some(created);
    let vouched = checkpoint.outbox_created_at.unwrap_or(DateTime::UNIX_EPOCH);
    let purged = same && is_purged(info, checkpoint.stream_seq.cast_unsigned(), vouched);
    let place = if info.state.messages > 0 && !purged {
        behind_the_tail(relay, stream, info, &checkpoint).await?
    } else {
        behind_nothing(relay, &checkpoint).await?
    };
    let actor = format!("relay, epoch {epoch}");
    let was = match (info.state.messages, same) {
        _ if purged => "it was purged",
        (0, true) => "it is empty",
        (0, false) => "it is empty and new: wiped or deleted",
        (_, true) => "it ends early: its newest messages are gone",
        (_, false) => "it is another than before: restored or made anew",
    };
    if place.seq < checkpoint.dropped_seq && info.state.messages > 0 {
        let (from, to) = (place.seq + 1, checkpoint.dropped_seq);
        error!(from, to, "the stream has lost events that retention has dropped from the outbox: they are in neither");
        let detail = format!("lost by the stream and no longer in the outbox; {was}");
        let entry = Entry { kind: "missing", actor: &actor, from_seq: Some(from), to_seq: Some(to), detail: &detail };
        if store::journal(&relay.db, &entry).await? {
            metrics::counter!("outbox_missing_rows_total").increment((to - place.seq).cast_unsigned());
        }
    }
    if place.seq < checkpoint.outbox_seq {
        let (from, to) = (place.seq.max(checkpoint.dropped_seq) + 1, checkpoint.outbox_seq);
        warn!(from, to, was, "the stream has lost events: refilling from the outbox");
        metrics::counter!("outbox_refills_total").increment(1);
        let entry = Entry { kind: "refill", actor: &actor, from_seq: Some(from), to_seq: Some(to), detail: was };
        store::journal(&relay.db, &entry).await?;
        // So that the next session does not take it for another loss.
        store::save_checkpoint(&relay.db, epoch, place, beginning(info), created, true).await?;
    }
    if store::halted(&relay.db).await? {
        let entry =
            Entry { kind: "resumed", actor: &actor, from_seq: None, to_seq: Some(place.seq), detail: "it goes on" };
        store::journal(&relay.db, &entry).await?;
    }
    Ok(place)
}

/// The newest sequence that is, or was, in the stream as this finds it: a purge from here on begins behind it.
pub fn beginning(info: &stream::Info) -> u64 {
    info.state.last_sequence.max(info.state.first_sequence)
}

/// Whether somebody has removed what the stream held: all that was there up to a message which was too young to age out.
pub fn is_purged(info: &stream::Info, stream_seq: u64, stored_at: DateTime<Utc>) -> bool {
    let max_age = info.config.max_age;
    let young = (now() - stored_at).to_std().unwrap_or_default() < max_age;
    stream_seq > 0 && info.state.first_sequence > stream_seq && (max_age.is_zero() || young)
}

async fn behind_the_tail(
    relay: &Relay,
    stream: &stream::Stream,
    info: &stream::Info,
    checkpoint: &Checkpoint,
) -> Result<Place, Trouble> {
    let created = micros(info.created);
    let tail = tail(stream, info).await?;
    if checkpoint.accepted_stream_created_at == Some(created)
        && checkpoint.accepted_stream_seq.map(i64::cast_unsigned) == Some(tail.sequence)
    {
        let seq = checkpoint.accepted_outbox_seq.unwrap_or(0);
        return match store::created_at(&relay.db, seq).await? {
            Some(created_at) => Ok(Place { seq, created_at }),
            // They share no row: as if the stream held none of ours.
            None => behind_nothing(relay, checkpoint).await,
        };
    }
    let Some((place, id)) = origin(&tail) else {
        return Err(Trouble::Halted(format!(
            "message {} on {} is not from this outbox: nobody else may publish to this stream. Find out who did; then \
             `flotilla outbox accept` goes on behind it",
            tail.sequence, tail.subject
        )));
    };
    match store::event_at(&relay.db, place.seq, place.created_at).await? {
        Some(event) if event.to_string() == id => Ok(place),
        // Retention has dropped the row since.
        None if place.seq <= checkpoint.dropped_seq => Ok(place),
        found => Err(Trouble::Halted(format!(
            "the stream is ahead of the outbox: its last message {} is event {id} of row {}, and the outbox has {} \
             there. Was Postgres restored from an older backup? `flotilla outbox accept` shows what the stream has \
             beyond the outbox, saves it, and goes on behind it",
            tail.sequence,
            place.seq,
            found.map_or_else(|| "nothing".to_owned(), |event| format!("event {event}")),
        ))),
    }
}

/// The stream's last existing message, read so that it fits `info`: by its sequence. (The newest message would not do: a
/// broker that loses or stores messages between the two reads gives a place for a base that it does not fit. Found by
/// the model, `TailApart` in tests/model.rs.)
async fn tail(stream: &stream::Stream, info: &stream::Info) -> Result<StreamMessage, Trouble> {
    match stream.get_raw_message(info.state.last_sequence).await {
        Ok(tail) => return Ok(tail),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {}
        Err(error) => return Err(error.into()),
    }
    // An operator has removed it, or it has just been lost.
    let tail = stream.get_last_raw_message_by_subject(">").await.context("reading the stream's last message")?;
    let again = stream.get_info().await.context("reading the stream's state")?;
    if again.state != info.state || again.created != info.created {
        return Err(Trouble::Fault(Fault::WrongLast("it changes while the place is taken".to_owned())));
    }
    Ok(tail)
}

/// The row that a message was published from, and its event's id.
pub fn origin(message: &StreamMessage) -> Option<(Place, &str)> {
    let header = |name| message.headers.get(name).map(|value| value.as_str());
    let seq = header(SEQ_HEADER)?.parse().ok()?;
    let created_at = DateTime::from_timestamp_micros(header(CREATED_HEADER)?.parse().ok()?)?;
    Some((Place { seq, created_at }, header(EVENT_ID_HEADER)?))
}

/// An empty stream: new, wiped, purged, or emptied by age. What has aged out is not published again; what has never
/// been published always is.
async fn behind_nothing(relay: &Relay, checkpoint: &Checkpoint) -> Result<Place, Trouble> {
    // No age limit means that nothing ages out.
    let max_age = relay.config.stream.max_age;
    let oldest = match TimeDelta::from_std(max_age) {
        Ok(age) if !max_age.is_zero() => now() - age,
        _ => DateTime::UNIX_EPOCH,
    };
    let young = store::first_after(&relay.db, oldest).await?.map(|(seq, created_at)| Place { seq, created_at });
    let known = checkpoint.outbox_created_at.map(|created_at| Place { seq: checkpoint.outbox_seq, created_at });
    Ok(match (known, young) {
        (None, _) => BEGINNING,
        (Some(known), Some(young)) if young.seq < known.seq => young,
        (Some(known), _) => known,
    })
}

/// To the microsecond, as Postgres keeps it.
pub fn micros(time: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(time.timestamp_micros()).unwrap_or(time)
}

#[expect(clippy::disallowed_methods, reason = "compared with the age limit of a stream, in days")]
pub fn now() -> DateTime<Utc> {
    Utc::now()
}
