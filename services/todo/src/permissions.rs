//! Who may do what: the todo service's rows of the permission matrix. There is one for each RPC, and one for each action that the service
//! takes by itself.

use authz::{Caller, Denied, Permission, Role};
use contracts::events::todo::SERVICE;
use contracts::{ActorKind, UserId};

use crate::todo::Todo;

use Role::{Admin, Member, Owner, Viewer};

/// Reads todos.
const READ: &str = "todo:read";
/// Changes todos.
const WRITE: &str = "todo:write";

/// Creates a todo; the service itself creates the next one of a series.
pub const CREATE: Permission =
    Permission { action: "todo.create", scope: WRITE, roles: &[Owner, Admin, Member], services: &[SERVICE] };
/// Reads one todo: a caller without the permission gets NOT_FOUND.
pub const GET: Permission =
    Permission { action: "todo.get", scope: READ, roles: &[Owner, Admin, Member, Viewer], services: &[] };
/// Lists todos.
pub const LIST: Permission =
    Permission { action: "todo.list", scope: READ, roles: &[Owner, Admin, Member, Viewer], services: &[] };
/// Watches the changes of todos.
pub const WATCH: Permission =
    Permission { action: "todo.watch", scope: READ, roles: &[Owner, Admin, Member, Viewer], services: &[] };
/// Changes a todo.
pub const UPDATE: Permission =
    Permission { action: "todo.update", scope: WRITE, roles: &[Owner, Admin, Member], services: &[] };
/// Deletes a todo. A member deletes only the todos that it has created: [`delete_this`].
pub const DELETE: Permission =
    Permission { action: "todo.delete", scope: WRITE, roles: &[Owner, Admin, Member], services: &[] };
/// Completes a todo.
pub const COMPLETE: Permission =
    Permission { action: "todo.complete", scope: WRITE, roles: &[Owner, Admin, Member], services: &[] };
/// Opens a completed todo again.
pub const REOPEN: Permission =
    Permission { action: "todo.reopen", scope: WRITE, roles: &[Owner, Admin, Member], services: &[] };

/// Announces that a todo's due time has come: only the service does, at that time.
pub const BECOME_DUE: Permission =
    Permission { action: "todo.become_due", scope: WRITE, roles: &[], services: &[SERVICE] };
/// Empties a todo that was deleted long ago.
pub const PURGE: Permission = Permission { action: "todo.purge", scope: WRITE, roles: &[], services: &[SERVICE] };

/// Erases a todo, at an operator's request for its tenant.
pub const ERASE: Permission = Permission { action: "todo.erase", scope: WRITE, roles: &[], services: &[SERVICE] };
/// Removes a person from a todo, at an operator's request.
pub const FORGET: Permission = Permission { action: "todo.forget", scope: WRITE, roles: &[], services: &[SERVICE] };

/// The row of each RPC, by its name.
pub const MATRIX: [(&str, &Permission); 8] = [
    ("CreateTodo", &CREATE),
    ("GetTodo", &GET),
    ("ListTodos", &LIST),
    ("WatchTodos", &WATCH),
    ("UpdateTodo", &UPDATE),
    ("DeleteTodo", &DELETE),
    ("CompleteTodo", &COMPLETE),
    ("ReopenTodo", &REOPEN),
];

/// The rows of the service's own actions, by the command.
pub const BY_ITSELF: [(&str, &Permission); 4] =
    [("become_due", &BECOME_DUE), ("purge", &PURGE), ("erase", &ERASE), ("forget", &FORGET)];

/// Checks that this caller, who may delete, may delete this todo.
///
/// # Errors
/// The member has not created it, or is a program: a todo stores its creator's id, but not whether that is a person.
pub fn delete_this(caller: &Caller, todo: &Todo) -> Result<(), Denied> {
    let subject = caller.actor.subject();
    let known = todo.created_by != UserId::erased();
    let own = known && subject.kind == ActorKind::User && todo.created_by == subject.id;
    if caller.role == Some(Member) && !own {
        return Err(Denied::This("a member may delete only the todos that it has created"));
    }
    Ok(())
}
