//! The events of the harbour service: one struct per event version, one [`Event`] to match on.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Aggregate;
use crate::UserId;

pub use super::{Actor, ActorKind};

events! {
    service "harbour", owner "harbourmaster";

    vessel: Vessel {
        /// A vessel was created.
        VesselCreated = VesselCreatedV1 "harbour.vessel_created.v1";
        /// A vessel's name or notes changed.
        VesselUpdated = VesselUpdatedV1 "harbour.vessel_updated.v1";
        /// A vessel was deleted; the state is its last.
        VesselDeleted = VesselDeletedV1 "harbour.vessel_deleted.v1";
    }

    logbook: Logbook {
        /// A vessel got its logbook.
        LogbookCreated = LogbookCreatedV1 "harbour.logbook_created.v1";
        /// A logbook's notes changed.
        LogbookUpdated = LogbookUpdatedV1 "harbour.logbook_updated.v1";
        /// A logbook was deleted with its vessel; the state is its last.
        LogbookDeleted = LogbookDeletedV1 "harbour.logbook_deleted.v1";
    }
}

uuid_ids! {
    /// A vessel.
    VesselId: "the id of a vessel";
    /// A logbook.
    LogbookId: "the id of a logbook";
}

/// A vessel as it stood after a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Vessel {
    /// The vessel's id.
    pub id: VesselId,
    /// Its name: 1 to 200 characters.
    pub name: String,
    /// More about it: up to 10,000 characters.
    pub notes: String,
    /// When it was created.
    pub create_time: DateTime<Utc>,
    /// When it was changed to be so.
    pub update_time: DateTime<Utc>,
    /// Who created it.
    pub created_by: UserId,
    /// Counts the changes, from 1.
    #[schemars(range(min = 1))]
    pub version: i32,
}

/// A logbook as it stood after a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Logbook {
    /// The logbook's id.
    pub id: LogbookId,
    /// Whose it is.
    pub vessel_id: VesselId,
    /// What stands in it: up to 10,000 characters.
    pub notes: String,
    /// When it was created.
    pub create_time: DateTime<Utc>,
    /// When it was changed to be so.
    pub update_time: DateTime<Utc>,
    /// Who created the vessel.
    pub created_by: UserId,
    /// Counts the changes, from 1.
    #[schemars(range(min = 1))]
    pub version: i32,
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_795_000_000 + seconds, 0).unwrap_or_default()
}

impl Aggregate for Vessel {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn version(&self) -> i32 {
        self.version
    }

    fn changed(&self) -> DateTime<Utc> {
        self.update_time
    }

    fn example() -> Self {
        Self {
            id: VesselId::new(Uuid::from_u128(0x0193_a5b0_7a52_7c3e_9b1e_6a1f_0c9d_2e4f)),
            name: "Passat".to_owned(),
            notes: "Ask Jörg first.".to_owned(),
            create_time: at(0),
            update_time: at(3_600),
            created_by: UserId::example(),
            version: 2,
        }
    }
}

impl Aggregate for Logbook {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn version(&self) -> i32 {
        self.version
    }

    fn changed(&self) -> DateTime<Utc> {
        self.update_time
    }

    fn example() -> Self {
        Self {
            id: LogbookId::new(Uuid::from_u128(0x0193_a5b0_7a52_7c3e_9b1e_6a1f_0c9d_2e50)),
            vessel_id: Vessel::example().id,
            notes: "Nothing to report.".to_owned(),
            create_time: at(1),
            update_time: at(7_200),
            created_by: UserId::example(),
            version: 2,
        }
    }
}
