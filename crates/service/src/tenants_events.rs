//! Follows what identity says of tenants, for `tenants`.

use contracts::events::identity::Event;

use crate::handlers::{self, Source};
use crate::tenants::{ERASED, note};
use crate::{Call, Db, Failure, Process};

/// Follows the events about tenants until the service stops; by them [`Db::begin`] refuses callers of suspended and erased ones.
///
/// # Errors
/// An address or the credentials cannot be read.
pub async fn follow(process: &Process, source: Source<'_>, db: Db) -> Result<(), anyhow::Error> {
    handlers::run(process, source, db, Event::decode, on_event).await
}

async fn on_event(db: Db, call: Call, event: Event) -> Result<(), consumer::Failure> {
    let (status, time) = match event {
        Event::TenantStatusChanged(changed) => (changed.tenant.status.as_str(), changed.tenant.update_time),
        Event::TenantDeleted(deleted) => (ERASED, deleted.tenant.update_time),
        _ => return Ok(()),
    };
    let mut tx = db.begin(&call).await?;
    let tenant = tx.tenant();
    note(&mut tx, &tenant, status, time).await.map_err(Failure::from)?;
    Ok(tx.commit().await.map_err(Failure::from)?)
}
