//! What every event type says of itself: its name, what it is about, and on whose behalf a change was made.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::UserId;

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
