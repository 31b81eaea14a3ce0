//! The events that commands write: an aggregate as they carry it, and who acted.

use contracts::events::EventType;
use contracts::events::harbour::{self as event, Actor};
use outbox::NewEvent;
use service::outbox::new_event;
use service::{Call, Failure};

use crate::logbook::Logbook;
use crate::vessel::Vessel;

/// The vessel as events carry it.
pub(crate) fn vessel(vessel: &Vessel) -> event::Vessel {
    let Vessel { id, name, notes, create_time, update_time, created_by, version } = vessel;
    event::Vessel {
        id: *id,
        name: name.as_str().to_owned(),
        notes: notes.as_str().to_owned(),
        create_time: *create_time,
        update_time: *update_time,
        created_by: created_by.clone(),
        version: *version,
    }
}

/// The logbook as events carry it.
pub(crate) fn logbook(logbook: &Logbook) -> event::Logbook {
    let Logbook { id, vessel_id, notes, create_time, update_time, created_by, version } = logbook;
    event::Logbook {
        id: *id,
        vessel_id: *vessel_id,
        notes: notes.as_str().to_owned(),
        create_time: *create_time,
        update_time: *update_time,
        created_by: created_by.clone(),
        version: *version,
    }
}

/// One event about `state`; `data` builds it from that and from the one on whose behalf the caller acts.
///
/// # Errors
/// It cannot be serialized.
pub(crate) fn event<S, D: EventType>(
    call: &Call,
    state: S,
    data: impl FnOnce(S, Actor) -> D,
) -> Result<Vec<NewEvent>, Failure> {
    Ok(vec![new_event(&call.envelope(data(state, Actor::from(&call.caller.actor))))?])
}
