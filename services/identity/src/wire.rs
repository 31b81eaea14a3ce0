//! Converts between gRPC messages and the domain, for `grpc` and `wire_answers`.

use authz::StepUp;
use authz::exchange::{ACCESS_TOKEN, API_KEY, JWT, TOKEN_EXCHANGE};
use chrono::TimeDelta;
use contracts::events::identity::{ApiKeyId, GroupId, InvitationId, MemberId, ServiceAccountId, TenantStatus};
use contracts::{Role, TenantId};
use prost_types::FieldMask;
use proto::identity as pb;
use proto::timestamp;
use service::policy::Policy;
use service::wire::{Mask, id, text, time};
use service::{Code, Failure, IfMatch};

use crate::api_key::{ApiKey, ApiKeyDraft, LONGEST_OVERLAP, OVERLAP};
use crate::commands_exchange::{AgentKey, Credential};
use crate::group::{Group, GroupDraft, GroupPatch, Members};
use crate::invitation::{Invitation, InvitationDraft};
use crate::member::Member;
use crate::service_account::{ServiceAccount, ServiceAccountDraft, ServiceAccountPatch};
use crate::store_audit::Entry;
use crate::tenant::{self, Tenant, TenantDraft, TenantPatch};
use crate::texts::{Country, Currency, Email, Name, Scopes, Task, TimeZone};

pub fn member_id(text: &str) -> Result<MemberId, Failure> {
    id("id", text)
}

pub fn invitation_id(text: &str) -> Result<InvitationId, Failure> {
    id("id", text)
}

pub fn group_id(text: &str) -> Result<GroupId, Failure> {
    id("id", text)
}

pub fn service_account_id(text: &str) -> Result<ServiceAccountId, Failure> {
    id("id", text)
}

pub fn api_key_id(text: &str) -> Result<ApiKeyId, Failure> {
    id("id", text)
}

pub fn role(field: &str, number: i32) -> Result<Role, Failure> {
    match pb::Role::try_from(number) {
        Ok(pb::Role::Owner) => Ok(Role::Owner),
        Ok(pb::Role::Admin) => Ok(Role::Admin),
        Ok(pb::Role::Billing) => Ok(Role::Billing),
        Ok(pb::Role::Member) => Ok(Role::Member),
        Ok(pb::Role::Viewer) => Ok(Role::Viewer),
        Ok(pb::Role::Unspecified) | Err(_) => {
            Err(Failure::invalid(field, "must be OWNER, ADMIN, BILLING, MEMBER or VIEWER"))
        }
    }
}

pub const fn role_of(role: Role) -> pb::Role {
    match role {
        Role::Owner => pb::Role::Owner,
        Role::Admin => pb::Role::Admin,
        Role::Billing => pb::Role::Billing,
        Role::Member => pb::Role::Member,
        Role::Viewer => pb::Role::Viewer,
    }
}

/// The slug that a new tenant is to have, and its fields. The message is destructured whole, so that no new field is forgotten here.
pub fn tenant_draft(tenant: Option<&pb::Tenant>) -> Result<(TenantId, TenantDraft), Failure> {
    let pb::Tenant {
        id: slug,
        name,
        time_zone,
        country,
        currency,
        billing_email,
        create_time: _,
        update_time: _,
        created_by: _,
        version: _,
        etag: _,
        status: _,
        step_up: _,
    } = tenant.ok_or_else(|| Failure::invalid("tenant", "is missing"))?;
    let draft = TenantDraft {
        name: text("name", Name::parse(name))?,
        time_zone: if time_zone.is_empty() { TimeZone::UTC } else { text("time_zone", TimeZone::parse(time_zone))? },
        country: text("country", Country::parse(country))?,
        currency: text("currency", Currency::parse(currency))?,
        billing_email: match billing_email.as_str() {
            "" => None,
            address => Some(text("billing_email", Email::parse(address))?),
        },
    };
    Ok((id("id", slug)?, draft))
}

