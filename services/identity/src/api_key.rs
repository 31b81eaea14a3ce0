//! A key of a program. Pure: the time, new ids and randomness are arguments.

use authz::exchange::API_KEY_PREFIX;
use chrono::{DateTime, TimeDelta, Utc};
use contracts::UserId;
use contracts::events::identity::{ApiKeyId, ServiceAccountId};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::invitation::{TooFar, ends};
use crate::texts::{Name, Scopes};

/// How long one lasts unless it says otherwise, and at most.
const USUAL: TimeDelta = TimeDelta::days(90);
const LONGEST: TimeDelta = TimeDelta::days(366);
/// How long one that is rotated opens beside the new one unless the request says otherwise, and at most.
pub const OVERLAP: TimeDelta = TimeDelta::days(1);
/// See [`OVERLAP`].
pub const LONGEST_OVERLAP: TimeDelta = TimeDelta::days(30);
/// How many keys a program may have at once.
pub const MOST: usize = 20;

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
        format!("{API_KEY_PREFIX}{}_{hex}", id.uuid().simple())
    }

    /// Which key a text is, and what only its holder has; none for any other text.
    #[must_use]
    pub fn read(text: &str) -> Option<(ApiKeyId, Self)> {
        let (id, secret) = text.strip_prefix(API_KEY_PREFIX)?.split_once('_')?;
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
    /// The program that has it.
    pub of: ServiceAccountId,
    /// What it is for.
    pub name: Name,
    /// The scopes of its tokens.
    pub scopes: Scopes,
    /// When it ends.
    pub expire_time: DateTime<Utc>,
    /// When it was last exchanged, to the minute.
    pub last_use_time: Option<DateTime<Utc>>,
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
    /// The program that is to have it.
    pub of: ServiceAccountId,
    /// What it is for.
    pub name: Name,
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
        let ApiKeyDraft { of, name, scopes, expire_time } = draft;
        let expire_time = ends(expire_time, (USUAL, LONGEST), now)?;
        let (create_time, update_time, last_use_time) = (now, now, None);
        let created_by = by;
        Ok(Self { id, of, name, scopes, expire_time, last_use_time, create_time, update_time, created_by, version: 1 })
    }

    /// The key with this id that takes the place of this one, for as long as this one was made for; and this one, which ends after the
    /// overlap if it does not end before.
    #[must_use]
    pub fn rotate(&self, id: ApiKeyId, overlap: TimeDelta, by: UserId, now: DateTime<Utc>) -> (Self, Self) {
        let (lasts, last_use_time) = ((self.expire_time - self.create_time).min(LONGEST), None);
        let new = Self {
            id,
            expire_time: now + lasts,
            last_use_time,
            create_time: now,
            update_time: now,
            created_by: by,
            version: 1,
            ..self.clone()
        };
        let old = Self { expire_time: self.expire_time.min(now + overlap), ..self.changed(now) };
        (new, old)
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
            of: ServiceAccountId::new(Uuid::from_u128(8)),
            name: Name::parse("report").unwrap(),
            scopes: Scopes::parse(&["todo:read".to_owned()]).unwrap(),
            expire_time: None,
        };
        let key = ApiKey::create(id, draft, UserId::example(), now).unwrap();
        assert!(key.is_valid(now) && !key.is_valid(now + USUAL));
        let day = TimeDelta::days(1);
        let (new, old) = key.rotate(ApiKeyId::new(Uuid::from_u128(9)), day, UserId::example(), now + day);
        assert_eq!((old.expire_time, new.expire_time), (now + day * 2, now + day + USUAL));
        let (_, old) = old.rotate(id, day * 9, UserId::example(), now + day);
        assert_eq!(old.expire_time, now + day * 2, "it lives no longer than it would");
        for text in
            ["", "flk_", &secret.text(id)[1..], &secret.text(id).to_uppercase(), &format!("{}0", secret.text(id))]
        {
            assert!(KeySecret::read(text).is_none(), "{text}");
        }
    }
}
