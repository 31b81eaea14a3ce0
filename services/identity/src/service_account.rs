//! A program that acts in a tenant. Pure: the time and new ids are arguments.

use chrono::{DateTime, Utc};
use contracts::events::identity::ServiceAccountId;
use contracts::text::is_misleading;
use contracts::{Role, UserId};

use crate::texts::Name;

/// A program that is let in. It does not hold its tenant: the transaction does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its id.
    pub id: ServiceAccountId,
    /// What it is.
    pub name: Name,
    /// What it may do; never an owner's.
    pub role: Role,
    /// When it was made.
    pub create_time: DateTime<Utc>,
    /// When it was last changed.
    pub update_time: DateTime<Utc>,
    /// Who made it.
    pub created_by: UserId,
    /// Counts the changes, from 1.
    pub version: i32,
}

/// The fields of a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccountDraft {
    /// What it is.
    pub name: Name,
    /// What it may do.
    pub role: Role,
}

/// The changes; `None` keeps a field.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceAccountPatch {
    /// A new name.
    pub name: Option<Name>,
    /// A new role.
    pub role: Option<Role>,
}

impl ServiceAccount {
    /// A new one.
    #[must_use]
    pub fn create(id: ServiceAccountId, draft: ServiceAccountDraft, by: UserId, now: DateTime<Utc>) -> Self {
        let ServiceAccountDraft { name, role } = draft;
        Self { id, name, role, create_time: now, update_time: now, created_by: by, version: 1 }
    }

    /// The same with the patch applied; `None` when that changes nothing.
    #[must_use]
    pub fn update(&self, patch: ServiceAccountPatch, now: DateTime<Utc>) -> Option<Self> {
        let ServiceAccountPatch { name, role } = patch;
        let (name, role) = (name.unwrap_or_else(|| self.name.clone()), role.unwrap_or(self.role));
        let new = Self { name, role, ..self.clone() };
        (new != *self).then(|| new.changed(now))
    }

    /// Whether its name differs from the one `before` and is misleading.
    #[must_use]
    pub fn misleads(&self, before: Option<&Self>) -> bool {
        before.is_none_or(|before| before.name != self.name) && is_misleading(self.name.as_str())
    }

    /// Its last version, with its contents erased.
    #[must_use]
    pub fn erase(&self, now: DateTime<Utc>) -> Self {
        Self { name: Name::erased(), created_by: UserId::erased(), ..self.delete(now) }
    }

    /// The same without this person; `None` if it does not name the person.
    #[must_use]
    pub fn forget(&self, person: &UserId, now: DateTime<Utc>) -> Option<Self> {
        (self.created_by == *person).then(|| Self { created_by: UserId::erased(), ..self.changed(now) })
    }

    /// Its last version, which marks it as gone.
    #[must_use]
    pub fn delete(&self, now: DateTime<Utc>) -> Self {
        self.changed(now)
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
