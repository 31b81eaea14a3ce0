//! Conversions between gRPC messages and the domain, for `grpc` and for answers that are stored with their keys.

use chrono::{DateTime, NaiveDateTime, Utc};
use contracts::{TenantId, TodoId, UserId};
use prost_types::Timestamp;
use proto::timestamp;
use proto::todo as pb;
use service::filter::How;
use service::idempotency::StoredResponse;
use service::list::Query;
use service::live::{Heard, Place};
use service::page::PageTokens;
use service::wire::{self as fields, Mask, stored_time, text};
use service::{Failure, IfMatch, filter_parser};

use crate::lists::TODOS;
use crate::recurrence::{Basis, Occurrence, Pattern, Recurrence, RecurrenceError};
use crate::texts::{Label, Labels, Notes, Title};
use crate::todo::{Change, Draft, Patch, State, Todo};

/// The fields that can be changed.
const WRITABLE: [&str; 6] = ["title", "notes", "due_time", "labels", "assignee", "recurrence"];

pub fn id(text: &str) -> Result<TodoId, Failure> {
    fields::id("id", text)
}

fn assignee(text: &str) -> Result<Option<UserId>, Failure> {
    fields::optional_id("assignee", text)
}

fn due_time(time: Option<&Timestamp>) -> Result<Option<DateTime<Utc>>, Failure> {
    fields::time("due_time", time)
}

pub fn draft(todo: Option<&pb::Todo>) -> Result<Draft, Failure> {
    let Writable { title, notes, due_time: due, labels, assignee: assigned, recurrence, etag: _ } =
        writable(todo.ok_or_else(|| Failure::invalid("todo", "is missing"))?);
    let due_time = due_time(due)?;
    let recurrence = match (recurrence, due_time) {
        (None, _) => None,
        (Some(_), None) => return Err(Failure::invalid("recurrence", RecurrenceError::NeedsDueTime)),
        (Some(recurrence), Some(due_time)) => {
            let recurrence = Recurrence::new(pattern(recurrence)?, due_time).checked(1);
            Some(recurrence.map_err(|error| Failure::invalid("recurrence.rule", error))?)
        }
    };
    Ok(Draft {
        title: text("title", Title::parse(title))?,
        notes: text("notes", Notes::parse(notes))?,
        due_time,
        labels: text("labels", Labels::parse(labels))?,
        assignee: assignee(assigned)?,
        recurrence,
        follows: None,
    })
}

/// The fields of a todo that a caller writes.
struct Writable<'a> {
    title: &'a str,
    notes: &'a str,
    due_time: Option<&'a Timestamp>,
    labels: &'a [String],
    assignee: &'a str,
    recurrence: Option<&'a pb::Recurrence>,
    /// Not a field to write: the condition of a change.
    etag: &'a str,
}

/// Destructures the whole todo, so that no new field is forgotten here.
fn writable(todo: &pb::Todo) -> Writable<'_> {
    let pb::Todo {
        title,
        notes,
        due_time,
        labels,
        assignee,
        recurrence,
        etag,
        id: _,
        status: _,
        create_time: _,
        update_time: _,
        complete_time: _,
        created_by: _,
        version: _,
        occurrence: _,
    } = todo;
    let (due_time, recurrence) = (due_time.as_ref(), recurrence.as_ref());
    Writable { title, notes, due_time, labels, assignee, recurrence, etag }
}

/// How a caller requests a recurrence.
fn pattern(recurrence: &pb::Recurrence) -> Result<Pattern, Failure> {
    let pb::Recurrence { rule, time_zone, basis, wall_time: _ } = recurrence;
    let basis = match pb::Basis::try_from(*basis) {
        Ok(pb::Basis::Unspecified | pb::Basis::DueTime) => Basis::DueTime,
        Ok(pb::Basis::Completion) => Basis::Completion,
        Err(_) => return Err(Failure::invalid("recurrence.basis", "must be DUE_TIME or COMPLETION")),
    };
    Pattern::parse(rule, time_zone, basis).map_err(|error| {
        let field = if error == RecurrenceError::TimeZone { "recurrence.time_zone" } else { "recurrence.rule" };
        Failure::invalid(field, error)
    })
}

