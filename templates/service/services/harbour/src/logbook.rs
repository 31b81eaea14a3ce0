//! The logbook and its changes. Pure: the time and new ids are arguments.

use chrono::{DateTime, Utc};
use contracts::UserId;
use contracts::events::harbour::{LogbookId, VesselId};

use crate::texts::Notes;

/// The logbook of a vessel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logbook {
    /// Its id.
    pub id: LogbookId,
    /// The vessel that it belongs to.
    pub vessel_id: VesselId,
    /// The text in it.
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

/// The changes; `None` keeps a field.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogbookPatch {
    /// New notes.
    pub notes: Option<Notes>,
}

/// Which logbooks to list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogbookFilter {
    /// Only the logbook of this vessel.
    pub vessel_id: Option<VesselId>,
}

impl Logbook {
    /// A new logbook of a vessel that `by` created.
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

    /// Its last version, which marks it as gone.
    #[must_use]
    pub fn delete(&self, now: DateTime<Utc>) -> Self {
        self.changed(now)
    }

    /// Its last version, with its contents erased.
    #[must_use]
    pub fn erase(&self, now: DateTime<Utc>) -> Self {
        Self { notes: Notes::default(), created_by: UserId::erased(), ..self.changed(now) }
    }

    /// The same without this person; `None` if it does not name the person.
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
