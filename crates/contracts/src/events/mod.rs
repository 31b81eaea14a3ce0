//! The events of the fleet, a module per producing service.

pub mod todo;

/// What all event types share: their name and version, as in the CloudEvents `type`.
pub trait EventType: serde::Serialize {
    /// `<service>.<event>.v<N>`
    const TYPE: &'static str;
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
