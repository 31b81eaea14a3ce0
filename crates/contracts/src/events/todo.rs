//! The events of the todo service: one struct per event version, one [`Event`] to match on.

use chrono::{DateTime, NaiveDateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Aggregate;
use crate::UserId;

pub use super::{Actor, ActorKind};

events! {
    service "todo", owner "todo";

    todo: Todo {
        /// A todo was created.
        Created = CreatedV1 "todo.created.v1";
        /// A todo's title, notes, due time, labels or assignee changed.
        Updated = UpdatedV1 "todo.updated.v1";
        /// An open todo was completed.
        Completed = CompletedV2 "todo.completed.v2" before CompletedV1 "todo.completed.v1";
        /// A completed todo was opened again.
        Reopened = ReopenedV1 "todo.reopened.v1";
        /// The due time of an open todo has come: once for each time that it comes, and again for one that was opened again or given a
        /// time that has passed. What was overdue before the service could say so is not announced. Where something kept the service from saying so in time, it is said late; what happened to the todo
        /// before that comes first.
        BecameDue = BecameDueV1 "todo.became_due.v1";
        /// A todo was deleted; the state is its last.
        Deleted = DeletedV1 "todo.deleted.v1";
    }
}

uuid_ids! {
    /// A todo.
    TodoId: "a todo id";
    /// A series of recurring todos: the id of its first.
    SeriesId: "a series id";
}

/// A todo as it stood after a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Todo {
    /// The todo's id.
    pub id: TodoId,
    /// What is to be done: 1 to 500 characters.
    pub title: String,
    /// More about it: up to 10,000 characters.
    pub notes: String,
    /// Where it is in its life.
    pub status: Status,
    /// When it should be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_time: Option<DateTime<Utc>>,
    /// Up to 20 labels.
    pub labels: Vec<String>,
    /// Who should do it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assignee: Option<UserId>,
    /// How it recurs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recurrence: Option<Recurrence>,
    /// Which todo of a series it is, since it first had a recurrence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub occurrence: Option<Occurrence>,
    /// When it was created.
    pub create_time: DateTime<Utc>,
    /// When it was changed to be so.
    pub update_time: DateTime<Utc>,
    /// When it was completed; absent while it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete_time: Option<DateTime<Utc>>,
    /// Who created it.
    pub created_by: UserId,
    /// Counts the changes, from 1.
    #[schemars(range(min = 1))]
    pub version: i32,
}

/// How a todo recurs: completed, it brings forth its next occurrence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Recurrence {
    /// An RFC 5545 recurrence rule, daily or slower: `FREQ=WEEKLY;BYDAY=MO`.
    pub rule: String,
    /// The time zone whose wall clock counts, by its name in the IANA database.
    pub time_zone: String,
    /// From when the next occurrence is reckoned.
    pub basis: Basis,
    /// When it is due by that wall clock, whether there is such a time on that day or not: `2026-03-29T02:30:00`.
    pub wall_time: NaiveDateTime,
}

/// From when the next occurrence of a todo is reckoned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Basis {
    /// From when this one was due.
    DueTime,
    /// From the day on which this one was completed.
    Completion,
}

/// Which todo of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Occurrence {
    /// The series: the id of its first todo.
    pub series_id: SeriesId,
    /// Counts from 1.
    #[schemars(range(min = 1))]
    pub number: i32,
}

/// Where a todo is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Status {
    /// Still to be done.
    Open,
    /// Done.
    Completed,
}

impl Aggregate for Todo {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn version(&self) -> i32 {
        self.version
    }

    fn changed(&self) -> DateTime<Utc> {
        self.update_time
    }

    fn example() -> Self {
        let at = |seconds: i64| DateTime::from_timestamp(1_795_000_000 + seconds, 0).unwrap_or_default();
        let id = Uuid::from_u128(0x0193_a5b0_7a52_7c3e_9b1e_6a1f_0c9d_2e4f);
        Self {
            id: TodoId::new(id),
            title: "Splice the mooring line".to_owned(),
            notes: "Eye splice, 14 mm; ask Jörg for the fid.".to_owned(),
            status: Status::Open,
            due_time: Some(at(90_000)),
            labels: vec!["harbour".to_owned(), "rope".to_owned()],
            assignee: Some(UserId::example()),
            recurrence: Some(Recurrence {
                rule: "FREQ=WEEKLY;BYDAY=MO".to_owned(),
                time_zone: "Europe/Lisbon".to_owned(),
                basis: Basis::DueTime,
                wall_time: at(90_000).naive_utc(),
            }),
            occurrence: Some(Occurrence { series_id: SeriesId::new(id), number: 1 }),
            create_time: at(0),
            update_time: at(3_600),
            complete_time: None,
            created_by: UserId::example(),
            version: 2,
        }
    }
}

/// An open todo was completed, in its first version: the actor as a bare name. In its sunset, published beside
/// [`CompletedV2`] until no consumer needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CompletedV1 {
    /// The todo after the change.
    pub todo: Todo,
    /// Who completed it.
    pub completed_by: UserId,
}

impl CompletedV1 {
    /// The event about this state.
    #[must_use]
    pub fn of(todo: Todo, actor: Actor) -> Self {
        Self { todo, completed_by: actor.id }
    }
}

/// The upcaster: makes version 2 of version 1. Version 1 knew only people.
impl From<CompletedV1> for CompletedV2 {
    fn from(old: CompletedV1) -> Self {
        Self { todo: old.todo, actor: Actor { kind: ActorKind::User, id: old.completed_by } }
    }
}
