//! What the service can be told to do. One function per command, one transaction in each:
//! begin, idempotency key, load, decide, save, remember, append to the outbox, commit. Nothing is called or published
//! in between; the relay gets the events afterwards.

use authz::Principal;
use contracts::TodoId;
use contracts::events::todo::{CompletedV1, CompletedV2, CreatedV1, DeletedV1, ReopenedV1, UpdatedV1};
use outbox::NewEvent;
use proto::todo as pb;
use service::idempotency::Attempt;
use service::{Code, Db, Failure, TenantTx, clock, notes};

use crate::todo::{Draft, Patch, TextError, Todo, TransitionError};
use crate::{publish, store, wire};

/// What commands need.
#[derive(Clone)]
pub struct App {
    /// The database.
    pub db: Db,
    /// Ends each command's transaction, and publishes its events.
    pub relay: outbox::Handle,
}

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such todo in the caller's tenant, or it is deleted.
    #[error("there is no todo {0}")]
    NotFound(TodoId),
    /// It has changed since the caller read it.
    #[error("the todo has changed: its etag is {is} now; read it again")]
    EtagMismatch {
        /// The one that would fit.
        is: String,
    },
    /// The state does not allow it.
    #[error(transparent)]
    Transition(#[from] TransitionError),
    /// What every service can fail with.
    #[error(transparent)]
    Failure(#[from] Failure),
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
            Error::EtagMismatch { .. } => Self::new(Code::Aborted, "ETAG_MISMATCH", error),
            Error::Transition(TransitionError::AlreadyCompleted) => {
                Self::new(Code::FailedPrecondition, "TODO_ALREADY_COMPLETED", error)
            }
            Error::Transition(TransitionError::AlreadyOpen) => {
                Self::new(Code::FailedPrecondition, "TODO_ALREADY_OPEN", error)
            }
            Error::Failure(failure) => failure,
        }
    }
}

/// Creates a todo.
///
/// # Errors
/// Those of idempotency keys; INVALID_ARGUMENT for a text that looks like another one.
pub async fn create(app: &App, who: &Principal, attempt: Option<Attempt<'_>>, draft: Draft) -> Result<pb::Todo, Error> {
    let mut tx = app.db.begin(&who.tenant).await?;
    if let Some(answer) = replayed(attempt.as_ref(), &mut tx).await? {
        return Ok(answer);
    }
    let todo = Todo::create(TodoId::new(clock::new_id()), draft, who.user.clone(), clock::now());
    honest(&todo, None)?;
    store::insert(&mut tx, &who.tenant, &todo).await?;
    let data = CreatedV1 { todo: publish::state(&todo), actor: publish::actor(who) };
    let told = vec![publish::event(who, &todo, &data)?];
    finish(app, tx, attempt, wire::todo(&todo), told).await
}

/// Changes what the patch says; nothing happens, and nothing is told, when that is as it was.
///
/// # Errors
/// [`Error::NotFound`], [`Error::EtagMismatch`], those of idempotency keys; INVALID_ARGUMENT for a new text that looks like another one.
pub async fn update(
    app: &App,
    who: &Principal,
    attempt: Option<Attempt<'_>>,
    id: TodoId,
    etag: &str,
    patch: Patch,
) -> Result<pb::Todo, Error> {
    let mut tx = app.db.begin(&who.tenant).await?;
    if let Some(answer) = replayed(attempt.as_ref(), &mut tx).await? {
        return Ok(answer);
    }
    let before = load(&mut tx, who, id, etag).await?;
    let (todo, told) = match before.clone().update(patch, clock::now()) {
        Some(todo) => {
            honest(&todo, Some(&before))?;
            store::save(&mut tx, &who.tenant, &before, &todo).await?;
            let data = UpdatedV1 { todo: publish::state(&todo), actor: publish::actor(who) };
            let told = vec![publish::event(who, &todo, &data)?];
            (todo, told)
        }
        None => (before, Vec::new()),
    };
    finish(app, tx, attempt, wire::todo(&todo), told).await
}

/// Completes an open todo. Told in two versions: the older is in its sunset.
///
/// # Errors
/// [`Error::NotFound`], [`Error::EtagMismatch`], [`Error::Transition`], those of idempotency keys.
pub async fn complete(
    app: &App,
    who: &Principal,
    attempt: Option<Attempt<'_>>,
    id: TodoId,
    etag: &str,
) -> Result<pb::Todo, Error> {
    let mut tx = app.db.begin(&who.tenant).await?;
    if let Some(answer) = replayed(attempt.as_ref(), &mut tx).await? {
        return Ok(answer);
    }
    let before = load(&mut tx, who, id, etag).await?;
    let todo = before.clone().complete(clock::now())?;
    store::save(&mut tx, &who.tenant, &before, &todo).await?;
    let old = CompletedV1 { todo: publish::state(&todo), completed_by: who.user.clone() };
    let data = CompletedV2 { todo: publish::state(&todo), actor: publish::actor(who) };
    let told = publish::twins(who, &todo, &old, &data)?;
    finish(app, tx, attempt, wire::todo(&todo), told).await
}

