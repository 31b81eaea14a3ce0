//! What lists of todos may be filtered and ordered by.

use service::filter::{Field, Kind};
use service::list::{Lists, Path};

use crate::store::{COMPLETED, OPEN};

/// The lists of todos. Each path has its index in the migrations.
pub static TODOS: Lists = Lists {
    fields: &[
        Field { name: "status", kind: Kind::Choice(&[OPEN, COMPLETED]), column: "t.status" },
        Field { name: "labels", kind: Kind::Texts, column: "t.labels" },
        Field { name: "assignee", kind: Kind::Text, column: "t.assignee" },
        Field { name: "created_by", kind: Kind::Text, column: "t.created_by" },
        Field { name: "due_time", kind: Kind::Time, column: "t.due_time" },
        Field { name: "create_time", kind: Kind::Time, column: "t.create_time" },
        Field { name: "update_time", kind: Kind::Time, column: "t.update_time" },
        Field { name: "complete_time", kind: Kind::Time, column: "t.complete_time" },
    ],
    paths: &[
        Path {
            of: Some(("labels", "l.label")),
            // Label by label; otherwise the planner may read all todos, and merge them.
            from: "todo_label l cross join lateral (select * from todo t where t.tenant = l.tenant and t.id = l.todo_id offset 0) t",
            tenants: &["t.tenant", "l.tenant"],
            id: "l.todo_id",
            ..CREATED
        },
        Path { of: Some(("assignee", "t.assignee")), ..CREATED },
        Path { of: Some(("status", "t.status")), ..CREATED },
        CREATED,
        Path { of: Some(("status", "t.status")), ..DUE },
        DUE,
        Path { order: "update_time", time: Some("t.update_time"), ..CREATED },
    ],
    base: "t.delete_time is null",
};

/// Ids are of time: their order is that of creation.
const CREATED: Path =
    Path { order: "create_time", of: None, from: "todo t", tenants: &["t.tenant"], time: None, id: "t.id" };

/// Row-level security lets a CASE use an index, and not a COALESCE.
const DUE: Path = Path {
    order: "due_time",
    time: Some("(case when t.due_time is null then 'infinity'::timestamptz else t.due_time end)"),
    ..CREATED
};
