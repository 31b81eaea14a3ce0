//! The SQL of the todo service: functions on a tenant's transaction. They never begin or commit a transaction.
//!
//! Every statement names the tenant although row-level security would do: the indexes begin with it, and two guards
//! are better than one.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};
use contracts::{SeriesId, TodoId, UserId};
use service::list::{Found, Place, Query};
use service::{StoreError, TenantTx};
use sqlx::{AssertSqlSafe, FromRow};
use tracing::instrument;
use uuid::Uuid;

use crate::recurrence::{Basis, Occurrence, Pattern, Recurrence};
use crate::texts::{Labels, Notes, Title};
use crate::todo::{People, State, Todo};

/// The constraint that makes each occurrence of a series one todo.
pub const OCCURRENCE_ONCE: &str = "todo_occurrence_once";

/// The queries over all tenants of [`service::Work`]: which due times have come, and which todos were deleted long enough ago.
pub const CLAIM_DUE: &str = "select of_tenant, id from todo_timer_claim('DUE', $1, $2, $3)";
pub const DUE_LATE: &str = "select todo_timer_late('DUE', $1)";
pub const CLAIM_PURGE: &str = "select of_tenant, id from todo_timer_claim('PURGE', $1, $2, $3)";
pub const PURGE_LATE: &str = "select todo_timer_late('PURGE', $1)";

/// Whether a row still holds something: it is not deleted, or its contents were not removed yet.
pub(crate) const HOLDS: &str = "(delete_time is null or title <> '(deleted)' or created_by <> '(deleted)')";

/// What [`Row`] reads, of `todo t`.
pub(crate) const COLUMNS: &str = "t.id, t.title, t.notes, t.status, t.due_time, t.labels, t.assignee, t.recurrence_rule, \
    t.recurrence_zone, t.recurrence_basis, t.recurrence_wall_time, t.series_id, t.occurrence, t.create_time, t.update_time, \
    t.complete_time, t.created_by, t.version";

#[derive(FromRow)]
pub(crate) struct Row {
    id: Uuid,
    title: String,
    notes: String,
    status: String,
    due_time: Option<DateTime<Utc>>,
    labels: Vec<String>,
    assignee: Option<String>,
    recurrence_rule: Option<String>,
    recurrence_zone: Option<String>,
    recurrence_basis: Option<String>,
    recurrence_wall_time: Option<NaiveDateTime>,
    series_id: Option<Uuid>,
    occurrence: Option<i32>,
    create_time: DateTime<Utc>,
    update_time: DateTime<Utc>,
    complete_time: Option<DateTime<Utc>>,
    created_by: String,
    version: i32,
}

impl Row {
    /// Which todo it is, at which version.
    pub(crate) const fn at(&self) -> (Uuid, i32) {
        (self.id, self.version)
    }
}

impl TryFrom<Row> for Todo {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let id = row.id;
        todo(row).map_err(|error| StoreError::inconsistent("todo", id, error))
    }
}

fn todo(row: Row) -> Result<Todo, anyhow::Error> {
    let Row {
        id,
        title,
        notes,
        status,
        due_time,
        labels,
        assignee,
        recurrence_rule,
        recurrence_zone,
        recurrence_basis,
        recurrence_wall_time,
        series_id,
        occurrence,
        create_time,
        update_time,
        complete_time,
        created_by,
        version,
    } = row;
    let state = match (status.as_str(), complete_time) {
        (OPEN, None) => State::Open,
        (COMPLETED, Some(at)) => State::Completed { at },
        (status, at) => anyhow::bail!("it is {status}, completed at {at:?}"),
    };
    let recurrence = match (recurrence_rule, recurrence_zone, recurrence_basis, recurrence_wall_time) {
        (None, None, None, None) => None,
        (Some(rule), Some(zone), Some(basis), Some(wall_time)) => {
            let basis = match basis.as_str() {
                DUE_TIME => Basis::DueTime,
                COMPLETION => Basis::Completion,
                other => anyhow::bail!("it recurs by {other}"),
            };
            Some(Recurrence { pattern: Pattern::parse(&rule, &zone, basis)?, wall_time })
        }
        parts => anyhow::bail!("it recurs in part: {parts:?}"),
    };
    let occurrence = series_id.zip(occurrence);
    Ok(Todo {
        id: TodoId::new(id),
        title: Title::parse(&title)?,
        notes: Notes::parse(&notes)?,
        state,
        due_time,
        labels: Labels::parse(&labels)?,
        assignee: assignee.map(|user| user.parse()).transpose()?,
        recurrence,
        occurrence: occurrence.map(|(series, number)| Occurrence { series: SeriesId::new(series), number }),
        create_time,
        update_time,
        created_by: created_by.parse()?,
        version,
    })
}