/// Opens a completed todo again.
///
/// # Errors
/// [`Error::NotFound`], [`Error::EtagMismatch`], [`Error::Transition`], those of idempotency keys.
pub async fn reopen(
    app: &App,
    who: &Principal,
    attempt: Option<Attempt<'_>>,
    id: TodoId,
    etag: &str,
) -> Result<pb::Todo, Error> {
    let mut tx = app.db.begin(&who.tenant).await?;
    if let Some(answer) = replayed(attempt.as_ref(), &mut tx).await? {
        return Ok(answer);
    }
    let before = load(&mut tx, who, id, etag).await?;
    let todo = before.clone().reopen(clock::now())?;
    store::save(&mut tx, &who.tenant, &before, &todo).await?;
    let data = ReopenedV1 { todo: publish::state(&todo), actor: publish::actor(who) };
    let told = vec![publish::event(who, &todo, &data)?];
    finish(app, tx, attempt, wire::todo(&todo), told).await
}

/// Deletes a todo: the row stays, for nobody to see, and the event carries its last state.
///
/// # Errors
/// [`Error::NotFound`], [`Error::EtagMismatch`], those of idempotency keys.
pub async fn delete(
    app: &App,
    who: &Principal,
    attempt: Option<Attempt<'_>>,
    id: TodoId,
    etag: &str,
) -> Result<(), Error> {
    let mut tx = app.db.begin(&who.tenant).await?;
    if replayed::<()>(attempt.as_ref(), &mut tx).await?.is_some() {
        return Ok(());
    }
    let todo = load(&mut tx, who, id, etag).await?.delete(clock::now());
    store::mark_deleted(&mut tx, &who.tenant, &todo).await?;
    let data = DeletedV1 { todo: publish::state(&todo), actor: publish::actor(who) };
    let told = vec![publish::event(who, &todo, &data)?];
    finish(app, tx, attempt, (), told).await
}

/// Reads one todo.
///
/// # Errors
/// [`Error::NotFound`]
pub async fn get(app: &App, who: &Principal, id: TodoId) -> Result<pb::Todo, Error> {
    let mut tx = app.db.begin(&who.tenant).await?;
    let todo = store::get(&mut tx, &who.tenant, id).await?.ok_or(Error::NotFound(id))?;
    Ok(wire::todo(&todo))
}

/// Reads a page of todos, newest first, that come after `after`.
///
/// # Errors
/// Those of the database.
pub async fn list(
    app: &App,
    who: &Principal,
    filter: &store::Filter,
    after: Option<TodoId>,
    limit: i64,
) -> Result<Vec<Todo>, Error> {
    let mut tx = app.db.begin(&who.tenant).await?;
    Ok(store::list(&mut tx, &who.tenant, filter, after, limit).await?)
}

/// Refuses what is new and looks like another text. Behind the look for an earlier answer: that one stands.
fn honest(todo: &Todo, before: Option<&Todo>) -> Result<(), Failure> {
    todo.misleading(before).map_or(Ok(()), |field| Err(Failure::invalid(field, TextError::Misleading)))
}

/// The todo, locked until the transaction ends, if its etag still fits: none is asked for, any, or one of those between commas.
async fn load(tx: &mut TenantTx, who: &Principal, id: TodoId, etag: &str) -> Result<Todo, Error> {
    let todo = store::get_for_update(tx, &who.tenant, id).await?.ok_or(Error::NotFound(id))?;
    let is = todo.etag();
    if etag.is_empty() || etag == "*" || etag.split(',').any(|etag| etag.trim() == is) {
        Ok(todo)
    } else {
        Err(Error::EtagMismatch { is })
    }
}

async fn replayed<R: prost::Message + Default>(
    attempt: Option<&Attempt<'_>>,
    tx: &mut TenantTx,
) -> Result<Option<R>, Error> {
    match attempt {
        Some(attempt) => Ok(attempt.begin(tx).await?),
        None => Ok(None),
    }
}

/// The end of every command: the answer and the events are kept with the change, and only then is anyone told.
async fn finish<R: prost::Message>(
    app: &App,
    mut tx: TenantTx,
    attempt: Option<Attempt<'_>>,
    answer: R,
    told: Vec<NewEvent>,
) -> Result<R, Error> {
    if let Some(attempt) = attempt {
        attempt.remember(&mut tx, &answer).await?;
    }
    let events: Vec<_> = told.iter().map(|event| event.id).collect();
    app.relay.commit(tx, told, TenantTx::commit).await?;
    notes::wrote(events.into_iter());
    Ok(answer)
}
