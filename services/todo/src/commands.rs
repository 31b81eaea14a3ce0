//! What the service does: one function per command, one transaction in each. A command authorizes, begins (with the idempotency key or the
//! event that it handles), loads, decides, and saves. It commits together with its events and its answer. It calls and publishes nothing in
//! between: the relay gets the events afterwards.

use std::time::Duration;

use authz::{Denied, Permission};
use contracts::events::todo::{BecameDueV1, CompletedV1, CompletedV2, CreatedV1, DeletedV1, ReopenedV1, UpdatedV1};
use contracts::text::TextError;
use contracts::{ActorKind, TodoId, UserId};
use futures::Stream;
use service::list::{self, Found, Query};
use service::live::{Heard, Live, Place};
use service::members::{self, Directory};
use service::{Call, Code, Db, Failure, IfMatch, Outbox, StoreError, TenantTx, clock};

use crate::todo::{Change, Draft, Patch, Todo, TransitionError};
use crate::{outgoing, permissions, store};

/// Why an assignee is refused.
const STRANGER: &str =
    "must be a member of your tenant: GET /v1/members shows them, by `user`; a new one is known within seconds";

/// What commands need.
#[derive(Debug, Clone)]
pub struct App {
    /// The database.
    pub db: Db,
    /// Ends each command's transaction, and publishes its events.
    pub outbox: Outbox,
    /// Who is a member, of identity itself.
    pub directory: Directory,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller's tenant has no such todo, the todo is deleted, or the caller may not see any.
    #[error("there is no todo {0}")]
    NotFound(TodoId),
    /// The caller lacks the permission.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The state does not allow it.
    #[error(transparent)]
    Transition(#[from] TransitionError),
    /// The series has this occurrence already.
    #[error("the series has this occurrence already")]
    OccurrenceExists,
    /// The todo that this one would follow was erased.
    #[error("the todo that this one would follow was erased")]
    PredecessorErased,
    /// The new assignee is no member, as far as is known here.
    #[error("the assignee {0} is no member")]
    Stranger(UserId),
    /// What every service can fail with.
    #[error(transparent)]
    Failure(#[from] Failure),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        if error.is_constraint(store::OCCURRENCE_ONCE) { Self::OccurrenceExists } else { Self::Failure(error.into()) }
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
            Error::NotFound(_) => Self::new(Code::NotFound, "TODO_NOT_FOUND", error),
            Error::Denied(denied) => denied.into(),
            Error::Transition(TransitionError::AlreadyCompleted) => {
                Self::new(Code::FailedPrecondition, "TODO_ALREADY_COMPLETED", error)
            }
            Error::Transition(TransitionError::AlreadyOpen) => {
                Self::new(Code::FailedPrecondition, "TODO_ALREADY_OPEN", error)
            }
            Error::OccurrenceExists => Self::new(Code::AlreadyExists, "OCCURRENCE_EXISTS", error),
            Error::PredecessorErased => Self::new(Code::FailedPrecondition, "PREDECESSOR_ERASED", error),
            Error::Stranger(_) => Self::invalid("assignee", STRANGER),
            Error::Failure(failure) => failure,
        }
    }
}

/// Creates a todo. Where its assignee is not known as a member here, identity is asked.
///
/// # Errors
/// [`Error::Denied`], [`Error::OccurrenceExists`], [`Error::PredecessorErased`], those of idempotency keys; INVALID_ARGUMENT for a text
/// that resembles another one, or an assignee who is no member.
pub async fn create(app: &App, call: &Call, draft: Draft) -> Result<Todo, Error> {
    match create_for(app, call, draft.clone(), None).await {
        Err(Error::Stranger(user)) if app.directory.has(&user).await? => {
            create_for(app, call, draft, Some(&user)).await
        }
        outcome => outcome,
    }
}

