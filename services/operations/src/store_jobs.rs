//! All SQL of jobs: replays and discards of a frozen selection.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::{Connection as _, FromRow, PgConnection};

use crate::pace::{Pace, Progress};
use crate::store::{Act, Refused, SELECTED, Selection, select};
use crate::store_audit::audit;

/// A job.
#[derive(Debug, Clone, FromRow, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    /// Its number.
    pub id: i64,
    /// `replay`, `discard`, or `range`.
    pub kind: String,
    /// The one consumer that it sends to.
    pub consumer: String,
    /// Who created it.
    pub actor: String,
    /// The reason.
    pub reason: String,
    /// What was selected.
    pub selection: Value,
    /// See [`Pace`].
    pub canary: i32,
    /// See [`Pace`].
    pub rate: f64,
    /// See [`Pace`].
    pub max_failures: f64,
    /// `running`, `paused`, `done` or `aborted`.
    pub state: String,
    /// Why it is in this state.
    pub detail: String,
    /// How many items it began with.
    pub total: i64,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When its canary passed.
    pub ramp_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// Waiting to be sent.
    pub waiting: i64,
    /// In flight.
    pub sent: i64,
    /// Handled.
    pub handled: i64,
    /// Failed again.
    pub failed: i64,
    /// Left out.
    pub skipped: i64,
}

impl Job {
    /// Its progress.
    #[must_use]
    pub const fn progress(&self) -> Progress {
        let Self { waiting, sent, handled, failed, skipped, .. } = *self;
        Progress { waiting, sent, handled, failed, skipped }
    }

    /// Its pace.
    #[must_use]
    pub fn pace(&self) -> Pace {
        Pace { canary: self.canary.into(), rate: self.rate, max_failures: self.max_failures }
    }

    /// Whether it is done or aborted.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.state.as_str(), "done" | "aborted")
    }
}

pub(crate) const JOB: &str = "j.id, j.kind, j.consumer, j.actor, j.reason, j.selection, j.canary, j.rate, j.max_failures, j.state, \
    j.story as detail, j.total, j.created_at, j.ramp_at, j.ended_at, j.waiting, j.sent, j.handled, j.failed, j.skipped";
/// One letter of a plan.
#[derive(Debug, Clone, FromRow, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Planned {
    /// The letter.
    pub id: i64,
    /// Its consumer.
    pub consumer: String,
    /// Its event's type.
    pub event_type: String,
    /// Its tenant.
    pub tenant: String,
    /// Its aggregate.
    pub aggregate_id: String,
    /// The aggregate's version.
    pub sequence: String,
    /// It was not selected, but failed before a selected letter of its aggregate, and so goes before that.
    pub added: bool,
    /// An operator has edited it.
    pub is_edited: bool,
    #[serde(skip)]
    has_payload: bool,
    #[serde(skip)]
    stream_sequence: i64,
}

/// The order for a job.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// `replay` or `discard`.
    pub kind: &'a str,
    /// The selected letters.
    pub selection: &'a Selection,
    /// Its pace.
    pub pace: Pace,
}

/// What a job would do, in its order; nothing is changed.
///
/// # Errors
/// See [`Refused`].
pub async fn plan(db: &mut PgConnection, kind: &str, selection: &Selection) -> Result<Vec<Planned>, Refused> {
    let mut tx = db.begin().await?;
    let planned = plan_in(&mut tx, kind, selection.clone()).await;
    tx.rollback().await?;
    planned
}

/// Makes a job of exactly what a plan has shown; returns its number.
///
/// # Errors
/// See [`Refused`]; [`Refused::Changed`] when the plan is out of date.
pub async fn create(db: &mut PgConnection, order: Order<'_>, shown: &[i64], act: Act<'_>) -> Result<i64, Refused> {
    let mut tx = db.begin().await?;
    let created = create_in(&mut tx, order, shown, act).await;
    if created.is_ok() {
        tx.commit().await?
    } else {
        tx.rollback().await?
    }
    created
}

async fn plan_in(tx: &mut PgConnection, kind: &str, selection: Selection) -> Result<Vec<Planned>, Refused> {
    let chosen = choose(tx, kind, selection).await?;
    freeze(tx, kind, &chosen).await?;
    Ok(chosen)
}

