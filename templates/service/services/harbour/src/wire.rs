//! Converts between gRPC messages and the domain, for `grpc` and for answers that are stored with their keys.

use contracts::events::harbour::{LogbookId, VesselId};
use prost_types::FieldMask;
use proto::harbour as pb;
use proto::timestamp;
use service::idempotency::StoredResponse;
use service::list::Query;
use service::wire::{Mask, id, optional_id, stored_time, text};
use service::{Failure, IfMatch, filter_parser};

use crate::lists::VESSELS;
use crate::logbook::{Logbook, LogbookFilter, LogbookPatch};
use crate::texts::{Name, Notes};
use crate::vessel::{Vessel, VesselDraft, VesselPatch};

pub fn vessel_id(text: &str) -> Result<VesselId, Failure> {
    id("id", text)
}

pub fn logbook_id(text: &str) -> Result<LogbookId, Failure> {
    id("id", text)
}

/// The fields of a vessel that a caller writes, and the etag. It is destructured whole, so that no new field is forgotten here.
fn written_vessel(vessel: Option<&pb::Vessel>) -> Result<(&str, &str, &str), Failure> {
    let pb::Vessel { name, notes, etag, id: _, create_time: _, update_time: _, created_by: _, version: _ } =
        vessel.ok_or_else(|| Failure::invalid("vessel", "is missing"))?;
    Ok((name, notes, etag))
}

pub fn vessel_draft(vessel: Option<&pb::Vessel>) -> Result<VesselDraft, Failure> {
    let (name, notes, _) = written_vessel(vessel)?;
    Ok(VesselDraft { name: text("name", Name::parse(name))?, notes: text("notes", Notes::parse(notes))? })
}

/// The changes of a request, and the etag that must still match.
pub fn vessel_patch(
    vessel: Option<&pb::Vessel>,
    mask: Option<&FieldMask>,
) -> Result<(IfMatch, VesselPatch), Failure> {
    let (name, notes, etag) = written_vessel(vessel)?;
    let mask = Mask::of(mask, &["name", "notes"])?;
    let mut patch = VesselPatch::default();
    if mask.takes("name", !name.is_empty()) {
        patch.name = Some(text("name", Name::parse(name))?);
    }
    if mask.takes("notes", !notes.is_empty()) {
        patch.notes = Some(text("notes", Notes::parse(notes))?);
    }
    Ok((IfMatch::parse(etag), patch))
}

/// The changes of a request, and the etag that must still match.
pub fn logbook_patch(
    logbook: Option<&pb::Logbook>,
    mask: Option<&FieldMask>,
) -> Result<(IfMatch, LogbookPatch), Failure> {
    let pb::Logbook { notes, etag, id: _, vessel_id: _, create_time: _, update_time: _, created_by: _, version: _ } =
        logbook.ok_or_else(|| Failure::invalid("logbook", "is missing"))?;
    let mask = Mask::of(mask, &["notes"])?;
    let mut patch = LogbookPatch::default();
    if mask.takes("notes", !notes.is_empty()) {
        patch.notes = Some(text("notes", Notes::parse(notes))?);
    }
    Ok((IfMatch::parse(etag), patch))
}

pub fn vessel_query(request: &pb::ListVesselsRequest) -> Result<Query, Failure> {
    let pb::ListVesselsRequest { filter, order_by, page_size: _, page_token: _ } = request;
    VESSELS.query(filter_parser::parse(VESSELS.fields, filter)?, order_by)
}

pub fn logbook_filter(request: &pb::ListLogbooksRequest) -> Result<LogbookFilter, Failure> {
    let pb::ListLogbooksRequest { vessel_id, page_size: _, page_token: _ } = request;
    Ok(LogbookFilter { vessel_id: optional_id("vessel_id", vessel_id)? })
}

pub fn vessel(vessel: &Vessel) -> pb::Vessel {
    let Vessel { id, name, notes, create_time, update_time, created_by, version } = vessel;
    pb::Vessel {
        id: id.to_string(),
        name: name.as_str().to_owned(),
        notes: notes.as_str().to_owned(),
        create_time: Some(timestamp(*create_time)),
        update_time: Some(timestamp(*update_time)),
        created_by: created_by.to_string(),
        version: *version,
        etag: vessel.etag(),
    }
}

pub fn logbook(logbook: &Logbook) -> pb::Logbook {
    let Logbook { id, vessel_id, notes, create_time, update_time, created_by, version } = logbook;
    pb::Logbook {
        id: id.to_string(),
        vessel_id: vessel_id.to_string(),
        notes: notes.as_str().to_owned(),
        create_time: Some(timestamp(*create_time)),
        update_time: Some(timestamp(*update_time)),
        created_by: created_by.to_string(),
        version: *version,
        etag: logbook.etag(),
    }
}

/// A stored answer, of this release or another.
impl StoredResponse for Vessel {
    type Message = pb::Vessel;

    fn to_message(&self) -> pb::Vessel {
        vessel(self)
    }

    fn from_message(message: pb::Vessel) -> Result<Self, Failure> {
        let pb::Vessel { id: vessel_id, name, notes, create_time, update_time, created_by, version, etag: _ } = message;
        Ok(Self {
            id: id("id", &vessel_id)?,
            name: Name::parse(&name).map_err(Failure::internal)?,
            notes: Notes::parse(&notes).map_err(Failure::internal)?,
            create_time: stored_time(create_time)?,
            update_time: stored_time(update_time)?,
            created_by: created_by.parse().map_err(Failure::internal)?,
            version,
        })
    }
}

/// A stored answer, of this release or another.
impl StoredResponse for Logbook {
    type Message = pb::Logbook;

    fn to_message(&self) -> pb::Logbook {
        logbook(self)
    }

    fn from_message(message: pb::Logbook) -> Result<Self, Failure> {
        let pb::Logbook { id: logbook_id, vessel_id, notes, create_time, update_time, created_by, version, etag: _ } =
            message;
        Ok(Self {
            id: id("id", &logbook_id)?,
            vessel_id: id("vessel_id", &vessel_id)?,
            notes: Notes::parse(&notes).map_err(Failure::internal)?,
            create_time: stored_time(create_time)?,
            update_time: stored_time(update_time)?,
            created_by: created_by.parse().map_err(Failure::internal)?,
            version,
        })
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    #[test]
    fn a_stored_answer_is_read_as_it_was_given() {
        let at = |micros| DateTime::from_timestamp_micros(micros).unwrap();
        let vessel = Vessel {
            id: vessel_id("0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2e4f").unwrap(),
            name: Name::parse("Passat").unwrap(),
            notes: Notes::parse("more\n").unwrap(),
            create_time: at(1_000_001),
            update_time: at(2_000_002),
            created_by: "ann".parse().unwrap(),
            version: 3,
        };
        assert_eq!(Vessel::from_message(vessel.to_message()).unwrap(), vessel);
        let logbook = Logbook {
            id: logbook_id("0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2e50").unwrap(),
            vessel_id: vessel.id,
            notes: vessel.notes,
            create_time: at(-1),
            update_time: at(7),
            created_by: vessel.created_by,
            version: 1,
        };
        assert_eq!(Logbook::from_message(logbook.to_message()).unwrap(), logbook);
    }
}
