//! Rows to compare a stream with, without their payloads.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

/// The bounds of an outbox, beside [`Overview`](crate::operate::Overview), for a comparison with its stream.
#[derive(Debug, Clone, FromRow, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bounds {
    /// The newest row that is to be published, parked ones left out; 0 where there is none.
    pub unparked_seq: i64,
    /// Up to which message an operator has accepted what the outbox does not know.
    pub accepted_stream_seq: Option<i64>,
    /// When the stream of that message was created.
    pub accepted_stream_created_at: Option<DateTime<Utc>>,
    /// The database's time.
    pub now: DateTime<Utc>,
}

/// A row.
#[derive(Debug, Clone, FromRow)]
pub struct Row {
    /// Its number.
    pub seq: i64,
    /// When it was written.
    pub created_at: DateTime<Utc>,
    /// The event.
    pub event_id: Uuid,
    /// Whose event it is.
    pub tenant: String,
    /// The aggregate.
    pub aggregate_id: String,
    /// SHA-256 of the payload.
    pub digest: Vec<u8>,
    /// It was set aside.
    pub parked: bool,
}

/// Which rows; a filter that is not set matches any tenant and time.
#[derive(Debug, Clone, Default)]
pub struct Page<'a> {
    /// Behind this number.
    pub after: i64,
    /// Only rows of this tenant.
    pub tenant: Option<&'a str>,
    /// Written at or after this.
    pub from: Option<DateTime<Utc>>,
    /// Written before this.
    pub to: Option<DateTime<Utc>>,
    /// How many at most.
    pub limit: i64,
}

const COLUMNS: &str = "seq, created_at, event_id, tenant, aggregate_id, sha256(payload) as digest, \
    exists (select from outbox_parked p where p.seq = o.seq) as parked";

/// Reads the bounds of the outbox.
///
/// # Errors
/// The database refuses.
pub async fn bounds(db: &mut PgConnection) -> Result<Bounds, sqlx::Error> {
    sqlx::query_as(
        "select coalesce((select seq from outbox o where not exists (select from outbox_parked p where p.seq = o.seq) \
         order by seq desc limit 1), 0) as unparked_seq, accepted_stream_seq, accepted_stream_created_at, \
         clock_timestamp() as now from outbox_relay",
    )
    .fetch_one(db)
    .await
}

/// A page of rows, by their numbers.
///
/// # Errors
/// The database refuses.
pub async fn rows(db: &mut PgConnection, page: Page<'_>) -> Result<Vec<Row>, sqlx::Error> {
    let sql = format!(
        "select {COLUMNS} from outbox o where seq > $1 and ($2::text is null or tenant = $2) \
         and ($3::timestamptz is null or created_at >= $3) and ($4::timestamptz is null or created_at < $4) \
         order by seq limit $5"
    );
    let Page { after, tenant, from, to, limit } = page;
    let rows = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(after).bind(tenant).bind(from).bind(to).bind(limit);
    rows.fetch_all(db).await
}

/// The row of this number that was written in this time.
///
/// # Errors
/// The database refuses.
pub async fn row(
    db: &mut PgConnection,
    seq: i64,
    (from, to): (DateTime<Utc>, DateTime<Utc>),
) -> Result<Option<Row>, sqlx::Error> {
    let sql = format!("select {COLUMNS} from outbox o where seq = $1 and created_at between $2 and $3");
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(seq).bind(from).bind(to).fetch_optional(db).await
}

/// The first row of an aggregate behind one number and up to another.
///
/// # Errors
/// The database refuses.
pub async fn first_of(
    db: &mut PgConnection,
    aggregate_id: &str,
    (after, to): (i64, i64),
    from: DateTime<Utc>,
) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "select min(seq) from outbox where seq > $1 and seq <= $2 and aggregate_id = $3 and created_at >= $4",
    )
    .bind(after)
    .bind(to)
    .bind(aggregate_id)
    .bind(from)
    .fetch_one(db)
    .await
}
