//! The tenants that other services knew before identity did, and their people, as the commands of `commands`. The call is the service's
//! own, in that tenant, and knows the operator, whom the tenant's audit names.

use authz::MAX_SUBJECT_BYTES;
use contracts::events::identity::{MemberAddedV1, MemberId, TenantCreatedV1};
use contracts::{Role, UserId};
use outbox::NewEvent;
use service::{Call, TenantTx, clock};
use uuid::{Uuid, Version};

use crate::commands::{App, Error, new_user};
use crate::member::{Member, Profile};
use crate::tenant::{Tenant, TenantDraft};
use crate::{outgoing, permissions, store_member, store_person, store_tenant};

/// What became of a tenant that other services know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// It was made now.
    pub made: bool,
    /// Who was made its owner now.
    pub owner: Option<UserId>,
    /// It has an owner.
    pub has_owner: bool,
}

/// Who is to own a tenant that is adopted.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// The provider by which the person signs in.
    pub issuer: &'a str,
    /// The user, as other services name it: the subject there.
    pub user: &'a UserId,
    /// An operator named it: it also becomes an owner of a tenant that was there, unless an owner has signed in.
    pub named: bool,
}

/// Makes a tenant that other services know, where it is missing, with its owner. None, if the tenant is erased.
///
/// # Errors
/// [`Error::Denied`], the errors of the database.
pub async fn adopt(
    app: &App,
    call: &Call,
    draft: TenantDraft,
    owner: Option<Owner<'_>>,
) -> Result<Option<Adopted>, Error> {
    call.authorize(&permissions::ADOPT_TENANT)?;
    let mut tx = app.db.begin(call).await?;
    let (now, mut events) = (clock::now(), Vec::new());
    let owner = owner.filter(|owner| owner.named || is_a_subject(owner.user));
    let user = match owner {
        Some(owner) => Some(user(&mut tx, (owner.issuer, owner.user)).await?),
        None => None,
    };
    let made = store_tenant::get_for_update(&mut tx).await?.is_none();
    if made {
        let first = user.clone().unwrap_or_else(UserId::erased);
        let tenant = Tenant::create(call.caller.tenant.clone(), draft.clone(), first, now);
        match store_tenant::insert(&mut tx, &tenant, true).await {
            Ok(()) => events.push(outgoing::event(call, outgoing::tenant(&tenant), TenantCreatedV1::of)?),
            Err(error) if error.is_constraint(store_tenant::ONCE) => {
                drop(tx);
                let mut tx = app.db.read(call).await?;
                let there = store_tenant::get(&mut tx).await?.is_some();
                tx.end().await?;
                // It was made meanwhile, or is erased. What this had begun is undone.
                return if there { Box::pin(adopt(app, call, draft, owner)).await } else { Ok(None) };
            }
            Err(error) => return Err(error.into()),
        }
    }
    let wanted = made || owner.is_some_and(|owner| owner.named) && !store_member::an_owner_came(&mut tx).await?;
    let mut owns = None;
    if let (Some(user), true) = (user, wanted) {
        let before = events.len();
        let member = make_member(&mut tx, call, user, Role::Owner, &mut events).await?;
        owns = (events.len() > before).then_some(member.user);
    }
    let has_owner = store_member::owners(&mut tx).await? > 0;
    app.commit(tx, call, events, &()).await?;
    Ok(Some(Adopted { made, owner: owns, has_owner }))
}

/// Whether a user that other services name may be a subject of a provider's: the fleet's own ids of persons and programs are none.
fn is_a_subject(user: &UserId) -> bool {
    let own = |id: Uuid| matches!(id.get_version(), Some(Version::Sha1 | Version::SortRand));
    user.as_str().len() <= MAX_SUBJECT_BYTES && !user.as_str().parse().is_ok_and(own)
}

/// Notes that the tenants which other services know are adopted: from now on people sign up.
///
/// # Errors
/// The errors of the database.
pub async fn finish(app: &App) -> Result<(), Error> {
    let mut tx = app.db.begin_operator("the tenants of other services are adopted").await?;
    store_tenant::note_adoption(&mut tx, clock::now()).await?;
    tx.commit().await?;
    Ok(())
}

/// Whether the tenants which other services know are adopted.
///
/// # Errors
/// The errors of the database.
pub async fn is_finished(app: &App) -> Result<bool, Error> {
    let mut tx = app.db.begin_operator("whether the tenants of other services are adopted").await?;
    let adopted = store_tenant::adoption(&mut tx).await?;
    tx.commit().await?;
    Ok(adopted)
}

/// Makes the user of this name a member with this role, where it is none; returns the role that it has. Nobody signs in as it: the
/// issuer's tokens are at hand.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoTenant`], the errors of the database.
pub async fn admit(app: &App, call: &Call, (issuer, user): (&str, &UserId), role: Role) -> Result<Role, Error> {
    call.authorize(&permissions::ADMIT_MEMBER)?;
    let mut tx = app.db.begin(call).await?;
    store_tenant::get_for_update(&mut tx).await?.ok_or(Error::NoTenant)?;
    let mut events = Vec::new();
    if !store_person::is_user(&mut tx, user).await? {
        store_person::user(&mut tx, (issuer, user.as_str()), user, clock::now()).await?;
    }
    let member = make_member(&mut tx, call, user.clone(), role, &mut events).await?;
    app.commit(tx, call, events, &()).await?;
    Ok(member.role)
}

/// The member that a user is; made, with this role, where it is none. The tenant is locked.
async fn make_member(
    tx: &mut TenantTx,
    call: &Call,
    user: UserId,
    role: Role,
    events: &mut Vec<NewEvent>,
) -> Result<Member, Error> {
    if let Some(member) = store_member::of_user(tx, &user).await? {
        return Ok(member);
    }
    let member = Member::add(MemberId::new(clock::new_id()), user, Profile::unknown(), role, clock::now());
    store_member::insert(tx, &member).await?;
    events.push(outgoing::event(call, outgoing::member(&member), MemberAddedV1::of)?);
    Ok(member)
}

/// The user that other services name so, by whom the provider knows: its subject, or a user of the fleet's. Who was never seen keeps the
/// name, where nobody else has it.
async fn user(tx: &mut TenantTx, (issuer, name): (&str, &UserId)) -> Result<UserId, Error> {
    let person = (issuer, name.as_str());
    if let Some(user) = store_person::of(tx, person).await? {
        return Ok(user);
    }
    let taken = store_person::is_user(tx, name).await?;
    if taken && !is_a_subject(name) {
        return Ok(name.clone());
    }
    let new = if taken { new_user(person)? } else { name.clone() };
    Ok(store_person::user(tx, person, &new, clock::now()).await?)
}
