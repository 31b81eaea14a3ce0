//! The commands about the tenant itself, as those of `commands`.

use authz::{Denied, Person};
use chrono::TimeDelta;
use contracts::Role;
use contracts::UserId;
use contracts::events::identity::{MemberAddedV1, MemberId, TenantCreatedV1, TenantDeletedV1, TenantUpdatedV1};
use contracts::text::TextError;
use service::{Call, Failure, IfMatch, clock};

use crate::commands::{App, Error, met, profile, standing};
use crate::member::Member;
use crate::people::SignUp;
use crate::tenant::{self, Tenant, TenantDraft, TenantPatch};
use crate::{outgoing, permissions, store_audit, store_member, store_person, store_tenant};

/// Makes a tenant, and the person its first owner. The call is the person's, in the tenant to be.
///
/// # Errors
/// [`Error::SignUp`], [`Error::EmailNotVerified`], [`Error::TenantExists`], the errors of idempotency keys; INVALID_ARGUMENT for a misleading
/// name.
pub async fn sign_up(
    app: &App,
    call: &Call,
    (person, rules): (&Person, &SignUp),
    draft: TenantDraft,
) -> Result<Tenant, Error> {
    let profile = profile(person)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(tenant) = tx.replayed()? {
        return Ok(tenant);
    }
    let now = clock::now();
    let user = store_person::user(&mut tx, person.named(), &call.caller.actor.id, now).await?;
    let (is_adopted, since) = (store_tenant::is_adopted(&mut tx).await?, now - TimeDelta::hours(1));
    // Whom the rules refuse in any case holds up nobody.
    rules.admits(is_adopted, store_tenant::signed_up(&mut tx, &user, since).await?)?;
    store_tenant::sign_up_alone(&mut tx).await?;
    rules.admits(is_adopted, store_tenant::signed_up(&mut tx, &user, since).await?)?;
    let draft = TenantDraft { billing_email: draft.billing_email.or_else(|| Some(profile.email.clone())), ..draft };
    if tenant::is_reserved(&call.caller.tenant) {
        return Err(Error::TenantExists(call.caller.tenant.clone()));
    }
    let tenant = Tenant::create(call.caller.tenant.clone(), draft, user.clone(), now);
    refuse_misleading(&tenant, None)?;
    store_tenant::insert(&mut tx, &tenant, false).await.map_err(|error| match error {
        taken if taken.is_constraint(store_tenant::ONCE) => Error::TenantExists(call.caller.tenant.clone()),
        error => error.into(),
    })?;
    let owner = Member::add(MemberId::new(clock::new_id()), user, profile, Role::Owner, now);
    store_member::insert(&mut tx, &owner).await?;
    let events = vec![
        outgoing::event(call, outgoing::tenant(&tenant), TenantCreatedV1::of)?,
        outgoing::event(call, outgoing::member(&owner), MemberAddedV1::of)?,
    ];
    app.commit(tx, call, events, &tenant).await?;
    Ok(tenant)
}

/// Reads the caller's tenant.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoTenant`].
pub async fn get_tenant(app: &App, call: &Call) -> Result<Tenant, Error> {
    call.authorize(&permissions::GET_TENANT)?;
    let mut tx = app.db.read(call).await?;
    let tenant = store_tenant::get(&mut tx).await?;
    tx.end().await?;
    tenant.ok_or(Error::NoTenant)
}

/// Applies the patch. A patch that changes nothing writes no event.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoTenant`], ETAG_MISMATCH, the errors of idempotency keys; INVALID_ARGUMENT for a misleading new name;
/// INSUFFICIENT_USER_AUTHENTICATION where it changes what is demanded of a sign-in.
pub async fn update_tenant(app: &App, call: &Call, if_match: &IfMatch, patch: TenantPatch) -> Result<Tenant, Error> {
    call.authorize(&permissions::UPDATE_TENANT)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(tenant) = tx.replayed()? {
        return Ok(tenant);
    }
    let (before, member) = standing(&mut tx, call, &permissions::UPDATE_TENANT).await?;
    if_match.check("tenant", &before.etag())?;
    let now = clock::now();
    let Some(tenant) = before.update(patch, now) else {
        app.commit(tx, call, Vec::new(), &before).await?;
        return Ok(before);
    };
    refuse_misleading(&tenant, Some(&before))?;
    if tenant.step_up != before.step_up {
        if member.role != Role::Owner {
            return Err(Denied::This("only an owner changes what is demanded of a sign-in").into());
        }
        // Who demands it has it: a class that nobody has would lock the tenant out.
        tenant.step_up.as_ref().map_or(Ok(()), |step_up| met(step_up, call))?;
    }
    store_tenant::save(&mut tx, &before, &tenant).await?;
    let events = vec![outgoing::event(call, outgoing::tenant(&tenant), TenantUpdatedV1::of)?];
    app.commit(tx, call, events, &tenant).await?;
    Ok(tenant)
}

/// Erases what is known of the tenant, or removes a person from it; returns whether there was anything to erase.
///
/// # Errors
/// [`Error::Denied`], the errors of the database.
pub async fn erase_tenant(app: &App, call: &Call, person: Option<&UserId>) -> Result<bool, Error> {
    call.authorize(&permissions::ERASE_TENANT)?;
    let mut tx = app.db.begin(call).await?;
    let before = store_tenant::get_for_update(&mut tx).await?;
    let (now, forgets) = (clock::now(), person.is_some());
    let erased = before.as_ref().and_then(|before| {
        let tenant = person.map_or_else(|| Some(before.erase(now)), |person| before.forget(person, now));
        Some((before, tenant?))
    });
    let Some((before, tenant)) = erased else {
        tx.end().await?;
        return Ok(false);
    };
    let event = if forgets {
        store_tenant::save(&mut tx, before, &tenant).await?;
        outgoing::event(call, outgoing::tenant(&tenant), TenantUpdatedV1::of)?
    } else {
        store_tenant::delete(&mut tx, before, &tenant).await?;
        store_audit::erase(&mut tx).await?;
        outgoing::event(call, outgoing::tenant(&tenant), TenantDeletedV1::of)?
    };
    app.outbox.commit(tx, vec![event], &()).await?;
    Ok(true)
}

/// Refuses a new name that is misleading. Call it after `replayed`: an earlier answer stands.
fn refuse_misleading(tenant: &Tenant, before: Option<&Tenant>) -> Result<(), Failure> {
    if tenant.misleads(before) { Err(Failure::invalid("name", TextError::Misleading)) } else { Ok(()) }
}
