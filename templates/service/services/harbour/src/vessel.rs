//! The vessel and its changes. Pure: the time and new ids are arguments.

use chrono::{DateTime, Utc};
use contracts::UserId;
use contracts::events::harbour::VesselId;
use contracts::text::is_misleading;

use crate::texts::{Name, Notes};

/// A vessel. It holds neither its tenant (the transaction does), nor whether it is deleted (then it is gone).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vessel {
    /// Its id.
    pub id: VesselId,
    /// Its name.
    pub name: Name,
    /// Free text about it.
    pub notes: Notes,
    /// When it was created.
    pub create_time: DateTime<Utc>,
    /// When it was last changed.
    pub update_time: DateTime<Utc>,
    /// Who created it.
    pub created_by: UserId,
    /// Counts the changes, from 1.
    pub version: i32,
}

/// The fields of a new vessel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VesselDraft {
    /// Its name.
    pub name: Name,
    /// Free text about it.
    pub notes: Notes,
}

/// The changes; `None` keeps a field.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VesselPatch {
    /// A new name.
    pub name: Option<Name>,
    /// New notes.
    pub notes: Option<Notes>,
}

impl Vessel {
    /// A new vessel.
    #[must_use]
    pub fn create(id: VesselId, draft: VesselDraft, by: UserId, now: DateTime<Utc>) -> Self {
        let VesselDraft { name, notes } = draft;
        Self { id, name, notes, create_time: now, update_time: now, created_by: by, version: 1 }
    }

    /// The vessel with the patch applied; `None` when that changes nothing.
    #[must_use]
    pub fn update(&self, patch: VesselPatch, now: DateTime<Utc>) -> Option<Self> {
        let VesselPatch { name, notes } = patch;
        let new = Self {
            name: name.unwrap_or_else(|| self.name.clone()),
            notes: notes.unwrap_or_else(|| self.notes.clone()),
            ..self.clone()
        };
        (new != *self).then(|| new.changed(now))
    }

    /// Whether its name differs from the one `before` and is misleading.
    #[must_use]
    pub fn misleads(&self, before: Option<&Self>) -> bool {
        before.is_none_or(|before| before.name != self.name) && is_misleading(self.name.as_str())
    }

    /// Its last version, which marks it as gone.
    #[must_use]
    pub fn delete(&self, now: DateTime<Utc>) -> Self {
        self.changed(now)
    }

    /// Its last version, with its contents erased.
    #[must_use]
    pub fn erase(&self, now: DateTime<Utc>) -> Self {
        Self { name: Name::erased(), notes: Notes::default(), created_by: UserId::erased(), ..self.changed(now) }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn vessel() -> Vessel {
        let draft = VesselDraft { name: Name::parse(" Passat ").unwrap(), notes: Notes::default() };
        Vessel::create(VesselId::new(uuid::Uuid::nil()), draft, "ann".parse().unwrap(), DateTime::UNIX_EPOCH)
    }

    #[test]
    fn a_patch_that_changes_nothing_is_no_change() {
        let vessel = vessel();
        let same = VesselPatch { name: Some(vessel.name.clone()), notes: None };
        assert_eq!(vessel.update(same, DateTime::UNIX_EPOCH), None);
        let new = VesselPatch { name: Some(Name::parse("Pamir").unwrap()), notes: None };
        let updated = vessel.update(new, DateTime::UNIX_EPOCH).unwrap();
        assert_eq!((updated.name.as_str(), updated.version), ("Pamir", 2));
    }

    #[test]
    fn a_name_that_looks_like_another_one_may_stay_and_not_come() {
        let mut vessel = vessel();
        assert!(!vessel.misleads(None));
        vessel.name = Name::parse("Pas\u{200b}sat").unwrap();
        assert!(vessel.misleads(None) && !vessel.misleads(Some(&vessel)));
    }

    #[test]
    fn one_that_is_erased_holds_nothing_and_one_that_forgets_names_nobody() {
        let (vessel, now) = (vessel(), DateTime::UNIX_EPOCH);
        let erased = vessel.erase(now);
        assert_eq!((erased.name, erased.created_by, erased.version), (Name::erased(), UserId::erased(), 2));
        let forgotten = vessel.forget(&"ann".parse().unwrap(), now).unwrap();
        assert_eq!((forgotten.name, forgotten.created_by), (vessel.name.clone(), UserId::erased()));
        assert_eq!(vessel.forget(&"bob".parse().unwrap(), now), None);
    }
}
