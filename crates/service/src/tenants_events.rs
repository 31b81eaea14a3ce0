//! Follows what identity says of tenants, for `tenants`.

use chrono::{DateTime, Utc};
use contracts::events::identity::{Event, TenantDeletedV1, TenantStatusChangedV1};
use contracts::events::{DecodeError, EventType as _};

use crate::handlers::{self, Source};
use crate::tenants::{ERASED, note};
use crate::{Call, Db, Failure, Process};

/// Follows the events about tenants until the service stops; by them [`Db::begin`] refuses callers of suspended and erased ones.
///
/// # Errors
/// An address or the credentials cannot be read.
pub async fn follow(process: &Process, source: Source<'_>, db: Db) -> Result<(), anyhow::Error> {
    handlers::run(process, source, db, decode, on_event).await
}

/// What becomes of a tenant, and when. Nothing else is read: what this release cannot read of a member is no dead letter with personal data.
fn decode(event_type: &str, data: &str) -> Result<Option<(&'static str, DateTime<Utc>)>, DecodeError> {
    if ![TenantStatusChangedV1::TYPE, TenantDeletedV1::TYPE].contains(&event_type) {
        return Ok(None);
    }
    Ok(match Event::decode(event_type, data)? {
        Some(Event::TenantStatusChanged(changed)) => Some((changed.tenant.status.as_str(), changed.tenant.update_time)),
        Some(Event::TenantDeleted(deleted)) => Some((ERASED, deleted.tenant.update_time)),
        _ => None,
    })
}

async fn on_event(db: Db, call: Call, (status, time): (&'static str, DateTime<Utc>)) -> Result<(), consumer::Failure> {
    let mut tx = db.begin(&call).await?;
    let tenant = tx.tenant();
    note(&mut tx, &tenant, status, time).await.map_err(Failure::from)?;
    Ok(tx.commit().await.map_err(Failure::from)?)
}
