//! Who may do what: the search's rows of the permission matrix, one for each RPC.

use authz::{Permission, Role};

use Role::{Admin, Member, Owner, Viewer};

/// Searches todos: as who may list them.
pub const SEARCH: Permission =
    Permission { action: "todo.search", scope: "todo:read", roles: &[Owner, Admin, Member, Viewer], services: &[] };

/// The row of each RPC, by its name.
pub const MATRIX: [(&str, &Permission); 1] = [("SearchTodos", &SEARCH)];
