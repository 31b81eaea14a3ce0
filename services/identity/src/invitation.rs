//! An invitation. Pure: the time and new ids are arguments.

use chrono::{DateTime, TimeDelta, Utc};
use contracts::events::identity::InvitationId;
use contracts::{Role, UserId};

use crate::texts::Email;

/// How long one lasts unless it says otherwise, and at most.
const USUAL: TimeDelta = TimeDelta::days(7);
const LONGEST: TimeDelta = TimeDelta::days(30);

/// An invitation that is open. It does not hold its tenant: the transaction does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// Its id.
    pub id: InvitationId,
    /// Who is invited.
    pub email: Email,
    /// The role that the member will have.
    pub role: Role,
    /// When it ends.
    pub expire_time: DateTime<Utc>,
    /// When it was made.
    pub create_time: DateTime<Utc>,
    /// When it was last changed.
    pub update_time: DateTime<Utc>,
    /// Who invited.
    pub created_by: UserId,
    /// Counts the changes, from 1.
    pub version: i32,
}

/// The fields of a new invitation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvitationDraft {
    /// Who is invited.
    pub email: Email,
    /// The role that the member will have.
    pub role: Role,
    /// When it ends.
    pub expire_time: Option<DateTime<Utc>>,
}

/// Why a time to end is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be within the next {0} days")]
pub struct TooFar(pub i64);

/// The moment at which something ends: the usual one, or one that comes and is not too far away.
///
/// # Errors
/// It has passed, or is too far away.
pub fn ends(
    wanted: Option<DateTime<Utc>>,
    (usual, longest): (TimeDelta, TimeDelta),
    now: DateTime<Utc>,
) -> Result<DateTime<Utc>, TooFar> {
    let at = wanted.unwrap_or(now + usual);
    if at > now && at <= now + longest { Ok(at) } else { Err(TooFar(longest.num_days())) }
}

impl Invitation {
    /// A new invitation.
    ///
    /// # Errors
    /// See [`ends`].
    pub fn create(id: InvitationId, draft: InvitationDraft, by: UserId, now: DateTime<Utc>) -> Result<Self, TooFar> {
        let InvitationDraft { email, role, expire_time } = draft;
        let expire_time = ends(expire_time, (USUAL, LONGEST), now)?;
        Ok(Self { id, email, role, expire_time, create_time: now, update_time: now, created_by: by, version: 1 })
    }

    /// Whether this address may take it up now.
    #[must_use]
    pub fn is_for(&self, email: &Email, now: DateTime<Utc>) -> bool {
        *email == self.email && now < self.expire_time
    }

    /// The same without whoever invited.
    #[must_use]
    pub fn erase(&self, now: DateTime<Utc>) -> Self {
        Self { created_by: UserId::erased(), ..self.close(now) }
    }

    /// Its last version, which marks it as gone, without the address.
    #[must_use]
    pub fn close(&self, now: DateTime<Utc>) -> Self {
        let (version, update_time) = (self.version + 1, now.max(self.update_time));
        Self { version, update_time, email: Email::unknown(), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_for_its_address_until_it_ends() {
        let now = DateTime::UNIX_EPOCH;
        let (ann, bob) = (Email::parse("ann@x.y").unwrap(), Email::parse("bob@x.y").unwrap());
        let draft = |days| InvitationDraft {
            email: ann.clone(),
            role: Role::Member,
            expire_time: Some(now + TimeDelta::days(days)),
        };
        let create =
            |days| Invitation::create(InvitationId::new(uuid::Uuid::nil()), draft(days), UserId::example(), now);
        let invitation = create(2).unwrap();
        assert!(invitation.is_for(&ann, now) && !invitation.is_for(&bob, now));
        assert!(!invitation.is_for(&ann, now + TimeDelta::days(2)));
        assert_eq!((create(0), create(31)), (Err(TooFar(30)), Err(TooFar(30))));
    }
}
