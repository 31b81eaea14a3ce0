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
    /// For those who read the audit later.
    pub reason: &'a str,
}

/// Why an operator's act was not done. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is no letter with this number.
    #[error("there is no letter {0}; `flotilla dlq list` shows which there are")]
    NoLetter(i64),
    /// Nothing that is not settled matches.
    #[error("no unsettled letter matches; `flotilla dlq list --state all` shows the settled ones too")]
    NothingMatches,
    /// A job is about one consumer.
    #[error("the selection is of several consumers ({0}): choose one with --consumer")]
    SeveralConsumers(String),
    /// What was shown is not what there is now.
    #[error(
        "nothing was done: since they were shown, {settled} of these letters were settled, and {more} more would have to go \
         before them; run the command again and look at them"
    )]
    Changed {
        /// How many were settled.
        settled: usize,
        /// How many earlier ones of their aggregates have died.
        more: usize,
    },
    /// A letter is in one unfinished job at most.
    #[error("{0}: wait for it, or abort it (`flotilla dlq jobs`)")]
    Busy(String),
    /// It is settled.
    #[error("letter {0} is {1} already")]
    Settled(i64, String),
    /// Its event is not in the letter.
    #[error("letter {0} came without its event, which was too large: replay it from its stream (`flotilla replay`)")]
    NoPayload(i64),
    /// The edited event is not acceptable.
    #[error(transparent)]
    Edit(#[from] NotTheEvent),
    /// There is no such job.
    #[error("there is no job {0}; `flotilla dlq jobs` shows which there are")]
    NoJob(i64),
    /// The job is not in a state in which that can be done.
    #[error("job {0} is {1}")]
    JobIs(i64, String),
    /// A discard is brought to its end.
    #[error("job {0} tells a consumer what is discarded already: it can be paused, not aborted")]
    Discards(i64),
    /// The database refused.
    #[error("the database of operations refuses")]
    Database(#[from] sqlx::Error),
}

/// Which letters.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Selection {
    /// These.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ids: Option<Vec<i64>>,
    /// Of this consumer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub consumer: Option<String>,
    /// Of this group.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub group: Option<String>,
    /// Of this event type.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub event_type: Option<String>,
    /// Of this tenant.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tenant: Option<String>,
    /// Of this aggregate.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub aggregate: Option<String>,
    /// Whose reason holds this text.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// Died last at or after this.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub since: Option<DateTime<Utc>>,
    /// Died last before this.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<DateTime<Utc>>,
    /// In one of these states; none is every state.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub states: Option<Vec<String>>,
}

impl Selection {
    /// The states of what is not settled.
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

/// A letter, on one line.
#[derive(Debug, Clone, FromRow, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Letter {
    /// Its number.
    pub id: i64,
    /// The consumer that did not handle it.
    pub consumer: String,
    /// The event's type; empty when it is no event.
    pub event_type: String,
    /// Whose event it is.
    pub tenant: String,
    /// The aggregate that it is about.
    pub aggregate_id: String,
    /// The event.
    pub event_id: String,
    /// The letters that died alike.
    pub group_id: String,
    /// `open`, `failed_again`, `handled` or `discarded`.
    pub state: String,
    /// How often it has died.
    pub deaths: i64,
    /// When its consumer failed for the first time.
    pub first_failed_at: DateTime<Utc>,
    /// When it died last.
    pub last_died_at: DateTime<Utc>,
    /// Why, the last time.
    pub reason: String,
    /// An operator has mended it.
    pub is_edited: bool,
    /// The unfinished job that it is in.
    pub job: Option<i64>,
}

/// A letter, whole.
#[derive(Debug, Clone, FromRow, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WholeLetter {
    /// The line.
    #[sqlx(flatten)]
    #[serde(flatten)]
    pub letter: Letter,
    /// The stream of the event.
    pub stream: String,
    /// Its place there.
    pub stream_sequence: i64,
    /// When that stored it.
    pub stored_at: DateTime<Utc>,
    /// Its subject.
    pub subject: String,
    /// The aggregate's version after the change.
    pub sequence: String,
    /// The trace that it belongs to.
    pub trace_id: String,
    /// Its headers, as pairs.
    pub headers: Value,
    /// The event as it died.
    #[serde(skip)]
    pub payload: Option<Vec<u8>>,
    /// The event as it was mended.
    #[serde(skip)]
    pub edited: Option<Vec<u8>>,
    /// When it was settled.
    pub settled_at: Option<DateTime<Utc>>,
    /// By what or whom.
    pub settled_by: Option<String>,
}

/// One of a letter's stories.
#[derive(Debug, Clone, FromRow, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Death {
    /// When.
    pub died_at: DateTime<Utc>,
    /// How often it was tried.
    pub attempts: i64,
    /// Why it died.
    pub reason: String,
    /// The code that failed.
    pub version: String,
    /// The replay that it was: job, place in it, try.
    pub replay: Option<String>,
}

/// Letters that died alike.
#[derive(Debug, Clone, FromRow, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// Its name.
    pub group_id: String,
    /// The consumer.
    pub consumer: String,
    /// The event type.
    pub event_type: String,
    /// What they share of their reasons.
    pub error_class: String,
    /// How many.
    pub letters: i64,
    /// Of how many tenants.
    pub tenants: i64,
    /// Of how many aggregates.
    pub aggregates: i64,
    /// When the first of them failed.
    pub first_seen: DateTime<Utc>,
    /// When the last of them died.
    pub last_seen: DateTime<Utc>,
}

/// How many letters there are, by state: each is in one of them.
#[derive(Debug, Clone, Copy, FromRow, Serialize, PartialEq, Eq)]
pub struct Stats {
    /// All of them.
    pub letters: i64,
    /// Never worked.
    pub open: i64,
    /// Replayed, and dead once more.
    pub failed_again: i64,
    /// Replayed, and handled.
    pub handled: i64,
    /// Given up by an operator.
    pub discarded: i64,
    /// How many deaths were told, some letters having died more than once.
    pub deaths: i64,
}

const LINE: &str = "l.id, l.consumer, l.event_type, l.tenant, l.aggregate_id, l.event_id, l.group_id, l.state, \
    (select count(*) from death d where d.letter = l.id) as deaths, l.first_failed_at, l.last_died_at, \
    coalesce((select reason from death d where d.letter = l.id order by died_at desc, key desc limit 1), '') as reason, \
    l.edited is not null as is_edited, \
    (select job from job_item i where i.letter = l.id and i.state in ('waiting', 'sent')) as job";

/// The letters of a selection, those that died last first.
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

/// One letter with its stories, oldest first.
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

/// How many there are.
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

/// Puts a mended event in the place of a dead one, for the next replay. The original is kept, and so is every edit, in
/// the audit.
///
/// # Errors
/// See [`Refused`].
pub async fn edit(db: &mut PgConnection, id: i64, edited: &[u8], act: Act<'_>) -> Result<(), Refused> {
    let mut tx = db.begin().await?;
    let edited_now = edit_in(&mut tx, id, edited, act).await;
    // Now, and not when the connection is used again.
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
    /// There is none to be had.
    pub(crate) async fn connection(&self) -> Result<Connection, sqlx::Error> {
        self.0.acquire().await
    }

    /// A transaction.
    ///
    /// # Errors
    /// No connection is to be had.
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
