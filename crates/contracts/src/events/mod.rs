//! The events of the fleet, a module per producing service.

pub mod todo;

/// What all event types share: their name and version, as in the CloudEvents `type`.
pub trait EventType: serde::Serialize {
    /// `<service>.<event>.v<N>`
    const TYPE: &'static str;
}

impl<T: EventType> EventType for &T {
    const TYPE: &'static str = T::TYPE;
}

/// The JSON Schema (2020-12) of an event type, envelope included; none for a type that the fleet does not have.
#[must_use]
pub fn schema(event_type: &str) -> Option<&'static str> {
    macro_rules! schemas {
        ($($name:literal)*) => {
            match event_type {
                $($name => Some(include_str!(concat!("../../../../schemas/", $name, ".json"))),)*
                _ => None,
            }
        };
    }
    schemas!("todo.created.v1" "todo.updated.v1" "todo.completed.v1" "todo.completed.v2" "todo.reopened.v1" "todo.became_due.v1" "todo.deleted.v1")
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
