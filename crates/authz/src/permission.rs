//! What a caller may do: a pure decision over the role and the scopes in its token, by rows that each service writes down.
//!
//! Relations ("whose list is it?") are decided elsewhere.

use contracts::{ActorKind, Role};

use crate::Caller;

/// A row of the permission matrix: who may do one thing.
#[derive(Debug, PartialEq, Eq)]
pub struct Permission {
    /// The action, for messages and the matrix: `todo.complete`.
    pub action: &'static str,
    /// The scope that a token with scopes needs: `todo:write`.
    pub scope: &'static str,
    /// The roles that may do it.
    pub roles: &'static [Role],
    /// The services of the fleet that may do it on their own behalf, in a handler of an event.
    pub services: &'static [&'static str],
}

/// Why a caller may not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Its token's scopes leave the action out.
    #[error("the access token lacks the scope {0}")]
    Scope(&'static str),
    /// Its role does not allow the action.
    #[error("{subject} may not do this ({action})")]
    Role {
        /// The role, or the service.
        subject: String,
        /// [`Permission::action`]
        action: &'static str,
    },
    /// Its role allows the action, but not on this object: the text says on which.
    #[error("{0}")]
    This(&'static str),
}

impl Permission {
    /// Checks this caller. A service of the fleet that acts on its own behalf has its row; everybody else has a role. A caller
    /// without a role may do nothing.
    ///
    /// # Errors
    /// Fails when the caller may not do it.
    pub fn check(&self, caller: &Caller) -> Result<(), Denied> {
        if caller.scopes.as_ref().is_some_and(|scopes| !scopes.iter().any(|scope| scope == self.scope)) {
            return Err(Denied::Scope(self.scope));
        }
        let (actor, role) = (&caller.actor, caller.role);
        let service = actor.kind == ActorKind::Service && actor.acts_for.is_none();
        let may = if service {
            self.services.contains(&actor.id.as_str())
        } else {
            role.is_some_and(|role| self.roles.contains(&role))
        };
        if may {
            return Ok(());
        }
        let subject = match role {
            _ if service => format!("the service {}", actor.id),
            Some(role) => format!("the role {}", role.as_str()),
            None => "a token without a role".to_owned(),
        };
        Err(Denied::Role { subject, action: self.action })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERMISSION: Permission =
        Permission { action: "todo.create", scope: "todo:write", roles: &[Role::Owner], services: &["todo"] };

    fn caller(actor: &str, role: Option<Role>, scopes: Option<&str>) -> Caller {
        let scopes = scopes.map(|scopes| scopes.split(' ').map(ToOwned::to_owned).collect());
        Caller {
            tenant: "acme".parse().unwrap(),
            actor: actor.parse().unwrap(),
            role,
            scopes,
            sign_in: None,
            issued: None,
            expires_unix_seconds: 0,
        }
    }

    #[test]
    fn a_role_and_the_scopes_must_both_allow_it() {
        let check = |role, scopes| PERMISSION.check(&caller("user:ann", role, scopes));
        assert_eq!(check(Some(Role::Owner), None), Ok(()));
        assert_eq!(check(Some(Role::Owner), Some("other todo:write")), Ok(()));
        assert_eq!(check(Some(Role::Owner), Some("todo:read")), Err(Denied::Scope("todo:write")));
        assert_eq!(check(Some(Role::Owner), Some("")), Err(Denied::Scope("todo:write")));
        let denied = |role, subject: &str| {
            assert_eq!(check(role, None), Err(Denied::Role { subject: subject.to_owned(), action: "todo.create" }))
        };
        denied(Some(Role::Viewer), "the role viewer");
        denied(None, "a token without a role");
    }

    #[test]
    fn a_service_has_its_own_row_and_lends_it_to_nobody() {
        let check = |actor: &str, role| PERMISSION.check(&caller(actor, role, None)).is_ok();
        assert!(check("service:todo", None));
        assert!(!check("service:billing", None) && !check("service:billing", Some(Role::Owner)));
        // On behalf of another caller it may do what that caller may.
        assert!(
            !check("service:todo user:ann", Some(Role::Viewer)) && check("service:todo user:ann", Some(Role::Owner))
        );
        assert!(!check("user:todo", None) && !check("service_account:todo", None) && !check("agent:todo", None));
    }
}
