//! The commands of the service. Each is one function with one transaction: authorize, begin (with the idempotency key), load, decide,
//! save, and commit together with the events and the answer. A transaction calls and publishes nothing; the relay publishes the
//! events afterwards. Those about the tenant itself, invitations, groups, programs and keys are in `commands_tenant`,
//! `commands_invitations`, `commands_groups` and `commands_programs`, what operators do in `commands_operators`.

use std::time::Duration;

use authz::{Caller, Denied, Permission, Person, StepUp};
use chrono::{DateTime, Utc};
use contracts::events::identity::{
    ApiKeyId, GroupId, GroupUpdatedV1, InvitationClosedV1, InvitationId, MemberId, MemberRemovedV1, MemberUpdatedV1,
    ServiceAccountId, TenantStatus, TenantUpdatedV1,
};
use contracts::{Actor, ActorKind, Role, TenantId, UserId};
use outbox::NewEvent;
use service::idempotency::StoredResponse;
use service::tenants::Suspended;
use service::{Call, Code, Db, Failure, IfMatch, Outbox, StoreError, TenantTx, clock};
use uuid::Uuid;

use crate::api_key::MOST;
use crate::group::MAX_GROUPS;
use crate::member::{Member, Profile};
use crate::people;
use crate::store_audit::Entry;
use crate::tenant::Tenant;
use crate::texts::Email;
use crate::{
    outgoing, permissions, store_audit, store_group, store_invitation, store_member, store_person, store_tenant,
};

/// The dependencies of the commands.
#[derive(Debug, Clone)]
pub struct App {
    /// The database.
    pub db: Db,
    /// Ends each command's transaction, and publishes its events.
    pub outbox: Outbox,
}