pub const OPEN: &str = "OPEN";
pub const COMPLETED: &str = "COMPLETED";
const DUE_TIME: &str = "DUE_TIME";
const COMPLETION: &str = "COMPLETION";

/// A recurrence as its columns hold it.
type Recurs<'a> = (Option<&'a str>, Option<&'static str>, Option<&'static str>, Option<NaiveDateTime>);

fn recurs(recurrence: Option<&Recurrence>) -> Recurs<'_> {
    let Some(Recurrence { pattern: Pattern { rule, time_zone, basis }, wall_time }) = recurrence else {
        return (None, None, None, None);
    };
    let basis = match basis {
        Basis::DueTime => DUE_TIME,
        Basis::Completion => COMPLETION,
    };
    (Some(rule.as_str()), Some(time_zone.name()), Some(basis), Some(*wall_time))
}

const fn status(todo: &Todo) -> (&'static str, Option<DateTime<Utc>>) {
    match todo.state {
        State::Open => (OPEN, None),
        State::Completed { at } => (COMPLETED, Some(at)),
    }
}

/// Inserts a new todo.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "INSERT", db.collection.name = "todo"))]
pub async fn insert(tx: &mut TenantTx, todo: &Todo) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let (status, complete_time) = status(todo);
    let Todo {
        id,
        title,
        notes,
        state: _,
        due_time,
        labels,
        assignee,
        recurrence,
        occurrence,
        create_time,
        update_time,
        created_by,
        version,
    } = todo;
    let (rule, zone, basis, wall_time) = recurs(recurrence.as_ref());
    sqlx::query(
        r"
        insert into todo (tenant, id, title, notes, status, due_time, labels, assignee, create_time, update_time,
                          complete_time, created_by, version, recurrence_rule, recurrence_zone, recurrence_basis,
                          recurrence_wall_time, series_id, occurrence)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)",
    )
    .bind(tenant.as_str())
    .bind(id.uuid())
    .bind(title.as_str())
    .bind(notes.as_str())
    .bind(status)
    .bind(due_time)
    .bind(labels.to_strings())
    .bind(assignee.as_ref().map(UserId::as_str))
    .bind(create_time)
    .bind(update_time)
    .bind(complete_time)
    .bind(created_by.as_str())
    .bind(version)
    .bind(rule)
    .bind(zone)
    .bind(basis)
    .bind(wall_time)
    .bind(occurrence.map(|occurrence| occurrence.series.uuid()))
    .bind(occurrence.map(|occurrence| occurrence.number))
    .execute(&mut **tx)
    .await?;
    insert_occurrence(tx, todo).await?;
    insert_labels(tx, todo).await
}