async fn create_for(app: &App, call: &Call, mut draft: Draft, member: Option<&UserId>) -> Result<Todo, Error> {
    call.authorize(&permissions::CREATE)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(todo) = tx.replayed()? {
        return Ok(todo);
    }
    let by = call.caller.actor.subject().id.clone();
    let goes_on = draft.follows.is_some();
    if let Some(follows) = &draft.follows {
        // An event may be older than an erasure: it must bring back neither erased texts nor a forgotten person.
        let row = store::people(&mut tx, follows.predecessor).await?.ok_or(Error::PredecessorErased)?;
        draft.forget_like(&row);
    }
    let todo = Todo::create(TodoId::new(clock::new_id()), draft, by, clock::now());
    // A series keeps its texts and its assignee: they are not checked again.
    if !goes_on {
        refuse_misleading(&todo, None)?;
        if let Some(stranger) = stranger(&mut tx, call, &todo, (None, member)).await? {
            tx.give_up().await?;
            return Err(stranger);
        }
    }
    store::insert(&mut tx, &todo).await?;
    let events = outgoing::event(call, &todo, CreatedV1::of)?;
    app.outbox.commit(tx, events, &todo).await?;
    Ok(todo)
}

/// Applies the patch. A patch that changes nothing writes no event. Where a new assignee is not known as a member here, identity is asked.
///
/// # Errors
/// [`Error::Denied`], [`Error::NotFound`], ETAG_MISMATCH, those of idempotency keys; INVALID_ARGUMENT for a new text that resembles another
/// one, or a new assignee who is no member.
pub async fn update(app: &App, call: &Call, id: TodoId, if_match: &IfMatch, patch: Patch) -> Result<Todo, Error> {
    match update_for(app, call, (id, if_match), patch.clone(), None).await {
        Err(Error::Stranger(user)) if app.directory.has(&user).await? => {
            update_for(app, call, (id, if_match), patch, Some(&user)).await
        }
        outcome => outcome,
    }
}

async fn update_for(
    app: &App,
    call: &Call,
    (id, if_match): (TodoId, &IfMatch),
    patch: Patch,
    member: Option<&UserId>,
) -> Result<Todo, Error> {
    authorize(call, &permissions::UPDATE, id)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(todo) = tx.replayed()? {
        return Ok(todo);
    }
    let before = load(&mut tx, id, if_match).await?;
    let updated = before.update(patch, clock::now()).map_err(|error| Failure::invalid("recurrence", error))?;
    let Some(todo) = updated else {
        app.outbox.commit(tx, Vec::new(), &before).await?;
        return Ok(before);
    };
    refuse_misleading(&todo, Some(&before))?;
    if let Some(stranger) = stranger(&mut tx, call, &todo, (Some(&before), member)).await? {
        tx.give_up().await?;
        return Err(stranger);
    }
    store::save(&mut tx, &before, &todo).await?;
    let events = outgoing::event(call, &todo, UpdatedV1::of)?;
    app.outbox.commit(tx, events, &todo).await?;
    Ok(todo)
}

/// Completes an open todo. Its event has two versions; the older one is deprecated.
///
/// # Errors
/// [`Error::Denied`], [`Error::NotFound`], ETAG_MISMATCH, [`Error::Transition`], those of idempotency keys.
pub async fn complete(app: &App, call: &Call, id: TodoId, if_match: &IfMatch) -> Result<Todo, Error> {
    authorize(call, &permissions::COMPLETE, id)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(todo) = tx.replayed()? {
        return Ok(todo);
    }
    let before = load(&mut tx, id, if_match).await?;
    let todo = before.complete(clock::now())?;
    store::save(&mut tx, &before, &todo).await?;
    let events = outgoing::twins(call, &todo, CompletedV1::of, CompletedV2::of)?;
    app.outbox.commit(tx, events, &todo).await?;
    Ok(todo)
}

