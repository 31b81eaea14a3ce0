//! All SQL of dead letters.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::{Connection as _, FromRow, PgConnection};

use crate::letters::{self};
use crate::store::{Act, Refused, SELECTED, Selection, select};
use crate::store_audit::audit;
use crate::store_jobs;

/// A letter's line in a list.
#[derive(Debug, Clone, FromRow, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Letter {
    /// Its number.
    pub id: i64,
    /// The consumer that failed.
    pub consumer: String,
    /// The event's type; empty when it is no event.
    pub event_type: String,
    /// The event's tenant.
    pub tenant: String,
    /// The event's aggregate.
    pub aggregate_id: String,
    /// The event's id.
    pub event_id: String,
    /// The group of letters that failed alike.
    pub group_id: String,
    /// `open`, `failed_again`, `handled` or `discarded`.
    pub state: String,
    /// How often it was dead-lettered.
    pub deaths: i64,
    /// When its consumer first failed.
    pub first_failed_at: DateTime<Utc>,
    /// When it was last dead-lettered.
    pub last_died_at: DateTime<Utc>,
    /// The reason of the last failure.
    pub reason: String,
    /// Whether an operator has edited it.
    pub is_edited: bool,
    /// The unfinished job that holds it.
    pub job: Option<i64>,
}

/// A whole letter.
#[derive(Debug, Clone, FromRow, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WholeLetter {
    /// Its line in a list.
    #[sqlx(flatten)]
    #[serde(flatten)]
    pub letter: Letter,
    /// The stream of the event.
    pub stream: String,
    /// The event's sequence there.
    pub stream_sequence: i64,
    /// When the stream stored it.
    pub stored_at: DateTime<Utc>,
    /// Its subject.
    pub subject: String,
    /// The aggregate's version after the change.
    pub sequence: String,
    /// The event's trace.
    pub trace_id: String,
    /// Its headers, as pairs.
    pub headers: Value,
    /// The event as it failed.
    #[serde(skip)]
    pub payload: Option<Vec<u8>>,
    /// The event as an operator edited it.
    #[serde(skip)]
    pub edited: Option<Vec<u8>>,
    /// When it was settled.
    pub settled_at: Option<DateTime<Utc>>,
    /// Who or what settled it.
    pub settled_by: Option<String>,
}

/// One failure of a letter.
#[derive(Debug, Clone, FromRow, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Death {
    /// When it was dead-lettered.
    pub died_at: DateTime<Utc>,
    /// The number of attempts.
    pub attempts: i64,
    /// The reason.
    pub reason: String,
    /// The version of the code that failed.
    pub version: String,
    /// The replay that failed: job, position in it, try.
    pub replay: Option<String>,
}

/// A group of letters that failed alike.
#[derive(Debug, Clone, FromRow, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// Its name.
    pub group_id: String,
    /// The consumer.
    pub consumer: String,
    /// The event type.
    pub event_type: String,
    /// The cause that their reasons share.
    pub error_class: String,
    /// The number of letters.
    pub letters: i64,
    /// The number of tenants.
    pub tenants: i64,
    /// The number of aggregates.
    pub aggregates: i64,
    /// When the first of them failed.
    pub first_seen: DateTime<Utc>,
    /// When the last of them was dead-lettered.
    pub last_seen: DateTime<Utc>,
}

/// The number of letters by state; each letter is in one state.
#[derive(Debug, Clone, Copy, FromRow, Serialize, PartialEq, Eq)]
pub struct Stats {
    /// All letters.
    pub letters: i64,
    /// Not triaged yet.
    pub open: i64,
    /// Replayed, and failed again.
    pub failed_again: i64,
    /// Replayed, and handled.
    pub handled: i64,
    /// Given up by an operator.
    pub discarded: i64,
    /// The number of reported failures; some letters failed more than once.
    pub deaths: i64,
}

const LINE: &str = "l.id, l.consumer, l.event_type, l.tenant, l.aggregate_id, l.event_id, l.group_id, l.state, \
    (select count(*) from death d where d.letter = l.id) as deaths, l.first_failed_at, l.last_died_at, \
    coalesce((select reason from death d where d.letter = l.id order by died_at desc, key desc limit 1), '') as reason, \
    l.edited is not null as is_edited, \
    (select job from job_item i where i.letter = l.id and i.state in ('waiting', 'sent')) as job";

