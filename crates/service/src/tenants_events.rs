//! Follows what identity says of tenants and of who their members are, for `tenants` and `members`.

use chrono::{DateTime, Utc};
use contracts::UserId;
use contracts::events::identity::{
    Event, MemberAddedV1, MemberId, MemberRemovedV1, MemberUpdatedV1, TenantDeletedV1, TenantStatusChangedV1,
};
use contracts::events::{DecodeError, EventType as _};
use serde::Deserialize;

use crate::handlers::{self, Source};
use crate::tenants::ERASED;
use crate::{Call, Db, Failure, Process, members, tenants};

/// Follows the events until the service stops. By those about tenants [`Db::begin`] refuses callers of suspended and erased ones; by those
/// about members [`members::is_member`] answers.
///
/// # Errors
/// An address or the credentials cannot be read.
pub async fn follow(process: &Process, source: Source<'_>, db: Db) -> Result<(), anyhow::Error> {
    handlers::run(process, source, db, decode, on_event).await
}

/// The events about members.
const MEMBERS: [&str; 3] = [MemberAddedV1::TYPE, MemberUpdatedV1::TYPE, MemberRemovedV1::TYPE];

/// What an event says.
enum Said {
    /// What became of the tenant, and when.
    Tenant(&'static str, DateTime<Utc>),
    /// Who the member is now; nobody, where it has left.
    Member(MemberId, Option<UserId>, DateTime<Utc>),
}

/// Of an event about a member, what is kept.
#[derive(Deserialize)]
struct About {
    member: Kept,
}

#[derive(Deserialize)]
struct Kept {
    id: MemberId,
    user: UserId,
    update_time: DateTime<Utc>,
}

/// Of events about members, nothing else is read: what this release cannot read of a person makes no dead letter.
fn decode(event_type: &str, data: &str) -> Result<Option<Said>, DecodeError> {
    if let Some(event_type) = MEMBERS.into_iter().find(|of_member| *of_member == event_type) {
        let read = serde_json::from_str(data).map_err(|source| DecodeError::Data { event_type, source });
        let About { member: Kept { id, user, update_time } } = read?;
        let there = event_type != MemberRemovedV1::TYPE;
        return Ok(Some(Said::Member(id, there.then_some(user), update_time)));
    }
    if ![TenantStatusChangedV1::TYPE, TenantDeletedV1::TYPE].contains(&event_type) {
        return Ok(None);
    }
    Ok(match Event::decode(event_type, data)? {
        Some(Event::TenantStatusChanged(changed)) => {
            Some(Said::Tenant(changed.tenant.status.as_str(), changed.tenant.update_time))
        }
        Some(Event::TenantDeleted(deleted)) => Some(Said::Tenant(ERASED, deleted.tenant.update_time)),
        _ => None,
    })
}

async fn on_event(db: Db, call: Call, said: Said) -> Result<(), consumer::Failure> {
    let mut tx = db.begin(&call).await?;
    let noted = match said {
        Said::Tenant(status, time) => {
            let tenant = tx.tenant();
            if status == ERASED {
                members::forget(&mut tx).await.map_err(Failure::from)?;
            }
            tenants::note(&mut tx, &tenant, status, time).await
        }
        Said::Member(member, user, time) => members::note(&mut tx, member, user.as_ref(), time).await,
    };
    noted.map_err(Failure::from)?;
    Ok(tx.commit().await.map_err(Failure::from)?)
}
