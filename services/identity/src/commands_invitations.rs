//! The commands about invitations, as those of `commands`.

use authz::{Permission, Person};
use contracts::UserId;
use contracts::events::identity::{InvitationClosedV1, InvitationCreatedV1, InvitationId, MemberAddedV1, MemberId};
use service::{Call, Failure, clock};

use crate::commands::{App, Error, only_an_owner, profile, refuse_suspended, standing};
use crate::invitation::{Invitation, InvitationDraft};
use crate::member::Member;
use crate::{outgoing, permissions, store_invitation, store_member, store_person, store_tenant};

/// Invites whoever has an e-mail address.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoTenant`], the errors of idempotency keys; INVALID_ARGUMENT for a time that is too far away.
pub async fn invite(app: &App, call: &Call, draft: InvitationDraft) -> Result<Invitation, Error> {
    call.authorize(&permissions::CREATE_INVITATION)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(invitation) = tx.replayed()? {
        return Ok(invitation);
    }
    let (_, caller) = standing(&mut tx, call, &permissions::CREATE_INVITATION).await?;
    only_an_owner(&caller, &[draft.role])?;
    let (id, by) = (InvitationId::new(clock::new_id()), call.caller.actor.subject().id.clone());
    let invitation = Invitation::create(id, draft, by, clock::now());
    let invitation = invitation.map_err(|far| Failure::invalid("expire_time", far))?;
    store_invitation::insert(&mut tx, &invitation).await?;
    let events = vec![outgoing::event(call, outgoing::invitation(&invitation), InvitationCreatedV1::of)?];
    app.commit(tx, call, events, &invitation).await?;
    Ok(invitation)
}

/// Reads one invitation that is open.
///
/// # Errors
/// [`Error::Denied`] without the scope, [`Error::NoInvitation`].
pub async fn get_invitation(app: &App, call: &Call, id: InvitationId) -> Result<Invitation, Error> {
    authorize_invitation(call, &permissions::GET_INVITATION, id)?;
    let mut tx = app.db.read(call).await?;
    let invitation = store_invitation::get(&mut tx, id).await?;
    tx.end().await?;
    invitation.ok_or(Error::NoInvitation(id))
}

/// Reads the page of open invitations after `after`, the newest first.
///
/// # Errors
/// [`Error::Denied`], the errors of the database.
pub async fn list_invitations(
    app: &App,
    call: &Call,
    after: Option<InvitationId>,
    limit: usize,
) -> Result<Vec<Invitation>, Error> {
    call.authorize(&permissions::LIST_INVITATIONS)?;
    let mut tx = app.db.read(call).await?;
    let invitations = store_invitation::list(&mut tx, after, limit).await?;
    tx.end().await?;
    Ok(invitations)
}

/// Withdraws an invitation.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoInvitation`], the errors of idempotency keys.
pub async fn withdraw(app: &App, call: &Call, id: InvitationId) -> Result<(), Error> {
    authorize_invitation(call, &permissions::DELETE_INVITATION, id)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(()) = tx.replayed()? {
        return Ok(());
    }
    standing(&mut tx, call, &permissions::DELETE_INVITATION).await?;
    let before = store_invitation::get_for_update(&mut tx, id).await?.ok_or(Error::NoInvitation(id))?;
    let invitation = before.close(clock::now());
    store_invitation::close(&mut tx, &before, &invitation).await?;
    let events = vec![outgoing::event(call, outgoing::invitation(&invitation), InvitationClosedV1::of)?];
    app.commit(tx, call, events, &()).await?;
    Ok(())
}

/// Takes up an invitation: the person whose address is the invited one becomes a member. The call is the person's, in the tenant that
/// invites.
///
/// # Errors
/// [`Error::EmailNotVerified`], [`Error::NoInvitation`], TENANT_SUSPENDED, [`Error::MemberExists`], the errors of idempotency keys.
pub async fn accept(app: &App, call: &Call, person: &Person, id: InvitationId) -> Result<Member, Error> {
    let profile = profile(person)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(member) = tx.replayed()? {
        return Ok(member);
    }
    let now = clock::now();
    let tenant = store_tenant::get_for_update(&mut tx).await?.ok_or(Error::NoInvitation(id))?;
    let before = store_invitation::get_for_update(&mut tx, id).await?;
    let before = before.filter(|open| open.is_for(&profile.email, now)).ok_or(Error::NoInvitation(id))?;
    // Whoever may not invite any more has invited nobody.
    let by = store_member::of_user(&mut tx, &before.created_by).await?;
    let by = by.filter(|by| permissions::CREATE_INVITATION.roles.contains(&by.role)).ok_or(Error::NoInvitation(id))?;
    only_an_owner(&by, &[before.role]).map_err(|_| Error::NoInvitation(id))?;
    refuse_suspended(&tenant)?;
    let user = store_person::user(&mut tx, person.named(), &call.caller.actor.id, now).await?;
    let member = Member::add(MemberId::new(clock::new_id()), user, profile, before.role, now);
    store_member::insert(&mut tx, &member).await?;
    let invitation = before.close(now);
    store_invitation::close(&mut tx, &before, &invitation).await?;
    let events = vec![
        outgoing::event(call, outgoing::invitation(&invitation), InvitationClosedV1::of)?,
        outgoing::event(call, outgoing::member(&member), MemberAddedV1::of)?,
    ];
    app.commit(tx, call, events, &member).await?;
    Ok(member)
}

/// The tenant that an invitation is to, one that is closed too: a repeat has its answer.
///
/// # Errors
/// [`Error::NoInvitation`], the errors of the database.
pub async fn invites_to(app: &App, id: InvitationId) -> Result<contracts::TenantId, Error> {
    let mut tx = app.db.begin_operator("an invitation names its tenant by its id").await?;
    let tenant = store_person::tenant_of_invitation(&mut tx, id).await?;
    tx.commit().await?;
    tenant.ok_or(Error::NoInvitation(id))
}

/// Erases an invitation, of the whole tenant or by this person; returns whether there was anything to erase.
///
/// # Errors
/// [`Error::Denied`], the errors of the database.
pub async fn erase_invitation(
    app: &App,
    call: &Call,
    id: InvitationId,
    person: Option<&UserId>,
) -> Result<bool, Error> {
    call.authorize(&permissions::ERASE_INVITATION)?;
    let mut tx = app.db.begin(call).await?;
    let before = store_invitation::get_for_update(&mut tx, id).await?;
    let Some(before) = before.filter(|before| person.is_none_or(|person| before.created_by == *person)) else {
        tx.end().await?;
        return Ok(false);
    };
    let invitation = before.erase(clock::now());
    store_invitation::close(&mut tx, &before, &invitation).await?;
    let events = vec![outgoing::event(call, outgoing::invitation(&invitation), InvitationClosedV1::of)?];
    app.outbox.commit(tx, events, &()).await?;
    Ok(true)
}

fn authorize_invitation(call: &Call, permission: &Permission, id: InvitationId) -> Result<(), Error> {
    call.authorize_on(permission, &permissions::GET_INVITATION, || Error::NoInvitation(id))
}
