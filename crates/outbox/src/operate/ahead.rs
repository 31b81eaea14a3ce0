//! A stream that is ahead of its outbox: what it holds beyond, and its removal once an operator confirms the outbox.

use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use uuid::Uuid;

use super::act::{Act, Refused, look_anew};
use crate::resume::{self, micros, origin};
use crate::store::{self, ACCEPTING, Entry};

/// Where a stream has diverged from its outbox: the messages that it holds beyond it. Not what `verify` calls diverged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Divergence {
    /// The first message that the outbox does not know.
    pub from: u64,
    /// The last message of the stream.
    pub to: u64,
    /// The newest row that both have; 0 when they share none.
    pub outbox_seq: i64,
    /// When the stream was created: another stream is another matter.
    pub stream_created_at: DateTime<Utc>,
}

/// Searches backwards from the stream's end for the newest message that the outbox knows.
///
/// # Errors
/// See [`Refused`].
pub async fn divergence(db: &mut PgConnection, stream: &Stream) -> Result<Divergence, Refused> {
    let info = stream.get_info().await.map_err(|error| Refused::Stream(error.into()))?;
    let (first, last) = (info.state.first_sequence, info.state.last_sequence);
    let mut divergence = Divergence { from: last + 1, to: 0, outbox_seq: 0, stream_created_at: micros(info.created) };
    for sequence in (first.max(1)..=last).rev() {
        let message = match stream.get_raw_message(sequence).await {
            Ok(message) => message,
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => continue,
            Err(error) => return Err(Refused::Stream(error.into())),
        };
        if let Some((place, id)) = origin(&message) {
            let event: Option<Uuid> =
                sqlx::query_scalar("select event_id from outbox where seq = $1 and created_at = $2")
                    .bind(place.seq)
                    .bind(place.created_at)
                    .fetch_optional(&mut *db)
                    .await?;
            if event.is_some_and(|event| event.to_string() == id) {
                divergence.outbox_seq = place.seq;
                break;
            }
        }
        divergence.from = sequence;
        divergence.to = divergence.to.max(sequence);
    }
    if divergence.to == 0 { Err(Refused::NotAhead) } else { Ok(divergence) }
}

/// Confirms an outbox whose stream is ahead: what lies beyond is removed from the stream, newest first, and the relay resumes
/// with the rows that follow the newest common one. By O1 those messages are no events of this outbox: left there, each
/// read model that is filled from the stream would get them again. Repeat it after an interruption.
///
/// `removed` completes once those are removed: by [`remove`], or by a process that may remove them.
///
/// # Errors
/// See [`Refused`].
pub async fn accept(
    db: &mut PgConnection,
    divergence: &Divergence,
    act: Act<'_>,
    removed: impl Future<Output = Result<(), Refused>>,
) -> Result<(), Refused> {
    let detail = format!(
        "removing messages {} to {} of the stream, which the outbox does not know; it goes on behind row {}: {}",
        divergence.from, divergence.to, divergence.outbox_seq, act.reason
    );
    let entry = Entry {
        kind: "accepted",
        actor: act.actor,
        from_seq: None,
        to_seq: Some(divergence.outbox_seq),
        detail: &detail,
    };
    sqlx::query("select pg_advisory_lock($1)").bind(ACCEPTING).execute(&mut *db).await?;
    let accepted = async {
        store::journal(&mut *db, &entry).await?;
        removed.await?;
        // What the relay found before is no reason to halt any more.
        look_anew(db).await.map_err(Refused::from)
    };
    let accepted = accepted.await;
    sqlx::query("select pg_advisory_unlock($1)").bind(ACCEPTING).execute(&mut *db).await?;
    accepted
}

/// Removes messages, from the end: until the last of them has gone, the relay finds the stream ahead, and waits.
///
/// # Errors
/// See [`Refused`].
pub async fn remove(stream: &Stream, divergence: &Divergence) -> Result<(), Refused> {
    for sequence in (divergence.from..=divergence.to).rev() {
        match stream.delete_message(sequence).await {
            Ok(_) => {}
            Err(error)
                if stream
                    .get_raw_message(sequence)
                    .await
                    .is_err_and(|gone| gone.kind() == RawMessageErrorKind::NoMessageFound) =>
            {
                tracing::debug!(sequence, %error, "it was gone already");
            }
            Err(error) => return Err(Refused::Stream(error.into())),
        }
    }
    Ok(())
}

/// Whether all that is beyond the outbox has been removed.
///
/// # Errors
/// See [`Refused`].
pub async fn is_removed(stream: &Stream, divergence: &Divergence) -> Result<bool, Refused> {
    let info = stream.get_info().await.map_err(|error| Refused::Stream(error.into()))?;
    let newest = resume::newest(stream, &info).await.map_err(Refused::Stream)?;
    Ok(newest.is_none_or(|message| !(divergence.from..=divergence.to).contains(&message.sequence)))
}
