//! What somebody may do in a tenant, as tokens and events spell it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The role of a person, or of a program with a key, in a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything.
    Owner,
    /// Everything but what ends the tenant, and who its owners are.
    Admin,
    /// Invoices and payment, nothing of what the tenant works on.
    Billing,
    /// Works on what the tenant has.
    Member,
    /// Reads what the tenant has.
    Viewer,
}

impl Role {
    /// All roles, the most powerful first.
    pub const ALL: [Self; 5] = [Self::Owner, Self::Admin, Self::Billing, Self::Member, Self::Viewer];

    /// The role as in tokens.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::Billing => "billing",
            Self::Member => "member",
            Self::Viewer => "viewer",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let role = Self::ALL.into_iter().find(|role| role.as_str() == text);
        role.ok_or("a role is owner, admin, billing, member or viewer")
    }
}
