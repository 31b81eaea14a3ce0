//! The events of a service that tests alone know: each thing that a registry can say, once.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Actor, ActorKind, Aggregate, DecodeError, EventType as _};

events! {
    service "berth", owner "harbour";

    ship: Ship {
        /// A ship was entered in the register.
        Entered = EnteredV1 "berth.ship_entered.v1";
        /// A ship made fast.
        Moored is MooredV3 "berth.ship_moored.v3" before MooredV2 "berth.ship_moored.v2" before MooredV1: Boat "berth.ship_moored.v1";
    }

    quay: Quay {
        /// A quay was closed.
        Closed = ClosedV1 "berth.quay_closed.v1";
    }
}

/// A ship after a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ship {
    /// Its name.
    pub name: String,
    /// In centimetres.
    pub length: i32,
    /// Counts the changes, from 1.
    pub version: i32,
}

/// A ship, as it was before its length was known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Boat {
    /// Its name.
    pub name: String,
    /// Counts the changes, from 1.
    pub version: i32,
}

/// A quay after a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Quay {
    /// Its number.
    pub number: i32,
}

/// A ship made fast, at which quay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MooredV3 {
    /// The ship after the change.
    pub ship: Ship,
    /// Where it lies.
    pub quay: Option<i32>,
    /// Who made the change.
    pub actor: Actor,
}

/// A ship made fast.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MooredV2 {
    /// The ship after the change.
    pub ship: Ship,
    /// Who made the change.
    pub actor: Actor,
}

/// A ship made fast, as a boat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MooredV1 {
    /// The ship after the change.
    pub ship: Boat,
}

impl MooredV3 {
    const fn of(ship: Ship, actor: Actor) -> Self {
        Self { ship, quay: Some(7), actor }
    }
}

impl From<MooredV2> for MooredV3 {
    fn from(MooredV2 { ship, actor }: MooredV2) -> Self {
        Self { ship, quay: None, actor }
    }
}

impl From<MooredV1> for MooredV2 {
    fn from(MooredV1 { ship: Boat { name, version } }: MooredV1) -> Self {
        let actor = Actor { kind: ActorKind::Service, id: crate::UserId::example() };
        Self { ship: Ship { name, length: 0, version }, actor }
    }
}

impl Aggregate for Ship {
    fn id(&self) -> String {
        self.name.clone()
    }

    fn version(&self) -> i32 {
        self.version
    }

    fn changed(&self) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH
    }

    fn example() -> Self {
        Self { name: "Passat".to_owned(), length: 11_500, version: 2 }
    }
}

impl Aggregate for Boat {
    fn id(&self) -> String {
        self.name.clone()
    }

    fn version(&self) -> i32 {
        self.version
    }

    fn changed(&self) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH
    }

    fn example() -> Self {
        Self { name: "Passat".to_owned(), version: 2 }
    }
}

impl Aggregate for Quay {
    fn id(&self) -> String {
        self.number.to_string()
    }

    fn version(&self) -> i32 {
        1
    }

    fn changed(&self) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH
    }

    fn example() -> Self {
        Self { number: 7 }
    }
}

mod tests {
    use super::*;
    use crate::events::State;

    #[test]
    fn each_version_is_read_as_the_newest_one_through_those_between() -> Result<(), DecodeError> {
        let old = r#"{"ship": {"name": "Pamir", "version": 4}}"#;
        let Some(Event::Moored(moored)) = Event::decode("berth.ship_moored.v1", old)? else { panic!("not moored") };
        let ship = Ship { name: "Pamir".to_owned(), length: 0, version: 4 };
        let actor = Actor { kind: ActorKind::Service, id: crate::UserId::example() };
        assert_eq!(moored, MooredV3 { ship, quay: None, actor });
        Ok(())
    }

    #[test]
    fn each_version_names_the_one_that_superseded_it() {
        let chain: Vec<_> = REGISTRY.iter().map(|one| (one.name, one.superseded_by)).collect();
        assert_eq!(
            chain,
            [
                ("berth.ship_entered.v1", None),
                ("berth.ship_moored.v2", Some("berth.ship_moored.v3")),
                ("berth.ship_moored.v1", Some("berth.ship_moored.v2")),
                ("berth.ship_moored.v3", None),
                ("berth.quay_closed.v1", None),
            ]
        );
        assert_eq!(chain.iter().map(|(name, _)| *name).collect::<Vec<_>>(), TYPES);
        assert!(REGISTRY.iter().all(|one| one.service == SERVICE && one.owner == OWNER));
        assert_eq!(MooredV1::SOURCE, SOURCE);
    }

    #[test]
    fn an_event_is_about_the_aggregate_of_its_block() -> Result<(), DecodeError> {
        let sample =
            |name: &str| REGISTRY.iter().find(|one| one.name == name).and_then(|one| one.sample).map(|make| make());
        let data = |name: &str| sample(name).unwrap_or_default()["data"].to_string();
        let closed = Event::decode(ClosedV1::TYPE, &data(ClosedV1::TYPE))?;
        assert_eq!(closed.as_ref().map(Event::about), Some(About::Quay(&Quay::example())));
        let moored = Event::decode(MooredV3::TYPE, &data(MooredV3::TYPE))?;
        assert_eq!(moored.as_ref().map(Event::about), Some(About::Ship(&Ship::example())));
        Ok(())
    }

    #[test]
    fn an_older_version_is_about_the_aggregate_of_its_time() -> Result<(), DecodeError> {
        let of = |name: &str| REGISTRY.iter().find(|one| one.name == name).map(|one| one.state);
        let state = of("berth.ship_moored.v1").map(|read| read(r#"{"ship": {"name": "Pamir", "version": 4}}"#));
        let expected = State { id: "Pamir".to_owned(), version: 4, changed: DateTime::UNIX_EPOCH };
        assert_eq!(state.transpose()?, Some(expected));
        assert!(
            of("berth.ship_moored.v2")
                .is_some_and(|read| read(r#"{"ship": {"name": "Pamir", "version": 4}}"#).is_err())
        );
        Ok(())
    }

    #[test]
    fn samples_differ_by_their_ids() {
        let mut ids: Vec<_> =
            REGISTRY.iter().filter_map(|one| one.sample).map(|make| make()["id"].to_string()).collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all);
    }
}