impl App {
    /// Ends a command that somebody called, or an operator had the service do: what it did to access is noted with who did it, and
    /// [`Outbox::commit`] does the rest.
    ///
    /// # Errors
    /// As [`Outbox::commit`].
    pub(crate) async fn commit<A: StoredResponse>(
        &self,
        mut tx: TenantTx,
        call: &Call,
        events: Vec<NewEvent>,
        answer: &A,
    ) -> Result<(), Error> {
        let (by, now) = (call.by(), clock::now());
        for event in &events {
            store_audit::append(&mut tx, event, &by, now).await?;
        }
        Ok(self.outbox.commit(tx, events, answer).await?)
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller's tenant did not sign up, or is erased.
    #[error("this tenant did not sign up")]
    NoTenant,
    /// The caller's tenant has no such member, or the member has left.
    #[error("there is no member {0}")]
    NoMember(MemberId),
    /// There is no such invitation; it has ended, was taken up or withdrawn; or it is not for the caller.
    #[error("there is no invitation {0} for you")]
    NoInvitation(InvitationId),
    /// The caller's tenant has no such group, or the caller may see none.
    #[error("there is no group {0}")]
    NoGroup(GroupId),
    /// A tenant has as many groups as it may have.
    #[error("a tenant has {MAX_GROUPS} groups at most: delete one first")]
    ManyGroups,
    /// The caller's tenant has no such program, or the caller may see none.
    #[error("there is no service account {0}")]
    NoServiceAccount(ServiceAccountId),
    /// A program has as many keys as it may have.
    #[error("a service account has {MOST} keys at most: revoke one first")]
    ManyApiKeys,
    /// The caller's tenant has no such key, or the caller may see none.
    #[error("there is no key {0}")]
    NoApiKey(ApiKeyId),
    /// Another tenant has, or had, this slug.
    #[error("the id {0} is taken: choose another one")]
    TenantExists(TenantId),
    /// The person is a member already.
    #[error("you are a member already")]
    MemberExists,
    /// Nobody signs up, or nobody does now.
    #[error(transparent)]
    SignUp(#[from] people::Refused),
    /// A tenant has an owner.
    #[error("the last owner stays: make somebody else an owner first")]
    LastOwner,
    /// The provider does not say that the person has an e-mail address.
    #[error("your provider's token names no verified e-mail address: verify yours there, and ask for the scope email")]
    EmailNotVerified,
    /// The caller lacks the permission.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The failures that every service shares.
    #[error(transparent)]
    Failure(#[from] Failure),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        if error.is_constraint(store_member::ONCE) { Self::MemberExists } else { Self::Failure(error.into()) }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Failure(error.into())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::NoTenant => Self::new(Code::NotFound, "TENANT_NOT_FOUND", error),
            Error::NoMember(_) => Self::new(Code::NotFound, "MEMBER_NOT_FOUND", error),
            Error::NoInvitation(_) => Self::new(Code::NotFound, "INVITATION_NOT_FOUND", error),
            Error::NoGroup(_) => Self::new(Code::NotFound, "GROUP_NOT_FOUND", error),
            Error::ManyGroups => Self::new(Code::FailedPrecondition, "TOO_MANY_GROUPS", error),
            Error::NoServiceAccount(_) => Self::new(Code::NotFound, "SERVICE_ACCOUNT_NOT_FOUND", error),
            Error::ManyApiKeys => Self::new(Code::FailedPrecondition, "TOO_MANY_API_KEYS", error),
            Error::NoApiKey(_) => Self::new(Code::NotFound, "API_KEY_NOT_FOUND", error),
            Error::TenantExists(_) => Self::new(Code::AlreadyExists, "TENANT_EXISTS", error),
            Error::MemberExists => Self::new(Code::AlreadyExists, "MEMBER_EXISTS", error),
            Error::SignUp(people::Refused::Closed | people::Refused::NotAdopted) => {
                Self::new(Code::PermissionDenied, "SIGN_UP_CLOSED", error)
            }
            Error::SignUp(people::Refused::TooMany) => {
                Self::new(Code::ResourceExhausted, "TOO_MANY_REQUESTS", error).retry_after(Duration::from_secs(600))
            }
            Error::LastOwner => Self::new(Code::FailedPrecondition, "LAST_OWNER", error),
            Error::EmailNotVerified => Self::new(Code::FailedPrecondition, "EMAIL_NOT_VERIFIED", error),
            Error::Denied(denied) => denied.into(),
            Error::Failure(failure) => failure,
        }
    }
}

/// A person who acts in a tenant before a token of the fleet's says so.
#[must_use]
pub fn in_person(tenant: TenantId, user: UserId) -> Caller {
    Caller {
        tenant,
        actor: Actor::new(ActorKind::User, user),
        role: None,
        scopes: None,
        sign_in: None,
        issued: None,
        expires_unix_seconds: 0,
    }
}

/// The user that a person is; of one who was never seen, the same for whoever sees the person first.
///
/// # Errors
/// The errors of the database.
pub async fn user_of(app: &App, person: &Person) -> Result<UserId, Error> {
    let mut tx = app.db.begin_operator("a person is known before a tenant is chosen").await?;
    let known = store_person::known(&mut tx, person).await?;
    tx.commit().await?;
    Ok(known.map_or_else(|| new_user(person.named()), Ok)?)
}

/// The user that a person becomes who was never seen.
pub(crate) fn new_user((issuer, subject): (&str, &str)) -> Result<UserId, Failure> {
    let name = format!("{issuer} {subject}");
    Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()).to_string().parse().map_err(Failure::internal)
}

/// What members show of a person.
///
/// # Errors
/// [`Error::EmailNotVerified`]
pub fn profile(person: &Person) -> Result<Profile, Error> {
    Profile::of(person).ok_or(Error::EmailNotVerified)
}

/// The tenant, locked until the transaction ends, and the caller as it is now: a member who acts by itself. What a token says may be minutes
/// old, and nobody whose access was taken away gives any. Where the tenant marks acts, the caller has signed in as it demands. Call it behind
/// `replayed`.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoTenant`], TENANT_SUSPENDED, INSUFFICIENT_USER_AUTHENTICATION.
pub(crate) async fn standing(tx: &mut TenantTx, call: &Call, wanted: &Permission) -> Result<(Tenant, Member), Error> {
    let tenant = store_tenant::get_for_update(tx).await?.ok_or(Error::NoTenant)?;
    let actor = &call.caller.actor;
    if !actor.is_person() {
        return Err(Denied::This("only a person who acts by itself gives, changes or takes access").into());
    }
    let member = store_member::of_user(tx, &actor.id).await?;
    let member = member.filter(|member| wanted.roles.contains(&member.role));
    let member = member.ok_or(Denied::This("you are no member, or not in a role that may do this, any more"))?;
    refuse_suspended(&tenant)?;
    // Who gives access gives more than the act that is marked.
    if let Some(step_up) = &tenant.step_up {
        met(step_up, call)?;
    }
    Ok((tenant, member))
}

