//! The commands of the service. Each is one function with one transaction: authorize, begin (with the idempotency key or the
//! event that it handles), load, decide, save, and commit together with the events and the answer. A transaction calls and
//! publishes nothing; the relay publishes the events afterwards.

use authz::{Denied, Permission};
use contracts::UserId;
use contracts::events::harbour::{
    LogbookCreatedV1, LogbookDeletedV1, LogbookId, LogbookUpdatedV1, VesselCreatedV1, VesselDeletedV1, VesselId,
    VesselUpdatedV1,
};
use contracts::text::TextError;
use service::list::{Found, Place, Query};
use service::{Call, Code, Db, Failure, IfMatch, Outbox, StoreError, TenantTx, clock};

use crate::logbook::{Logbook, LogbookFilter, LogbookPatch};
use crate::vessel::{Vessel, VesselDraft, VesselPatch};
use crate::{outgoing, permissions, store_logbook, store_vessel};

/// The dependencies of the commands.
#[derive(Debug, Clone)]
pub struct App {
    /// The database.
    pub db: Db,
    /// Ends each command's transaction, and publishes its events.
    pub outbox: Outbox,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller's tenant has no such vessel, the vessel is deleted, or the caller may see none.
    #[error("there is no vessel {0}")]
    NoVessel(VesselId),
    /// The same for a logbook.
    #[error("there is no logbook {0}")]
    NoLogbook(LogbookId),
    /// The vessel has its logbook already.
    #[error("the vessel has its logbook already")]
    LogbookExists,
    /// The caller lacks the permission.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The failures that every service shares.
    #[error(transparent)]
    Failure(#[from] Failure),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        if error.is_constraint(store_logbook::ONCE) { Self::LogbookExists } else { Self::Failure(error.into()) }
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
            Error::NoVessel(_) => Self::new(Code::NotFound, "VESSEL_NOT_FOUND", error),
            Error::NoLogbook(_) => Self::new(Code::NotFound, "LOGBOOK_NOT_FOUND", error),
            Error::LogbookExists => Self::new(Code::AlreadyExists, "LOGBOOK_EXISTS", error),
            Error::Denied(denied) => denied.into(),
            Error::Failure(failure) => failure,
        }
    }
}

/// Creates a vessel.
///
/// # Errors
/// [`Error::Denied`], the errors of idempotency keys; INVALID_ARGUMENT for a misleading name.
pub async fn create_vessel(app: &App, call: &Call, draft: VesselDraft) -> Result<Vessel, Error> {
    call.authorize(&permissions::CREATE_VESSEL)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(vessel) = tx.replayed()? {
        return Ok(vessel);
    }
    let by = call.caller.actor.subject().id.clone();
    let vessel = Vessel::create(VesselId::new(clock::new_id()), draft, by, clock::now());
    refuse_misleading(&vessel, None)?;
    store_vessel::insert(&mut tx, &vessel).await?;
    let events = outgoing::event(call, outgoing::vessel(&vessel), VesselCreatedV1::of)?;
    app.outbox.commit(tx, events, &vessel).await?;
    Ok(vessel)
}

/// Applies the patch. A patch that changes nothing writes no event.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoVessel`], ETAG_MISMATCH, the errors of idempotency keys; INVALID_ARGUMENT for a misleading new name.
pub async fn update_vessel(
    app: &App,
    call: &Call,
    id: VesselId,
    if_match: &IfMatch,
    patch: VesselPatch,
) -> Result<Vessel, Error> {
    authorize_vessel(call, &permissions::UPDATE_VESSEL, id)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(vessel) = tx.replayed()? {
        return Ok(vessel);
    }
    let before = load_vessel(&mut tx, id, if_match).await?;
    let Some(vessel) = before.update(patch, clock::now()) else {
        app.outbox.commit(tx, Vec::new(), &before).await?;
        return Ok(before);
    };
    refuse_misleading(&vessel, Some(&before))?;
    store_vessel::save(&mut tx, &before, &vessel).await?;
    let events = outgoing::event(call, outgoing::vessel(&vessel), VesselUpdatedV1::of)?;
    app.outbox.commit(tx, events, &vessel).await?;
    Ok(vessel)
}