/// The changes of a request, and the etag that must still match.
pub fn tenant_patch(tenant: Option<&pb::Tenant>, mask: Option<&FieldMask>) -> Result<(IfMatch, TenantPatch), Failure> {
    let pb::Tenant {
        id: _,
        name,
        time_zone,
        country,
        currency,
        billing_email,
        create_time: _,
        update_time: _,
        created_by: _,
        version: _,
        etag,
        status: _,
        step_up,
    } = tenant.ok_or_else(|| Failure::invalid("tenant", "is missing"))?;
    let mask = Mask::of(mask, &["name", "time_zone", "country", "currency", "billing_email", "step_up"])?;
    let mut patch = TenantPatch::default();
    if mask.takes("name", !name.is_empty()) {
        patch.name = Some(text("name", Name::parse(name))?);
    }
    if mask.takes("time_zone", !time_zone.is_empty()) {
        patch.time_zone = Some(text("time_zone", TimeZone::parse(time_zone))?);
    }
    if mask.takes("country", !country.is_empty()) {
        patch.country = Some(text("country", Country::parse(country))?);
    }
    if mask.takes("currency", !currency.is_empty()) {
        patch.currency = Some(text("currency", Currency::parse(currency))?);
    }
    if mask.takes("billing_email", !billing_email.is_empty()) {
        patch.billing_email = Some(text("billing_email", Email::parse(billing_email))?);
    }
    if mask.takes("step_up", step_up.is_some()) {
        patch.step_up = Some(step_up.as_ref().map(demanded).transpose()?);
    }
    Ok((IfMatch::parse(etag), patch))
}

/// What is demanded of a sign-in.
fn demanded(step_up: &pb::StepUp) -> Result<StepUp, Failure> {
    text("step_up", tenant::step_up(step_up_of(step_up), is_act))
}

/// The same, unchecked.
pub fn step_up_of(step_up: &pb::StepUp) -> StepUp {
    let pb::StepUp { acts, acr_values, max_age } = step_up;
    // A part of a second is no age here: 0 is refused.
    let max_age = max_age.map(|age| if age.nanos == 0 { age.seconds } else { 0 });
    StepUp { acts: acts.clone(), acr_values: acr_values.clone(), max_age }
}

/// Whether an RPC of this name is of the public API, and wants a token.
fn is_act(name: &str) -> bool {
    let services = proto::POOL.services().filter(|service| service.full_name().starts_with("flotilla."));
    let mut public_api = services.filter(|service| !service.full_name().starts_with("flotilla.ops."));
    public_api.any(|service| service.methods().any(|rpc| rpc.name() == name && !Policy::of(&rpc).public))
}

/// The role that a member is to have, and the etag that must still match.
pub fn new_role(member: Option<&pb::Member>, mask: Option<&FieldMask>) -> Result<(IfMatch, Role), Failure> {
    let pb::Member {
        role: new,
        etag,
        id: _,
        user: _,
        name: _,
        email: _,
        locale: _,
        time_zone: _,
        create_time: _,
        update_time: _,
        version: _,
    } = member.ok_or_else(|| Failure::invalid("member", "is missing"))?;
    Mask::of(mask, &["role"])?;
    Ok((IfMatch::parse(etag), role("role", *new)?))
}

pub fn invitation_draft(invitation: Option<&pb::Invitation>) -> Result<InvitationDraft, Failure> {
    let pb::Invitation { email, role: invited, expire_time, id: _, create_time: _, created_by: _, link: _ } =
        invitation.ok_or_else(|| Failure::invalid("invitation", "is missing"))?;
    Ok(InvitationDraft {
        email: text("email", Email::parse(email))?,
        role: role("role", *invited)?,
        expire_time: time("expire_time", expire_time.as_ref())?,
    })
}

fn group_members(ids: &[String]) -> Result<Members, Failure> {
    let members = ids.iter().map(|member| id("members", member)).collect::<Result<_, _>>()?;
    text("members", Members::new(members))
}

pub fn group_draft(group: Option<&pb::Group>) -> Result<GroupDraft, Failure> {
    let pb::Group { name, members, id: _, create_time: _, update_time: _, created_by: _, version: _, etag: _ } =
        group.ok_or_else(|| Failure::invalid("group", "is missing"))?;
    Ok(GroupDraft { name: text("name", Name::parse(name))?, members: group_members(members)? })
}