/// The letters that a selection gives now.
async fn choose(tx: &mut PgConnection, kind: &str, mut selection: Selection) -> Result<Vec<Planned>, sqlx::Error> {
    selection.states = Some(Selection::unsettled());
    // Earlier letters of the same aggregates go before the selected ones. A discard does not take them along.
    let sql = format!(
        "with chosen as (select l.id, l.consumer, l.aggregate_id, l.sequence as version from letter l where {SELECTED}), \
         newest as (select distinct on (consumer, aggregate_id) consumer, aggregate_id, version, id from chosen \
         where $11 and aggregate_id <> '' order by consumer, aggregate_id, version desc, id desc), \
         whole as (select l.*, false as added from letter l join chosen using (id) \
         union all select l.*, true from letter l join newest n using (consumer, aggregate_id) \
         where l.state in ('open', 'failed_again') and (n.version, n.id) > (l.sequence, l.id) \
         and not exists (select from chosen c where c.id = l.id)) \
         select id, consumer, event_type, tenant, aggregate_id, sequence, added, edited is not null as is_edited, \
         payload is not null as has_payload, stream_sequence from whole \
         order by min(stored_at) over (partition by aggregate_id), aggregate_id, sequence, id"
    );
    select!(sqlx::query_as(sqlx::AssertSqlSafe(sql)), selection).bind(kind == "replay").fetch_all(tx).await
}

/// Locks letters for a job, and refuses those that a job cannot have.
async fn freeze(tx: &mut PgConnection, kind: &str, planned: &[Planned]) -> Result<(), Refused> {
    let Some(first) = planned.first() else { return Err(Refused::NothingMatches) };
    let mut consumers: Vec<&str> = planned.iter().map(|letter| letter.consumer.as_str()).collect();
    consumers.sort_unstable();
    consumers.dedup();
    if consumers.iter().any(|consumer| *consumer != first.consumer) {
        return Err(Refused::SeveralConsumers(consumers.join(", ")));
    }
    if let Some(left) = planned.iter().find(|letter| !letter.has_payload && kind == "replay") {
        return Err(Refused::NoPayload(left.id));
    }
    let ids: Vec<i64> = planned.iter().map(|letter| letter.id).collect();
    // Two operators who freeze the same letters wait for each other here, and the second is refused.
    let still = "select id from letter where id = any($1) and state in ('open', 'failed_again') order by id for update";
    let still: Vec<i64> = sqlx::query_scalar(still).bind(&ids).fetch_all(&mut *tx).await?;
    refuse_busy(tx, &ids).await?;
    if still.len() != ids.len() {
        return Err(Refused::Busy("some of these letters were settled this very moment: list them again".to_owned()));
    }
    Ok(())
}

/// Refuses letters that are in an unfinished job.
pub(crate) async fn refuse_busy(tx: &mut PgConnection, ids: &[i64]) -> Result<(), Refused> {
    let busy: Option<(i64, i64, i64, String)> = sqlx::query_as(
        "select min(i.letter), count(*), min(i.job), min(j.actor) from job_item i join job j on j.id = i.job \
         where i.letter = any($1) and i.state in ('waiting', 'sent') having count(*) > 0",
    )
    .bind(ids)
    .fetch_optional(tx)
    .await?;
    match busy {
        None => Ok(()),
        Some((letter, 1, job, actor)) => Err(Refused::Busy(format!("letter {letter} is in job {job} of {actor}"))),
        Some((letter, count, job, actor)) => {
            Err(Refused::Busy(format!("{count} letters, {letter} first, are in jobs, such as job {job} of {actor}")))
        }
    }
}

async fn create_in(tx: &mut PgConnection, order: Order<'_>, shown: &[i64], act: Act<'_>) -> Result<i64, Refused> {
    let these = Selection { ids: Some(shown.to_vec()), ..Selection::default() };
    let planned = choose(tx, order.kind, these).await?;
    let now: HashSet<i64> = planned.iter().map(|letter| letter.id).collect();
    let shown: HashSet<i64> = shown.iter().copied().collect();
    let (more, settled) = (now.difference(&shown).count(), shown.difference(&now).count());
    if more + settled > 0 {
        return Err(Refused::Changed { settled, more });
    }
    freeze(tx, order.kind, &planned).await?;
    let consumer = planned.first().map(|letter| letter.consumer.clone()).unwrap_or_default();
    let ids: Vec<i64> = planned.iter().map(|letter| letter.id).collect();
    let selection = serde_json::to_value(order.selection).unwrap_or_default();
    let job = insert(tx, order.kind, &consumer, &selection, order.pace, planned.len(), act).await?;
    let sequences: Vec<i64> = planned.iter().map(|letter| letter.stream_sequence).collect();
    let aggregates: Vec<&str> = planned.iter().map(|letter| letter.aggregate_id.as_str()).collect();
    sqlx::query(
        "insert into job_item (job, n, letter, stream_sequence, aggregate_id) \
         select $1, n, letter, sequence, aggregate from unnest($2::bigint[], $3::bigint[], $4::text[]) \
         with ordinality as items (letter, sequence, aggregate, n)",
    )
    .bind(job)
    .bind(&ids)
    .bind(&sequences)
    .bind(&aggregates)
    .execute(&mut *tx)
    .await?;
    if order.kind == "discard" {
        sqlx::query(
            "update letter set state = 'discarded', settled_at = clock_timestamp(), settled_by = $2 where id = any($1)",
        )
        .bind(&ids)
        .bind(format!("{}: {}", act.actor, act.reason))
        .execute(&mut *tx)
        .await?;
    }
    let detail = json!({"job": job, "consumer": consumer, "selection": selection, "letters": ids});
    audit(tx, act, order.kind, ids.len() as i64, &detail).await?;
    Ok(job)
}

