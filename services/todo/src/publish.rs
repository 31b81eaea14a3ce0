//! What the service tells: a change as a CloudEvent, for the outbox.

use authz::Principal;
use contracts::envelope::{self, Envelope};
use contracts::events::EventType;
use contracts::events::todo::{self as event, Actor, ActorKind, Status};
use contracts::{EventId, subject};
use outbox::NewEvent;
use service::{Failure, clock, telemetry};

use crate::todo::{State, Todo};

/// The `type` of an event.
pub(crate) const fn type_of<D: EventType>() -> &'static str {
    D::TYPE
}

/// The todo as events carry it.
pub(crate) fn state(todo: &Todo) -> event::Todo {
    let (status, complete_time) = match todo.state {
        State::Open => (Status::Open, None),
        State::Completed { at } => (Status::Completed, Some(at)),
    };
    event::Todo {
        id: todo.id,
        title: todo.title.as_str().to_owned(),
        notes: todo.notes.as_str().to_owned(),
        status,
        due_time: todo.due_time,
        labels: todo.labels.to_strings(),
        assignee: todo.assignee.clone(),
        create_time: todo.create_time,
        update_time: todo.update_time,
        complete_time,
        created_by: todo.created_by.clone(),
        version: todo.version,
    }
}

/// The caller as the one who made the change.
pub(crate) fn actor(who: &Principal) -> Actor {
    Actor { kind: ActorKind::User, id: who.user.clone() }
}

/// One event about `todo`.
///
/// # Errors
/// Fails when it cannot be serialized.
pub(crate) fn event<D: EventType>(
    who: &Principal,
    todo: &Todo,
    data: &D,
    superseded_by: Option<&str>,
) -> Result<NewEvent, Failure> {
    let aggregate = todo.id.to_string();
    let id = clock::new_id();
    let traceparent = telemetry::traceparent();
    let envelope = Envelope {
        specversion: "1.0".to_owned(),
        id: EventId::new(id),
        source: event::SOURCE.to_owned(),
        event_type: D::TYPE.to_owned(),
        subject: aggregate.clone(),
        time: todo.update_time,
        datacontenttype: "application/json".to_owned(),
        dataschema: envelope::schema_id(D::TYPE),
        sequence: envelope::sequence(todo.version),
        partitionkey: aggregate.clone(),
        tenant: who.tenant.clone(),
        supersededby: superseded_by.map(ToOwned::to_owned),
        traceparent: traceparent.clone(),
        tracestate: None,
        data,
    };
    let payload = serde_json::to_vec(&envelope).map_err(Failure::internal)?;
    Ok(NewEvent {
        id,
        tenant: who.tenant.to_string(),
        aggregate_id: aggregate,
        subject: subject::of(D::TYPE, &who.tenant),
        traceparent,
        payload,
    })
}
