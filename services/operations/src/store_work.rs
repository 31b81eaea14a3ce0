//! All SQL of the process that runs jobs.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::FromRow;
use uuid::Uuid;

use crate::store::{Act, Store};
use crate::store_audit::audit;
use crate::store_jobs::{JOB, Job, end, failed, replayed};

/// An item that is to be sent.
#[derive(Debug, Clone, FromRow)]
pub struct ToSend {
    /// Its position in the job.
    pub n: i64,
    /// Which try this is, from 1.
    pub tries: i32,
    /// The event's sequence in its stream; the stream may have lost it.
    pub stream_sequence: i64,
    /// The id of the event that a range named there; none for a letter.
    pub event_id: Option<String>,
    /// The letter's event; none in a job of a stream's range.
    pub subject: Option<String>,
    /// See `subject`.
    pub headers: Option<Value>,
    /// See `subject`.
    pub payload: Option<Vec<u8>>,
    /// See `subject`.
    pub stored_at: Option<DateTime<Utc>>,
}

/// An item that has been in flight for long.
#[derive(Debug, Clone, FromRow)]
pub struct OnItsWay {
    /// Its position in the job.
    pub n: i64,
    /// Which try this is.
    pub tries: i32,
    /// Its sequence in the stream of replays; none while unknown.
    pub replay_sequence: Option<i64>,
    /// How long it has been in flight, in seconds.
    pub seconds: f64,
}

impl Store {
    /// Leases the jobs with items to send or in flight that no other process holds; returns each with its epoch.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn lease(&self, holder: Uuid, seconds: f64) -> Result<Vec<(i64, Job)>, sqlx::Error> {
        let epochs: Vec<(i64, i64)> = sqlx::query_as(
            "update job set epoch = epoch + (holder is distinct from $1)::int, holder = $1, \
             expires_at = clock_timestamp() + make_interval(secs => $2) \
             where (state = 'running' or (state = 'aborted' and exists \
             (select from job_item i where i.job = job.id and i.state = 'sent'))) and (holder = $1 or expires_at < clock_timestamp()) returning id, epoch",
        )
        .bind(holder)
        .bind(seconds)
        .fetch_all(&self.0)
        .await?;
        let sql = format!("select {JOB} from job j where j.id = any($1) order by j.id");
        let ids: Vec<i64> = epochs.iter().map(|(id, _)| *id).collect();
        let jobs: Vec<Job> = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(ids).fetch_all(&self.0).await?;
        let epoch = |id| epochs.iter().find(|(job, _)| *job == id).map_or(0, |(_, epoch)| *epoch);
        Ok(jobs.into_iter().map(|job| (epoch(job.id), job)).collect())
    }

    /// Marks the next items as in flight, and returns them: in order, one at a time of each aggregate.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn take(&self, job: i64, epoch: i64, count: i64) -> Result<Vec<ToSend>, sqlx::Error> {
        let mut items: Vec<ToSend> = sqlx::query_as(
            "with next as (select n from job_item i where job = $1 and state = 'waiting' \
             and (aggregate_id = '' or not exists (select from job_item e where e.job = i.job \
             and e.aggregate_id = i.aggregate_id and e.n < i.n and e.state in ('waiting', 'sent'))) \
             and exists (select from job where id = $1 and epoch = $2 and state = 'running' for share) order by n limit $3), \
             taken as (update job_item i set state = 'sent', tries = tries + 1, sent_at = clock_timestamp() \
             from next where i.job = $1 and i.n = next.n returning i.n, i.tries, i.letter, i.stream_sequence, i.event_id) \
             select t.n, t.tries, t.stream_sequence, t.event_id, l.subject, l.headers, coalesce(l.edited, l.payload) as payload, \
             l.stored_at from taken t left join letter l on l.id = t.letter",
        )
        .bind(job)
        .bind(epoch)
        .bind(count)
        .fetch_all(&self.0)
        .await?;
        items.sort_unstable_by_key(|item| item.n);
        Ok(items)
    }

    /// Notes an item's sequence in the stream of replays.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn sent(&self, job: i64, item: &ToSend, sequence: u64) -> Result<(), sqlx::Error> {
        sqlx::query("update job_item set replay_sequence = $4 where job = $1 and n = $2 and tries = $3")
            .bind(job)
            .bind(item.n)
            .bind(item.tries)
            .bind(sequence.cast_signed())
            .execute(&self.0)
            .await
            .map(drop)
    }

    /// Leaves out an item that cannot be sent, and those behind it.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn gone(&self, job: i64, n: i64, why: &str) -> Result<(), sqlx::Error> {
        let mut tx = self.0.begin().await?;
        failed(&mut tx, &format!("{job}.{n}"), why).await?;
        tx.commit().await
    }

    /// Settles a discard whose consumer is gone.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn settled(&self, job: i64, n: i64, outcome: &str) -> Result<(), sqlx::Error> {
        let mut tx = self.0.begin().await?;
        replayed(&mut tx, &format!("{job}.{n}"), outcome).await?;
        tx.commit().await
    }

    /// A job's items that have been in flight for longer than this.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn long_on_their_way(&self, job: i64, seconds: f64) -> Result<Vec<OnItsWay>, sqlx::Error> {
        sqlx::query_as(
            "select n, tries, replay_sequence, extract(epoch from clock_timestamp() - sent_at)::float8 as seconds \
             from job_item where job = $1 and state = 'sent' \
             and sent_at < clock_timestamp() - make_interval(secs => $2) order by n limit 100",
        )
        .bind(job)
        .bind(seconds)
        .fetch_all(&self.0)
        .await
    }

    /// Has an item that was lost in flight sent again, unless its job was aborted.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn again(&self, job: i64, item: &OnItsWay) -> Result<(), sqlx::Error> {
        sqlx::query(
            "update job_item set replay_sequence = null, state = case when (select state from job where id = $1 for share) \
             = 'aborted' then 'skipped' else 'waiting' end where job = $1 and n = $2 and tries = $3 and state = 'sent'",
        )
        .bind(job)
        .bind(item.n)
        .bind(item.tries)
        .execute(&self.0)
        .await
        .map(drop)
    }

    /// Notes that the canary has passed.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn ramp(&self, job: i64) -> Result<(), sqlx::Error> {
        sqlx::query("update job set ramp_at = clock_timestamp(), story = 'the canary has passed' where id = $1 and ramp_at is null")
            .bind(job)
            .execute(&self.0)
            .await
            .map(drop)
    }

    /// Ends a job that came to its end by itself; the audit says how.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn finish(&self, job: &Job, epoch: i64, state: &str, detail: &str) -> Result<(), sqlx::Error> {
        let mut tx = self.0.begin().await?;
        let still: Option<i64> =
            sqlx::query_scalar("select id from job where id = $1 and epoch = $2 and state = 'running' for update")
                .bind(job.id)
                .bind(epoch)
                .fetch_optional(&mut *tx)
                .await?;
        if still.is_none() {
            return tx.rollback().await;
        }
        let skipped = end(&mut tx, job.id, state, detail).await? + job.skipped;
        let detail =
            json!({"job": job.id, "handled": job.handled, "failed": job.failed, "skipped": skipped, "detail": detail});
        let act = Act { actor: "operations", reason: &format!("job {} of {}: {}", job.id, job.actor, job.reason) };
        audit(&mut tx, act, if state == "done" { "done" } else { "aborted itself" }, job.total, &detail).await?;
        tx.commit().await
    }
}