/// The changes of a request, and the etag that must still match.
pub fn group_patch(group: Option<&pb::Group>, mask: Option<&FieldMask>) -> Result<(IfMatch, GroupPatch), Failure> {
    let pb::Group { name, members, etag, id: _, create_time: _, update_time: _, created_by: _, version: _ } =
        group.ok_or_else(|| Failure::invalid("group", "is missing"))?;
    let mask = Mask::of(mask, &["name", "members"])?;
    let mut patch = GroupPatch::default();
    if mask.takes("name", !name.is_empty()) {
        patch.name = Some(text("name", Name::parse(name))?);
    }
    if mask.takes("members", !members.is_empty()) {
        patch.members = Some(group_members(members)?);
    }
    Ok((IfMatch::parse(etag), patch))
}

/// The role of a program.
fn program_role(number: i32) -> Result<Role, Failure> {
    match role("role", number)? {
        Role::Owner => Err(Failure::invalid("role", "must not be OWNER: no program is one")),
        role => Ok(role),
    }
}

pub fn service_account_draft(account: Option<&pb::ServiceAccount>) -> Result<ServiceAccountDraft, Failure> {
    let pb::ServiceAccount { name, role, id: _, create_time: _, update_time: _, created_by: _, version: _, etag: _ } =
        account.ok_or_else(|| Failure::invalid("service_account", "is missing"))?;
    Ok(ServiceAccountDraft { name: text("name", Name::parse(name))?, role: program_role(*role)? })
}

/// The changes of a request, and the etag that must still match.
pub fn service_account_patch(
    account: Option<&pb::ServiceAccount>,
    mask: Option<&FieldMask>,
) -> Result<(IfMatch, ServiceAccountPatch), Failure> {
    let pb::ServiceAccount { name, role, etag, id: _, create_time: _, update_time: _, created_by: _, version: _ } =
        account.ok_or_else(|| Failure::invalid("service_account", "is missing"))?;
    let mask = Mask::of(mask, &["name", "role"])?;
    let mut patch = ServiceAccountPatch::default();
    if mask.takes("name", !name.is_empty()) {
        patch.name = Some(text("name", Name::parse(name))?);
    }
    if mask.takes("role", *role != 0) {
        patch.role = Some(program_role(*role)?);
    }
    Ok((IfMatch::parse(etag), patch))
}

pub fn api_key_draft(key: Option<&pb::ApiKey>) -> Result<ApiKeyDraft, Failure> {
    let pb::ApiKey {
        service_account,
        name,
        scopes,
        expire_time,
        id: _,
        key: _,
        last_use_time: _,
        create_time: _,
        created_by: _,
    } = key.ok_or_else(|| Failure::invalid("api_key", "is missing"))?;
    Ok(ApiKeyDraft {
        of: id("service_account", service_account)?,
        name: text("name", Name::parse(name))?,
        scopes: text("scopes", Scopes::parse(scopes))?,
        expire_time: time("expire_time", expire_time.as_ref())?,
    })
}

/// How long a key that is rotated opens beside the new one.
pub fn overlap(wanted: Option<&prost_types::Duration>) -> Result<TimeDelta, Failure> {
    let Some(wanted) = wanted else { return Ok(OVERLAP) };
    let within =
        TimeDelta::try_seconds(wanted.seconds).filter(|time| (TimeDelta::zero()..=LONGEST_OVERLAP).contains(time));
    within.ok_or_else(|| Failure::invalid("overlap", format!("must be 0 to {} seconds", LONGEST_OVERLAP.num_seconds())))
}

/// What a request to exchange a credential asks for.
pub struct Exchange<'a> {
    /// What is exchanged.
    pub credential: Credential<'a>,
    /// The tenant that the token is to be for, if it names one.
    pub tenant: Option<TenantId>,
    /// The scopes that it is to have, if it names any.
    pub scope: Option<Scopes>,
}