pub(crate) async fn insert(
    tx: &mut PgConnection,
    kind: &str,
    consumer: &str,
    selection: &Value,
    pace: Pace,
    total: usize,
    act: Act<'_>,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "insert into job (kind, consumer, actor, reason, selection, canary, rate, max_failures, total) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9) returning id",
    )
    .bind(kind)
    .bind(consumer)
    .bind(act.actor)
    .bind(act.reason)
    .bind(selection)
    .bind(i32::try_from(pace.canary).unwrap_or(i32::MAX))
    .bind(pace.rate)
    .bind(pace.max_failures)
    .bind(total as i64)
    .fetch_one(tx)
    .await
}

/// The newest jobs, newest first.
///
/// # Errors
/// The database refuses.
pub async fn jobs(db: &mut PgConnection, limit: i64) -> Result<Vec<Job>, sqlx::Error> {
    let sql = format!("select {JOB} from job j order by j.id desc limit $1");
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(limit).fetch_all(db).await
}

/// One job.
///
/// # Errors
/// See [`Refused`].
pub async fn job(db: &mut PgConnection, id: i64) -> Result<Job, Refused> {
    let sql = format!("select {JOB} from job j where j.id = $1");
    let job: Option<Job> = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(db).await?;
    job.ok_or(Refused::NoJob(id))
}

/// An operator's act on an unfinished job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steer {
    /// Sends nothing more until it is resumed.
    Pause,
    /// Goes on sending.
    Resume,
    /// Leaves unsent letters as they are.
    Abort,
}

/// Steers a job.
///
/// # Errors
/// See [`Refused`].
pub async fn steer(db: &mut PgConnection, id: i64, steer: Steer, act: Act<'_>) -> Result<(), Refused> {
    let (action, from, to) = match steer {
        Steer::Pause => ("pause", &["running"][..], "paused"),
        Steer::Resume => ("resume", &["paused"][..], "running"),
        Steer::Abort => ("abort", &["running", "paused"][..], "aborted"),
    };
    let mut tx = db.begin().await?;
    let job: Option<(String, String)> = sqlx::query_as("select state, kind from job where id = $1 for update")
        .bind(id)
        .fetch_optional(&mut *tx)
        .await?;
    let refused = match job {
        None => Some(Refused::NoJob(id)),
        // Its letters are discarded already. Without a report, a consumer would hold up what is behind them for ever.
        Some((_, kind)) if kind == "discard" && steer == Steer::Abort => Some(Refused::Discards(id)),
        Some((state, _)) if !from.contains(&state.as_str()) => Some(Refused::JobIs(id, state)),
        Some(_) => None,
    };
    if let Some(refused) = refused {
        tx.rollback().await?;
        return Err(refused);
    }
    let detail = format!("{action} by {}: {}", act.actor, act.reason);
    let left =
        if to == "aborted" { end(&mut tx, id, to, &detail).await? } else { turn(&mut tx, id, to, &detail).await? };
    audit(&mut tx, act, action, left, &json!({"job": id})).await?;
    tx.commit().await?;
    Ok(())
}

/// Pauses or resumes a job; returns how many items wait.
async fn turn(tx: &mut PgConnection, id: i64, state: &str, detail: &str) -> Result<i64, sqlx::Error> {
    sqlx::query("update job set state = $2, story = $3 where id = $1")
        .bind(id)
        .bind(state)
        .bind(detail)
        .execute(&mut *tx)
        .await?;
    sqlx::query_scalar("select count(*) from job_item where job = $1 and state = 'waiting'")
        .bind(id)
        .fetch_one(tx)
        .await
}

