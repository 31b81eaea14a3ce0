//! A member and its changes. Pure: the time and new ids are arguments.

use authz::Person;
use chrono::{DateTime, Utc};
use contracts::events::identity::MemberId;
use contracts::{Role, UserId};

use crate::texts::{Email, TimeZone, given};

/// What the provider says of a person, as a member shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The verified e-mail address.
    pub email: Email,
    /// The full name; may be empty.
    pub name: String,
    /// The language; may be empty.
    pub locale: String,
    /// The time zone; may be empty.
    pub time_zone: String,
}

impl Profile {
    /// That of a person who has not signed in yet, or is erased.
    #[must_use]
    pub const fn unknown() -> Self {
        Self { email: Email::unknown(), name: String::new(), locale: String::new(), time_zone: String::new() }
    }

    /// The profile of a person; none without a verified e-mail address.
    #[must_use]
    pub fn of(person: &Person) -> Option<Self> {
        Some(Self {
            email: Email::parse(person.email.as_deref()?).ok()?,
            name: given(person.name.as_deref(), 200),
            locale: given(person.locale.as_deref(), 35),
            time_zone: person
                .time_zone
                .as_deref()
                .and_then(|zone| TimeZone::parse(zone).ok())
                .map_or("", |zone| zone.as_str())
                .to_owned(),
        })
    }
}

/// A member. It does not hold its tenant: the transaction does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: MemberId,
    /// The user.
    pub user: UserId,
    /// What the provider says of the person.
    pub profile: Profile,
    /// What the member may do.
    pub role: Role,
    /// When the person became a member.
    pub create_time: DateTime<Utc>,
    /// When the member was last changed.
    pub update_time: DateTime<Utc>,
    /// Counts the changes, from 1.
    pub version: i32,
}

impl Member {
    /// A new member.
    #[must_use]
    pub const fn add(id: MemberId, user: UserId, profile: Profile, role: Role, now: DateTime<Utc>) -> Self {
        Self { id, user, profile, role, create_time: now, update_time: now, version: 1 }
    }

    /// The member with this role; `None` when that changes nothing.
    #[must_use]
    pub fn with_role(&self, role: Role, now: DateTime<Utc>) -> Option<Self> {
        (role != self.role).then(|| Self { role, ..self.changed(now) })
    }

    /// The member as the provider knows the person now; what it leaves out stays. `None` when that changes nothing.
    #[must_use]
    pub fn known_as(&self, profile: Profile, now: DateTime<Utc>) -> Option<Self> {
        let or = |new: String, known: &String| if new.is_empty() { known.clone() } else { new };
        let Profile { email, name, locale, time_zone } = profile;
        let profile = Profile {
            email,
            name: or(name, &self.profile.name),
            locale: or(locale, &self.profile.locale),
            time_zone: or(time_zone, &self.profile.time_zone),
        };
        (profile != self.profile).then(|| Self { profile, ..self.changed(now) })
    }

    /// The same, at its next version: what is published again.
    #[must_use]
    pub fn republished(&self, now: DateTime<Utc>) -> Self {
        self.changed(now)
    }

    /// Its last version, which marks it as gone.
    #[must_use]
    pub fn remove(&self, now: DateTime<Utc>) -> Self {
        self.changed(now)
    }

    /// Its last version, with what is known of the person erased.
    #[must_use]
    pub fn erase(&self, now: DateTime<Utc>) -> Self {
        Self { user: UserId::erased(), profile: Profile::unknown(), ..self.changed(now) }
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
