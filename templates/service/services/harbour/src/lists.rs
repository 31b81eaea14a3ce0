//! The fields and times by which lists of vessels are filtered and ordered.

use service::filter::{Field, Kind};
use service::list::{Lists, Path};

/// The lists of vessels. Each path has its index in the migrations.
pub static VESSELS: Lists = Lists {
    fields: &[
        Field { name: "name", kind: Kind::Text, column: "t.name" },
        Field { name: "create_time", kind: Kind::Time, column: "t.create_time" },
        Field { name: "update_time", kind: Kind::Time, column: "t.update_time" },
    ],
    paths: &[CREATED, Path { order: "update_time", time: Some("t.update_time"), ..CREATED }],
    base: "t.delete_time is null",
};

/// The order of ids (UUIDv7) is that of creation.
const CREATED: Path =
    Path { order: "create_time", of: None, from: "vessel t", tenants: &["t.tenant"], time: None, id: "t.id" };
