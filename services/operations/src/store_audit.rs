//! All SQL of the audit: who did what, when and why. Lines are only added.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::{FromRow, PgConnection, Row as _};

use crate::store::{Act, Store};

/// A line of the audit.
#[derive(Debug, Clone, FromRow, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditLine {
    /// When the act happened.
    pub at: DateTime<Utc>,
    /// Who acted.
    pub actor: String,
    /// The action.
    pub action: String,
    /// The reason.
    pub reason: String,
    /// How many things it was about.
    pub count: i64,
    /// The detail, and the outcome.
    pub detail: Value,
}

/// Writes a line of the audit.
///
/// # Errors
/// The database refuses.
pub async fn audit(
    db: &mut PgConnection,
    act: Act<'_>,
    action: &str,
    count: i64,
    detail: &Value,
) -> Result<(), sqlx::Error> {
    sqlx::query("insert into audit (actor, action, reason, count, detail) values ($1, $2, $3, $4, $5)")
        .bind(act.actor)
        .bind(action)
        .bind(act.reason)
        .bind(count)
        .bind(detail)
        .execute(db)
        .await
        .map(drop)
}

/// The lines of the audit, newest first; only those of one action, where given.
///
/// # Errors
/// The database refuses.
pub async fn lines(db: &mut PgConnection, lines: i64, action: Option<&str>) -> Result<Vec<AuditLine>, sqlx::Error> {
    sqlx::query_as(
        "select at, actor, action, reason, count, detail from audit where $2::text is null or action = $2 \
         order by id desc limit $1",
    )
    .bind(lines)
    .bind(action)
    .fetch_all(db)
    .await
}

impl Store {
    /// Lines of the audit that its stream lacks, oldest first. `audit_told` has those that are published.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn unpublished(&self) -> Result<Vec<(i64, AuditLine)>, sqlx::Error> {
        let sql = "select id, at, actor, action, reason, count, detail from audit a \
            where not exists (select from audit_told t where t.id = a.id) order by id limit 100";
        let rows = sqlx::query(sql).fetch_all(&self.0).await?;
        rows.iter().map(|row| Ok((row.try_get("id")?, AuditLine::from_row(row)?))).collect()
    }

    /// Notes that a line is in the stream.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn mark_published(&self, id: i64) -> Result<(), sqlx::Error> {
        sqlx::query("insert into audit_told (id) values ($1) on conflict do nothing")
            .bind(id)
            .execute(&self.0)
            .await
            .map(drop)
    }
}
