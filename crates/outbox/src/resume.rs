//! Where a session resumes: behind the row of the stream's last message. Also what that says of the stream: it has
//! lost messages, which are then refilled, or it holds what the outbox does not, which stops the relay.

use anyhow::Context as _;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{self, LastRawMessageErrorKind, RawMessageErrorKind};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool};
use tracing::{error, warn};

use crate::chain::{CREATED_HEADER, EVENT_ID_HEADER, PublishError, SEQ_HEADER};
use crate::context::LeadError;
use crate::position::{CLOCK_SLACK, Position};
use crate::store::{self, Checkpoint, Entry, Misnumbered};

/// What a halted relay names where rows must be numbered anew; its other halts name `outbox::operate::accept`.
pub const RENUMBER: &str = "outbox::operate::renumber";

/// Before the first row.
const BEGINNING: Position = Position { seq: 0, created_at: DateTime::UNIX_EPOCH };

/// Takes the position from the stream's tail, and writes into the journal what is lost.
/// `db` is a connection whose reads follow the index ([`store::pin_index_plan`]).
pub async fn find(
    pool: &PgPool,
    db: &mut PgConnection,
    epoch: i64,
    (stream, info): (&stream::Stream, &stream::Info),
) -> Result<Position, LeadError> {
    let checkpoint = store::checkpoint(pool).await?;
    let created = micros(info.created);
    let same = checkpoint.stream_created_at == Some(created);
    let vouched = checkpoint.outbox_created_at.unwrap_or(DateTime::UNIX_EPOCH);
    let purged = same && is_purged(info, checkpoint.stream_seq.cast_unsigned(), vouched);
    let place = if info.state.messages > 0 && !purged {
        behind_the_tail(db, stream, info, &checkpoint).await?
    } else {
        behind_nothing(db, &checkpoint, info).await?
    };
    // Writes may have overtaken the tail since the sequence fell back: the checkpoint of before shows it.
    let before = checkpoint.outbox_created_at.map(|created_at| Position { seq: checkpoint.outbox_seq, created_at });
    let before = before.filter(|before| before.seq < place.seq).unwrap_or(place);
    are_numbered_behind(pool, db, (stream, info), place, before).await?;
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
        if store::journal(pool, &entry).await? {
            metrics::counter!("outbox_missing_rows_total").increment((to - place.seq).cast_unsigned());
        }
    }
    if place.seq < checkpoint.outbox_seq {
        let (from, to) = (place.seq.max(checkpoint.dropped_seq) + 1, checkpoint.outbox_seq);
        warn!(from, to, was, "the stream has lost events: refilling from the outbox");
        metrics::counter!("outbox_refills_total").increment(1);
        let entry = Entry { kind: "refill", actor: &actor, from_seq: Some(from), to_seq: Some(to), detail: was };
        store::journal(pool, &entry).await?;
        // Save it, so that the next session does not take it for another loss.
        store::save_checkpoint(pool, epoch, place, beginning(info), created, true).await?;
    }
    if store::halted(pool).await? {
        let entry =
            Entry { kind: "resumed", actor: &actor, from_seq: None, to_seq: Some(place.seq), detail: "it goes on" };
        store::journal(pool, &entry).await?;
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
    db: &mut PgConnection,
    stream: &stream::Stream,
    info: &stream::Info,
    checkpoint: &Checkpoint,
) -> Result<Position, LeadError> {
    let tail = tail(stream, info).await?;
    let Some((place, id)) = origin(&tail) else {
        return Err(LeadError::Halted(format!(
            "message {} on {} is not from this outbox: nobody else may publish to this stream. Find out who did; then \
             `outbox::operate::accept` with `outbox::operate::remove` takes it out, and the relay goes on",
            tail.sequence, tail.subject
        )));
    };
    match store::event_at(db, place.seq, place.created_at).await? {
        Some(event) if event.to_string() == id => Ok(place),
        // Retention has dropped the row since.
        None if place.seq <= checkpoint.dropped_seq => Ok(place),
        found => Err(LeadError::Halted(format!(
            "the stream is ahead of the outbox: its last message {} is event {id} of row {}, and the outbox has {} \
             there. Was Postgres restored from an older backup? `outbox::operate::divergence` shows what the stream has \
             beyond the outbox; `outbox::operate::accept` with `outbox::operate::remove` takes that out, and the relay \
             goes on",
            tail.sequence,
            place.seq,
            found.map_or_else(|| "nothing".to_owned(), |event| format!("event {event}")),
        ))),
    }
}

/// The stream's last existing message, read by its sequence so that it fits `info`. (The newest message would not do: a
/// broker that loses or stores messages between the two reads gives a position that does not fit its base. Found by
/// the model, `TailApart` in tests/model.rs.)
async fn tail(stream: &stream::Stream, info: &stream::Info) -> Result<StreamMessage, LeadError> {
    match stream.get_raw_message(info.state.last_sequence).await {
        Ok(tail) => return Ok(tail),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {}
        Err(error) => return Err(error.into()),
    }
    // An operator has removed it, or it has just been lost.
    let tail = newest(stream, info).await?.context("the stream has messages, and none of them is its last")?;
    let again = stream.get_info().await.context("reading the stream's state")?;
    if again.state != info.state || again.created != info.created {
        return Err(LeadError::PublishError(PublishError::WrongLast("it changes while the place is taken".to_owned())));
    }
    Ok(tail)
}