/// Its errors are OAuth's (RFC 6749, 5.2).
pub fn exchange(request: &pb::ExchangeTokenRequest) -> Result<Exchange<'_>, Failure> {
    let pb::ExchangeTokenRequest {
        grant_type,
        subject_token,
        subject_token_type,
        tenant,
        scope,
        requested_token_type,
        audience,
        resource,
        actor_token,
        actor_token_type,
        task,
    } = request;
    let wrong = |reason, message: &'static str| Failure::new(Code::InvalidArgument, reason, message);
    match grant_type.as_str() {
        TOKEN_EXCHANGE => {}
        "" => return Err(wrong("INVALID_REQUEST", "grant_type is missing")),
        _ => {
            let message = "grant_type must be urn:ietf:params:oauth:grant-type:token-exchange";
            return Err(wrong("UNSUPPORTED_GRANT_TYPE", message));
        }
    }
    let agent = match (actor_token.as_str(), actor_token_type.as_str(), task.as_str()) {
        ("", "", "") => None,
        ("", ..) => return Err(wrong("INVALID_REQUEST", "actor_token_type and task want an actor_token")),
        (key, API_KEY, "") => Some(AgentKey { key, task: None }),
        (key, API_KEY, task) => {
            let named = Task::parse(task);
            let task = named
                .map_err(|_| wrong("INVALID_REQUEST", "task must be 1 to 100 letters, digits, and any of . _ : - /"))?;
            Some(AgentKey { key, task: Some(task) })
        }
        (_, JWT, "") => None,
        (_, JWT, _) => return Err(wrong("INVALID_REQUEST", "a task is an agent's, not a service's")),
        _ => {
            let message = "actor_token_type must be urn:flotilla:token-type:api-key, or of a service urn:ietf:params:oauth:token-type:jwt";
            return Err(wrong("INVALID_REQUEST", message));
        }
    };
    let credential = match subject_token_type.as_str() {
        _ if subject_token.is_empty() => return Err(wrong("INVALID_REQUEST", "subject_token is missing")),
        ACCESS_TOKEN if actor_token_type == JWT => Credential::Carried { token: subject_token, assertion: actor_token },
        _ if actor_token_type == JWT => {
            return Err(wrong(
                "INVALID_REQUEST",
                "a service acts for who has called it: the subject_token is the fleet's",
            ));
        }
        ACCESS_TOKEN => Credential::Person { token: subject_token, agent },
        API_KEY if agent.is_some() => {
            return Err(wrong("INVALID_REQUEST", "an agent acts for a person: the subject_token is none's"));
        }
        API_KEY => Credential::Key(subject_token),
        _ => {
            let message = "subject_token_type must be urn:ietf:params:oauth:token-type:access_token or urn:flotilla:token-type:api-key";
            return Err(wrong("INVALID_REQUEST", message));
        }
    };
    if !["", ACCESS_TOKEN].contains(&requested_token_type.as_str()) {
        return Err(wrong("INVALID_REQUEST", "requested_token_type must be that of an access token"));
    }
    if !audience.is_empty() || !resource.is_empty() {
        return Err(wrong("INVALID_TARGET", "the token is for the fleet: leave audience and resource out"));
    }
    let tenant = match tenant.as_str() {
        "" => None,
        slug => Some(slug.parse().map_err(|_| wrong("INVALID_TARGET", "tenant must be the id of a tenant"))?),
    };
    let scopes: Vec<String> = scope.split(' ').filter(|scope| !scope.is_empty()).map(ToOwned::to_owned).collect();
    let scope = match scopes.as_slice() {
        [] => None,
        some => Some(Scopes::parse(some).map_err(|_| wrong("INVALID_SCOPE", "scope must be 1 to 20 scopes"))?),
    };
    Ok(Exchange { credential, tenant, scope })
}

