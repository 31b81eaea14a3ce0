//! All SQL of dead letters. `store_jobs` has that of jobs, `store_audit` that of the audit.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::{Connection as _, FromRow, PgConnection, PgPool};

use crate::letters::{self, NotTheEvent};
use crate::store_audit::audit;
use crate::store_jobs;

/// The schema, in steps.
pub static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// The database of this service.
#[derive(Debug, Clone)]
pub struct Store(pub(crate) PgPool);

/// A connection to it.
pub(crate) type Connection = sqlx::pool::PoolConnection<sqlx::Postgres>;

/// Who acts, and why.
#[derive(Debug, Clone, Copy)]
pub struct Act<'a> {
    /// The operator: the subject of a verified token.
    pub actor: &'a str,
    /// The reason, for readers of the audit.
    pub reason: &'a str,
}

/// Why an operator's act was refused. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is no letter with this number.
    #[error("there is no letter {0}; `flotilla dlq list` shows which there are")]
    NoLetter(i64),
    /// Nothing unsettled matches.
    #[error("no unsettled letter matches; `flotilla dlq list --state all` shows the settled ones too")]
    NothingMatches,
    /// A job is about one consumer.
    #[error("the selection is of several consumers ({0}): choose one with --consumer")]
    SeveralConsumers(String),
    /// The selection has changed since the operator saw it.
    #[error(
        "nothing was done: since they were shown, {settled} of these letters were settled, and {more} more would have to go \
         before them; run the command again and look at them"
    )]
    Changed {
        /// How many were settled.
        settled: usize,
        /// How many earlier letters of their aggregates are new.
        more: usize,
    },
    /// A letter is in one unfinished job at most.
    #[error("{0}: wait for it, or abort it (`flotilla dlq jobs`)")]
    Busy(String),
    /// The letter is settled.
    #[error("letter {0} is {1} already")]
    Settled(i64, String),
    /// The letter does not hold its event.
    #[error("letter {0} came without its event, which was too large: replay it from its stream (`flotilla replay`)")]
    NoPayload(i64),
    /// The edited event is not acceptable.
    #[error(transparent)]
    Edit(#[from] NotTheEvent),
    /// There is no such job.
    #[error("there is no job {0}; `flotilla dlq jobs` shows which there are")]
    NoJob(i64),
    /// The job's state does not allow the act.
    #[error("job {0} is {1}")]
    JobIs(i64, String),
    /// A discard must run to its end.
    #[error("job {0} has already reported what is discarded to a consumer: it can be paused, not aborted")]
    Discards(i64),
    /// The database refused.
    #[error("the database of operations refuses")]
    Database(#[from] sqlx::Error),
}

/// A selection of letters; an absent field matches every letter.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Selection {
    /// These numbers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ids: Option<Vec<i64>>,
    /// The consumer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub consumer: Option<String>,
    /// The group.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub group: Option<String>,
    /// The event type.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub event_type: Option<String>,
    /// The tenant.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tenant: Option<String>,
    /// The aggregate.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub aggregate: Option<String>,
    /// A text in the reason.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// Last failed at or after this.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub since: Option<DateTime<Utc>>,
    /// Last failed before this.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<DateTime<Utc>>,
    /// One of these states; none is every state.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub states: Option<Vec<String>>,
}

impl Selection {
    /// The states of an unsettled letter.
    #[must_use]
    pub fn unsettled() -> Vec<String> {
        vec!["open".to_owned(), "failed_again".to_owned()]
    }
}

/// The condition of a selection, its parameters from $1 to $10; the letter is `l`.
pub(crate) const SELECTED: &str = "($1::bigint[] is null or l.id = any($1)) \
    and ($2::text is null or l.consumer = $2) and ($3::text is null or l.group_id = $3) \
    and ($4::text is null or l.event_type = $4) and ($5::text is null or l.tenant = $5) \
    and ($6::text is null or l.aggregate_id = $6) \
    and ($7::text is null or exists (select from death d where d.letter = l.id and position($7 in d.reason) > 0)) \
    and ($8::timestamptz is null or l.last_died_at >= $8) and ($9::timestamptz is null or l.last_died_at < $9) \
    and ($10::text[] is null or l.state = any($10))";

macro_rules! select {
    ($query:expr, $selection:expr) => {
        $query
            .bind(&$selection.ids)
            .bind(&$selection.consumer)
            .bind(&$selection.group)
            .bind(&$selection.event_type)
            .bind(&$selection.tenant)
            .bind(&$selection.aggregate)
            .bind(&$selection.reason)
            .bind($selection.since)
            .bind($selection.until)
            .bind(&$selection.states)
    };
}
pub(crate) use select;

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

impl Store {
    /// A connection of the pool.
    ///
    /// # Errors
    /// No connection is available.
    pub(crate) async fn connection(&self) -> Result<Connection, sqlx::Error> {
        self.0.acquire().await
    }

    /// A transaction.
    ///
    /// # Errors
    /// No connection is available.
    pub async fn begin(&self) -> Result<sqlx::Transaction<'static, sqlx::Postgres>, sqlx::Error> {
        self.0.begin().await
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// It does not.
    pub async fn ping(&self) -> Result<(), sqlx::Error> {
        sqlx::query("select 1").execute(&self.0).await.map(drop)
    }

    /// Unsettled letters by consumer and type: how many, and the age of the oldest in seconds.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn unsettled(&self) -> Result<Vec<(String, String, i64, f64)>, sqlx::Error> {
        sqlx::query_as(
            "select consumer, event_type, count(*), \
             extract(epoch from clock_timestamp() - min(first_failed_at))::float8 from letter \
             where state in ('open', 'failed_again') group by 1, 2",
        )
        .fetch_all(&self.0)
        .await
    }
}
