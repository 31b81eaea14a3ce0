//! Members who are put together. Pure: the time and new ids are arguments.

use chrono::{DateTime, Utc};
use contracts::UserId;
use contracts::events::identity::{GroupId, MemberId};
use contracts::text::is_misleading;

use crate::texts::Name;

/// The most members of a group.
pub const MAX_MEMBERS: usize = 200;
/// The most groups of a tenant.
pub const MAX_GROUPS: usize = 100;

/// A group of members. It does not hold its tenant: the transaction does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its id.
    pub id: GroupId,
    /// What it is called.
    pub name: Name,
    /// Who belongs to it.
    pub members: Members,
    /// When it was made.
    pub create_time: DateTime<Utc>,
    /// When it was last changed.
    pub update_time: DateTime<Utc>,
    /// Who made it.
    pub created_by: UserId,
    /// Counts the changes, from 1.
    pub version: i32,
}

/// Members of a group, each once, by their ids.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members(Vec<MemberId>);

/// They are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be {MAX_MEMBERS} members at most")]
pub struct TooMany;

impl Members {
    /// These members.
    ///
    /// # Errors
    /// [`TooMany`]
    pub fn new(mut members: Vec<MemberId>) -> Result<Self, TooMany> {
        members.sort_unstable();
        members.dedup();
        if members.len() <= MAX_MEMBERS { Ok(Self(members)) } else { Err(TooMany) }
    }

    /// The members, in the order of their ids.
    #[must_use]
    pub fn as_slice(&self) -> &[MemberId] {
        &self.0
    }

    /// Those who are not among these.
    #[must_use]
    pub fn beyond(&self, before: &Self) -> Vec<MemberId> {
        self.0.iter().copied().filter(|member| !before.0.contains(member)).collect()
    }

    fn without(&self, gone: MemberId) -> Self {
        Self(self.0.iter().copied().filter(|member| *member != gone).collect())
    }
}

/// The fields of a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupDraft {
    /// What it is called.
    pub name: Name,
    /// Who belongs to it.
    pub members: Members,
}

/// The changes; `None` keeps a field.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupPatch {
    /// A new name.
    pub name: Option<Name>,
    /// Who belongs to it from now on.
    pub members: Option<Members>,
}

impl Group {
    /// A new one.
    #[must_use]
    pub fn create(id: GroupId, draft: GroupDraft, by: UserId, now: DateTime<Utc>) -> Self {
        let GroupDraft { name, members } = draft;
        Self { id, name, members, create_time: now, update_time: now, created_by: by, version: 1 }
    }

    /// The same with the patch applied; `None` when that changes nothing.
    #[must_use]
    pub fn update(&self, patch: GroupPatch, now: DateTime<Utc>) -> Option<Self> {
        let GroupPatch { name, members } = patch;
        let name = name.unwrap_or_else(|| self.name.clone());
        let members = members.unwrap_or_else(|| self.members.clone());
        let new = Self { name, members, ..self.clone() };
        (new != *self).then(|| new.changed(now))
    }

    /// The group without a member of its.
    #[must_use]
    pub fn without(&self, member: MemberId, now: DateTime<Utc>) -> Self {
        Self { members: self.members.without(member), ..self.changed(now) }
    }

    /// Whether its name differs from the one `before` and is misleading.
    #[must_use]
    pub fn misleads(&self, before: Option<&Self>) -> bool {
        before.is_none_or(|before| before.name != self.name) && is_misleading(self.name.as_str())
    }

    /// Its last version, with its contents erased.
    #[must_use]
    pub fn erase(&self, now: DateTime<Utc>) -> Self {
        let members = Members::default();
        Self { name: Name::erased(), members, created_by: UserId::erased(), ..self.delete(now) }
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
