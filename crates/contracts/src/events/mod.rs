//! The events of the fleet, a module per producing service. Each is one line of its service's registry (`registry::events!`), from
//! which its struct, its type, decoding, schema, sample, owner and the AsyncAPI document follow.

#[macro_use]
mod registry;

use chrono::{DateTime, Utc};
use schemars::generate::SchemaSettings;
use serde_json::Value;

pub use crate::event_type::{Actor, ActorKind, Aggregate, EventType, Superseded, is_name};
use crate::{Envelope, envelope};

/// The modules and their registries.
macro_rules! producers {
    ($($service:ident),*) => {
        $(pub mod $service;)*

        /// Of each service that publishes.
        const REGISTRIES: &[&[Type]] = &[$($service::REGISTRY),*];
    };
}

producers!(identity, todo);

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