/// Claims the todo's occurrence of its series, which only one todo can have ([`OCCURRENCE_ONCE`]).
async fn insert_occurrence(tx: &mut TenantTx, todo: &Todo) -> Result<(), StoreError> {
    let Some(Occurrence { series, number }) = todo.occurrence else { return Ok(()) };
    let tenant = tx.tenant();
    sqlx::query("insert into todo_occurrence (tenant, series_id, occurrence, todo_id) values ($1, $2, $3, $4)")
        .bind(tenant.as_str())
        .bind(series.uuid())
        .bind(number)
        .bind(todo.id.uuid())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn insert_labels(tx: &mut TenantTx, todo: &Todo) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let labels = todo.labels.to_strings();
    if labels.is_empty() {
        return Ok(());
    }
    sqlx::query("insert into todo_label (tenant, label, todo_id) select $1, label, $2 from unnest($3::text[]) label")
        .bind(tenant.as_str())
        .bind(todo.id.uuid())
        .bind(labels)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn delete_labels(tx: &mut TenantTx, id: TodoId) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    sqlx::query("delete from todo_label where tenant = $1 and todo_id = $2")
        .bind(tenant.as_str())
        .bind(id.uuid())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Reads a todo that is not deleted.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "todo"))]
pub async fn get(tx: &mut TenantTx, id: TodoId) -> Result<Option<Todo>, StoreError> {
    one(tx, id, "").await
}

/// Reads a todo that is not deleted and locks it: the next command that appends to its events waits for this transaction.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "todo"))]
pub async fn get_for_update(tx: &mut TenantTx, id: TodoId) -> Result<Option<Todo>, StoreError> {
    one(tx, id, "for update").await
}

async fn one(tx: &mut TenantTx, id: TodoId, lock: &'static str) -> Result<Option<Todo>, StoreError> {
    let tenant = tx.tenant();
    let sql =
        format!("select {COLUMNS} from todo t where t.tenant = $1 and t.id = $2 and t.delete_time is null {lock}");
    let row: Option<Row> =
        sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.as_str()).bind(id.uuid()).fetch_optional(&mut **tx).await?;
    row.map(TryInto::try_into).transpose()
}

/// Writes the next version of a todo.
///
/// # Errors
/// [`StoreError::Conflict`] when the row is not at the version before it.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "todo"))]
pub async fn save(tx: &mut TenantTx, before: &Todo, todo: &Todo) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let (status, complete_time) = status(todo);
    let Todo {
        id,
        title,
        notes,
        state: _,
        due_time,
        labels,
        assignee,
        recurrence,
        occurrence,
        create_time: _,
        update_time,
        created_by,
        version,
    } = todo;
    let (rule, zone, basis, wall_time) = recurs(recurrence.as_ref());
    let saved = sqlx::query(
        r"
        update todo
        set title = $4, notes = $5, status = $6, due_time = $7, labels = $8, assignee = $9, update_time = $10,
            complete_time = $11, version = $12, recurrence_rule = $13, recurrence_zone = $14, recurrence_basis = $15,
            recurrence_wall_time = $16, series_id = $17, occurrence = $18, created_by = $19
        where tenant = $1 and id = $2 and version = $3",
    )
    .bind(tenant.as_str())
    .bind(id.uuid())
    .bind(before.version)
    .bind(title.as_str())
    .bind(notes.as_str())
    .bind(status)
    .bind(due_time)
    .bind(labels.to_strings())
    .bind(assignee.as_ref().map(UserId::as_str))
    .bind(update_time)
    .bind(complete_time)
    .bind(version)
    .bind(rule)
    .bind(zone)
    .bind(basis)
    .bind(wall_time)
    .bind(occurrence.map(|occurrence| occurrence.series.uuid()))
    .bind(occurrence.map(|occurrence| occurrence.number))
    .bind(created_by.as_str())
    .execute(&mut **tx)
    .await?;
    if saved.rows_affected() != 1 {
        return Err(StoreError::Conflict);
    }
    if before.occurrence != *occurrence {
        insert_occurrence(tx, todo).await?;
    }
    if before.labels != *labels {
        delete_labels(tx, *id).await?;
        insert_labels(tx, todo).await?;
    }
    Ok(())
}

