//! The events that commands write: each carries the todo and the actor.

use contracts::Envelope;
use contracts::events::EventType;
use contracts::events::todo::{self as event, Actor, Status};
use outbox::NewEvent;
use service::outbox::{self as service_outbox, new_event};
use service::{Call, Failure};

use crate::recurrence::{Basis, Occurrence, Recurrence};
use crate::todo::{State, Todo};

/// The todo as events carry it.
pub(crate) fn state(todo: &Todo) -> event::Todo {
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
        State::Open => (Status::Open, None),
        State::Completed { at } => (Status::Completed, Some(*at)),
    };
    event::Todo {
        id: *id,
        title: title.as_str().to_owned(),
        notes: notes.as_str().to_owned(),
        status,
        due_time: *due_time,
        labels: labels.to_strings(),
        assignee: assignee.clone(),
        recurrence: recurrence.as_ref().map(|Recurrence { pattern, wall_time }| event::Recurrence {
            rule: pattern.rule.as_str().to_owned(),
            time_zone: pattern.time_zone.name().to_owned(),
            basis: match pattern.basis {
                Basis::DueTime => event::Basis::DueTime,
                Basis::Completion => event::Basis::Completion,
            },
            wall_time: *wall_time,
        }),
        occurrence: occurrence.map(|Occurrence { series, number }| event::Occurrence { series_id: series, number }),
        create_time: *create_time,
        update_time: *update_time,
        complete_time,
        created_by: created_by.clone(),
        version: *version,
    }
}

/// One event about `todo`; `data` builds it from the todo's state and the principal on whose behalf the caller acts.
///
/// # Errors
/// The event cannot be serialized.
pub(crate) fn event<D: EventType>(
    call: &Call,
    todo: &Todo,
    data: impl FnOnce(event::Todo, Actor) -> D,
) -> Result<Vec<NewEvent>, Failure> {
    Ok(vec![new_event(&envelope(call, todo, data))?])
}

/// One event in two versions, while the older one is deprecated.
///
/// # Errors
/// The events cannot be serialized.
pub(crate) fn twins<Old: EventType, New: EventType>(
    call: &Call,
    todo: &Todo,
    old: impl FnOnce(event::Todo, Actor) -> Old,
    new: impl FnOnce(event::Todo, Actor) -> New,
) -> Result<Vec<NewEvent>, Failure> {
    service_outbox::twins(envelope(call, todo, old), envelope(call, todo, new))
}

fn envelope<D: EventType>(call: &Call, todo: &Todo, data: impl FnOnce(event::Todo, Actor) -> D) -> Envelope<D> {
    call.envelope(data(state(todo), Actor::from(&call.caller.actor)))
}