/// Ends a job; returns how many items were left out. Items in flight still report their outcome.
pub(crate) async fn end(tx: &mut PgConnection, id: i64, state: &str, detail: &str) -> Result<i64, sqlx::Error> {
    sqlx::query("update job set state = $2, story = $3, ended_at = clock_timestamp() where id = $1")
        .bind(id)
        .bind(state)
        .bind(detail)
        .execute(&mut *tx)
        .await?;
    let left = sqlx::query(
        "update job_item set state = 'skipped', outcome = $2, settled_at = clock_timestamp() \
         where job = $1 and state = 'waiting'",
    )
    .bind(id)
    .bind(state)
    .execute(tx)
    .await?;
    Ok(left.rows_affected().cast_signed())
}

/// The job, position and try in a replay's name; none for a job that this database does not have.
async fn place(tx: &mut PgConnection, replay: &str) -> Result<Option<(i64, i64, i32)>, sqlx::Error> {
    let parts: Vec<Option<i64>> = replay.split('.').map(|part| part.parse().ok()).collect();
    let (Some(Some(job)), Some(Some(n))) = (parts.first(), parts.get(1)) else { return Ok(None) };
    let tries = parts.get(2).copied().flatten().and_then(|tries| i32::try_from(tries).ok()).unwrap_or(0);
    let asked: Option<DateTime<Utc>> =
        sqlx::query_scalar("select created_at from job where id = $1").bind(job).fetch_optional(tx).await?;
    let other = parts.get(3).copied().flatten();
    let same = asked.is_some_and(|asked| other.is_none_or(|micros| micros == asked.timestamp_micros()));
    Ok(same.then_some((*job, *n, tries)))
}

/// Records that a replay failed again; returns its letter, if it has one.
pub(crate) async fn failed(tx: &mut PgConnection, replay: &str, reason: &str) -> Result<Option<i64>, sqlx::Error> {
    let Some((job, n, tried)) = place(tx, replay).await? else { return Ok(None) };
    let item: Option<(Option<i64>, String, i32)> =
        sqlx::query_as("select letter, state, tries from job_item where job = $1 and n = $2 for update")
            .bind(job)
            .bind(n)
            .fetch_optional(&mut *tx)
            .await?;
    let Some((letter, state, tries)) = item else { return Ok(None) };
    // A failure of an earlier try only adds to the failure history: the outcome of the later try counts.
    if state == "handled" || (tried != 0 && tried != tries) {
        return Ok(letter);
    }
    sqlx::query(
        "update job_item set state = 'failed', outcome = $3, settled_at = clock_timestamp() where job = $1 and n = $2",
    )
    .bind(job)
    .bind(n)
    .bind(reason.replace('\0', "\u{fffd}"))
    .execute(&mut *tx)
    .await?;
    // No item overtakes an earlier one of its aggregate: the later ones are left out.
    sqlx::query(
        "update job_item set state = 'skipped', outcome = 'one before it failed', settled_at = clock_timestamp() \
         where job = $1 and state = 'waiting' and aggregate_id <> '' \
         and aggregate_id = (select aggregate_id from job_item where job = $1 and n = $2)",
    )
    .bind(job)
    .bind(n)
    .execute(tx)
    .await?;
    Ok(letter)
}

/// Records the outcome of a replay that did not fail. Only what took effect, now or before, settles a letter
/// that was to be handled: a release of the consumer may have passed it over.
///
/// # Errors
/// The database refuses.
pub async fn replayed(tx: &mut PgConnection, replay: &str, outcome: &str) -> Result<(), sqlx::Error> {
    let Some((job, n, _)) = place(tx, replay).await? else { return Ok(()) };
    let kind: Option<String> =
        sqlx::query_scalar("select kind from job where id = $1").bind(job).fetch_optional(&mut *tx).await?;
    let state = match (kind.as_deref(), outcome) {
        (Some("range"), "skipped") => "skipped",
        (Some("replay" | "range"), "skipped" | "discarded") => {
            let why = format!("its consumer passed it over ({outcome}): this release of it does not know the event");
            return failed(tx, replay, &why).await.map(drop);
        }
        _ => "handled",
    };
    sqlx::query(
        "with item as (update job_item set state = $4, outcome = $3, settled_at = clock_timestamp() \
         where job = $1 and n = $2 and state <> 'handled' returning letter) \
         update letter set state = 'handled', settled_at = clock_timestamp(), \
         settled_by = (select 'job ' || id || ' of ' || actor || ': ' || reason from job where id = $1) \
         from item where letter.id = item.letter and letter.state in ('open', 'failed_again')",
    )
    .bind(job)
    .bind(n)
    .bind(outcome)
    .bind(state)
    .execute(tx)
    .await
    .map(drop)
}
