//! The events of the fleet, a module per producing service. Each is one line of its service's registry (`registry::events!`), from
//! which its struct, its type, decoding, schema, sample, owner and the AsyncAPI document follow.

#[macro_use]
mod registry;

pub mod todo;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Envelope, UserId, envelope};

/// Every event type of the fleet.
pub fn all() -> impl Iterator<Item = &'static Type> {
    todo::REGISTRY.iter()
}

/// The JSON Schema (2020-12) of an event type, envelope included; none for a type that the fleet does not have.
#[must_use]
pub fn schema(event_type: &str) -> Option<Value> {
    all().find(|registered| registered.name == event_type).map(|registered| (registered.schema)())
}

/// An event type, as it is registered.
#[derive(Debug, Clone, Copy)]
pub struct Type {
    /// The CloudEvents `type`.
    pub name: &'static str,
    /// The service that publishes it.
    pub service: &'static str,
    /// Who answers for it.
    pub owner: &'static str,
    /// Of an older version: the type that tells the same.
    pub superseded_by: Option<&'static str>,
    /// Makes its JSON Schema.
    pub schema: fn() -> Value,
    /// Makes an event of it, for a sample; an older version has its sample already.
    pub sample: Option<fn() -> Value>,
}

/// What events are about. They carry its whole state, so that a projection never has to ask back.
pub trait Aggregate {
    /// Its id.
    fn id(&self) -> String;
    /// Counts its changes, from 1.
    fn version(&self) -> i32;
    /// When it was changed to be so.
    fn changed(&self) -> DateTime<Utc>;
    /// One with every field, for samples.
    fn example() -> Self;
}

/// The data of an event of one type and version. Its name is checked when an [`Envelope`] of it is made, by the compiler.
///
/// ```compile_fail
/// # use contracts::{Envelope, events::{self, EventType, todo::{Actor, ReopenedV1, Todo}}};
/// # #[derive(serde::Serialize, schemars::JsonSchema)]
/// struct Renamed { todo: Todo }
/// impl EventType for Renamed {
///     // Consumers subscribe to `evt.todo.*.*.acme`: the event is one token.
///     const TYPE: &'static str = "todo.title.changed.v1";
///     const SOURCE: &'static str = events::todo::SOURCE;
///     type About = Todo;
///     fn about(&self) -> &Todo { &self.todo }
/// }
/// fn main() { events::check::<Renamed>(); }
/// ```
///
/// ```
/// # use contracts::events::{self, todo::CreatedV1};
/// events::check::<CreatedV1>();
/// ```
pub trait EventType: Serialize + JsonSchema {
    /// The CloudEvents `type`: `<service>.<event>.v<N>`. The event is one token, in snake case, also where the service has several
    /// aggregates: `identity.member_added.v1`.
    const TYPE: &'static str;
    /// The CloudEvents `source`: `/flotilla/<service>`.
    const SOURCE: &'static str;
    /// What it is about.
    type About: Aggregate;
    /// What it is about, as it was after the change.
    fn about(&self) -> &Self::About;
}

/// Refuses, when it is compiled, an event type whose name is not of the form that subjects are made of.
pub const fn check<D: EventType>() {
    const { assert!(is_name(D::TYPE), "an event type is named <service>.<event>.v<N>, in lower case, the event one token") }
}

/// Whether a text is `<service>.<event>.v<N>`: each a letter and then letters, digits and `_` (of a service `-`), all lower case.
#[must_use]
pub const fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (mut at, mut token, mut length) = (0, 0, 0);
    while at < bytes.len() {
        let byte = bytes[at];
        let fits = match (token, length) {
            (_, _) if byte == b'.' => length > 0 && token < 2,
            (0 | 1, 0) => byte.is_ascii_lowercase(),
            (0, _) => byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-',
            (1, _) => byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_',
            (_, 0) => byte == b'v',
            (_, 1) => byte.is_ascii_digit() && byte != b'0',
            _ => byte.is_ascii_digit(),
        };
        if !fits {
            return false;
        }
        (token, length) = if byte == b'.' { (token + 1, 0) } else { (token, length + 1) };
        at += 1;
    }
    token == 2 && length >= 2
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

/// Why an event could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The data is not what the schema of its type says.
    #[error("the data of a {event_type} does not fit its schema")]
    Data {
        /// The CloudEvents `type`.
        event_type: String,
        /// Where it does not fit.
        #[source]
        source: serde_json::Error,
    },
}

fn read<'a, T: Deserialize<'a>>(event_type: &str, data: &'a str) -> Result<T, DecodeError> {
    serde_json::from_str(data).map_err(|source| DecodeError::Data { event_type: event_type.to_owned(), source })
}

fn schema_of<D: EventType>() -> Value {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Envelope<D>>().to_value();
    schema["$id"] = envelope::schema_id(D::TYPE).into();
    schema["title"] = D::TYPE.into();
    schema["properties"]["type"]["const"] = D::TYPE.into();
    schema["properties"]["source"]["const"] = D::SOURCE.into();
    schema
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_event_type_has_three_tokens() {
        for name in ["todo.created.v1", "identity.member_added.v12", "search-projector.rebuilt2.v3"] {
            assert!(super::is_name(name), "{name}");
        }
        for name in [
            "",
            "todo",
            "todo.created",
            "todo.created.v",
            "todo.created.v0",
            "todo.created.1",
            "todo.created.v1.",
            "todo..v1",
            ".created.v1",
            "todo.member.added.v1",
            "todo.Created.v1",
            "todo.member-added.v1",
            "todo.created.v1x",
            "todo.*.v1",
            "todo.2nd.v1",
            "to do.created.v1",
        ] {
            assert!(!super::is_name(name), "{name}");
        }
    }
}