/// Marks a todo as deleted, at its last version.
///
/// # Errors
/// [`StoreError::Conflict`] when the row is not at the version before it.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "todo"))]
pub async fn mark_deleted(tx: &mut TenantTx, before: &Todo, todo: &Todo) -> Result<(), StoreError> {
    let tenant = tx.tenant();
    let marked = sqlx::query(
        r"
        update todo
        set delete_time = $5, update_time = $5, version = $4
        where tenant = $1 and id = $2 and version = $3 and delete_time is null",
    )
    .bind(tenant.as_str())
    .bind(todo.id.uuid())
    .bind(before.version)
    .bind(todo.version)
    .bind(todo.update_time)
    .execute(&mut **tx)
    .await?;
    if marked.rows_affected() != 1 {
        return Err(StoreError::Conflict);
    }
    delete_labels(tx, todo.id).await
}

/// Deletes the timer of a due time that has come, by the database's clock; returns whether there was one. Lock the todo first.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "DELETE", db.collection.name = "todo_timer"))]
pub async fn take_due_timer(tx: &mut TenantTx, id: TodoId) -> Result<bool, StoreError> {
    let tenant = tx.tenant();
    let taken = sqlx::query(
        r"
        delete from todo_timer
        where tenant = $1 and kind = 'DUE' and todo_id = $2 and time <= clock_timestamp()",
    )
    .bind(tenant.as_str())
    .bind(id.uuid())
    .execute(&mut **tx)
    .await?;
    Ok(taken.rows_affected() == 1)
}

/// Empties the row of a deleted todo and deletes its timer; with `after`, only when it was deleted longer ago. The row stays as a
/// tombstone: it shows that the todo existed, its last version, and when it was deleted.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "todo"))]
pub async fn purge(tx: &mut TenantTx, id: TodoId, after: Option<Duration>) -> Result<bool, StoreError> {
    let tenant = tx.tenant();
    let emptied = sqlx::query(AssertSqlSafe(format!(
        r"
        update todo
        set title = '(deleted)', notes = '', due_time = null, labels = '{{}}', assignee = null, created_by = '(deleted)',
            recurrence_rule = null, recurrence_zone = null, recurrence_basis = null, recurrence_wall_time = null
        where tenant = $1 and id = $2 and delete_time is not null and {HOLDS}
            and ($3::float8 is null or delete_time <= clock_timestamp() - make_interval(secs => $3))",
    )))
    .bind(tenant.as_str())
    .bind(id.uuid())
    .bind(after.map(|after| after.as_secs_f64()))
    .execute(&mut **tx)
    .await?;
    sqlx::query(
        r"
        delete from todo_timer
        where tenant = $1 and kind = 'PURGE' and todo_id = $2
            and ($3::float8 is null or time <= clock_timestamp() - make_interval(secs => $3))",
    )
    .bind(tenant.as_str())
    .bind(id.uuid())
    .bind(after.map(|after| after.as_secs_f64()))
    .execute(&mut **tx)
    .await?;
    Ok(emptied.rows_affected() == 1)
}

/// The creator and the assignee of a todo, deleted or not; none of an emptied one. Locks the row, so that nobody erases it meanwhile.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "todo"))]
pub async fn people(tx: &mut TenantTx, id: TodoId) -> Result<Option<People>, StoreError> {
    let tenant = tx.tenant();
    let row: Option<(String, Option<String>)> = sqlx::query_as(AssertSqlSafe(format!(
        "select created_by, assignee from todo where tenant = $1 and id = $2 and {HOLDS} for update"
    )))
    .bind(tenant.as_str())
    .bind(id.uuid())
    .fetch_optional(&mut **tx)
    .await?;
    let read =
        |user: String| user.parse().map_err(|error| StoreError::inconsistent("todo", id, anyhow::Error::from(error)));
    row.map(|(created_by, assignee)| {
        Ok(People { created_by: read(created_by)?, assignee: assignee.map(read).transpose()? })
    })
    .transpose()
}

/// A page of todos that are not deleted.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "todo"))]
pub async fn list(
    tx: &mut TenantTx,
    query: &Query,
    after: Option<&Place>,
    size: usize,
) -> Result<Found<Todo>, StoreError> {
    query.fetch::<Row, Todo>(tx, COLUMNS, after, size).await
}
