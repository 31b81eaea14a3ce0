//! The harbour service's rows of the permission matrix: one for each RPC, and one for each thing that the service does by itself.

use authz::{Permission, Role};
use contracts::events::harbour::SERVICE;

use Role::{Admin, Member, Owner, Viewer};

/// Reads.
const READ: &str = "harbour:read";
/// Writes.
const WRITE: &str = "harbour:write";

const fn reads(action: &'static str) -> Permission {
    Permission { action, scope: READ, roles: &[Owner, Admin, Member, Viewer], services: &[] }
}

const fn writes(action: &'static str) -> Permission {
    Permission { action, scope: WRITE, roles: &[Owner, Admin, Member], services: &[] }
}

const fn by_itself(action: &'static str) -> Permission {
    Permission { action, scope: WRITE, roles: &[], services: &[SERVICE] }
}

/// Creates a vessel.
pub const CREATE_VESSEL: Permission = writes("harbour.vessel.create");
/// Reads one vessel: a caller who may not gets NOT_FOUND.
pub const GET_VESSEL: Permission = reads("harbour.vessel.get");
/// Lists vessels.
pub const LIST_VESSELS: Permission = reads("harbour.vessel.list");
/// Changes a vessel.
pub const UPDATE_VESSEL: Permission = writes("harbour.vessel.update");
/// Deletes a vessel.
pub const DELETE_VESSEL: Permission = writes("harbour.vessel.delete");
/// Reads one logbook: a caller who may not gets NOT_FOUND.
pub const GET_LOGBOOK: Permission = reads("harbour.logbook.get");
/// Lists logbooks.
pub const LIST_LOGBOOKS: Permission = reads("harbour.logbook.list");
/// Changes a logbook.
pub const UPDATE_LOGBOOK: Permission = writes("harbour.logbook.update");

/// Gives a created vessel its logbook.
pub const CREATE_LOGBOOK: Permission = by_itself("harbour.logbook.create");
/// Deletes the logbook of a deleted vessel.
pub const DELETE_LOGBOOK: Permission = by_itself("harbour.logbook.delete");
/// Erases a vessel, or removes a person from it, as an operator requested.
pub const ERASE_VESSEL: Permission = by_itself("harbour.vessel.erase");
/// The same for a logbook.
pub const ERASE_LOGBOOK: Permission = by_itself("harbour.logbook.erase");

/// The row of each RPC, by its name.
pub const MATRIX: [(&str, &Permission); 8] = [
    ("CreateVessel", &CREATE_VESSEL),
    ("GetVessel", &GET_VESSEL),
    ("ListVessels", &LIST_VESSELS),
    ("UpdateVessel", &UPDATE_VESSEL),
    ("DeleteVessel", &DELETE_VESSEL),
    ("GetLogbook", &GET_LOGBOOK),
    ("ListLogbooks", &LIST_LOGBOOKS),
    ("UpdateLogbook", &UPDATE_LOGBOOK),
];

/// The rows of what the service does by itself, by the command.
pub const BY_ITSELF: [(&str, &Permission); 4] = [
    ("create_logbook", &CREATE_LOGBOOK),
    ("delete_logbook", &DELETE_LOGBOOK),
    ("erase_vessel", &ERASE_VESSEL),
    ("erase_logbook", &ERASE_LOGBOOK),
];
