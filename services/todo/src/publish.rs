//! What the service tells: a change as a CloudEvent, for the outbox.

use authz::Principal;
use contracts::envelope::{self, Envelope};
use contracts::events::EventType;
use contracts::events::todo::{self as event, Actor, ActorKind, Status};
use contracts::{EventId, subject};
use outbox::NewEvent;
use service::{Failure, clock, telemetry};

use crate::todo::{State, Todo};

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
pub(crate) fn event<D: EventType>(who: &Principal, todo: &Todo, data: &D) -> Result<NewEvent, Failure> {
    new_event(&envelope(who, todo, data))
}

/// One event in two versions, while the older one is in its sunset: each names the other, so that consumers take them for one.
///
/// # Errors
/// Fails when they cannot be serialized.
pub(crate) fn twins<Old: EventType, New: EventType>(
    who: &Principal,
    todo: &Todo,
    old: &Old,
    new: &New,
) -> Result<Vec<NewEvent>, Failure> {
    let (mut old, mut new) = (envelope(who, todo, old), envelope(who, todo, new));
    (old.twinof, old.supersededby) = (Some(new.id), Some(New::TYPE.to_owned()));
    (new.twinof, new.supersedes) = (Some(old.id), Some(Old::TYPE.to_owned()));
    Ok(vec![new_event(&old)?, new_event(&new)?])
}

fn envelope<'a, D: EventType>(who: &Principal, todo: &Todo, data: &'a D) -> Envelope<&'a D> {
    let aggregate = todo.id.to_string();
    Envelope {
        specversion: "1.0".to_owned(),
        id: EventId::new(clock::new_id()),
        source: event::SOURCE.to_owned(),
        event_type: D::TYPE.to_owned(),
        subject: aggregate.clone(),
        time: todo.update_time,
        datacontenttype: "application/json".to_owned(),
        dataschema: envelope::schema_id(D::TYPE),
        sequence: envelope::sequence(todo.version),
        partitionkey: aggregate,
        tenant: who.tenant.clone(),
        twinof: None,
        supersededby: None,
        supersedes: None,
        traceparent: telemetry::traceparent(),
        tracestate: None,
        data,
    }
}

fn new_event<D: serde::Serialize>(envelope: &Envelope<D>) -> Result<NewEvent, Failure> {
    Ok(NewEvent {
        id: envelope.id.uuid(),
        tenant: envelope.tenant.to_string(),
        aggregate_id: envelope.partitionkey.clone(),
        subject: subject::of(&envelope.event_type, &envelope.tenant),
        traceparent: envelope.traceparent.clone(),
        payload: serde_json::to_vec(envelope).map_err(Failure::internal)?,
    })
}