pub fn tenant(tenant: &Tenant) -> pb::Tenant {
    let Tenant {
        slug,
        name,
        time_zone,
        country,
        currency,
        billing_email,
        status,
        step_up,
        create_time,
        update_time,
        created_by,
        version,
    } = tenant;
    pb::Tenant {
        id: slug.to_string(),
        name: name.as_str().to_owned(),
        time_zone: time_zone.as_str().to_owned(),
        country: country.as_str().to_owned(),
        currency: currency.as_str().to_owned(),
        billing_email: billing_email.as_ref().map_or_else(String::new, |email| email.as_str().to_owned()),
        create_time: Some(timestamp(*create_time)),
        update_time: Some(timestamp(*update_time)),
        created_by: created_by.to_string(),
        version: *version,
        etag: tenant.etag(),
        status: match status {
            TenantStatus::Active => pb::TenantStatus::Active,
            TenantStatus::Suspended => pb::TenantStatus::Suspended,
        }
        .into(),
        step_up: step_up.as_ref().map(|StepUp { acts, acr_values, max_age }| pb::StepUp {
            acts: acts.clone(),
            acr_values: acr_values.clone(),
            max_age: max_age.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        }),
    }
}

pub fn audit_entry(entry: &Entry) -> pb::AuditEntry {
    let Entry { id, time, actor, action, subject } = entry;
    pb::AuditEntry {
        id: id.to_string(),
        time: Some(timestamp(*time)),
        actor: actor.clone(),
        action: action.clone(),
        subject: subject.to_string(),
    }
}

pub fn member(member: &Member) -> pb::Member {
    let Member { id, user, profile, role, create_time, update_time, version } = member;
    pb::Member {
        id: id.to_string(),
        user: user.to_string(),
        name: profile.name.clone(),
        email: profile.email.as_str().to_owned(),
        role: role_of(*role).into(),
        locale: profile.locale.clone(),
        time_zone: profile.time_zone.clone(),
        create_time: Some(timestamp(*create_time)),
        update_time: Some(timestamp(*update_time)),
        version: *version,
        etag: member.etag(),
    }
}

pub fn invitation(invitation: &Invitation) -> pb::Invitation {
    let Invitation { id, email, role, expire_time, create_time, update_time: _, created_by, version: _ } = invitation;
    pb::Invitation {
        id: id.to_string(),
        email: email.as_str().to_owned(),
        role: role_of(*role).into(),
        expire_time: Some(timestamp(*expire_time)),
        create_time: Some(timestamp(*create_time)),
        created_by: created_by.to_string(),
        // The server's configuration says what it looks like.
        link: String::new(),
    }
}

pub fn group(group: &Group) -> pb::Group {
    let Group { id, name, members, create_time, update_time, created_by, version } = group;
    pb::Group {
        id: id.to_string(),
        name: name.as_str().to_owned(),
        members: members.as_slice().iter().map(ToString::to_string).collect(),
        create_time: Some(timestamp(*create_time)),
        update_time: Some(timestamp(*update_time)),
        created_by: created_by.to_string(),
        version: *version,
        etag: group.etag(),
    }
}

pub fn service_account(account: &ServiceAccount) -> pb::ServiceAccount {
    let ServiceAccount { id, name, role, create_time, update_time, created_by, version } = account;
    pb::ServiceAccount {
        id: id.to_string(),
        name: name.as_str().to_owned(),
        role: role_of(*role).into(),
        create_time: Some(timestamp(*create_time)),
        update_time: Some(timestamp(*update_time)),
        created_by: created_by.to_string(),
        version: *version,
        etag: account.etag(),
    }
}

pub fn api_key(key: &ApiKey, shown: Option<String>) -> pb::ApiKey {
    let ApiKey {
        id,
        of,
        name,
        scopes,
        expire_time,
        last_use_time,
        create_time,
        update_time: _,
        created_by,
        version: _,
    } = key;
    pb::ApiKey {
        id: id.to_string(),
        service_account: of.to_string(),
        name: name.as_str().to_owned(),
        scopes: scopes.as_slice().to_vec(),
        expire_time: Some(timestamp(*expire_time)),
        key: shown.unwrap_or_default(),
        last_use_time: last_use_time.map(timestamp),
        create_time: Some(timestamp(*create_time)),
        created_by: created_by.to_string(),
    }
}
