//! The commands about groups, as those of `commands`.

use authz::Permission;
use contracts::UserId;
use contracts::events::identity::{GroupCreatedV1, GroupDeletedV1, GroupId, GroupUpdatedV1, MemberId};
use contracts::text::TextError;
use service::{Call, Failure, IfMatch, TenantTx, clock};

use crate::commands::{App, Error, standing};
use crate::group::{Group, GroupDraft, GroupPatch, MAX_GROUPS};
use crate::{outgoing, permissions, store_group, store_member};

/// Puts members together.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoTenant`], [`Error::ManyGroups`], the errors of idempotency keys; INVALID_ARGUMENT for a misleading name, or
/// for somebody who is no member.
pub async fn create_group(app: &App, call: &Call, draft: GroupDraft) -> Result<Group, Error> {
    call.authorize(&permissions::CREATE_GROUP)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(group) = tx.replayed()? {
        return Ok(group);
    }
    standing(&mut tx, call, &permissions::CREATE_GROUP).await?;
    let (id, by) = (GroupId::new(clock::new_id()), call.caller.actor.subject().id.clone());
    let group = Group::create(id, draft, by, clock::now());
    refuse_misleading(&group, None)?;
    are_members(&mut tx, group.members.as_slice()).await?;
    if store_group::count(&mut tx).await? >= MAX_GROUPS as i64 {
        return Err(Error::ManyGroups);
    }
    store_group::insert(&mut tx, &group).await?;
    let event = outgoing::event(call, outgoing::group(&group), GroupCreatedV1::of)?;
    app.commit(tx, call, vec![event], &group).await?;
    Ok(group)
}

/// Reads one group.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoGroup`].
pub async fn get_group(app: &App, call: &Call, id: GroupId) -> Result<Group, Error> {
    authorize_group(call, &permissions::GET_GROUP, id)?;
    let mut tx = app.db.read(call).await?;
    let group = store_group::get(&mut tx, id).await?;
    tx.end().await?;
    group.ok_or(Error::NoGroup(id))
}

/// Reads the page of groups after `after`, the newest first.
///
/// # Errors
/// [`Error::Denied`], the errors of the database.
pub async fn list_groups(app: &App, call: &Call, after: Option<GroupId>, limit: usize) -> Result<Vec<Group>, Error> {
    call.authorize(&permissions::LIST_GROUPS)?;
    let mut tx = app.db.read(call).await?;
    let groups = store_group::list(&mut tx, after, limit).await?;
    tx.end().await?;
    Ok(groups)
}

/// Applies the patch. A patch that changes nothing writes no event.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoGroup`], ETAG_MISMATCH, the errors of idempotency keys; INVALID_ARGUMENT for a misleading new name, or for
/// somebody who is no member.
pub async fn update_group(
    app: &App,
    call: &Call,
    id: GroupId,
    if_match: &IfMatch,
    patch: GroupPatch,
) -> Result<Group, Error> {
    authorize_group(call, &permissions::UPDATE_GROUP, id)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(group) = tx.replayed()? {
        return Ok(group);
    }
    standing(&mut tx, call, &permissions::UPDATE_GROUP).await?;
    let before = load(&mut tx, id, if_match).await?;
    let Some(group) = before.update(patch, clock::now()) else {
        app.commit(tx, call, Vec::new(), &before).await?;
        return Ok(before);
    };
    refuse_misleading(&group, Some(&before))?;
    are_members(&mut tx, &group.members.beyond(&before.members)).await?;
    store_group::save(&mut tx, &before, &group).await?;
    let event = outgoing::event(call, outgoing::group(&group), GroupUpdatedV1::of)?;
    app.commit(tx, call, vec![event], &group).await?;
    Ok(group)
}

/// Deletes a group.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoGroup`], ETAG_MISMATCH, the errors of idempotency keys.
pub async fn delete_group(app: &App, call: &Call, id: GroupId, if_match: &IfMatch) -> Result<(), Error> {
    authorize_group(call, &permissions::DELETE_GROUP, id)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(()) = tx.replayed()? {
        return Ok(());
    }
    standing(&mut tx, call, &permissions::DELETE_GROUP).await?;
    let before = load(&mut tx, id, if_match).await?;
    let group = before.delete(clock::now());
    store_group::delete(&mut tx, &before, &group).await?;
    let event = outgoing::event(call, outgoing::group(&group), GroupDeletedV1::of)?;
    app.commit(tx, call, vec![event], &()).await?;
    Ok(())
}

/// Erases a group, or removes a person from what is known of it; returns whether there was anything to erase.
///
/// # Errors
/// [`Error::Denied`], the errors of the database.
pub async fn erase_group(app: &App, call: &Call, id: GroupId, person: Option<&UserId>) -> Result<bool, Error> {
    call.authorize(&permissions::ERASE_GROUP)?;
    let mut tx = app.db.begin(call).await?;
    let before = store_group::get_for_update(&mut tx, id).await?;
    let (now, forgets) = (clock::now(), person.is_some());
    let erased = before.as_ref().and_then(|before| {
        let group = person.map_or_else(|| Some(before.erase(now)), |person| before.forget(person, now));
        Some((before, group?))
    });
    let Some((before, group)) = erased else {
        tx.end().await?;
        return Ok(false);
    };
    let event = if forgets {
        store_group::save(&mut tx, before, &group).await?;
        outgoing::event(call, outgoing::group(&group), GroupUpdatedV1::of)?
    } else {
        store_group::delete(&mut tx, before, &group).await?;
        outgoing::event(call, outgoing::group(&group), GroupDeletedV1::of)?
    };
    app.outbox.commit(tx, vec![event], &()).await?;
    Ok(true)
}

fn authorize_group(call: &Call, permission: &Permission, id: GroupId) -> Result<(), Error> {
    call.authorize_on(permission, &permissions::GET_GROUP, || Error::NoGroup(id))
}

/// The group, locked until the transaction ends, if it is as the caller has read it.
async fn load(tx: &mut TenantTx, id: GroupId, if_match: &IfMatch) -> Result<Group, Error> {
    let group = store_group::get_for_update(tx, id).await?.ok_or(Error::NoGroup(id))?;
    if_match.check("group", &group.etag())?;
    Ok(group)
}

/// Refuses somebody who is no member. The tenant is locked: nobody leaves meanwhile.
async fn are_members(tx: &mut TenantTx, members: &[MemberId]) -> Result<(), Error> {
    if members.is_empty() {
        return Ok(());
    }
    let there = store_member::these(tx, members).await?;
    match members.iter().find(|member| !there.contains(member)) {
        Some(missing) => Err(Failure::invalid("members", format!("hold {missing}, who is no member")).into()),
        None => Ok(()),
    }
}

/// Refuses a new name that is misleading. Call it after `replayed`: an earlier answer stands.
fn refuse_misleading(group: &Group, before: Option<&Group>) -> Result<(), Failure> {
    if group.misleads(before) { Err(Failure::invalid("name", TextError::Misleading)) } else { Ok(()) }
}
