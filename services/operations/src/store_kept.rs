//! All SQL of storing dead letters, and of the position in their stream.

use std::hash::{Hash as _, Hasher as _};

use chrono::{DateTime, Utc};
use consumer::{DeadLetter, DlqPosition};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::letters;
use crate::store::Store;
use crate::store_jobs;

impl Store {
    /// How far the stream of dead letters is stored; none while another process has the lease. Another call within this time
    /// renews the lease.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn dlq_position(&self, holder: Uuid, seconds: f64) -> Result<Option<DlqPosition>, sqlx::Error> {
        let kept: Option<(Option<DateTime<Utc>>, i64)> = sqlx::query_as(
            "update kept set holder = $1, expires_at = clock_timestamp() + make_interval(secs => $2) \
             where holder = $1 or expires_at < clock_timestamp() returning stream_created_at, sequence",
        )
        .bind(holder)
        .bind(seconds)
        .fetch_optional(&self.0)
        .await?;
        Ok(kept.map(|(stream_created_at, sequence)| DlqPosition {
            stream_created_at,
            sequence: sequence.max(0).cast_unsigned(),
        }))
    }

    /// Gives up the lease at once.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn give_up_keeping(&self, holder: Uuid) -> Result<(), sqlx::Error> {
        sqlx::query("update kept set expires_at = '-infinity' where holder = $1")
            .bind(holder)
            .execute(&self.0)
            .await
            .map(drop)
    }
}

/// Stores a failure; the same one reported twice counts once.
///
/// # Errors
/// The database refuses.
pub async fn keep(tx: &mut PgConnection, dead: &DeadLetter) -> Result<(), sqlx::Error> {
    let key = clean(&dead.key);
    // The same message again, or the same failure in another message while its letter is unsettled. A settled letter that fails
    // again (an index was wiped, its events come again) has a new failure.
    let (again, before): (bool, bool) = sqlx::query_as(
        "select exists (select from death d join letter l on l.id = d.letter where d.key = $1 \
         and (d.dlq_sequence = $2 or l.state in ('open', 'failed_again'))) \
         or exists (select from death where key = $1 || '@' || $2::text), exists (select from death where key = $1)",
    )
    .bind(&key)
    .bind(dead.sequence.cast_signed())
    .fetch_one(&mut *tx)
    .await?;
    if again {
        return Ok(());
    }
    let key = if before { format!("{key}@{}", dead.sequence) } else { key };
    let replayed = match &dead.replay {
        Some(replay) => store_jobs::failed(tx, replay, &dead.reason).await?,
        None => None,
    };
    let letter: i64 = match replayed {
        Some(letter) => {
            let died = sqlx::query(
                "update letter set last_died_at = greatest(last_died_at, $2), \
                 state = case when state = 'open' then 'failed_again' else state end, error_class = $3 where id = $1",
            );
            died.bind(letter)
                .bind(dead.died_at)
                .bind(letters::error_class(&clean(&dead.reason)))
                .execute(&mut *tx)
                .await?;
            letter
        }
        None => insert(tx, dead).await?,
    };
    sqlx::query(
        "insert into death (key, letter, dlq_sequence, died_at, attempts, reason, version, replay) \
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(&key)
    .bind(letter)
    .bind(dead.sequence.cast_signed())
    .bind(dead.died_at)
    .bind(dead.attempts)
    .bind(dead.reason.replace('\0', "\u{fffd}"))
    .bind(clean(&dead.version))
    .bind(dead.replay.as_deref().map(clean))
    .execute(&mut *tx)
    .await?;
    Ok(())
}

/// Makes a text fit for the database and its indexes: the text of a dead letter may hold anything. A text that is cut
/// short ends in a hash of the whole, so that two different ones stay different.
fn clean(text: &str) -> String {
    /// Four of them fit into an index row of some 2,700 bytes.
    const MAX: usize = 600;
    let text = text.replace('\0', "\u{fffd}");
    if text.len() <= MAX {
        return text;
    }
    let mut hasher = std::hash::DefaultHasher::new();
    text.hash(&mut hasher);
    let short = text.char_indices().take_while(|(at, c)| at + c.len_utf8() <= MAX - 20).map(|(_, c)| c);
    format!("{}…{:016x}", short.collect::<String>(), hasher.finish())
}

/// Notes how far the stream of dead letters is stored. Returns false when this database knows less than the noted `before`,
/// or when another process has the lease.
///
/// # Errors
/// The database refuses.
pub async fn note_dlq_position(
    tx: &mut PgConnection,
    holder: Uuid,
    before: DlqPosition,
    now: DlqPosition,
) -> Result<bool, sqlx::Error> {
    let noted = sqlx::query(
        "update kept set stream_created_at = $1, sequence = $2 \
         where holder = $4 and (stream_created_at is distinct from $1 or sequence >= $3)",
    )
    .bind(now.stream_created_at)
    .bind(now.sequence.cast_signed())
    .bind(before.sequence.cast_signed())
    .bind(holder)
    .execute(tx)
    .await?;
    Ok(noted.rows_affected() == 1)
}

/// A letter for an event that failed outside a replay; an unsettled letter of the event, or of its twin, is used again.
async fn insert(tx: &mut PgConnection, dead: &DeadLetter) -> Result<i64, sqlx::Error> {
    let of = |name: &str| clean(dead.attributes.get(name).map(String::as_str).unwrap_or_default());
    let aggregate = ["partitionkey", "subject", "id"].into_iter().map(of).find(|value| !value.is_empty());
    let twin = of("twinof");
    if !twin.is_empty() {
        let known: Option<i64> = sqlx::query_scalar(
            "update letter set last_died_at = greatest(last_died_at, $4) \
             where consumer = $1 and source = $2 and event_id = $3 and state in ('open', 'failed_again') returning id",
        )
        .bind(clean(&dead.consumer))
        .bind(of("source"))
        .bind(&twin)
        .bind(dead.died_at)
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(known) = known {
            return Ok(known);
        }
    }
    let whole = |text: &String| text.replace('\0', "\u{fffd}");
    let headers: Vec<_> = dead.headers.iter().map(|(name, value)| (whole(name), whole(value))).collect();
    let headers = serde_json::to_value(headers).unwrap_or_default();
    sqlx::query_scalar(
        "insert into letter (consumer, stream, stream_sequence, stored_at, subject, source, event_id, event_type, \
         tenant, aggregate_id, sequence, trace_id, headers, payload, error_class, first_failed_at, last_died_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17) \
         on conflict (consumer, source, event_id) where state in ('open', 'failed_again') and event_id <> '' \
         do update set last_died_at = greatest(letter.last_died_at, excluded.last_died_at), \
         stream_sequence = excluded.stream_sequence, stored_at = excluded.stored_at, error_class = excluded.error_class \
         returning id",
    )
    .bind(clean(&dead.consumer))
    .bind(clean(&dead.stream))
    .bind(dead.stream_sequence.cast_signed())
    .bind(dead.stored_at)
    .bind(clean(&dead.subject))
    .bind(of("source"))
    .bind(of("id"))
    .bind(of("type"))
    .bind(of("tenant"))
    .bind(aggregate.unwrap_or_default())
    .bind(of("sequence"))
    .bind(clean(&letters::trace_id(&dead.attributes)))
    .bind(headers)
    .bind(dead.payload.as_deref())
    .bind(letters::error_class(&clean(&dead.reason)))
    .bind(dead.first_failed_at)
    .bind(dead.died_at)
    .fetch_one(tx)
    .await
}