/// Opens a completed todo again.
///
/// # Errors
/// [`Error::Denied`], [`Error::NotFound`], ETAG_MISMATCH, [`Error::Transition`], those of idempotency keys.
pub async fn reopen(app: &App, call: &Call, id: TodoId, if_match: &IfMatch) -> Result<Todo, Error> {
    authorize(call, &permissions::REOPEN, id)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(todo) = tx.replayed()? {
        return Ok(todo);
    }
    let before = load(&mut tx, id, if_match).await?;
    let todo = before.reopen(clock::now())?;
    store::save(&mut tx, &before, &todo).await?;
    let events = outgoing::event(call, &todo, ReopenedV1::of)?;
    app.outbox.commit(tx, events, &todo).await?;
    Ok(todo)
}

/// Deletes a todo: the row stays but nobody sees it, and the event carries the last state.
///
/// # Errors
/// [`Error::Denied`], [`Error::NotFound`], ETAG_MISMATCH, those of idempotency keys.
pub async fn delete(app: &App, call: &Call, id: TodoId, if_match: &IfMatch) -> Result<(), Error> {
    authorize(call, &permissions::DELETE, id)?;
    let mut tx = app.db.begin(call).await?;
    if let Some(()) = tx.replayed()? {
        return Ok(());
    }
    let before = load(&mut tx, id, if_match).await?;
    permissions::delete_this(&call.caller, &before)?;
    let todo = before.delete(clock::now());
    store::mark_deleted(&mut tx, &before, &todo).await?;
    let events = outgoing::event(call, &todo, DeletedV1::of)?;
    app.outbox.commit(tx, events, &()).await?;
    Ok(())
}

/// Announces that an open todo's due time has come, for the claimed timer. Does nothing when that timer is gone or was set again: another
/// process has announced it, or the due time has moved.
///
/// # Errors
/// [`Error::Denied`], those of the database.
pub async fn become_due(app: &App, call: &Call, id: TodoId) -> Result<(), Error> {
    call.authorize(&permissions::BECOME_DUE)?;
    let mut tx = app.db.begin(call).await?;
    // Locked first: a command that changes the todo also sets its timer.
    let before = store::get_for_update(&mut tx, id).await?;
    let due = store::take_due_timer(&mut tx, id).await?;
    let now = clock::now();
    let Some((before, todo)) =
        before.filter(|_| due).and_then(|before| before.become_due(now).map(|todo| (before, todo)))
    else {
        return Ok(tx.end().await?);
    };
    store::save(&mut tx, &before, &todo).await?;
    let events = outgoing::event(call, &todo, BecameDueV1::of)?;
    app.outbox.commit(tx, events, &()).await?;
    Ok(())
}

/// Empties a todo that was deleted more than `after` ago. It writes no event: no reader has seen the todo since its deletion.
///
/// # Errors
/// [`Error::Denied`], those of the database.
pub async fn purge(app: &App, call: &Call, id: TodoId, after: Duration) -> Result<(), Error> {
    call.authorize(&permissions::PURGE)?;
    let mut tx = app.db.begin(call).await?;
    store::purge(&mut tx, id, Some(after)).await?;
    tx.end().await?;
    Ok(())
}

/// Erases a todo: deletes it, by an event that carries none of its texts, and empties its row. Returns whether there was anything to erase.
///
/// # Errors
/// [`Error::Denied`], those of the database.
pub async fn erase(app: &App, call: &Call, id: TodoId) -> Result<bool, Error> {
    call.authorize(&permissions::ERASE)?;
    let mut tx = app.db.begin(call).await?;
    let mut events = Vec::new();
    if let Some(before) = store::get_for_update(&mut tx, id).await? {
        let todo = before.erase(clock::now());
        store::mark_deleted(&mut tx, &before, &todo).await?;
        events = outgoing::event(call, &todo, DeletedV1::of)?;
    }
    let emptied = store::purge(&mut tx, id, None).await?;
    app.outbox.commit(tx, events, &()).await?;
    Ok(emptied)
}