/// The letters of a selection, latest failure first.
///
/// # Errors
/// The database refuses.
pub async fn list(db: &mut PgConnection, selection: &Selection, limit: i64) -> Result<Vec<Letter>, sqlx::Error> {
    let sql = format!("select {LINE} from letter l where {SELECTED} order by l.last_died_at desc, l.id desc limit $11");
    select!(sqlx::query_as(sqlx::AssertSqlSafe(sql)), selection).bind(limit).fetch_all(db).await
}

/// The groups of a selection, the largest first.
///
/// # Errors
/// The database refuses.
pub async fn groups(db: &mut PgConnection, selection: &Selection) -> Result<Vec<Group>, sqlx::Error> {
    let sql = format!(
        "select group_id, consumer, event_type, error_class, count(*) as letters, count(distinct tenant) as tenants, \
         count(distinct aggregate_id) as aggregates, min(first_failed_at) as first_seen, max(last_died_at) as last_seen \
         from letter l where {SELECTED} group by 1, 2, 3, 4 order by letters desc, group_id limit 1000"
    );
    select!(sqlx::query_as(sqlx::AssertSqlSafe(sql)), selection).fetch_all(db).await
}

/// One letter with its failure history, oldest first.
///
/// # Errors
/// See [`Refused`].
pub async fn whole(db: &mut PgConnection, id: i64) -> Result<(WholeLetter, Vec<Death>), Refused> {
    let sql = format!(
        "select {LINE}, stream, stream_sequence, stored_at, subject, sequence, trace_id, headers, payload, edited, \
         settled_at, settled_by from letter l where id = $1"
    );
    let letter: Option<WholeLetter> =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(&mut *db).await?;
    let deaths = sqlx::query_as(
        "select died_at, attempts, reason, version, replay from death where letter = $1 order by died_at, key limit 1000",
    )
    .bind(id)
    .fetch_all(db)
    .await?;
    Ok((letter.ok_or(Refused::NoLetter(id))?, deaths))
}

/// The number of letters by state.
///
/// # Errors
/// The database refuses.
pub async fn stats(db: &mut PgConnection) -> Result<Stats, sqlx::Error> {
    sqlx::query_as(
        "select count(*) as letters, count(*) filter (where state = 'open') as open, \
         count(*) filter (where state = 'failed_again') as failed_again, \
         count(*) filter (where state = 'handled') as handled, \
         count(*) filter (where state = 'discarded') as discarded, (select count(*) from death) as deaths from letter",
    )
    .fetch_one(db)
    .await
}

/// Replaces a dead event by an edited one, for the next replay. The original stays, and so does every edit, in
/// the audit.
///
/// # Errors
/// See [`Refused`].
pub async fn edit(db: &mut PgConnection, id: i64, edited: &[u8], act: Act<'_>) -> Result<(), Refused> {
    let mut tx = db.begin().await?;
    let edited_now = edit_in(&mut tx, id, edited, act).await;
    // Roll back now, not when the connection is used again.
    if edited_now.is_ok() {
        tx.commit().await?
    } else {
        tx.rollback().await?
    }
    edited_now
}

async fn edit_in(tx: &mut PgConnection, id: i64, edited: &[u8], act: Act<'_>) -> Result<(), Refused> {
    let row: Option<(String, String, Option<Vec<u8>>)> =
        sqlx::query_as("select state, subject, payload from letter where id = $1 for update")
            .bind(id)
            .fetch_optional(&mut *tx)
            .await?;
    let (state, subject, payload) = row.ok_or(Refused::NoLetter(id))?;
    if !matches!(state.as_str(), "open" | "failed_again") {
        return Err(Refused::Settled(id, state));
    }
    store_jobs::refuse_busy(tx, &[id]).await?;
    letters::check_edit(&subject, payload.as_deref(), edited)?;
    sqlx::query("update letter set edited = $2 where id = $1").bind(id).bind(edited).execute(&mut *tx).await?;
    let detail = json!({"letter": id, "event": String::from_utf8_lossy(edited)});
    audit(tx, act, "edit", 1, &detail).await?;
    Ok(())
}
