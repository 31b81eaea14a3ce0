//! The events that commands write: an aggregate as they carry it, and who acted.

use contracts::events::EventType;
use contracts::events::identity::{self as event, Actor};
use outbox::NewEvent;
use service::outbox::new_event;
use service::{Call, Failure};

use crate::api_key::ApiKey;
use crate::group::Group;
use crate::invitation::Invitation;
use crate::member::{Member, Profile};
use crate::service_account::ServiceAccount;
use crate::tenant::Tenant;

/// What is known of a tenant, as events carry it.
pub(crate) fn tenant(tenant: &Tenant) -> event::Tenant {
    let Tenant {
        slug: _,
        name,
        time_zone,
        country,
        currency,
        billing_email,
        status,
        // The tenant's own: nobody else needs it.
        step_up: _,
        create_time,
        update_time,
        created_by,
        version,
    } = tenant;
    event::Tenant {
        id: tenant.record(),
        name: name.as_str().to_owned(),
        time_zone: time_zone.as_str().to_owned(),
        country: country.as_str().to_owned(),
        currency: currency.as_str().to_owned(),
        billing_email: billing_email.as_ref().map_or_else(String::new, |email| email.as_str().to_owned()),
        status: *status,
        create_time: *create_time,
        update_time: *update_time,
        created_by: created_by.clone(),
        version: *version,
    }
}

/// A member as events carry it.
pub(crate) fn member(member: &Member) -> event::Member {
    let Member { id, user, profile, role, create_time, update_time, version } = member;
    let Profile { email, name, locale, time_zone } = profile;
    event::Member {
        id: *id,
        user: user.clone(),
        name: name.clone(),
        email: email.as_str().to_owned(),
        locale: locale.clone(),
        time_zone: time_zone.clone(),
        role: *role,
        create_time: *create_time,
        update_time: *update_time,
        version: *version,
    }
}

/// An invitation as events carry it.
pub(crate) fn invitation(invitation: &Invitation) -> event::Invitation {
    let Invitation { id, email, role, expire_time, create_time, update_time, created_by, version } = invitation;
    event::Invitation {
        id: *id,
        email: email.as_str().to_owned(),
        role: *role,
        expire_time: *expire_time,
        create_time: *create_time,
        update_time: *update_time,
        created_by: created_by.clone(),
        version: *version,
    }
}

/// A group as events carry it.
pub(crate) fn group(group: &Group) -> event::Group {
    let Group { id, name, members, create_time, update_time, created_by, version } = group;
    event::Group {
        id: *id,
        name: name.as_str().to_owned(),
        members: members.as_slice().to_vec(),
        create_time: *create_time,
        update_time: *update_time,
        created_by: created_by.clone(),
        version: *version,
    }
}

/// A program as events carry it.
pub(crate) fn service_account(account: &ServiceAccount) -> event::ServiceAccount {
    let ServiceAccount { id, name, role, create_time, update_time, created_by, version } = account;
    event::ServiceAccount {
        id: *id,
        name: name.as_str().to_owned(),
        role: *role,
        create_time: *create_time,
        update_time: *update_time,
        created_by: created_by.clone(),
        version: *version,
    }
}

/// A key as events carry it.
pub(crate) fn api_key(key: &ApiKey) -> event::ApiKey {
    let ApiKey { id, of, name, scopes, expire_time, last_use_time: _, create_time, update_time, created_by, version } =
        key;
    event::ApiKey {
        id: *id,
        service_account: *of,
        name: name.as_str().to_owned(),
        scopes: scopes.as_slice().to_vec(),
        expire_time: *expire_time,
        create_time: *create_time,
        update_time: *update_time,
        created_by: created_by.clone(),
        version: *version,
    }
}

/// One event about `state`; `data` builds it from that and from the one on whose behalf the caller acts.
///
/// # Errors
/// It cannot be serialized.
pub(crate) fn event<S, D: EventType>(
    call: &Call,
    state: S,
    data: impl FnOnce(S, Actor) -> D,
) -> Result<NewEvent, Failure> {
    new_event(&call.envelope(data(state, Actor::from(&call.caller.actor))))
}
