//! The durable consumers of the fleet: what a service's row says about each, from which the rest follows.

use std::time::Duration;

use consumer::{Config, Mode};
use contracts::events::{identity, todo};
use contracts::subject;

use crate::{PROJECTOR, REBUILDER};

/// The configuration of a durable consumer.
#[derive(Debug, Clone, Copy)]
pub struct Durable {
    /// Its name.
    pub name: &'static str,
    /// The service whose events it reads.
    pub of: &'static str,
    /// The types of these events.
    pub types: &'static [&'static str],
    /// How its events are handed over.
    pub mode: Mode,
    /// The limit of time for one event; none if the handler waits by itself.
    pub handle_within: Option<Duration>,
    /// Whether a task makes it and removes it afterwards.
    pub on_demand: bool,
}

/// A durable consumer whose effects are in the service's own database: in order for each aggregate.
pub(crate) const fn handler(name: &'static str, of: &'static str, types: &'static [&'static str]) -> Durable {
    Durable {
        name,
        of,
        types,
        mode: Mode::Ordered { at_once: 4 },
        handle_within: Some(Duration::from_secs(15)),
        on_demand: false,
    }
}

/// A durable consumer by which a service learns which tenants are suspended or erased (`service::tenants_events`). It takes all that identity
/// publishes: a consumer of rare events alone looks as if it had missed what the stream drops by age.
pub(crate) const fn tenants(name: &'static str) -> Durable {
    Durable { mode: Mode::Ordered { at_once: 2 }, ..handler(name, identity::SERVICE, identity::TYPES) }
}

/// A durable consumer that fills an index.
const fn projection(name: &'static str, of: &'static str, types: &'static [&'static str]) -> Durable {
    Durable {
        mode: Mode::Batches {
            size: 1_000,
            // Little beside the index's refresh interval; a bulk costs OpenSearch a disk flush however few are in it.
            linger: Duration::from_millis(20),
            // Documents are guarded by version, so bulk requests may overtake each other.
            in_flight: 3,
        },
        // It waits for the index by itself.
        handle_within: None,
        ..handler(name, of, types)
    }
}

/// Fills the index that is searched.
pub const PROJECTION: Durable = projection(PROJECTOR, todo::SERVICE, todo::TYPES);
/// Fills an index that is being rebuilt.
pub const REBUILD: Durable = Durable { on_demand: true, ..projection(REBUILDER, todo::SERVICE, todo::TYPES) };

impl Durable {
    /// As this release asks for it.
    #[must_use]
    pub fn config(&self, version: String) -> Config {
        Config {
            mode: self.mode,
            handle_within: self.handle_within,
            version,
            ..Config::ordered(subject::stream(self.of), self.name, self.filter(), self.types.iter().copied())
        }
    }

    /// Every version of the one event that it handles; for several events, all that the service publishes.
    fn filter(&self) -> String {
        let event = |event_type: &&'static str| event_type.split('.').nth(1).unwrap_or_default();
        let first = self.types.first().map_or("", event);
        if self.types.iter().all(|event_type| event(event_type) == first) {
            format!("evt.{}.{first}.>", self.of)
        } else {
            subject::all(self.of)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::services::{durable, durables};

    #[test]
    fn each_has_a_name_of_its_own_and_handles_what_is_published() {
        assert_eq!(durables().map(|durable| durable.name).collect::<BTreeSet<_>>().len(), durables().count());
        for durable in durables() {
            for name in durable.types {
                let registered = contracts::events::named(name).map(|registered| registered.service);
                assert_eq!(registered, Some(durable.of), "{name} of {}", durable.name);
            }
        }
    }

    #[test]
    fn one_event_is_subscribed_to_by_its_name() {
        assert_eq!(durable("todo-recurrence").map(Durable::filter).as_deref(), Some("evt.todo.completed.>"));
        assert_eq!(PROJECTION.filter(), "evt.todo.>");
    }
}
