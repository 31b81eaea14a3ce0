//! What the service does by itself when its time comes: each is a row of `todo_timer`, claimed over all tenants and done as a command.

use std::time::Duration;

use contracts::{TodoId, UserId};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use service::{Call, Failure, Process, Service as _, Work};

use crate::commands::{self, App};
use crate::{Program, store};

/// The due time of a todo has come.
const DUE: Work = Work { name: "todo-due", claim: store::CLAIM_DUE, late: store::DUE_LATE, after: Duration::ZERO };

/// What a todo held that was deleted so long ago is to go.
const fn purge(after: Duration) -> Work {
    Work { name: "todo-purge", claim: store::CLAIM_PURGE, late: store::PURGE_LATE, after }
}

/// Does all of it until the service stops.
///
/// # Errors
/// None at run time: the service's name is a user's id.
pub(crate) fn run(process: &Process, app: &App, keep_deleted: Duration) -> Result<(), anyhow::Error> {
    let service: UserId = Program::NAME.parse()?;
    spawn(process, app, &service, DUE, |app, call, id| {
        async move { Ok(commands::become_due(&app, &call, id).await?) }.boxed()
    });
    spawn(process, app, &service, purge(keep_deleted), move |app, call, id| {
        async move { Ok(commands::purge(&app, &call, id, keep_deleted).await?) }.boxed()
    });
    Ok(())
}

fn spawn(
    process: &Process,
    app: &App,
    service: &UserId,
    work: Work,
    command: impl Fn(App, Call, TodoId) -> BoxFuture<'static, Result<(), Failure>> + Send + Sync + 'static,
) {
    let (app, service) = (app.clone(), service.clone());
    process.lifecycle.run(work.name, |stop| async move {
        let act = |call, id| command(app.clone(), call, TodoId::new(id));
        work.run(&app.db, &service, &stop, act).await;
    });
}
