//! The events of the identity service: one struct per event version, one [`Event`] to match on. Personal data of members stands here and in
//! no other service's events.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Aggregate;
use crate::{Role, UserId};

pub use super::{Actor, ActorKind};

events! {
    service "identity", owner "identity";

    tenant: Tenant {
        /// A tenant signed up.
        TenantCreated = TenantCreatedV1 "identity.tenant_created.v1";
        /// What is known of a tenant changed.
        TenantUpdated = TenantUpdatedV1 "identity.tenant_updated.v1";
        /// A tenant was suspended, or resumed.
        TenantStatusChanged = TenantStatusChangedV1 "identity.tenant_status_changed.v1";
        /// A tenant was erased; the state is its last, without what it held. Its slug is never given again.
        TenantDeleted = TenantDeletedV1 "identity.tenant_deleted.v1";
    }

    member: Member {
        /// A person became a member.
        MemberAdded = MemberAddedV1 "identity.member_added.v1";
        /// A member's role changed, or what the provider says of the person.
        MemberUpdated = MemberUpdatedV1 "identity.member_updated.v1";
        /// A member left or was removed; the state is the last.
        MemberRemoved = MemberRemovedV1 "identity.member_removed.v1";
    }

    invitation: Invitation {
        /// Somebody was invited.
        InvitationCreated = InvitationCreatedV1 "identity.invitation_created.v1";
        /// An invitation was taken up or withdrawn; the state is the last.
        InvitationClosed = InvitationClosedV1 "identity.invitation_closed.v1";
    }

    service_account: ServiceAccount {
        /// A program was let in.
        ServiceAccountCreated = ServiceAccountCreatedV1 "identity.service_account_created.v1";
        /// What is known of a program changed, or its role.
        ServiceAccountUpdated = ServiceAccountUpdatedV1 "identity.service_account_updated.v1";
        /// A program is let in no more; the state is its last.
        ServiceAccountDeleted = ServiceAccountDeletedV1 "identity.service_account_deleted.v1";
    }

    group: Group {
        /// Members were put together.
        GroupCreated = GroupCreatedV1 "identity.group_created.v1";
        /// A group's name changed, or who belongs to it.
        GroupUpdated = GroupUpdatedV1 "identity.group_updated.v1";
        /// A group is there no more; the state is its last.
        GroupDeleted = GroupDeletedV1 "identity.group_deleted.v1";
    }

    api_key: ApiKey {
        /// A program got a key.
        ApiKeyCreated = ApiKeyCreatedV1 "identity.api_key_created.v1";
        /// What is known of a key changed.
        ApiKeyUpdated = ApiKeyUpdatedV1 "identity.api_key_updated.v1";
        /// A key was revoked; the state is its last.
        ApiKeyRevoked = ApiKeyRevokedV1 "identity.api_key_revoked.v1";
    }
}

uuid_ids! {
    /// What is known of a tenant; its slug is its id everywhere else.
    TenantRecordId: "the id of what is known of a tenant";
    /// A member.
    MemberId: "the id of a member";
    /// An invitation.
    InvitationId: "the id of an invitation";
    /// A program that acts in a tenant.
    ServiceAccountId: "the id of a service account";
    /// A key.
    ApiKeyId: "the id of a key";
    /// A group of members.
    GroupId: "the id of a group";
}

/// Whether a tenant may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TenantStatus {
    /// It may.
    #[default]
    Active,
    /// It reads, and writes nothing.
    Suspended,
}

impl TenantStatus {
    /// Its spelling in events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
        }
    }
}

impl std::str::FromStr for TenantStatus {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let status = [Self::Active, Self::Suspended].into_iter().find(|status| status.as_str() == text);
        status.ok_or("a tenant is active or suspended")
    }
}

/// What is known of a tenant, as it stood after a change; the envelope names the tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tenant {
    /// The id of this record.
    pub id: TenantRecordId,
    /// Its name: 1 to 200 characters.
    pub name: String,
    /// Its time zone, by the name in the IANA database.
    pub time_zone: String,
    /// Its country, as ISO 3166-1 alpha-2 has it.
    #[schemars(regex(pattern = r"^[A-Z]{2}$"))]
    pub country: String,
    /// The currency that it pays in, as ISO 4217 has it.
    #[schemars(regex(pattern = r"^[A-Z]{3}$"))]
    pub currency: String,
    /// Where invoices go; empty once it is erased, and where none is known.
    pub billing_email: String,
    /// Whether it may write; events from before there was a status are of active ones.
    #[serde(default)]
    pub status: TenantStatus,
    /// When it signed up.
    pub create_time: DateTime<Utc>,
    /// When it was changed to be so.
    pub update_time: DateTime<Utc>,
    /// Who signed it up.
    pub created_by: UserId,
    /// Counts the changes, from 1.
    #[schemars(range(min = 1))]
    pub version: i32,
}

/// A member as it stood after a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Member {
    /// The member's id.
    pub id: MemberId,
    /// The user, as tokens name it.
    pub user: UserId,
    /// The person's name, as the provider says; may be empty.
    pub name: String,
    /// The verified e-mail address; empty once it is erased, and of an adopted person who has not signed in.
    pub email: String,
    /// The language, as BCP 47 has it; may be empty.
    pub locale: String,
    /// The time zone, by the name in the IANA database; may be empty.
    pub time_zone: String,
    /// What the member may do.
    pub role: Role,
    /// When the person became a member.
    pub create_time: DateTime<Utc>,
    /// When it was changed to be so.
    pub update_time: DateTime<Utc>,
    /// Counts the changes, from 1.
    #[schemars(range(min = 1))]
    pub version: i32,
}

