//! The database of operations, and what its SQL has in common: who acts, which letters are meant, why an act is refused. The SQL of
//! letters is in `store_letters`, that of jobs in `store_jobs`, that of the audit in `store_audit`.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use crate::letters::NotTheEvent;

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
