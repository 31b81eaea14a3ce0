//! The SQL of the todo service: functions on a tenant's transaction. They never begin or commit one.
//!
//! Every statement names the tenant although row-level security would do: the indexes begin with it, and two guards
//! are better than one.

use chrono::{DateTime, Utc};
use contracts::{TenantId, TodoId, UserId};
use service::TenantTx;
use sqlx::{FromRow, Postgres, QueryBuilder};
use tracing::instrument;
use uuid::Uuid;

use crate::todo::{Label, Labels, Notes, State, Title, Todo};

/// Which todos to list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Only those in this status.
    pub status: Option<&'static str>,
    /// Only those with this label.
    pub label: Option<Label>,
    /// Only those of this assignee.
    pub assignee: Option<UserId>,
}

#[derive(FromRow)]
struct Row {
    id: Uuid,
    title: String,
    notes: String,
    status: String,
    due_time: Option<DateTime<Utc>>,
    labels: Vec<String>,
    assignee: Option<String>,
    create_time: DateTime<Utc>,
    update_time: DateTime<Utc>,
    complete_time: Option<DateTime<Utc>>,
    created_by: String,
    version: i32,
}

impl TryFrom<Row> for Todo {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> Result<Self, sqlx::Error> {
        let state = match (row.status.as_str(), row.complete_time) {
            ("OPEN", None) => State::Open,
            ("COMPLETED", Some(at)) => State::Completed { at },
            (status, at) => return Err(impossible(format!("a todo that is {status}, completed at {at:?}"))),
        };
        Ok(Self {
            id: TodoId::new(row.id),
            title: Title::parse(&row.title).map_err(impossible)?,
            notes: Notes::parse(&row.notes).map_err(impossible)?,
            state,
            due_time: row.due_time,
            labels: Labels::parse(&row.labels).map_err(impossible)?,
            assignee: row.assignee.map(|user| user.parse::<UserId>()).transpose().map_err(impossible)?,
            create_time: row.create_time,
            update_time: row.update_time,
            created_by: row.created_by.parse().map_err(impossible)?,
            version: row.version,
        })
    }
}

fn impossible(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Decode(what.into())
}

const fn status(todo: &Todo) -> (&'static str, Option<DateTime<Utc>>) {
    match todo.state {
        State::Open => ("OPEN", None),
        State::Completed { at } => ("COMPLETED", Some(at)),
    }
}