/// What a request changes, and the etag that must still match.
pub fn patch(todo: Option<&pb::Todo>, mask: Option<&prost_types::FieldMask>) -> Result<(IfMatch, Patch), Failure> {
    let Writable { title, notes, due_time: due, labels, assignee: assigned, recurrence, etag } =
        writable(todo.ok_or_else(|| Failure::invalid("todo", "is missing"))?);
    let mask = Mask::of(mask, &WRITABLE)?;
    let mut patch = Patch::default();
    if mask.takes("title", !title.is_empty()) {
        patch.title = Some(text("title", Title::parse(title))?);
    }
    if mask.takes("notes", !notes.is_empty()) {
        patch.notes = Some(text("notes", Notes::parse(notes))?);
    }
    if mask.takes("due_time", due.is_some()) {
        patch.due_time = Some(due_time(due)?);
    }
    if mask.takes("labels", !labels.is_empty()) {
        patch.labels = Some(text("labels", Labels::parse(labels))?);
    }
    if mask.takes("assignee", !assigned.is_empty()) {
        patch.assignee = Some(assignee(assigned)?);
    }
    if mask.takes("recurrence", recurrence.is_some()) {
        patch.recurrence = Some(recurrence.map(pattern).transpose()?);
    }
    Ok((IfMatch::parse(etag), patch))
}

/// What a list asks for.
pub fn query(request: &pb::ListTodosRequest) -> Result<Query, Failure> {
    let pb::ListTodosRequest { status, label, assignee: assigned, filter, order_by, page_size: _, page_token: _ } =
        request;
    let status = match pb::Status::try_from(*status) {
        Ok(pb::Status::Unspecified) => None,
        Ok(status) => Some(status.as_str_name()),
        Err(_) => return Err(Failure::invalid("status", "must be OPEN or COMPLETED")),
    };
    let label = match label.as_str() {
        "" => None,
        label => Some(text("label", Label::parse(label))?),
    };
    let assigned = assignee(assigned)?;
    let mut filter = filter_parser::parse(TODOS.fields, filter)?;
    for (field, how, value) in [
        ("status", How::Equal, status),
        ("labels", How::Has, label.as_ref().map(Label::as_str)),
        ("assignee", How::Equal, assigned.as_ref().map(UserId::as_str)),
    ] {
        if let Some(value) = value {
            filter = filter.and(TODOS.test(field, how, value)?);
        }
    }
    TODOS.query(filter, order_by)
}