/// Deletes a vessel: an emptied row stays that no caller sees, and the event carries its last state.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoVessel`], ETAG_MISMATCH, the errors of idempotency keys.
pub async fn delete_vessel(app: &App, call: &Call, id: VesselId, if_match: &IfMatch) -> Result<(), Error> {
    authorize_vessel(call, &permissions::DELETE_VESSEL, id)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(()) = tx.replayed()? {
        return Ok(());
    }
    let before = load_vessel(&mut tx, id, if_match).await?;
    let vessel = before.delete(clock::now());
    store_vessel::delete(&mut tx, &before, &vessel).await?;
    let events = outgoing::event(call, outgoing::vessel(&vessel), VesselDeletedV1::of)?;
    app.outbox.commit(tx, events, &()).await?;
    Ok(())
}

/// Reads one vessel.
///
/// # Errors
/// [`Error::Denied`] without the scope, [`Error::NoVessel`].
pub async fn get_vessel(app: &App, call: &Call, id: VesselId) -> Result<Vessel, Error> {
    authorize_vessel(call, &permissions::GET_VESSEL, id)?;
    let mut tx = app.db.read(call).await?;
    let vessel = store_vessel::get(&mut tx, id).await?;
    tx.end().await?;
    vessel.ok_or(Error::NoVessel(id))
}

/// Reads the page of vessels after `after`.
///
/// # Errors
/// [`Error::Denied`], the errors of the database.
pub async fn list_vessels(
    app: &App,
    call: &Call,
    query: &Query,
    after: Option<&Place>,
    size: usize,
) -> Result<Found<Vessel>, Error> {
    call.authorize(&permissions::LIST_VESSELS)?;
    let mut tx = app.db.read(call).await?;
    let vessels = store_vessel::list(&mut tx, query, after, size).await?;
    tx.end().await?;
    Ok(vessels)
}

/// Gives a vessel its logbook, in the name of the vessel's creator. The row names the creator: an event may be older than an erasure.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoVessel`], [`Error::LogbookExists`], the errors of the database.
pub async fn create_logbook(app: &App, call: &Call, vessel_id: VesselId) -> Result<Logbook, Error> {
    call.authorize(&permissions::CREATE_LOGBOOK)?;
    let mut tx = app.db.begin(call).await?;
    let vessel = store_vessel::get_for_update(&mut tx, vessel_id).await?.ok_or(Error::NoVessel(vessel_id))?;
    let logbook = Logbook::create(LogbookId::new(clock::new_id()), vessel_id, vessel.created_by, clock::now());
    store_logbook::insert(&mut tx, &logbook).await?;
    let events = outgoing::event(call, outgoing::logbook(&logbook), LogbookCreatedV1::of)?;
    app.outbox.commit(tx, events, &logbook).await?;
    Ok(logbook)
}

/// Deletes the logbook of a vessel, if there is one.
///
/// # Errors
/// [`Error::Denied`], the errors of the database.
pub async fn delete_logbook(app: &App, call: &Call, vessel_id: VesselId) -> Result<(), Error> {
    call.authorize(&permissions::DELETE_LOGBOOK)?;
    let mut tx = app.db.begin(call).await?;
    let mut events = Vec::new();
    if let Some(before) = store_logbook::get_of_for_update(&mut tx, vessel_id).await? {
        let logbook = before.delete(clock::now());
        store_logbook::delete(&mut tx, &before, &logbook).await?;
        events = outgoing::event(call, outgoing::logbook(&logbook), LogbookDeletedV1::of)?;
    }
    app.outbox.commit(tx, events, &()).await?;
    Ok(())
}

/// Applies the patch. A patch that changes nothing writes no event.
///
/// # Errors
/// [`Error::Denied`], [`Error::NoLogbook`], ETAG_MISMATCH, the errors of idempotency keys.
pub async fn update_logbook(
    app: &App,
    call: &Call,
    id: LogbookId,
    if_match: &IfMatch,
    patch: LogbookPatch,
) -> Result<Logbook, Error> {
    authorize_logbook(call, &permissions::UPDATE_LOGBOOK, id)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(logbook) = tx.replayed()? {
        return Ok(logbook);
    }
    let before = store_logbook::get_for_update(&mut tx, id).await?.ok_or(Error::NoLogbook(id))?;
    if_match.check("logbook", &before.etag())?;
    let Some(logbook) = before.update(patch, clock::now()) else {
        app.outbox.commit(tx, Vec::new(), &before).await?;
        return Ok(before);
    };
    store_logbook::save(&mut tx, &before, &logbook).await?;
    let events = outgoing::event(call, outgoing::logbook(&logbook), LogbookUpdatedV1::of)?;
    app.outbox.commit(tx, events, &logbook).await?;
    Ok(logbook)
}