/// Inserts a new todo.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "INSERT", db.collection.name = "todo"))]
pub async fn insert(tx: &mut TenantTx, tenant: &TenantId, todo: &Todo) -> Result<(), sqlx::Error> {
    let (status, complete_time) = status(todo);
    sqlx::query(
        "insert into todo (tenant, id, title, notes, status, due_time, labels, assignee, create_time, update_time, \
         complete_time, created_by, version) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(tenant.as_str())
    .bind(todo.id.uuid())
    .bind(todo.title.as_str())
    .bind(todo.notes.as_str())
    .bind(status)
    .bind(todo.due_time)
    .bind(todo.labels.to_strings())
    .bind(todo.assignee.as_ref().map(UserId::as_str))
    .bind(todo.create_time)
    .bind(todo.update_time)
    .bind(complete_time)
    .bind(todo.created_by.as_str())
    .bind(todo.version)
    .execute(&mut **tx)
    .await?;
    insert_labels(tx, tenant, todo).await
}

async fn insert_labels(tx: &mut TenantTx, tenant: &TenantId, todo: &Todo) -> Result<(), sqlx::Error> {
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

async fn delete_labels(tx: &mut TenantTx, tenant: &TenantId, id: TodoId) -> Result<(), sqlx::Error> {
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
pub async fn get(tx: &mut TenantTx, tenant: &TenantId, id: TodoId) -> Result<Option<Todo>, sqlx::Error> {
    sqlx::query_as::<_, Row>(
        "select id, title, notes, status, due_time, labels, assignee, create_time, update_time, complete_time, \
         created_by, version from todo where tenant = $1 and id = $2 and delete_time is null",
    )
    .bind(tenant.as_str())
    .bind(id.uuid())
    .fetch_optional(&mut **tx)
    .await?
    .map(TryInto::try_into)
    .transpose()
}

/// Reads a todo that is not deleted and locks it: whoever appends to its events next waits for this transaction.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "todo"))]
pub async fn get_for_update(tx: &mut TenantTx, tenant: &TenantId, id: TodoId) -> Result<Option<Todo>, sqlx::Error> {
    sqlx::query_as::<_, Row>(
        "select id, title, notes, status, due_time, labels, assignee, create_time, update_time, complete_time, \
         created_by, version from todo where tenant = $1 and id = $2 and delete_time is null for update",
    )
    .bind(tenant.as_str())
    .bind(id.uuid())
    .fetch_optional(&mut **tx)
    .await?
    .map(TryInto::try_into)
    .transpose()
}

/// Writes the next version of a todo.
///
/// # Errors
/// `RowNotFound` when the row does not stand at the version before it.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "todo"))]
pub async fn save(tx: &mut TenantTx, tenant: &TenantId, before: &Todo, todo: &Todo) -> Result<(), sqlx::Error> {
    let (status, complete_time) = status(todo);
    let saved = sqlx::query(
        "update todo set title = $4, notes = $5, status = $6, due_time = $7, labels = $8, assignee = $9, \
         update_time = $10, complete_time = $11, version = $12 where tenant = $1 and id = $2 and version = $3",
    )
    .bind(tenant.as_str())
    .bind(todo.id.uuid())
    .bind(before.version)
    .bind(todo.title.as_str())
    .bind(todo.notes.as_str())
    .bind(status)
    .bind(todo.due_time)
    .bind(todo.labels.to_strings())
    .bind(todo.assignee.as_ref().map(UserId::as_str))
    .bind(todo.update_time)
    .bind(complete_time)
    .bind(todo.version)
    .execute(&mut **tx)
    .await?;
    if saved.rows_affected() != 1 {
        return Err(sqlx::Error::RowNotFound);
    }
    if before.labels != todo.labels {
        delete_labels(tx, tenant, todo.id).await?;
        insert_labels(tx, tenant, todo).await?;
    }
    Ok(())
}

/// Marks a todo as deleted, at its last version.
///
/// # Errors
/// `RowNotFound` when the row does not stand at the version before it.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE", db.collection.name = "todo"))]
pub async fn mark_deleted(tx: &mut TenantTx, tenant: &TenantId, todo: &Todo) -> Result<(), sqlx::Error> {
    let marked = sqlx::query(
        "update todo set delete_time = $4, update_time = $4, version = $3 \
         where tenant = $1 and id = $2 and version = $3 - 1 and delete_time is null",
    )
    .bind(tenant.as_str())
    .bind(todo.id.uuid())
    .bind(todo.version)
    .bind(todo.update_time)
    .execute(&mut **tx)
    .await?;
    if marked.rows_affected() != 1 {
        return Err(sqlx::Error::RowNotFound);
    }
    delete_labels(tx, tenant, todo.id).await
}

/// A page of todos that are not deleted, newest first.
#[instrument(target = "service::trace", skip_all, err(level = "debug"),
    fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT", db.collection.name = "todo"))]
pub async fn list(
    tx: &mut TenantTx,
    tenant: &TenantId,
    filter: &Filter,
    after: Option<TodoId>,
    limit: i64,
) -> Result<Vec<Todo>, sqlx::Error> {
    let mut query = list_query("", tenant, filter, after, limit);
    let rows: Vec<Row> = query.build_query_as().fetch_all(&mut **tx).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// The query of [`list`], behind a `prefix` such as `explain `.
pub fn list_query(
    prefix: &str,
    tenant: &TenantId,
    filter: &Filter,
    after: Option<TodoId>,
    limit: i64,
) -> QueryBuilder<Postgres> {
    let mut query = QueryBuilder::new(prefix);
    query.push(
        "select t.id, t.title, t.notes, t.status, t.due_time, t.labels, t.assignee, t.create_time, t.update_time, \
         t.complete_time, t.created_by, t.version from todo t",
    );
    // By label, the label's index gives the order; else one of the todo's.
    let order = if let Some(label) = &filter.label {
        query.push(" join todo_label l on l.tenant = t.tenant and l.todo_id = t.id and l.label = ");
        query.push_bind(label.as_str()).push(" and l.tenant = ").push_bind(tenant.as_str());
        "l.todo_id"
    } else {
        "t.id"
    };
    query.push(" where t.delete_time is null and t.tenant = ").push_bind(tenant.as_str());
    if let Some(status) = filter.status {
        query.push(" and t.status = ").push_bind(status);
    }
    if let Some(assignee) = &filter.assignee {
        query.push(" and t.assignee = ").push_bind(assignee.as_str());
    }
    if let Some(after) = after {
        query.push(format!(" and {order} < ")).push_bind(after.uuid());
    }
    query.push(format!(" order by {order} desc limit ")).push_bind(limit);
    query
}
