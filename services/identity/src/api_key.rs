//! A key of a program. Pure: the time, new ids and randomness are arguments.

use chrono::{DateTime, TimeDelta, Utc};
use contracts::events::identity::ApiKeyId;
use contracts::{Role, UserId};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::invitation::{TooFar, ends};
use crate::texts::{Name, Scopes};

/// How every key begins, so that a scanner for secrets finds it.
const PREFIX: &str = "flk_";
/// How long one lasts unless it says otherwise, and at most.
const USUAL: TimeDelta = TimeDelta::days(90);
const LONGEST: TimeDelta = TimeDelta::days(366);

/// What only the holder of a key has.
#[derive(Clone)]
pub struct KeySecret([u8; 32]);

impl KeySecret {
    /// Of what was drawn.
    #[must_use]
    pub const fn new(drawn: [u8; 32]) -> Self {
        Self(drawn)
    }

    /// What is kept of it.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.0).into()
    }

    /// The whole key.
    #[must_use]
    pub fn text(&self, id: ApiKeyId) -> String {
        let hex: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{PREFIX}{}_{hex}", id.uuid().simple())
    }

    /// Which key a text is, and what only its holder has; none for any other text.
    #[must_use]
    pub fn read(text: &str) -> Option<(ApiKeyId, Self)> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let lower = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if id.len() != 32 || secret.len() != 64 || !lower(id) || !lower(secret) {
            return None;
        }
        let mut drawn = [0; 32];
        for (byte, digits) in drawn.iter_mut().zip(secret.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some((ApiKeyId::new(Uuid::try_parse(id).ok()?), Self(drawn)))
    }
}

/// A key that is not revoked. It does not hold its tenant: the transaction does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// What it is for.
    pub name: Name,
    /// What the program may do.
    pub role: Role,
    /// The scopes of its tokens.
    pub scopes: Scopes,
    /// When it ends.
    pub expire_time: DateTime<Utc>,
    /// When it was made.
    pub create_time: DateTime<Utc>,
    /// When it was last changed.
    pub update_time: DateTime<Utc>,
    /// Who made it.
    pub created_by: UserId,
    /// Counts the changes, from 1.
    pub version: i32,
}

/// The fields of a new key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKeyDraft {
    /// What it is for.
    pub name: Name,
    /// What the program may do.
    pub role: Role,
    /// The scopes of its tokens.
    pub scopes: Scopes,
    /// When it ends.
    pub expire_time: Option<DateTime<Utc>>,
}

impl ApiKey {
    /// A new key.
    ///
    /// # Errors
    /// See [`ends`].
    pub fn create(id: ApiKeyId, draft: ApiKeyDraft, by: UserId, now: DateTime<Utc>) -> Result<Self, TooFar> {
        let ApiKeyDraft { name, role, scopes, expire_time } = draft;
        let expire_time = ends(expire_time, (USUAL, LONGEST), now)?;
        Ok(Self { id, name, role, scopes, expire_time, create_time: now, update_time: now, created_by: by, version: 1 })
    }

    /// Whether it has not ended.
    #[must_use]
    pub fn is_valid(&self, now: DateTime<Utc>) -> bool {
        now < self.expire_time
    }

    /// Its last version, with its contents erased.
    #[must_use]
    pub fn erase(&self, now: DateTime<Utc>) -> Self {
        Self { name: Name::erased(), created_by: UserId::erased(), ..self.revoke(now) }
    }

    /// The same without this person; `None` if it does not name the person.
    #[must_use]
    pub fn forget(&self, person: &UserId, now: DateTime<Utc>) -> Option<Self> {
        (self.created_by == *person).then(|| Self { created_by: UserId::erased(), ..self.changed(now) })
    }

    /// Its last version, which marks it as gone.
    #[must_use]
    pub fn revoke(&self, now: DateTime<Utc>) -> Self {
        self.changed(now)
    }

    fn changed(&self, now: DateTime<Utc>) -> Self {
        // Time never runs backwards within an aggregate, whatever the clock does.
        Self { version: self.version + 1, update_time: now.max(self.update_time), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_shown_and_is_valid_until_it_ends() {
        let now = DateTime::UNIX_EPOCH;
        let (id, secret) = (ApiKeyId::new(Uuid::from_u128(7)), KeySecret::new([0xa5; 32]));
        let (read, opener) = KeySecret::read(&secret.text(id)).unwrap();
        assert_eq!((read, opener.digest()), (id, secret.digest()));
        let draft = ApiKeyDraft {
            name: Name::parse("report").unwrap(),
            role: Role::Viewer,
            scopes: Scopes::parse(&["todo:read".to_owned()]).unwrap(),
            expire_time: None,
        };
        let key = ApiKey::create(id, draft, UserId::example(), now).unwrap();
        assert!(key.is_valid(now) && !key.is_valid(now + USUAL));
        for text in
            ["", "flk_", &secret.text(id)[1..], &secret.text(id).to_uppercase(), &format!("{}0", secret.text(id))]
        {
            assert!(KeySecret::read(text).is_none(), "{text}");
        }
    }
}
