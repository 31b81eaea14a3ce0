//! Answers that are stored with their idempotency keys, as messages.

use contracts::events::identity::TenantStatus;
use proto::identity as pb;
use service::Failure;
use service::idempotency::StoredResponse;
use service::wire::stored_time;

use crate::api_key::{ApiKey, ApiKeyDraft};
use crate::group::{Group, GroupDraft};
use crate::invitation::{Invitation, InvitationDraft};
use crate::member::{Member, Profile};
use crate::service_account::{ServiceAccount, ServiceAccountDraft};
use crate::tenant::{Tenant, TenantDraft};
use crate::texts::Email;
use crate::wire::{
    api_key, api_key_draft, api_key_id, group, group_draft, group_id, invitation, invitation_draft, invitation_id,
    member, member_id, role, service_account, service_account_draft, service_account_id, step_up_of, tenant,
    tenant_draft,
};

/// A stored answer, of this release or another.
impl StoredResponse for Tenant {
    type Message = pb::Tenant;

    fn to_message(&self) -> pb::Tenant {
        tenant(self)
    }

    fn from_message(message: pb::Tenant) -> Result<Self, Failure> {
        let (slug, TenantDraft { name, time_zone, country, currency, billing_email }) = tenant_draft(Some(&message))?;
        let pb::Tenant { create_time, update_time, created_by, version, status, step_up, .. } = message;
        Ok(Self {
            slug,
            name,
            time_zone,
            country,
            currency,
            billing_email,
            step_up: step_up.as_ref().map(step_up_of),
            status: match pb::TenantStatus::try_from(status) {
                Ok(pb::TenantStatus::Suspended) => TenantStatus::Suspended,
                // Release 1 has stored none.
                _ => TenantStatus::Active,
            },
            create_time: stored_time(create_time)?,
            update_time: stored_time(update_time)?,
            created_by: created_by.parse().map_err(Failure::internal)?,
            version,
        })
    }
}

/// A stored answer, of this release or another.
impl StoredResponse for Member {
    type Message = pb::Member;

    fn to_message(&self) -> pb::Member {
        member(self)
    }

    fn from_message(message: pb::Member) -> Result<Self, Failure> {
        let pb::Member {
            id: member,
            user,
            name,
            email,
            role: given,
            locale,
            time_zone,
            create_time,
            update_time,
            version,
            etag: _,
        } = message;
        Ok(Self {
            id: member_id(&member)?,
            user: user.parse().map_err(Failure::internal)?,
            profile: Profile { email: Email::kept(&email).map_err(Failure::internal)?, name, locale, time_zone },
            role: role("role", given)?,
            create_time: stored_time(create_time)?,
            update_time: stored_time(update_time)?,
            version,
        })
    }
}

/// A stored answer, of this release or another: it is that of a new invitation.
impl StoredResponse for Invitation {
    type Message = pb::Invitation;

    fn to_message(&self) -> pb::Invitation {
        invitation(self)
    }

    fn from_message(message: pb::Invitation) -> Result<Self, Failure> {
        let InvitationDraft { email, role, .. } = invitation_draft(Some(&message))?;
        let pb::Invitation { id, expire_time, create_time, created_by, .. } = message;
        let create_time = stored_time(create_time)?;
        Ok(Self {
            id: invitation_id(&id)?,
            email,
            role,
            expire_time: stored_time(expire_time)?,
            create_time,
            update_time: create_time,
            created_by: created_by.parse().map_err(Failure::internal)?,
            version: 1,
        })
    }
}

/// A stored answer, of this release or another.
impl StoredResponse for Group {
    type Message = pb::Group;

    fn to_message(&self) -> pb::Group {
        group(self)
    }

    fn from_message(message: pb::Group) -> Result<Self, Failure> {
        let GroupDraft { name, members } = group_draft(Some(&message))?;
        let pb::Group { id, create_time, update_time, created_by, version, .. } = message;
        Ok(Self {
            id: group_id(&id)?,
            name,
            members,
            create_time: stored_time(create_time)?,
            update_time: stored_time(update_time)?,
            created_by: created_by.parse().map_err(Failure::internal)?,
            version,
        })
    }
}

/// A stored answer, of this release or another.
impl StoredResponse for ServiceAccount {
    type Message = pb::ServiceAccount;

    fn to_message(&self) -> pb::ServiceAccount {
        service_account(self)
    }

    fn from_message(message: pb::ServiceAccount) -> Result<Self, Failure> {
        let ServiceAccountDraft { name, role } = service_account_draft(Some(&message))?;
        let pb::ServiceAccount { id, create_time, update_time, created_by, version, .. } = message;
        Ok(Self {
            id: service_account_id(&id)?,
            name,
            role,
            create_time: stored_time(create_time)?,
            update_time: stored_time(update_time)?,
            created_by: created_by.parse().map_err(Failure::internal)?,
            version,
        })
    }
}

/// A stored answer, of this release or another: it is that of a new key, without its text.
impl StoredResponse for ApiKey {
    type Message = pb::ApiKey;

    fn to_message(&self) -> pb::ApiKey {
        api_key(self, None)
    }

    fn from_message(message: pb::ApiKey) -> Result<Self, Failure> {
        let ApiKeyDraft { of, name, scopes, .. } = api_key_draft(Some(&message))?;
        let pb::ApiKey { id, expire_time, create_time, created_by, .. } = message;
        let create_time = stored_time(create_time)?;
        Ok(Self {
            id: api_key_id(&id)?,
            of,
            name,
            scopes,
            expire_time: stored_time(expire_time)?,
            last_use_time: None,
            create_time,
            update_time: create_time,
            created_by: created_by.parse().map_err(Failure::internal)?,
            version: 1,
        })
    }
}