/// Reads one logbook.
///
/// # Errors
/// [`Error::Denied`] without the scope, [`Error::NoLogbook`].
pub async fn get_logbook(app: &App, call: &Call, id: LogbookId) -> Result<Logbook, Error> {
    authorize_logbook(call, &permissions::GET_LOGBOOK, id)?;
    let mut tx = app.db.read(call).await?;
    let logbook = store_logbook::get(&mut tx, id).await?;
    tx.end().await?;
    logbook.ok_or(Error::NoLogbook(id))
}

/// Reads the page of logbooks after `after`, newest first.
///
/// # Errors
/// [`Error::Denied`], the errors of the database.
pub async fn list_logbooks(
    app: &App,
    call: &Call,
    filter: &LogbookFilter,
    after: Option<LogbookId>,
    limit: usize,
) -> Result<Vec<Logbook>, Error> {
    call.authorize(&permissions::LIST_LOGBOOKS)?;
    let mut tx = app.db.read(call).await?;
    let logbooks = store_logbook::list(&mut tx, filter, after, limit).await?;
    tx.end().await?;
    Ok(logbooks)
}

/// Erases a vessel, or removes a person from it; returns whether there was anything to erase.
///
/// # Errors
/// [`Error::Denied`], the errors of the database.
pub async fn erase_vessel(app: &App, call: &Call, id: VesselId, person: Option<&UserId>) -> Result<bool, Error> {
    call.authorize(&permissions::ERASE_VESSEL)?;
    let mut tx = app.db.begin(call).await?;
    let Some(before) = store_vessel::get_for_update(&mut tx, id).await? else {
        tx.end().await?;
        return Ok(false);
    };
    let events = if let Some(person) = person {
        let Some(vessel) = before.forget(person, clock::now()) else {
        tx.end().await?;
        return Ok(false);
    };
        store_vessel::save(&mut tx, &before, &vessel).await?;
        outgoing::event(call, outgoing::vessel(&vessel), VesselUpdatedV1::of)?
    } else {
        let vessel = before.erase(clock::now());
        store_vessel::delete(&mut tx, &before, &vessel).await?;
        outgoing::event(call, outgoing::vessel(&vessel), VesselDeletedV1::of)?
    };
    app.outbox.commit(tx, events, &()).await?;
    Ok(true)
}

/// The same for a logbook.
///
/// # Errors
/// [`Error::Denied`], the errors of the database.
pub async fn erase_logbook(app: &App, call: &Call, id: LogbookId, person: Option<&UserId>) -> Result<bool, Error> {
    call.authorize(&permissions::ERASE_LOGBOOK)?;
    let mut tx = app.db.begin(call).await?;
    let Some(before) = store_logbook::get_for_update(&mut tx, id).await? else {
        tx.end().await?;
        return Ok(false);
    };
    let events = if let Some(person) = person {
        let Some(logbook) = before.forget(person, clock::now()) else {
        tx.end().await?;
        return Ok(false);
    };
        store_logbook::save(&mut tx, &before, &logbook).await?;
        outgoing::event(call, outgoing::logbook(&logbook), LogbookUpdatedV1::of)?
    } else {
        let logbook = before.erase(clock::now());
        store_logbook::delete(&mut tx, &before, &logbook).await?;
        outgoing::event(call, outgoing::logbook(&logbook), LogbookDeletedV1::of)?
    };
    app.outbox.commit(tx, events, &()).await?;
    Ok(true)
}

/// The first line of a command about one vessel.
fn authorize_vessel(call: &Call, permission: &Permission, id: VesselId) -> Result<(), Error> {
    call.authorize_on(permission, &permissions::GET_VESSEL, || Error::NoVessel(id))
}

/// The first line of a command about one logbook.
fn authorize_logbook(call: &Call, permission: &Permission, id: LogbookId) -> Result<(), Error> {
    call.authorize_on(permission, &permissions::GET_LOGBOOK, || Error::NoLogbook(id))
}

/// Refuses a new name that is misleading. Call it after `replayed`: an earlier answer stands.
fn refuse_misleading(vessel: &Vessel, before: Option<&Vessel>) -> Result<(), Failure> {
    if vessel.misleads(before) { Err(Failure::invalid("name", TextError::Misleading)) } else { Ok(()) }
}

/// The vessel, locked until the transaction ends, if it is as the caller has read it.
async fn load_vessel(tx: &mut TenantTx, id: VesselId, if_match: &IfMatch) -> Result<Vessel, Error> {
    let vessel = store_vessel::get_for_update(tx, id).await?.ok_or(Error::NoVessel(id))?;
    if_match.check("vessel", &vessel.etag())?;
    Ok(vessel)
}
