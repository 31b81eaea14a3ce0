//! The commands about programs and their keys, as those of `commands`.

use authz::Permission;
use chrono::TimeDelta;
use contracts::UserId;
use contracts::events::identity::{
    ApiKeyCreatedV1, ApiKeyId, ApiKeyRevokedV1, ApiKeyUpdatedV1, ServiceAccountCreatedV1, ServiceAccountDeletedV1,
    ServiceAccountId, ServiceAccountUpdatedV1,
};
use contracts::text::{TextError, is_misleading};
use service::{Call, Failure, IfMatch, TenantTx, clock};

use crate::api_key::{ApiKey, ApiKeyDraft, KeySecret, MOST};
use crate::commands::{App, Error, standing};
use crate::service_account::{ServiceAccount, ServiceAccountDraft, ServiceAccountPatch};
use crate::texts::Scopes;
use crate::{outgoing, permissions, store_api_key, store_service_account};

/// Lets a program in.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoTenant`], the errors of idempotency keys; INVALID_ARGUMENT for a misleading name.
pub async fn create_service_account(
    app: &App,
    call: &Call,
    draft: ServiceAccountDraft,
) -> Result<ServiceAccount, Error> {
    call.authorize(&permissions::CREATE_SERVICE_ACCOUNT)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(account) = tx.replayed()? {
        return Ok(account);
    }
    standing(&mut tx, call, &permissions::CREATE_SERVICE_ACCOUNT).await?;
    let (id, by) = (ServiceAccountId::new(clock::new_id()), call.caller.actor.subject().id.clone());
    let account = ServiceAccount::create(id, draft, by, clock::now());
    refuse_misleading(&account, None)?;
    store_service_account::insert(&mut tx, &account).await?;
    let event = outgoing::event(call, outgoing::service_account(&account), ServiceAccountCreatedV1::of)?;
    app.commit(tx, call, vec![event], &account).await?;
    Ok(account)
}

/// Reads one program.
///
/// # Errors
/// [`Error::Denied`] without the scope, [`Error::NoServiceAccount`].
pub async fn get_service_account(app: &App, call: &Call, id: ServiceAccountId) -> Result<ServiceAccount, Error> {
    authorize_service_account(call, &permissions::GET_SERVICE_ACCOUNT, id)?;
    let mut tx = app.db.read(call).await?;
    let account = store_service_account::get(&mut tx, id).await?;
    tx.end().await?;
    account.ok_or(Error::NoServiceAccount(id))
}

/// Reads the page of programs after `after`, the newest first.
///
/// # Errors
/// [`Error::Denied`], the errors of the database.
pub async fn list_service_accounts(
    app: &App,
    call: &Call,
    after: Option<ServiceAccountId>,
    limit: usize,
) -> Result<Vec<ServiceAccount>, Error> {
    call.authorize(&permissions::LIST_SERVICE_ACCOUNTS)?;
    let mut tx = app.db.read(call).await?;
    let accounts = store_service_account::list(&mut tx, after, limit).await?;
    tx.end().await?;
    Ok(accounts)
}

/// Applies the patch. A patch that changes nothing writes no event.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoServiceAccount`], ETAG_MISMATCH, the errors of idempotency keys; INVALID_ARGUMENT for a misleading new
/// name.
pub async fn update_service_account(
    app: &App,
    call: &Call,
    id: ServiceAccountId,
    if_match: &IfMatch,
    patch: ServiceAccountPatch,
) -> Result<ServiceAccount, Error> {
    authorize_service_account(call, &permissions::UPDATE_SERVICE_ACCOUNT, id)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(account) = tx.replayed()? {
        return Ok(account);
    }
    standing(&mut tx, call, &permissions::UPDATE_SERVICE_ACCOUNT).await?;
    let before = load(&mut tx, id, if_match).await?;
    let Some(account) = before.update(patch, clock::now()) else {
        app.commit(tx, call, Vec::new(), &before).await?;
        return Ok(before);
    };
    refuse_misleading(&account, Some(&before))?;
    store_service_account::save(&mut tx, &before, &account).await?;
    let event = outgoing::event(call, outgoing::service_account(&account), ServiceAccountUpdatedV1::of)?;
    app.commit(tx, call, vec![event], &account).await?;
    Ok(account)
}

