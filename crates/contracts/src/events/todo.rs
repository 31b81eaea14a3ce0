//! What the todo service tells: one struct per event version, one [`Event`] to match on.
//!
//! Each carries the todo's full state after the change, so that a projection never has to ask back.

use chrono::{DateTime, NaiveDateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DecodeError, EventType};
use crate::{SeriesId, TodoId, UserId};

/// The service's name in types, subjects and streams.
pub const SERVICE: &str = "todo";
/// The CloudEvents `source`.
pub const SOURCE: &str = "/flotilla/todo";

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

/// On whose behalf a change was made. The envelope's `actor` says who made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Actor {
    /// A person or a program.
    pub kind: ActorKind,
    /// The subject of the access token, or the name of a service.
    pub id: UserId,
}

impl From<&crate::Actor> for Actor {
    fn from(actor: &crate::Actor) -> Self {
        let subject = actor.subject();
        let kind = match subject.kind {
            crate::ActorKind::User => ActorKind::User,
            crate::ActorKind::ServiceAccount | crate::ActorKind::Service | crate::ActorKind::Agent => {
                ActorKind::Service
            }
        };
        Self { kind, id: subject.id.clone() }
    }
}

/// What kind of actor made a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ActorKind {
    /// A person.
    User,
    /// A program on its own behalf.
    Service,
}

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident = $type:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        pub struct $name {
            /// The todo after the change.
            pub todo: Todo,
            /// Who made the change.
            pub actor: Actor,
        }

        impl EventType for $name {
            const TYPE: &'static str = $type;
        }
    )*};
}

events! {
    /// A todo was created.
    CreatedV1 = "todo.created.v1";
    /// A todo's title, notes, due time, labels or assignee changed.
    UpdatedV1 = "todo.updated.v1";
    /// An open todo was completed.
    CompletedV2 = "todo.completed.v2";
    /// A completed todo was opened again.
    ReopenedV1 = "todo.reopened.v1";
    /// The due time of an open todo has come: once for each time that it comes, and again for one that was opened again or given a
    /// time that has passed. What was overdue before the service could say so is not announced. Where something kept the service from saying so in time, it is said late; what happened to the todo
    /// before that comes first.
    BecameDueV1 = "todo.became_due.v1";
    /// A todo was deleted; the state is its last.
    DeletedV1 = "todo.deleted.v1";
}

/// An open todo was completed, as it was told first: the actor as a bare name. In its sunset, published beside
/// [`CompletedV2`] until no consumer needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CompletedV1 {
    /// The todo after the change.
    pub todo: Todo,
    /// Who completed it.
    pub completed_by: UserId,
}

impl EventType for CompletedV1 {
    const TYPE: &'static str = "todo.completed.v1";
}

/// The upcaster: what version 1 said, told as version 2. Version 1 knew only people.
impl From<CompletedV1> for CompletedV2 {
    fn from(old: CompletedV1) -> Self {
        Self { todo: old.todo, actor: Actor { kind: ActorKind::User, id: old.completed_by } }
    }
}

/// Any event of the todo service, in its newest version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// See [`CreatedV1`].
    Created(CreatedV1),
    /// See [`UpdatedV1`].
    Updated(UpdatedV1),
    /// See [`CompletedV2`].
    Completed(CompletedV2),
    /// See [`ReopenedV1`].
    Reopened(ReopenedV1),
    /// See [`BecameDueV1`].
    BecameDue(BecameDueV1),
    /// See [`DeletedV1`].
    Deleted(DeletedV1),
}

/// Every type that [`Event::decode`] knows.
pub const TYPES: [&str; 7] = [
    CreatedV1::TYPE,
    UpdatedV1::TYPE,
    CompletedV1::TYPE,
    CompletedV2::TYPE,
    ReopenedV1::TYPE,
    BecameDueV1::TYPE,
    DeletedV1::TYPE,
];

impl Event {
    /// Reads the data of a CloudEvent of this type, older versions through their upcaster. `Ok(None)` is a type that
    /// is not known here: to be skipped and counted, never an error.
    ///
    /// # Errors
    /// Fails when the data does not fit the schema of its type.
    pub fn decode(event_type: &str, data: &str) -> Result<Option<Self>, DecodeError> {
        fn read<'a, T: Deserialize<'a>>(event_type: &str, data: &'a str) -> Result<T, DecodeError> {
            serde_json::from_str(data).map_err(|source| DecodeError::Data { event_type: event_type.to_owned(), source })
        }
        Ok(Some(match event_type {
            CreatedV1::TYPE => Self::Created(read(event_type, data)?),
            UpdatedV1::TYPE => Self::Updated(read(event_type, data)?),
            CompletedV1::TYPE => Self::Completed(read::<CompletedV1>(event_type, data)?.into()),
            CompletedV2::TYPE => Self::Completed(read(event_type, data)?),
            ReopenedV1::TYPE => Self::Reopened(read(event_type, data)?),
            BecameDueV1::TYPE => Self::BecameDue(read(event_type, data)?),
            DeletedV1::TYPE => Self::Deleted(read(event_type, data)?),
            _ => return Ok(None),
        }))
    }

    /// The todo after the change.
    #[must_use]
    pub const fn todo(&self) -> &Todo {
        match self {
            Self::Created(e) => &e.todo,
            Self::Updated(e) => &e.todo,
            Self::Completed(e) => &e.todo,
            Self::Reopened(e) => &e.todo,
            Self::BecameDue(e) => &e.todo,
            Self::Deleted(e) => &e.todo,
        }
    }
}