/// An invitation as it stood after a change. It holds no secret: whoever accepts it signs in with the invited address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Invitation {
    /// The invitation's id: all that a link to it holds.
    pub id: InvitationId,
    /// Who is invited; empty once it is closed.
    pub email: String,
    /// The role that the member will have.
    pub role: Role,
    /// When it ends.
    pub expire_time: DateTime<Utc>,
    /// When it was made.
    pub create_time: DateTime<Utc>,
    /// When it was changed to be so.
    pub update_time: DateTime<Utc>,
    /// Who invited.
    pub created_by: UserId,
    /// Counts the changes, from 1.
    #[schemars(range(min = 1))]
    pub version: i32,
}

/// A program as it stood after a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceAccount {
    /// Its id, as tokens and events name it.
    pub id: ServiceAccountId,
    /// What it is: 1 to 200 characters.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// When it was made.
    pub create_time: DateTime<Utc>,
    /// When it was changed to be so.
    pub update_time: DateTime<Utc>,
    /// Who made it.
    pub created_by: UserId,
    /// Counts the changes, from 1.
    #[schemars(range(min = 1))]
    pub version: i32,
}

/// A group as it stood after a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Group {
    /// Its id.
    pub id: GroupId,
    /// What it is called: 1 to 200 characters.
    pub name: String,
    /// Who belongs to it, each once: 200 members at most.
    pub members: Vec<MemberId>,
    /// When it was made.
    pub create_time: DateTime<Utc>,
    /// When it was changed to be so.
    pub update_time: DateTime<Utc>,
    /// Who made it.
    pub created_by: UserId,
    /// Counts the changes, from 1.
    #[schemars(range(min = 1))]
    pub version: i32,
}

/// A key as it stood after a change, without its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApiKey {
    /// The key's id, by which its text is found.
    pub id: ApiKeyId,
    /// The program that has it.
    pub service_account: ServiceAccountId,
    /// What it is for: 1 to 200 characters.
    pub name: String,
    /// The scopes of its tokens.
    pub scopes: Vec<String>,
    /// When it ends.
    pub expire_time: DateTime<Utc>,
    /// When it was made.
    pub create_time: DateTime<Utc>,
    /// When it was changed to be so.
    pub update_time: DateTime<Utc>,
    /// Who made it.
    pub created_by: UserId,
    /// Counts the changes, from 1.
    #[schemars(range(min = 1))]
    pub version: i32,
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_795_000_000 + seconds, 0).unwrap_or_default()
}

const fn id(last: u128) -> Uuid {
    Uuid::from_u128(0x0193_a5b0_7a52_7c3e_9b1e_6a1f_0c9d_2f00 + last)
}

impl Aggregate for Tenant {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn version(&self) -> i32 {
        self.version
    }

    fn changed(&self) -> DateTime<Utc> {
        self.update_time
    }

    fn example() -> Self {
        Self {
            id: TenantRecordId::new(id(1)),
            name: "Acme Shipping".to_owned(),
            time_zone: "Europe/Berlin".to_owned(),
            country: "DE".to_owned(),
            currency: "EUR".to_owned(),
            billing_email: "invoices@acme.example".to_owned(),
            status: TenantStatus::Active,
            create_time: at(0),
            update_time: at(3_600),
            created_by: UserId::example(),
            version: 2,
        }
    }
}

impl Aggregate for Member {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn version(&self) -> i32 {
        self.version
    }

    fn changed(&self) -> DateTime<Utc> {
        self.update_time
    }

    fn example() -> Self {
        Self {
            id: MemberId::new(id(2)),
            user: UserId::example(),
            name: "Ann Jörgensen".to_owned(),
            email: "ann@acme.example".to_owned(),
            locale: "de-DE".to_owned(),
            time_zone: "Europe/Berlin".to_owned(),
            role: Role::Owner,
            create_time: at(0),
            update_time: at(0),
            version: 1,
        }
    }
}

impl Aggregate for Invitation {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn version(&self) -> i32 {
        self.version
    }

    fn changed(&self) -> DateTime<Utc> {
        self.update_time
    }

    fn example() -> Self {
        Self {
            id: InvitationId::new(id(3)),
            email: "bob@acme.example".to_owned(),
            role: Role::Member,
            expire_time: at(7 * 86_400),
            create_time: at(0),
            update_time: at(0),
            created_by: UserId::example(),
            version: 1,
        }
    }
}

impl Aggregate for ServiceAccount {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn version(&self) -> i32 {
        self.version
    }

    fn changed(&self) -> DateTime<Utc> {
        self.update_time
    }

    fn example() -> Self {
        Self {
            id: ServiceAccountId::new(id(5)),
            name: "reporting".to_owned(),
            role: Role::Viewer,
            create_time: at(0),
            update_time: at(0),
            created_by: UserId::example(),
            version: 1,
        }
    }
}

impl Aggregate for Group {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn version(&self) -> i32 {
        self.version
    }

    fn changed(&self) -> DateTime<Utc> {
        self.update_time
    }

    fn example() -> Self {
        Self {
            id: GroupId::new(id(6)),
            name: "dispatchers".to_owned(),
            members: vec![MemberId::new(id(2))],
            create_time: at(0),
            update_time: at(0),
            created_by: UserId::example(),
            version: 1,
        }
    }
}

impl Aggregate for ApiKey {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn version(&self) -> i32 {
        self.version
    }

    fn changed(&self) -> DateTime<Utc> {
        self.update_time
    }

    fn example() -> Self {
        Self {
            id: ApiKeyId::new(id(4)),
            service_account: ServiceAccountId::new(id(5)),
            name: "nightly report".to_owned(),
            scopes: vec!["todo:read".to_owned()],
            expire_time: at(90 * 86_400),
            create_time: at(0),
            update_time: at(0),
            created_by: UserId::example(),
            version: 1,
        }
    }
}
