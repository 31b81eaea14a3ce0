//! What a logbook is and what may happen to it. Pure: the time and new ids are arguments.

use chrono::{DateTime, Utc};
use contracts::UserId;
use contracts::events::harbour::{LogbookId, VesselId};

use crate::texts::Notes;

/// The logbook of a vessel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logbook {
    /// Its id.
    pub id: LogbookId,
    /// Whose it is.
    pub vessel_id: VesselId,
    /// What stands in it.
    pub notes: Notes,
    /// When it was created.
    pub create_time: DateTime<Utc>,
    /// When it was last changed.
    pub update_time: DateTime<Utc>,
    /// Who created the vessel.
    pub created_by: UserId,
    /// Counts the changes, from 1.
    pub version: i32,
}

/// What is to change; `None` stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogbookPatch {
    /// New notes.
    pub notes: Option<Notes>,
}

/// Which logbooks to list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogbookFilter {
    /// Only that of this vessel.
    pub vessel_id: Option<VesselId>,
}

impl Logbook {
    /// A new logbook of a vessel that `by` has created.
    #[must_use]
    pub fn create(id: LogbookId, vessel_id: VesselId, by: UserId, now: DateTime<Utc>) -> Self {
        Self {
            id,
            vessel_id,
            notes: Notes::default(),
            create_time: now,
            update_time: now,
            created_by: by,
            version: 1,
        }
    }

    /// The logbook with the patch applied; `None` when that changes nothing.
    #[must_use]
    pub fn update(&self, patch: LogbookPatch, now: DateTime<Utc>) -> Option<Self> {
        let LogbookPatch { notes } = patch;
        let new = Self { notes: notes.unwrap_or_else(|| self.notes.clone()), ..self.clone() };
        (new != *self).then(|| new.changed(now))
    }

    /// Its last version: whoever holds it knows that it is gone.
    #[must_use]
    pub fn delete(&self, now: DateTime<Utc>) -> Self {
        self.changed(now)
    }

    /// Its last version, without what it held.
    #[must_use]
    pub fn erase(&self, now: DateTime<Utc>) -> Self {
        Self { notes: Notes::default(), created_by: UserId::erased(), ..self.changed(now) }
    }

    /// Without this person; `None` where it does not name it.
    #[must_use]
    pub fn forget(&self, person: &UserId, now: DateTime<Utc>) -> Option<Self> {
        (self.created_by == *person).then(|| Self { created_by: UserId::erased(), ..self.changed(now) })
    }

    /// Changes with every version.
    #[must_use]
    pub fn etag(&self) -> String {
        format!("v{}", self.version)
    }

    fn changed(&self, now: DateTime<Utc>) -> Self {
        // Time never runs backwards within an aggregate, whatever the clock does.
        Self { version: self.version + 1, update_time: now.max(self.update_time), ..self.clone() }
    }
}