/// Whether the caller has signed in as the tenant demands, or is to.
///
/// # Errors
/// INSUFFICIENT_USER_AUTHENTICATION
pub(crate) fn met(step_up: &StepUp, call: &Call) -> Result<(), Failure> {
    let (acr, auth_time) = call.caller.sign_in.as_ref().map_or((None, None), |by| (by.acr.as_deref(), by.auth_time));
    Ok(step_up.check(acr, auth_time, clock::now().timestamp())?)
}

/// A suspended tenant reads, and writes nothing.
pub(crate) fn refuse_suspended(tenant: &Tenant) -> Result<(), Failure> {
    match tenant.status {
        TenantStatus::Active => Ok(()),
        TenantStatus::Suspended => Err(Suspended.into()),
    }
}

/// Reads the page of the audit after `after`, the newest first.
///
/// # Errors
/// [`Error::Denied`], the errors of the database.
pub async fn list_audit(app: &App, call: &Call, after: Option<Uuid>, limit: usize) -> Result<Vec<Entry>, Error> {
    call.authorize(&permissions::LIST_AUDIT_ENTRIES)?;
    let mut tx = app.db.read(call).await?;
    let entries = store_audit::list(&mut tx, after, limit).await?;
    tx.end().await?;
    Ok(entries)
}

/// Reads one member.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoMember`].
pub async fn get_member(app: &App, call: &Call, id: MemberId) -> Result<Member, Error> {
    authorize_member(call, &permissions::GET_MEMBER, id)?;
    let mut tx = app.db.read(call).await?;
    let member = store_member::get(&mut tx, id).await?;
    tx.end().await?;
    member.ok_or(Error::NoMember(id))
}

/// Reads the page of members after `after`, the newest first; of one user alone, if it is named.
///
/// # Errors
/// [`Error::Denied`], the errors of the database.
pub async fn list_members(
    app: &App,
    call: &Call,
    user: Option<&UserId>,
    (after, limit): (Option<MemberId>, usize),
) -> Result<Vec<Member>, Error> {
    call.authorize(&permissions::LIST_MEMBERS)?;
    let mut tx = app.db.read(call).await?;
    let members = match user {
        Some(user) => store_member::of_user(&mut tx, user).await?.into_iter().collect(),
        None => store_member::list(&mut tx, after, limit).await?,
    };
    tx.end().await?;
    Ok(members)
}

/// Gives a member another role. The same role writes no event.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoMember`], [`Error::LastOwner`], ETAG_MISMATCH, the errors of idempotency keys.
pub async fn change_role(
    app: &App,
    call: &Call,
    id: MemberId,
    if_match: &IfMatch,
    role: Role,
) -> Result<Member, Error> {
    authorize_member(call, &permissions::UPDATE_MEMBER, id)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(member) = tx.replayed()? {
        return Ok(member);
    }
    let (_, caller) = standing(&mut tx, call, &permissions::UPDATE_MEMBER).await?;
    let before = load_member(&mut tx, id, if_match).await?;
    only_an_owner(&caller, &[before.role, role])?;
    let Some(member) = before.with_role(role, clock::now()) else {
        app.commit(tx, call, Vec::new(), &before).await?;
        return Ok(before);
    };
    store_member::save(&mut tx, &before, &member).await?;
    keep_an_owner(&mut tx).await?;
    let events = vec![outgoing::event(call, outgoing::member(&member), MemberUpdatedV1::of)?];
    app.commit(tx, call, events, &member).await?;
    Ok(member)
}

/// Takes a member out: an emptied row stays that no caller sees, and the event carries the last state. Everybody may leave.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoMember`], [`Error::LastOwner`], ETAG_MISMATCH, the errors of idempotency keys.
pub async fn remove_member(app: &App, call: &Call, id: MemberId, if_match: &IfMatch) -> Result<(), Error> {
    authorize_member(call, &permissions::DELETE_MEMBER, id)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(()) = tx.replayed()? {
        return Ok(());
    }
    let (_, caller) = standing(&mut tx, call, &permissions::DELETE_MEMBER).await?;
    let before = load_member(&mut tx, id, if_match).await?;
    if caller.id != before.id {
        if !matches!(caller.role, Role::Owner | Role::Admin) {
            return Err(Denied::This("only an owner or an admin removes somebody else").into());
        }
        only_an_owner(&caller, &[before.role])?;
    }
    let now = clock::now();
    let member = before.remove(now);
    store_member::delete(&mut tx, &before, &member).await?;
    keep_an_owner(&mut tx).await?;
    let mut events = leave_groups(&mut tx, call, id, now).await?;
    events.push(outgoing::event(call, outgoing::member(&member), MemberRemovedV1::of)?);
    app.commit(tx, call, events, &()).await?;
    Ok(())
}

