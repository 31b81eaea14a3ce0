//! The events of the fleet, a module per producing service. Each is one line of its service's registry (`registry::events!`), from
//! which its struct, its type, decoding, schema, sample, owner and the AsyncAPI document follow.

#[macro_use]
mod registry;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Envelope, UserId, envelope};

/// The modules and their registries.
macro_rules! producers {
    ($($service:ident),*) => {
        $(pub mod $service;)*

        /// Of each service that publishes.
        const REGISTRIES: &[&[Type]] = &[$($service::REGISTRY),*];
    };
}

producers!(todo);

/// Every event type of the fleet.
pub fn all() -> impl Iterator<Item = &'static Type> {
    REGISTRIES.iter().copied().flatten()
}

/// An event type by its name; none for a type that the fleet does not have.
#[must_use]
pub fn named(event_type: &str) -> Option<&'static Type> {
    all().find(|registered| registered.name == event_type)
}

/// The JSON Schema (2020-12) of an event type, envelope included; none for a type that the fleet does not have.
#[must_use]
pub fn schema(event_type: &str) -> Option<Value> {
    named(event_type).map(|registered| (registered.schema)())
}

/// An event type, as it is registered.
#[derive(Debug, Clone, Copy)]
pub struct Type {
    /// The CloudEvents `type`.
    pub name: &'static str,
    /// The service that publishes it.
    pub service: &'static str,
    /// The owner of the event.
    pub owner: &'static str,
    /// For an older version: the type that superseded it.
    pub superseded_by: Option<&'static str>,
    /// Makes its JSON Schema.
    pub schema: fn() -> Value,
    /// Reads the data of an event of it, for what it is about. Fails when the data does not fit.
    pub state: fn(data: &str) -> Result<State, DecodeError>,
    /// Makes an event of it, for a sample; an older version has its sample already.
    pub sample: Option<fn() -> Value>,
}

impl Type {
    const fn of<D: EventType>(service: &'static str, owner: &'static str, sample: Option<fn() -> Value>) -> Self {
        Self {
            name: D::TYPE,
            service,
            owner,
            superseded_by: D::SUPERSEDED_BY,
            schema: schema_of::<D>,
            state: |data| {
                let data = read::<D>(data)?;
                let about = data.about();
                Ok(State { id: about.id(), version: about.version(), changed: about.changed() })
            },
            sample,
        }
    }
}

/// Which state of an aggregate an event carries; its envelope says the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The aggregate's id.
    pub id: String,
    /// Its version after the change.
    pub version: i32,
    /// When it was changed.
    pub changed: DateTime<Utc>,
}

/// The subject of events. They carry its whole state, so that a projection never has to query for more.
pub trait Aggregate {
    /// Its id.
    fn id(&self) -> String;
    /// Counts its changes, from 1.
    fn version(&self) -> i32;
    /// When it was changed to this state.
    fn changed(&self) -> DateTime<Utc>;
    /// One with every field, for samples.
    fn example() -> Self;
}

/// The data of an event of one type and version.
pub trait EventType: Serialize + DeserializeOwned + JsonSchema {
    /// The CloudEvents `type`: see [`is_name`].
    const TYPE: &'static str;
    /// The CloudEvents `source`: `/flotilla/<service>`.
    const SOURCE: &'static str;
    /// For an older version: the type that superseded it.
    const SUPERSEDED_BY: Option<&'static str>;
    /// What it is about.
    type About: Aggregate;
    /// What it is about, as it was after the change.
    fn about(&self) -> &Self::About;
}

/// The data of an older version of an event.
pub trait Superseded: EventType {
    /// The version that superseded it, with the upcaster from this one.
    type By: EventType + From<Self>;
}

/// Refuses a type whose name does not have the form that subjects need, or is another service's. The registry checks each type
/// at compile time.
///
/// ```
/// const _: () = contracts::events::check("identity.member_added.v1", "identity");
/// ```
///
/// Consumers subscribe to `evt.identity.*.*.acme`, so that the event is one token:
///
/// ```compile_fail
/// const _: () = contracts::events::check("identity.member.added.v1", "identity");
/// ```
///
/// # Panics
/// The name is refused.
pub const fn check(event_type: &str, service: &str) {
    assert!(is_name(event_type), "an event type is named <service>.<event>.v<N>, in lower case, the event one token");
    let (event_type, service) = (event_type.as_bytes(), service.as_bytes());
    let mut at = 0;
    while at < service.len() && at < event_type.len() && event_type[at] == service[at] {
        at += 1;
    }
    assert!(at == service.len() && event_type[at] == b'.', "an event type begins with the name of its service");
}

/// Whether a text is `<service>.<event>.v<N>`, all lower case: the service a letter and then letters, digits and single `-`, the event
/// the same with `_`, also where the service has several aggregates: `identity.member_added.v1`.
#[must_use]
pub const fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    // The previous character: `.` at the beginning of a token.
    let (mut at, mut token, mut before) = (0, 0, b'.');
    while at < bytes.len() {
        let byte = bytes[at];
        let begins = before == b'.';
        let joins = before == b'-' || before == b'_';
        let fits = match token {
            _ if byte == b'.' => token < 2 && !begins && !joins,
            0 | 1 if byte.is_ascii_lowercase() => true,
            0 | 1 if byte.is_ascii_digit() => !begins,
            0 if byte == b'-' => !begins && !joins,
            1 if byte == b'_' => !begins && !joins,
            2 if byte == b'v' => begins,
            2 if before == b'v' => byte.is_ascii_digit() && byte != b'0',
            2 => byte.is_ascii_digit() && !begins,
            _ => false,
        };
        if !fits {
            return false;
        }
        if byte == b'.' {
            token += 1;
        }
        before = byte;
        at += 1;
    }
    token == 2 && before.is_ascii_digit()
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
        event_type: &'static str,
        /// Where it does not fit.
        #[source]
        source: serde_json::Error,
    },
}

fn read<D: EventType>(data: &str) -> Result<D, DecodeError> {
    serde_json::from_str(data).map_err(|source| DecodeError::Data { event_type: D::TYPE, source })
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
pub mod berth;

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
            "todo.member__added.v1",
            "todo.added_.v1",
            "todo-.added.v1",
            "todo.added.v1v",
            "todo.added.v",
            "todo.added.v1.v1",
        ] {
            assert!(!super::is_name(name), "{name}");
        }
    }
}
