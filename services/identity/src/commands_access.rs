//! The commands about invitations and keys, as those of `commands`.

use authz::{Permission, Person};
use contracts::UserId;
use contracts::events::identity::{
    ApiKeyCreatedV1, ApiKeyId, ApiKeyRevokedV1, ApiKeyUpdatedV1, InvitationClosedV1, InvitationCreatedV1, InvitationId,
    MemberAddedV1, MemberId,
};
use contracts::text::{TextError, is_misleading};
use service::{Call, Failure, clock};

use crate::api_key::{ApiKey, ApiKeyDraft, KeySecret};
use crate::commands::{App, Error, only_an_owner, profile, standing};
use crate::invitation::{Invitation, InvitationDraft};
use crate::member::Member;
use crate::{outgoing, permissions, store_api_key, store_invitation, store_member, store_person, store_tenant};

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
    app.outbox.commit(tx, events, &invitation).await?;
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
    app.outbox.commit(tx, events, &()).await?;
    Ok(())
}

/// Takes up an invitation: the person whose address is the invited one becomes a member. The call is the person's, in the tenant that
/// invites.
///
/// # Errors
/// [`Error::EmailNotVerified`], [`Error::NoInvitation`], [`Error::MemberExists`], the errors of idempotency keys.
pub async fn accept(app: &App, call: &Call, person: &Person, id: InvitationId) -> Result<Member, Error> {
    let profile = profile(person)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(member) = tx.replayed()? {
        return Ok(member);
    }
    let now = clock::now();
    store_tenant::get_for_update(&mut tx).await?.ok_or(Error::NoInvitation(id))?;
    let before = store_invitation::get_for_update(&mut tx, id).await?;
    let before = before.filter(|open| open.is_for(&profile.email, now)).ok_or(Error::NoInvitation(id))?;
    // Whoever may not invite any more has invited nobody.
    let by = store_member::of_user(&mut tx, &before.created_by).await?;
    let by = by.filter(|by| permissions::CREATE_INVITATION.roles.contains(&by.role)).ok_or(Error::NoInvitation(id))?;
    only_an_owner(&by, &[before.role]).map_err(|_| Error::NoInvitation(id))?;
    let user = store_person::user(&mut tx, person, &call.caller.actor.id, now).await?;
    let member = Member::add(MemberId::new(clock::new_id()), user, profile, before.role, now);
    store_member::insert(&mut tx, &member).await?;
    let invitation = before.close(now);
    store_invitation::close(&mut tx, &before, &invitation).await?;
    let events = vec![
        outgoing::event(call, outgoing::invitation(&invitation), InvitationClosedV1::of)?,
        outgoing::event(call, outgoing::member(&member), MemberAddedV1::of)?,
    ];
    app.outbox.commit(tx, events, &member).await?;
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

/// Makes a key. Only its answer has the text of it; a repeat has not.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoTenant`], the errors of idempotency keys; INVALID_ARGUMENT for a time that is too far away.
pub async fn create_api_key(
    app: &App,
    call: &Call,
    draft: ApiKeyDraft,
    secret: &KeySecret,
) -> Result<(ApiKey, Option<String>), Error> {
    call.authorize(&permissions::CREATE_API_KEY)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(key) = tx.replayed()? {
        return Ok((key, None));
    }
    standing(&mut tx, call, &permissions::CREATE_API_KEY).await?;
    if is_misleading(draft.name.as_str()) {
        return Err(Failure::invalid("name", TextError::Misleading).into());
    }
    if let Some(missing) = call.caller.scopes.as_ref().and_then(|own| draft.scopes.beyond(own)) {
        let message = format!("holds {missing}, which your own token has not");
        return Err(Failure::invalid("scopes", message).into());
    }
    let (id, by) = (ApiKeyId::new(clock::new_id()), call.caller.actor.subject().id.clone());
    let key = ApiKey::create(id, draft, by, clock::now());
    let key = key.map_err(|far| Failure::invalid("expire_time", far))?;
    store_api_key::insert(&mut tx, &key, secret.digest()).await?;
    let events = vec![outgoing::event(call, outgoing::api_key(&key), ApiKeyCreatedV1::of)?];
    app.outbox.commit(tx, events, &key).await?;
    Ok((key, Some(secret.text(id))))
}

/// Reads one key that is not revoked.
///
/// # Errors
/// [`Error::Denied`] without the scope, [`Error::NoApiKey`].
pub async fn get_api_key(app: &App, call: &Call, id: ApiKeyId) -> Result<ApiKey, Error> {
    authorize_api_key(call, &permissions::GET_API_KEY, id)?;
    let mut tx = app.db.read(call).await?;
    let key = store_api_key::get(&mut tx, id).await?;
    tx.end().await?;
    key.ok_or(Error::NoApiKey(id))
}

/// Reads the page of keys after `after`, the newest first.
///
/// # Errors
/// [`Error::Denied`], the errors of the database.
pub async fn list_api_keys(
    app: &App,
    call: &Call,
    after: Option<ApiKeyId>,
    limit: usize,
) -> Result<Vec<ApiKey>, Error> {
    call.authorize(&permissions::LIST_API_KEYS)?;
    let mut tx = app.db.read(call).await?;
    let keys = store_api_key::list(&mut tx, after, limit).await?;
    tx.end().await?;
    Ok(keys)
}

/// Revokes a key for good.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoApiKey`], the errors of idempotency keys.
pub async fn revoke_api_key(app: &App, call: &Call, id: ApiKeyId) -> Result<(), Error> {
    authorize_api_key(call, &permissions::DELETE_API_KEY, id)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(()) = tx.replayed()? {
        return Ok(());
    }
    standing(&mut tx, call, &permissions::DELETE_API_KEY).await?;
    let before = store_api_key::get_for_update(&mut tx, id).await?.ok_or(Error::NoApiKey(id))?;
    let key = before.revoke(clock::now());
    store_api_key::revoke(&mut tx, &before, &key).await?;
    let events = vec![outgoing::event(call, outgoing::api_key(&key), ApiKeyRevokedV1::of)?];
    app.outbox.commit(tx, events, &()).await?;
    Ok(())
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

/// Erases a key, or removes a person from it, whose program goes on; returns whether there was anything to erase.
///
/// # Errors
/// [`Error::Denied`], the errors of the database.
pub async fn erase_api_key(app: &App, call: &Call, id: ApiKeyId, person: Option<&UserId>) -> Result<bool, Error> {
    call.authorize(&permissions::ERASE_API_KEY)?;
    let mut tx = app.db.begin(call).await?;
    let before = store_api_key::get_for_update(&mut tx, id).await?;
    let (now, forgets) = (clock::now(), person.is_some());
    let erased = before.as_ref().and_then(|before| {
        let key = person.map_or_else(|| Some(before.erase(now)), |person| before.forget(person, now));
        Some((before, key?))
    });
    let Some((before, key)) = erased else {
        tx.end().await?;
        return Ok(false);
    };
    let event = if forgets {
        store_api_key::save(&mut tx, before, &key).await?;
        outgoing::event(call, outgoing::api_key(&key), ApiKeyUpdatedV1::of)?
    } else {
        store_api_key::revoke(&mut tx, before, &key).await?;
        outgoing::event(call, outgoing::api_key(&key), ApiKeyRevokedV1::of)?
    };
    app.outbox.commit(tx, vec![event], &()).await?;
    Ok(true)
}

fn authorize_invitation(call: &Call, permission: &Permission, id: InvitationId) -> Result<(), Error> {
    call.authorize_on(permission, &permissions::GET_INVITATION, || Error::NoInvitation(id))
}

fn authorize_api_key(call: &Call, permission: &Permission, id: ApiKeyId) -> Result<(), Error> {
    call.authorize_on(permission, &permissions::GET_API_KEY, || Error::NoApiKey(id))
}