/// Lets a program in no more: its keys are revoked with it.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoServiceAccount`], ETAG_MISMATCH, the errors of idempotency keys.
pub async fn delete_service_account(
    app: &App,
    call: &Call,
    id: ServiceAccountId,
    if_match: &IfMatch,
) -> Result<(), Error> {
    authorize_service_account(call, &permissions::DELETE_SERVICE_ACCOUNT, id)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(()) = tx.replayed()? {
        return Ok(());
    }
    standing(&mut tx, call, &permissions::DELETE_SERVICE_ACCOUNT).await?;
    let (before, now) = (load(&mut tx, id, if_match).await?, clock::now());
    let mut events = Vec::new();
    for key in store_api_key::of_for_update(&mut tx, id).await? {
        let revoked = key.revoke(now);
        store_api_key::revoke(&mut tx, &key, &revoked).await?;
        events.push(outgoing::event(call, outgoing::api_key(&revoked), ApiKeyRevokedV1::of)?);
    }
    let account = before.delete(now);
    store_service_account::delete(&mut tx, &before, &account).await?;
    events.push(outgoing::event(call, outgoing::service_account(&account), ServiceAccountDeletedV1::of)?);
    app.commit(tx, call, events, &()).await?;
    Ok(())
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
    no_more_than_its_own(call, &draft.scopes)?;
    room_for_a_key(&mut tx, draft.of).await?;
    let (id, by) = (ApiKeyId::new(clock::new_id()), call.caller.actor.subject().id.clone());
    let key = ApiKey::create(id, draft, by, clock::now());
    let key = key.map_err(|far| Failure::invalid("expire_time", far))?;
    store_api_key::insert(&mut tx, &key, secret.digest()).await?;
    let events = vec![outgoing::event(call, outgoing::api_key(&key), ApiKeyCreatedV1::of)?];
    app.commit(tx, call, events, &key).await?;
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

/// Makes a key that takes the place of another, which opens for the overlap beside it. Only its answer has the text of it.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoApiKey`], [`Error::ManyApiKeys`], the errors of idempotency keys.
pub async fn rotate_api_key(
    app: &App,
    call: &Call,
    (id, overlap): (ApiKeyId, TimeDelta),
    secret: &KeySecret,
) -> Result<(ApiKey, Option<String>), Error> {
    authorize_api_key(call, &permissions::ROTATE_API_KEY, id)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(key) = tx.replayed()? {
        return Ok((key, None));
    }
    standing(&mut tx, call, &permissions::ROTATE_API_KEY).await?;
    let before = store_api_key::get_for_update(&mut tx, id).await?.ok_or(Error::NoApiKey(id))?;
    no_more_than_its_own(call, &before.scopes)?;
    room_for_a_key(&mut tx, before.of).await?;
    let by = call.caller.actor.subject().id.clone();
    let (key, old) = before.rotate(ApiKeyId::new(clock::new_id()), overlap, by, clock::now());
    store_api_key::insert(&mut tx, &key, secret.digest()).await?;
    store_api_key::save(&mut tx, &before, &old).await?;
    let events = vec![
        outgoing::event(call, outgoing::api_key(&key), ApiKeyCreatedV1::of)?,
        outgoing::event(call, outgoing::api_key(&old), ApiKeyUpdatedV1::of)?,
    ];
    app.commit(tx, call, events, &key).await?;
    Ok((key.clone(), Some(secret.text(key.id))))
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
    app.commit(tx, call, events, &()).await?;
    Ok(())
}

/// Erases a program, or removes a person from what is known of it; returns whether there was anything to erase.
///
/// # Errors
/// [`Error::Denied`], the errors of the database.
pub async fn erase_service_account(
    app: &App,
    call: &Call,
    id: ServiceAccountId,
    person: Option<&UserId>,
) -> Result<bool, Error> {
    call.authorize(&permissions::ERASE_SERVICE_ACCOUNT)?;
    let mut tx = app.db.begin(call).await?;
    let before = store_service_account::get_for_update(&mut tx, id).await?;
    let (now, forgets) = (clock::now(), person.is_some());
    let erased = before.as_ref().and_then(|before| {
        let account = person.map_or_else(|| Some(before.erase(now)), |person| before.forget(person, now));
        Some((before, account?))
    });
    let Some((before, account)) = erased else {
        tx.end().await?;
        return Ok(false);
    };
    let event = if forgets {
        store_service_account::save(&mut tx, before, &account).await?;
        outgoing::event(call, outgoing::service_account(&account), ServiceAccountUpdatedV1::of)?
    } else {
        store_service_account::delete(&mut tx, before, &account).await?;
        outgoing::event(call, outgoing::service_account(&account), ServiceAccountDeletedV1::of)?
    };
    app.outbox.commit(tx, vec![event], &()).await?;
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

fn authorize_service_account(call: &Call, permission: &Permission, id: ServiceAccountId) -> Result<(), Error> {
    call.authorize_on(permission, &permissions::GET_SERVICE_ACCOUNT, || Error::NoServiceAccount(id))
}

fn authorize_api_key(call: &Call, permission: &Permission, id: ApiKeyId) -> Result<(), Error> {
    call.authorize_on(permission, &permissions::GET_API_KEY, || Error::NoApiKey(id))
}

/// The program, locked until the transaction ends, if it is as the caller has read it.
async fn load(tx: &mut TenantTx, id: ServiceAccountId, if_match: &IfMatch) -> Result<ServiceAccount, Error> {
    let account = store_service_account::get_for_update(tx, id).await?.ok_or(Error::NoServiceAccount(id))?;
    if_match.check("service account", &account.etag())?;
    Ok(account)
}

/// A key has no scope that the token of whoever makes it lacks.
fn no_more_than_its_own(call: &Call, scopes: &Scopes) -> Result<(), Failure> {
    match call.caller.scopes.as_ref().and_then(|own| scopes.beyond(own)) {
        Some(missing) => Err(Failure::invalid("scopes", format!("hold {missing}, which your own token has not"))),
        None => Ok(()),
    }
}

/// The program is let in, and may have one key more.
async fn room_for_a_key(tx: &mut TenantTx, of: ServiceAccountId) -> Result<(), Error> {
    store_service_account::get(tx, of).await?.ok_or(Error::NoServiceAccount(of))?;
    if store_api_key::of_for_update(tx, of).await?.len() < MOST { Ok(()) } else { Err(Error::ManyApiKeys) }
}

/// Refuses a new name that is misleading. Call it after `replayed`: an earlier answer stands.
fn refuse_misleading(account: &ServiceAccount, before: Option<&ServiceAccount>) -> Result<(), Failure> {
    if account.misleads(before) { Err(Failure::invalid("name", TextError::Misleading)) } else { Ok(()) }
}
