//! What operators ask and do about a tenant, as the commands of `commands`. The call is the service's own, in that tenant, and knows the
//! operator, whom the tenant's audit names.

use contracts::TenantId;
use contracts::events::identity::{
    MemberRemovedV1, MemberUpdatedV1, TenantStatus, TenantStatusChangedV1, TenantUpdatedV1,
};
use service::{Call, clock};

use crate::commands::{App, Error};
use crate::invitation::Invitation;
use crate::tenant::Tenant;
use crate::{outgoing, permissions, store_invitation, store_member, store_states, store_tenant};

/// The tenant behind this id, erased or not; none behind the last.
///
/// # Errors
/// The errors of the database.
pub async fn next_tenant(app: &App, after: &str) -> Result<Option<TenantId>, Error> {
    let mut tx = app.db.begin_operator("operators list the tenants").await?;
    let next = store_states::next_tenant(&mut tx, after).await?;
    tx.commit().await?;
    Ok(next)
}

/// Reads the tenant, if it is not erased.
///
/// # Errors
/// [`Error::Denied`], the errors of the database.
pub async fn tenant(app: &App, call: &Call) -> Result<Option<Tenant>, Error> {
    call.authorize(&permissions::SEE_TENANT)?;
    let mut tx = app.db.read(call).await?;
    let tenant = store_tenant::get(&mut tx).await?;
    tx.end().await?;
    Ok(tenant)
}

/// Reads up to `limit` invitations that may be taken up, the newest first.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoTenant`], the errors of the database.
pub async fn invitations(app: &App, call: &Call, limit: usize) -> Result<Vec<Invitation>, Error> {
    call.authorize(&permissions::SEE_TENANT)?;
    let mut tx = app.db.read(call).await?;
    let tenant = store_tenant::get(&mut tx).await?;
    let mut found = store_invitation::list(&mut tx, None, limit).await?;
    tx.end().await?;
    let (_, now) = (tenant.ok_or(Error::NoTenant)?, clock::now());
    found.retain(|invitation| invitation.expire_time > now);
    Ok(found)
}

/// Lets the tenant read and not write, or write again. Each call is an event, so that a repeat tells whoever missed it.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoTenant`], the errors of the database.
pub async fn set_status(app: &App, call: &Call, status: TenantStatus) -> Result<Tenant, Error> {
    call.authorize(&permissions::SET_TENANT_STATUS)?;
    let mut tx = app.db.begin(call).await?;
    let before = store_tenant::get_for_update(&mut tx).await?.ok_or(Error::NoTenant)?;
    let tenant = before.with_status(status, clock::now());
    store_tenant::save(&mut tx, &before, &tenant).await?;
    let event = outgoing::event(call, outgoing::tenant(&tenant), TenantStatusChangedV1::of)?;
    app.commit(tx, call, vec![event], &()).await?;
    Ok(tenant)
}

/// Ends what the tenant demands of a sign-in: whoever could end it there cannot sign in so any more.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoTenant`], the errors of the database.
pub async fn end_step_up(app: &App, call: &Call) -> Result<Tenant, Error> {
    call.authorize(&permissions::END_STEP_UP)?;
    let mut tx = app.db.begin(call).await?;
    let before = store_tenant::get_for_update(&mut tx).await?.ok_or(Error::NoTenant)?;
    let tenant = before.without_step_up(clock::now());
    store_tenant::save(&mut tx, &before, &tenant).await?;
    let event = outgoing::event(call, outgoing::tenant(&tenant), TenantUpdatedV1::of)?;
    app.commit(tx, call, vec![event], &()).await?;
    Ok(tenant)
}

/// How many members one transaction publishes again.
const AT_ONCE: usize = 100;

/// Publishes again by events whether the tenant may write, who its members are, and who has left; returns how many members there are. Each is at its next
/// version, so that a reader takes it for the newest.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoTenant`], the errors of the database. What was published by then stays so.
pub async fn republish(app: &App, call: &Call) -> Result<i64, Error> {
    call.authorize(&permissions::REPUBLISH_TENANT)?;
    let (mut after, mut republished) = (None, 0);
    loop {
        let mut tx = app.db.begin(call).await?;
        // Nobody leaves meanwhile; whoever comes is an event of its own.
        let before = store_tenant::get_for_update(&mut tx).await?.ok_or(Error::NoTenant)?;
        let (now, mut events) = (clock::now(), Vec::new());
        if after.is_none() {
            let tenant = before.with_status(before.status, now);
            store_tenant::save(&mut tx, &before, &tenant).await?;
            events.push(outgoing::event(call, outgoing::tenant(&tenant), TenantStatusChangedV1::of)?);
        }
        let members = store_member::all_for_update(&mut tx, after, AT_ONCE).await?;
        for (before, there) in &members {
            let member = before.republished(now);
            let state = outgoing::member(&member);
            events.push(if *there {
                store_member::save(&mut tx, before, &member).await?;
                republished += 1;
                outgoing::event(call, state, MemberUpdatedV1::of)?
            } else {
                store_member::delete_again(&mut tx, before, &member).await?;
                outgoing::event(call, state, MemberRemovedV1::of)?
            });
        }
        // Nobody got or lost anything by it: it is no entry of the audit.
        app.outbox.commit(tx, events, &()).await?;
        after = members.last().map(|(member, _)| member.id);
        if members.len() < AT_ONCE {
            return Ok(republished);
        }
    }
}
