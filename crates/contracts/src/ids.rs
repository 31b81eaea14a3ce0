//! The typed ids of the fleet: no signature takes a bare `Uuid` or `String` for one of these. Those of a service's aggregates stand with its
//! events.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a text is not the id it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// A tenant id is a slug: `^[a-z0-9][a-z0-9-]{0,35}$`.
    #[error("a tenant id is 1 to 36 of a-z, 0-9 and -, and starts with a letter or digit")]
    Tenant,
    /// A user id is the `sub` of an access token.
    #[error("a user id is 1 to 200 characters without control characters")]
    User,
    /// All other ids are UUIDs in their hyphenated form.
    #[error("{0} is a UUID such as 0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2e4f")]
    Uuid(&'static str),
}

/// Ids that are UUIDs: a line for each, with what an error calls it. A service's own stand with its events.
macro_rules! uuid_ids {
    ($($(#[$doc:meta])* $name:ident: $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
        )]
        #[serde(transparent)]
        pub struct $name(uuid::Uuid);

        impl $name {
            /// Takes a UUID (new ones are UUIDv7, made at the edge of the process) as this kind of id.
            #[must_use]
            pub const fn new(id: uuid::Uuid) -> Self {
                Self(id)
            }

            /// The UUID inside, for storage.
            #[must_use]
            pub const fn uuid(self) -> uuid::Uuid {
                self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::ids::IdError;

            fn from_str(text: &str) -> Result<Self, $crate::ids::IdError> {
                // Only the 36-character form: braces, URNs and bare hex would give one aggregate several names.
                if text.len() != 36 {
                    return Err($crate::ids::IdError::Uuid($what));
                }
                uuid::Uuid::try_parse(text).map(Self).map_err(|_| $crate::ids::IdError::Uuid($what))
            }
        }
    )*};
}

uuid_ids! {
    /// One event: the CloudEvents `id`.
    EventId: "an event id";
}

/// A tenant: an immutable slug that is safe as a NATS subject token.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(#[schemars(regex(pattern = r"^[a-z0-9][a-z0-9-]{0,35}$"))] String);

impl TenantId {
    /// The one of samples: `acme`.
    #[must_use]
    pub fn example() -> Self {
        Self("acme".to_owned())
    }

    /// The slug.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TenantId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let slug = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let valid = (1..=36).contains(&bytes.len()) && slug(bytes[0]) && bytes.iter().all(|&b| slug(b) || b == b'-');
        valid.then(|| Self(text.to_owned())).ok_or(IdError::Tenant)
    }
}

/// A user: the `sub` of an access token.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct UserId(#[schemars(length(min = 1, max = 200))] String);

impl UserId {
    /// The one of samples: `ann`.
    #[must_use]
    pub fn example() -> Self {
        Self("ann".to_owned())
    }

    /// Nobody: what stands in the place of a user who was erased.
    #[must_use]
    pub fn erased() -> Self {
        Self("(deleted)".to_owned())
    }

    /// The subject.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UserId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let valid = !text.is_empty() && text.chars().count() <= 200 && !text.chars().any(char::is_control);
        valid.then(|| Self(text.to_owned())).ok_or(IdError::User)
    }
}

macro_rules! text_ids {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    )*};
}

text_ids!(TenantId, UserId);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_tenant_id_is_always_one_safe_subject_token(text in ".{0,40}") {
            if let Ok(tenant) = text.parse::<TenantId>() {
                prop_assert!(!tenant.as_str().is_empty());
                prop_assert!(!tenant.as_str().contains(['.', '*', '>', ' ', '$', '/']));
                prop_assert_eq!(tenant.to_string(), text);
            }
        }

        #[test]
        fn every_slug_is_a_tenant_id(text in "[a-z0-9][a-z0-9-]{0,35}") {
            prop_assert!(text.parse::<TenantId>().is_ok());
        }
    }

    #[test]
    fn only_the_hyphenated_form_is_an_id() {
        assert!("0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2e4f".parse::<EventId>().is_ok());
        for text in ["", "x", "0193a5b07a527c3e9b1e6a1f0c9d2e4f", "{0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2e4f}"] {
            assert_eq!(text.parse::<EventId>(), Err(IdError::Uuid("an event id")), "{text}");
        }
    }
}
