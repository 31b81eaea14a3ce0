//! Who acts, and for whom: a chain as in the `act` claim of RFC 8693, 4.1, as a token, a call, an event and a log line carry it.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::UserId;

/// The longest chain.
pub const MAX_CHAIN: usize = 4;

/// What kind of actor it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActorKind {
    /// A person.
    User,
    /// A program of a tenant's own, with a key.
    ServiceAccount,
    /// A service of the fleet.
    Service,
    /// A program that acts for somebody else.
    Agent,
}

impl ActorKind {
    const ALL: [Self; 4] = [Self::User, Self::ServiceAccount, Self::Service, Self::Agent];

    /// As tokens and events spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::ServiceAccount => "service_account",
            Self::Service => "service",
            Self::Agent => "agent",
        }
    }
}

/// An actor and those it acts for. As text the one that acts comes first: `agent:planner user:ann`; a space or a percent sign in an
/// id is percent-encoded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "ActorText", rename = "ActorChain")]
pub struct Actor {
    /// What it is.
    pub kind: ActorKind,
    /// Its id: the `sub` of a token, or the name of a service.
    pub id: UserId,
    /// Whom it acts for; none on its own behalf.
    pub acts_for: Option<Box<Actor>>,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "the schema of an actor's text")]
struct ActorText(#[schemars(regex(pattern = r"^[a-z_]+:[^ ]+( [a-z_]+:[^ ]+)*$"))] String);

/// A text that names no actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "an actor is one to {MAX_CHAIN} of kind:id with spaces between, the one that acts first; a kind is user, service_account, service or agent"
)]
pub struct ActorError;

impl Actor {
    /// One that acts on its own behalf.
    #[must_use]
    pub const fn new(kind: ActorKind, id: UserId) -> Self {
        Self { kind, id, acts_for: None }
    }

    /// The actors of the chain, the one that acts first.
    pub fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |actor| actor.acts_for.as_deref())
    }

    /// The id alone of a person who acts on its own behalf, unless that reads like a chain; else the chain.
    #[must_use]
    pub fn name(&self) -> String {
        if self.is_person() && self.id.as_str().parse::<Self>().is_err() {
            self.id.to_string()
        } else {
            self.to_string()
        }
    }

    /// Whether it is a person who acts on its own behalf.
    #[must_use]
    pub fn is_person(&self) -> bool {
        self.kind == ActorKind::User && self.acts_for.is_none()
    }

    /// On whose behalf it is done in the end: the last of the chain.
    #[must_use]
    pub fn subject(&self) -> &Self {
        self.chain().last().unwrap_or(self)
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, actor) in self.chain().enumerate() {
            let id = actor.id.as_str().replace('%', "%25").replace(' ', "%20");
            let space = if number == 0 { "" } else { " " };
            write!(f, "{space}{}:{id}", actor.kind.as_str())?;
        }
        Ok(())
    }
}

impl FromStr for Actor {
    type Err = ActorError;

    fn from_str(text: &str) -> Result<Self, ActorError> {
        let mut chain: Option<Self> = None;
        for (number, part) in text.split(' ').rev().enumerate() {
            let (kind, id) = part.split_once(':').filter(|_| number < MAX_CHAIN).ok_or(ActorError)?;
            let kind = ActorKind::ALL.into_iter().find(|known| known.as_str() == kind).ok_or(ActorError)?;
            let id = id.replace("%20", " ").replace("%25", "%").parse().map_err(|_| ActorError)?;
            chain = Some(Self { kind, id, acts_for: chain.map(Box::new) });
        }
        chain.ok_or(ActorError)
    }
}

/// Reads an actor; one of a kind that only a newer release knows is none here, and no fault of the event's.
///
/// # Errors
/// It is no text.
pub fn known<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Actor>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.and_then(|text| text.parse().ok()))
}

impl TryFrom<String> for Actor {
    type Error = ActorError;

    fn try_from(text: String) -> Result<Self, ActorError> {
        text.parse()
    }
}

impl From<Actor> for String {
    fn from(actor: Actor) -> Self {
        actor.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn actor() -> impl Strategy<Value = Actor> {
        let one = (prop::sample::select(&ActorKind::ALL), "[a-z %:]{1,5}");
        prop::collection::vec(one, 1..=MAX_CHAIN).prop_map(|chain| {
            let link = |rest: Option<Actor>, (kind, id): (ActorKind, String)| {
                Some(Actor { kind, id: id.parse().unwrap(), acts_for: rest.map(Box::new) })
            };
            chain.into_iter().fold(None, link).unwrap()
        })
    }

    proptest! {
        #[test]
        fn an_actor_is_read_as_it_was_written(actor in actor()) {
            prop_assert_eq!(actor.to_string().parse::<Actor>().unwrap(), actor);
        }
    }

    #[test]
    fn the_one_that_acts_comes_first() {
        let agent: Actor = "agent:planner user:ann".parse().unwrap();
        assert_eq!((agent.kind, agent.id.as_str()), (ActorKind::Agent, "planner"));
        assert_eq!((agent.subject().kind, agent.subject().id.as_str()), (ActorKind::User, "ann"));
        assert_eq!(agent.subject().subject(), agent.subject());
    }

    #[test]
    fn a_name_is_never_taken_for_somebody_else() {
        let person = |id: &str| Actor::new(ActorKind::User, id.parse().unwrap());
        assert_eq!(person("ann").name(), "ann");
        assert_eq!(person("agent:planner user:ann").name(), "user:agent:planner%20user:ann");
    }

    #[test]
    fn what_names_no_actor_is_refused() {
        for text in ["", "ann", "person:ann", "user:", " user:ann", "user:a user:b user:c user:d user:e"] {
            assert_eq!(text.parse::<Actor>(), Err(ActorError), "{text:?}");
        }
    }
}
