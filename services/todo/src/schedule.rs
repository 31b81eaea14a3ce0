//! The service's timed work: each item is a row of `todo_timer`, claimed over all tenants and executed as a command.

use std::time::Duration;

use contracts::TodoId;
use futures::FutureExt as _;
use service::{Process, Work};

use crate::commands::{self, App};
use crate::store;

/// A todo's due time has come.
const DUE: Work = Work { name: "todo-due", claim: store::CLAIM_DUE, late: store::DUE_LATE, after: Duration::ZERO };

/// A todo that was deleted that long ago is emptied.
const fn purge(after: Duration) -> Work {
    Work { name: "todo-purge", claim: store::CLAIM_PURGE, late: store::PURGE_LATE, after }
}

/// Does all timed work until the service stops.
///
/// # Errors
/// The service's name is no id.
pub(crate) fn run(process: &Process, app: &App, keep_deleted: Duration) -> Result<(), anyhow::Error> {
    let todos = app.clone();
    DUE.spawn(process, app.db.clone(), move |call, id| {
        let app = todos.clone();
        async move { Ok(commands::become_due(&app, &call, TodoId::new(id)).await?) }.boxed()
    })?;
    let todos = app.clone();
    purge(keep_deleted).spawn(process, app.db.clone(), move |call, id| {
        let app = todos.clone();
        async move { Ok(commands::purge(&app, &call, TodoId::new(id), keep_deleted).await?) }.boxed()
    })?;
    Ok(())
}
