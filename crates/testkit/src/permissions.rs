//! The page of a service's permissions: its matrix, as a reviewer reads it.

use std::path::Path;

use authz::{Permission, Role};

/// What an RPC is, or something that the service does by itself, and who may do it.
pub type Row<'a> = (&'a str, &'a Permission);

/// The matrix is that of the service's `permissions.md`: whoever changes who may do what, changes the page. `INSTA_UPDATE=always` writes it
/// anew. `folder` is that of the service, `public` its RPCs that need no token.
///
/// # Panics
/// It is not; or a row names a service that the fleet's table does not know.
#[expect(clippy::disallowed_methods, reason = "the switch of snapshots, as insta reads it")]
pub fn assert_reviewed(folder: &str, rpcs: &[Row<'_>], by_itself: &[Row<'_>], public: &[String]) {
    let path = Path::new(folder).join("permissions.md");
    let name = Path::new(folder).file_name().unwrap().to_str().unwrap();
    let page = page(name, rpcs, by_itself, public);
    if std::env::var("INSTA_UPDATE").is_ok_and(|update| update == "always") {
        std::fs::write(&path, &page).unwrap();
    }
    let reviewed = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(page, reviewed, "{}: INSTA_UPDATE=always writes it", path.display());
}

fn page(service: &str, rpcs: &[Row<'_>], by_itself: &[Row<'_>], public: &[String]) -> String {
    let roles: Vec<_> = Role::ALL.iter().map(|role| role.as_str()).collect();
    let head = |what: &str| {
        format!("| {what} | Action | Scope | {} | Services |\n|{}\n", roles.join(" | "), "---|".repeat(roles.len() + 4))
    };
    let row = |(name, Permission { action, scope, roles, services }): &Row<'_>| {
        assert!(services.iter().all(|service| fleet::named(service).is_some()), "{services:?}");
        let may: Vec<_> = Role::ALL.iter().map(|role| if roles.contains(role) { "yes" } else { "" }).collect();
        format!("| `{name}` | `{action}` | `{scope}` | {} | {} |\n", may.join(" | "), services.join(", "))
    };
    let mut page = format!(
        "# Who may do what: {service}\n\nA test of the service compares this page with its code. What the columns say: \
         [docs/permissions.md](../../docs/permissions.md).\n\n"
    );
    page.push_str(&head("RPC"));
    page.extend(rpcs.iter().map(row));
    if !public.is_empty() {
        page.push_str(&format!("\nWithout a token of the fleet's: `{}`.\n", public.join("`, `")));
    }
    if !by_itself.is_empty() {
        page.push_str("\nWhat a service does on nobody's behalf:\n\n");
        page.push_str(&head("Command"));
        page.extend(by_itself.iter().map(row));
    }
    page
}