/// Takes a member who leaves out of every group; returns the events that say so. The tenant is locked.
///
/// # Errors
/// The errors of the database.
async fn leave_groups(
    tx: &mut TenantTx,
    call: &Call,
    member: MemberId,
    now: DateTime<Utc>,
) -> Result<Vec<NewEvent>, Error> {
    let mut events = Vec::new();
    for before in store_group::of_member_for_update(tx, member).await? {
        let group = before.without(member, now);
        store_group::save(tx, &before, &group).await?;
        events.push(outgoing::event(call, outgoing::group(&group), GroupUpdatedV1::of)?);
    }
    Ok(events)
}

/// Erases a member, of the whole tenant or of this person; returns whether there was anything to erase.
///
/// # Errors
/// [`Error::Denied`], the errors of the database.
pub async fn erase_member(app: &App, call: &Call, id: MemberId, person: Option<&UserId>) -> Result<bool, Error> {
    call.authorize(&permissions::ERASE_MEMBER)?;
    let mut tx = app.db.begin(call).await?;
    // As whoever leaves does: the last owner is counted with the tenant locked.
    let tenant = store_tenant::get_for_update(&mut tx).await?;
    let before = store_member::get_for_update(&mut tx, id).await?;
    let Some(before) = before.filter(|before| person.is_none_or(|person| before.user == *person)) else {
        tx.end().await?;
        return Ok(false);
    };
    let now = clock::now();
    let mut events = leave_groups(&mut tx, call, id, now).await?;
    let goes_on = tenant.filter(|_| person.is_some());
    if let Some(tenant) = &goes_on {
        events.extend(forget_address(&mut tx, call, tenant, &before.profile.email, now).await?);
    }
    let member = before.erase(now);
    store_member::delete(&mut tx, &before, &member).await?;
    events.push(outgoing::event(call, outgoing::member(&member), MemberRemovedV1::of)?);
    // The audit of a tenant that is erased goes with it.
    if goes_on.is_some() {
        app.commit(tx, call, events, &()).await?;
    } else {
        app.outbox.commit(tx, events, &()).await?;
    }
    Ok(true)
}

/// Removes the address of a person who is erased from what else holds it: the tenant's invoices, and invitations. The tenant is locked.
async fn forget_address(
    tx: &mut TenantTx,
    call: &Call,
    tenant: &Tenant,
    address: &Email,
    now: DateTime<Utc>,
) -> Result<Vec<NewEvent>, Error> {
    let mut events = Vec::new();
    if let Some(without) = tenant.without_address(address, now) {
        store_tenant::save(tx, tenant, &without).await?;
        events.push(outgoing::event(call, outgoing::tenant(&without), TenantUpdatedV1::of)?);
    }
    for open in store_invitation::to_for_update(tx, address).await? {
        let closed = open.erase(now);
        store_invitation::close(tx, &open, &closed).await?;
        events.push(outgoing::event(call, outgoing::invitation(&closed), InvitationClosedV1::of)?);
    }
    Ok(events)
}

fn authorize_member(call: &Call, permission: &Permission, id: MemberId) -> Result<(), Error> {
    call.authorize_on(permission, &permissions::GET_MEMBER, || Error::NoMember(id))
}

/// Whoever is no owner makes none, and changes none.
pub(crate) fn only_an_owner(caller: &Member, roles: &[Role]) -> Result<(), Denied> {
    if roles.contains(&Role::Owner) && caller.role != Role::Owner {
        return Err(Denied::This("only an owner makes, changes or removes an owner"));
    }
    Ok(())
}

/// Call it behind the change, with the tenant locked.
async fn keep_an_owner(tx: &mut TenantTx) -> Result<(), Error> {
    if store_member::owners(tx).await? == 0 { Err(Error::LastOwner) } else { Ok(()) }
}

/// The member, locked until the transaction ends, if it is as the caller has read it.
async fn load_member(tx: &mut TenantTx, id: MemberId, if_match: &IfMatch) -> Result<Member, Error> {
    let member = store_member::get_for_update(tx, id).await?.ok_or(Error::NoMember(id))?;
    if_match.check("member", &member.etag())?;
    Ok(member)
}