/// Removes a person from a todo; returns whether the todo named that person. A deleted todo is emptied.
///
/// # Errors
/// [`Error::Denied`], those of the database.
pub async fn forget(app: &App, call: &Call, id: TodoId, person: &UserId) -> Result<bool, Error> {
    call.authorize(&permissions::FORGET)?;
    let mut tx = app.db.begin(call).await?;
    let Some(before) = store::get_for_update(&mut tx, id).await? else {
        let emptied = store::purge(&mut tx, id, None).await?;
        tx.end().await?;
        return Ok(emptied);
    };
    let Some(todo) = before.forget(person, clock::now()) else {
        tx.end().await?;
        return Ok(false);
    };
    store::save(&mut tx, &before, &todo).await?;
    let events = outgoing::event(call, &todo, UpdatedV1::of)?;
    app.outbox.commit(tx, events, &()).await?;
    Ok(true)
}

/// Reads one todo.
///
/// # Errors
/// [`Error::Denied`] for lack of a scope, [`Error::NotFound`]
pub async fn get(app: &App, call: &Call, id: TodoId) -> Result<Todo, Error> {
    authorize(call, &permissions::GET, id)?;
    let mut tx = app.db.read(call).await?;
    let todo = store::get(&mut tx, id).await?;
    tx.end().await?;
    todo.ok_or(Error::NotFound(id))
}

/// Reads a page of todos, those behind `after`.
///
/// # Errors
/// [`Error::Denied`], those of the database.
pub async fn list(
    app: &App,
    call: &Call,
    query: &Query,
    after: Option<&list::Place>,
    size: usize,
) -> Result<Found<Todo>, Error> {
    call.authorize(&permissions::LIST)?;
    let mut tx = app.db.read(call).await?;
    let todos = store::list(&mut tx, query, after, size).await?;
    tx.end().await?;
    Ok(todos)
}

/// What happens to the todos of the caller's tenant from now on, or behind a place.
///
/// # Errors
/// [`Error::Denied`]; UNAVAILABLE while events cannot be read.
pub fn watch(
    live: &Live<Change>,
    call: &Call,
    after: Option<Place>,
) -> Result<impl Stream<Item = Result<Heard<Change>, Failure>> + use<>, Error> {
    call.authorize(&permissions::WATCH)?;
    Ok(live.watch(&call.caller.tenant, after)?)
}

/// Authorizes a command about one todo.
fn authorize(call: &Call, permission: &Permission, id: TodoId) -> Result<(), Error> {
    call.authorize_on(permission, &permissions::GET, || Error::NotFound(id))
}

/// Refuses a new text that resembles another one. Call it after `replayed`: an earlier answer stands.
fn refuse_misleading(todo: &Todo, before: Option<&Todo>) -> Result<(), Failure> {
    todo.misleading(before).map_or(Ok(()), |field| Err(Failure::invalid(field, TextError::Misleading)))
}

/// Why a new assignee is refused: none who is a member of the tenant. One that was there stays, also where it is the text of an import, or has
/// left. The caller is a member by its token, before the event about it has come, and so is who identity says is one.
async fn stranger(
    tx: &mut TenantTx,
    call: &Call,
    todo: &Todo,
    (before, member): (Option<&Todo>, Option<&UserId>),
) -> Result<Option<Error>, Error> {
    let was = before.and_then(|before| before.assignee.as_ref());
    let Some(new) = todo.assignee.as_ref().filter(|&new| was != Some(new)) else { return Ok(None) };
    let caller = call.caller.actor.subject();
    let is_caller = caller.kind == ActorKind::User && caller.id == *new;
    let is_known = is_caller || member == Some(new) || members::is_member(tx, new).await?;
    Ok((!is_known).then(|| Error::Stranger(new.clone())))
}

/// Loads and locks the todo until the transaction ends; checks that it is as the caller has read it.
async fn load(tx: &mut TenantTx, id: TodoId, if_match: &IfMatch) -> Result<Todo, Error> {
    let todo = store::get_for_update(tx, id).await?.ok_or(Error::NotFound(id))?;
    if_match.check("todo", &todo.etag())?;
    Ok(todo)
}