/// The newest message that the stream holds. Queries each of the stream's subjects: for `>` the server checks only its last
/// sequence, whose message may have been removed.
pub async fn newest(stream: &stream::Stream, info: &stream::Info) -> Result<Option<StreamMessage>, anyhow::Error> {
    let mut newest: Option<StreamMessage> = None;
    for subject in &info.config.subjects {
        match stream.get_last_raw_message_by_subject(subject).await {
            Ok(message) if newest.as_ref().is_none_or(|newest| newest.sequence < message.sequence) => {
                newest = Some(message);
            }
            Ok(_) => {}
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {}
            Err(error) => return Err(error).context("reading the stream's last message"),
        }
    }
    Ok(newest)
}

/// The row that a message was published from, and its event's id.
pub fn origin(message: &StreamMessage) -> Option<(Position, &str)> {
    let header = |name| message.headers.get(name).map(|value| value.as_str());
    let seq = header(SEQ_HEADER)?.parse().ok()?;
    let created_at = DateTime::from_timestamp_micros(header(CREATED_HEADER)?.parse().ok()?)?;
    Some((Position { seq, created_at }, header(EVENT_ID_HEADER)?))
}

/// An empty stream: new, wiped, purged, or emptied by age. A row that has aged out is not published again; one that was
/// never published always is.
async fn behind_nothing(
    db: &mut PgConnection,
    checkpoint: &Checkpoint,
    info: &stream::Info,
) -> Result<Position, LeadError> {
    // The limit in force, whatever was asked for. None means that nothing ages out.
    let max_age = info.config.max_age;
    let oldest = match TimeDelta::from_std(max_age) {
        Ok(age) if !max_age.is_zero() => now() - age,
        _ => DateTime::UNIX_EPOCH,
    };
    // An event that was published long after it was written has not aged out with its row.
    let oldest = store::published_late_since(&mut *db, oldest).await?.map_or(oldest, |day| oldest.min(day));
    let young = store::first_after(db, oldest, CLOCK_SLACK).await?;
    let young = young.map(|(seq, created_at)| Position { seq, created_at });
    let known = checkpoint.outbox_created_at.map(|created_at| Position { seq: checkpoint.outbox_seq, created_at });
    Ok(match (known, young) {
        (None, _) => BEGINNING,
        (Some(known), Some(young)) if young.seq < known.seq => young,
        (Some(known), _) => known,
    })
}

/// Halts while rows are, or will be, numbered at or before the position: nobody would publish them. A sequence falls back when
/// it was not carried along with its table, as by logical replication.
async fn are_numbered_behind(
    pool: &PgPool,
    db: &mut PgConnection,
    (stream, info): (&stream::Stream, &stream::Info),
    place: Position,
    before: Position,
) -> Result<(), LeadError> {
    let mark = store::mark(&mut *db).await?;
    let twice = store::numbered_twice(&mut *db, before.seq).await?;
    if mark >= place.seq && !twice && !store::halted(pool).await? {
        return Ok(());
    }
    let behind = misnumbered(db, stream, info, before).await?;
    if mark < place.seq {
        return Err(LeadError::Halted(format!(
            "the sequence `outbox_seq` stands at {mark}, behind row {}, which is in the stream: what is written now would \
             never be published, and {} rows are numbered so already. Was the database moved by logical replication, or \
             from a dump? `{RENUMBER}` sets the sequence right and gives those rows new numbers",
            place.seq,
            behind.len()
        )));
    }
    if let Some(first) = behind.first() {
        return Err(LeadError::Halted(format!(
            "{} rows, first {} of event {}, were numbered behind what was in the stream already, and are not in it: \
             `{RENUMBER}` gives them new numbers",
            behind.len(),
            first.seq,
            first.event_id
        )));
    }
    Ok(())
}

/// The most rows that one query returns.
const MAX_MISNUMBERED: i64 = 1_000;
/// How many of the stream's newest messages are checked for rows that were stamped in another order than they were numbered.
const MAX_OUT_OF_ORDER: u64 = 100_000;

/// Rows that are numbered up to the position, were created after it, and are not in the stream; oldest first.
pub async fn misnumbered(
    db: &mut PgConnection,
    stream: &stream::Stream,
    info: &stream::Info,
    place: Position,
) -> Result<Vec<Misnumbered>, anyhow::Error> {
    let mut rows = store::created_after(db, place, MAX_MISNUMBERED).await?;
    // Two writers may take their numbers in one order and their times in the other, a moment apart.
    let mut sequence = info.state.last_sequence;
    while !rows.is_empty() && sequence > info.state.last_sequence.saturating_sub(MAX_OUT_OF_ORDER) {
        let message = match stream.get_raw_message(sequence).await {
            Ok(message) => message,
            // Removed by an operator, perhaps a moment ago.
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
                sequence -= 1;
                continue;
            }
            Err(error) => return Err(error).context("reading the stream's newest messages"),
        };
        if let Some((of, id)) = origin(&message) {
            rows.retain(|row| row.event_id.to_string() != id);
            if of.created_at < place.created_at - TimeDelta::minutes(1) {
                break;
            }
        }
        sequence -= 1;
    }
    Ok(rows)
}

/// To the microsecond, as Postgres keeps it.
pub fn micros(time: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(time.timestamp_micros()).unwrap_or(time)
}

#[expect(clippy::disallowed_methods, reason = "compared with the age limit of a stream, in days")]
pub fn now() -> DateTime<Utc> {
    Utc::now()
}