pub fn todo(todo: &Todo) -> pb::Todo {
    let Todo {
        id,
        title,
        notes,
        state,
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
    let (status, complete_time) = match state {
        State::Open => (pb::Status::Open, None),
        State::Completed { at } => (pb::Status::Completed, Some(timestamp(*at))),
    };
    pb::Todo {
        id: id.to_string(),
        title: title.as_str().to_owned(),
        notes: notes.as_str().to_owned(),
        status: status.into(),
        due_time: due_time.map(timestamp),
        labels: labels.to_strings(),
        assignee: assignee.as_ref().map(ToString::to_string).unwrap_or_default(),
        create_time: Some(timestamp(*create_time)),
        update_time: Some(timestamp(*update_time)),
        complete_time,
        created_by: created_by.to_string(),
        version: *version,
        etag: todo.etag(),
        recurrence: recurrence.as_ref().map(|Recurrence { pattern, wall_time }| pb::Recurrence {
            rule: pattern.rule.as_str().to_owned(),
            time_zone: pattern.time_zone.name().to_owned(),
            basis: match pattern.basis {
                Basis::DueTime => pb::Basis::DueTime,
                Basis::Completion => pb::Basis::Completion,
            }
            .into(),
            wall_time: wall_time.format(WALL_TIME).to_string(),
        }),
        occurrence: occurrence
            .map(|Occurrence { series, number }| pb::Occurrence { series_id: series.to_string(), number }),
    }
}

/// What the id of a message is bound to.
fn watched(tenant: &TenantId) -> (&'static str, &str) {
    ("WatchTodos", tenant.as_str())
}

/// The place behind which a caller watches.
pub fn place(pages: &PageTokens, tenant: &TenantId, id: &str) -> Result<Option<Place>, Failure> {
    let what = "is not one that was given for your tenant's todos: watch without it, and list them";
    pages.read_from(("last_event_id", what), &watched(tenant), id)
}

pub fn heard(pages: &PageTokens, tenant: &TenantId, heard: Heard<Change>) -> Result<pb::WatchTodosResponse, Failure> {
    use pb::watch_todos_response::{Change as Is, DeletedTodo, Heartbeat, Reset};
    let (place, change) = match heard {
        Heard::Change(place, Change::Todo(changed)) => (place, Is::Todo(todo(&changed))),
        Heard::Change(place, Change::Deleted(id, version)) => {
            (place, Is::Deleted(DeletedTodo { id: id.to_string(), version }))
        }
        Heard::Reset(place) => (place, Is::Reset(Reset {})),
        Heard::Level(place) => (place, Is::Heartbeat(Heartbeat {})),
    };
    Ok(pb::WatchTodosResponse { id: pages.make(&watched(tenant), &place)?, change: Some(change) })
}

/// A wall-clock time, to the microsecond where it has any.
const WALL_TIME: &str = "%Y-%m-%dT%H:%M:%S%.f";

/// A stored answer, of this release or another.
impl StoredResponse for Todo {
    type Message = pb::Todo;

    fn to_message(&self) -> pb::Todo {
        todo(self)
    }

    fn from_message(message: pb::Todo) -> Result<Self, Failure> {
        let pb::Todo {
            id: todo_id,
            title,
            notes,
            status,
            due_time: due,
            labels,
            assignee: assigned,
            create_time,
            update_time,
            complete_time,
            created_by,
            version,
            etag: _,
            recurrence: recurrence_of,
            occurrence: occurrence_of,
        } = message;
        let recurrence = |recurrence: pb::Recurrence| {
            let wall_time =
                NaiveDateTime::parse_from_str(&recurrence.wall_time, WALL_TIME).map_err(Failure::internal)?;
            Ok::<_, Failure>(Recurrence { pattern: pattern(&recurrence)?, wall_time })
        };
        let occurrence = |pb::Occurrence { series_id, number }| {
            Ok::<_, Failure>(Occurrence { series: series_id.parse().map_err(Failure::internal)?, number })
        };
        let state = match pb::Status::try_from(status) {
            Ok(pb::Status::Completed) => State::Completed { at: stored_time(complete_time)? },
            Ok(pb::Status::Open) => State::Open,
            _ => return Err(Failure::internal(anyhow::anyhow!("a stored answer has the status {status}"))),
        };
        Ok(Self {
            id: id(&todo_id)?,
            title: Title::parse(&title).map_err(Failure::internal)?,
            notes: Notes::parse(&notes).map_err(Failure::internal)?,
            state,
            due_time: due_time(due.as_ref())?,
            labels: Labels::parse(&labels).map_err(Failure::internal)?,
            assignee: assignee(&assigned)?,
            recurrence: recurrence_of.map(recurrence).transpose()?,
            occurrence: occurrence_of.map(occurrence).transpose()?,
            create_time: stored_time(create_time)?,
            update_time: stored_time(update_time)?,
            created_by: created_by.parse().map_err(Failure::internal)?,
            version,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_answer_is_read_as_it_was_given() {
        let at = |micros| DateTime::from_timestamp_micros(micros).unwrap();
        let open = Todo {
            id: id("0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2e4f").unwrap(),
            title: Title::parse("Splice the line").unwrap(),
            notes: Notes::parse("by hand\n").unwrap(),
            state: State::Open,
            due_time: Some(at(5_000_007)),
            labels: Labels::parse(&["x".to_owned()]).unwrap(),
            assignee: Some("bob".parse().unwrap()),
            recurrence: Some(Recurrence {
                pattern: Pattern::parse("FREQ=MONTHLY;BYDAY=-1FR", "America/New_York", Basis::Completion).unwrap(),
                wall_time: at(5_000_007).naive_utc(),
            }),
            occurrence: Some(Occurrence { series: "0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2e4f".parse().unwrap(), number: 7 }),
            create_time: at(1_000_001),
            update_time: at(2_000_002),
            created_by: "ann".parse().unwrap(),
            version: 3,
        };
        let completed = Todo {
            state: State::Completed { at: at(-3) },
            due_time: None,
            assignee: None,
            recurrence: None,
            ..open.clone()
        };
        for todo in [open, completed] {
            assert_eq!(Todo::from_message(todo.to_message()).unwrap(), todo);
        }
    }
}
