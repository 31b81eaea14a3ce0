//! The services of the fleet, a row for each. Ports, databases, roles, secrets, logins, proxies, upstreams, scrape targets and test
//! databases follow from it.

use std::iter;

use contracts::events::{EventType as _, identity, todo};

use crate::durables::{Durable, PROJECTION, REBUILD, handler, tenants};
use crate::{OPERATIONS, PROJECTOR};

/// A service's row.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    /// Names its program, its login at NATS, and its database.
    pub name: &'static str,
    /// The team that owns it.
    pub owner: &'static str,
    /// The port of its server on a developer's machine, if it has callers.
    pub port: Option<u16>,
    /// The port of its operations server there.
    pub ops_port: u16,
    /// The gRPC services that it serves, by their full names: the gateway's upstreams.
    pub serves: &'static [&'static str],
    /// The gRPC services that it calls on behalf of its callers, beside those of the edge.
    pub asks: &'static [&'static str],
    /// Its database.
    pub database: Option<Database>,
    /// Whether it publishes events, into a stream of its own.
    pub produces: bool,
    /// Whether its callers watch its events: its reader's login hears what its stream stores.
    pub watched: bool,
    /// The durable consumers by which it reads events.
    pub durables: &'static [Durable],
    /// The file of its key for page tokens, among the secrets of a stack.
    pub page_token_key: Option<&'static str>,
    /// Whether it knows people by their OpenID provider, and signs the fleet's tokens.
    pub signs: bool,
    /// Whether it uses OpenSearch.
    pub search_engine: bool,
    /// Whether its processes share the rates of their callers, in Redis.
    pub shares_rates: bool,
    /// Whether it is the edge, in front of all others, for callers from outside.
    pub edge: bool,
}

/// The database of a service: it has the service's name, and the roles `<name>_owner`, `_app`, `_relay` and `_operator`.
#[derive(Debug, Clone, Copy)]
pub struct Database {
    /// Tables that belong to no tenant and that the service's own role reaches: what its handlers have done, and what operators work
    /// on. All others that it reaches are a tenant's, behind a policy. Tables that only the relay or the owner reaches are not named.
    pub of_no_tenant: &'static [&'static str],
}

/// Identity's gRPC service: whoever carries callers along asks it for tokens.
const IDENTITY: &str = "flotilla.identity.v1.IdentityService";

/// Every service, in the order in which a stack starts them.
pub static SERVICES: &[Service] = &[
    Service {
        database: Some(Database {
            of_no_tenant: &["audit", "audit_told", "death", "job", "job_item", "kept", "letter"],
        }),
        ..service(OPERATIONS, "platform", 17302)
    },
    Service {
        port: Some(17401),
        serves: &[IDENTITY],
        database: Some(Database { of_no_tenant: &["adoption", "person"] }),
        produces: true,
        page_token_key: Some("identity-page-token-key"),
        signs: true,
        ..service(identity::SERVICE, identity::OWNER, 17402)
    },
    Service {
        port: Some(17101),
        serves: &["flotilla.todo.v1.TodoService"],
        // Whether a new assignee is a member, before the event about it has come.
        asks: &[IDENTITY],
        database: Some(Database { of_no_tenant: &["inbox", "inbox_dead", "inbox_lease"] }),
        produces: true,
        watched: true,
        durables: &[
            // A completed todo creates its next occurrence.
            handler("todo-recurrence", todo::SERVICE, &[todo::CompletedV1::TYPE, todo::CompletedV2::TYPE]),
            tenants("todo-tenants"),
        ],
        page_token_key: Some("todo-page-token-key"),
        ..service(todo::SERVICE, todo::OWNER, 17102)
    },
    Service {
        port: Some(17201),
        serves: &["flotilla.search.v1.SearchService"],
        durables: &[PROJECTION, REBUILD],
        page_token_key: Some("search-page-token-key"),
        search_engine: true,
        ..service(PROJECTOR, "search", 17202)
    },
    Service { port: Some(8080), edge: true, shares_rates: true, ..service("gateway", "platform", 17002) },
];

/// A service with nothing but operations.
const fn service(name: &'static str, owner: &'static str, ops_port: u16) -> Service {
    Service {
        name,
        owner,
        port: None,
        ops_port,
        serves: &[],
        asks: &[],
        database: None,
        produces: false,
        watched: false,
        durables: &[],
        page_token_key: None,
        signs: false,
        search_engine: false,
        shares_rates: false,
        edge: false,
    }
}

impl Service {
    /// Whether it logs in at NATS.
    #[must_use]
    pub fn logs_in(&self) -> bool {
        crate::logins().iter().any(|login| login.name == self.name)
    }

    /// The services that it calls.
    pub fn calls(&self) -> impl Iterator<Item = &'static Self> {
        SERVICES.iter().filter(|other| other.serves.iter().any(|grpc| self.reaches(grpc)))
    }

    /// Whether it calls this gRPC service: the edge calls all.
    pub(crate) fn reaches(&self, grpc: &str) -> bool {
        self.edge || self.asks.contains(&grpc)
    }

    /// The services that call it.
    pub fn called_by(&self) -> impl Iterator<Item = &'static Self> {
        let name = self.name;
        SERVICES.iter().filter(move |other| other.calls().any(|called| called.name == name))
    }

    /// The file of the key by which it says to identity who it is; None of one that calls nobody on behalf of its callers.
    #[must_use]
    pub fn service_key(&self) -> Option<String> {
        (!self.asks.is_empty()).then(|| format!("{}-service-key", self.name))
    }

    /// The login by which it reads events: a producing service has one of its own for that, because an account owns streams or reads,
    /// never both.
    #[must_use]
    pub fn reads_as(&self) -> Option<String> {
        let login = || if self.produces { crate::consumer_login(self.name) } else { self.name.to_owned() };
        (!self.durables.is_empty()).then(login)
    }
}

/// The row of a service.
#[must_use]
pub fn named(name: &str) -> Option<&'static Service> {
    SERVICES.iter().find(|service| service.name == name)
}

/// The services that produce events.
#[must_use]
pub fn producers() -> Vec<&'static str> {
    SERVICES.iter().filter(|service| service.produces).map(|service| service.name).collect()
}

/// Every gRPC service, with the service of the fleet that serves it.
pub fn upstreams() -> impl Iterator<Item = (&'static str, &'static Service)> {
    SERVICES.iter().flat_map(|service| service.serves.iter().copied().zip(iter::repeat(service)))
}

/// A durable consumer of the table.
#[must_use]
pub fn durable(name: &str) -> Option<&'static Durable> {
    durables().find(|durable| durable.name == name)
}

/// The durable consumers of every service.
pub fn durables() -> impl Iterator<Item = &'static Durable> {
    SERVICES.iter().flat_map(|service| service.durables)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Roles and the database have this name, in SQL.
    #[test]
    fn a_service_with_a_database_has_a_name_that_sql_takes_as_it_is() {
        for Service { name, .. } in SERVICES.iter().filter(|service| service.database.is_some()) {
            let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
            assert!(plain && name.len() <= 40, "{name}: letters a to z and digits, 40 at most");
        }
    }

    #[test]
    fn whoever_carries_callers_along_reaches_identity_and_services_that_are_there() {
        for Service { name, asks, .. } in SERVICES.iter().filter(|service| !service.asks.is_empty()) {
            assert!(asks.contains(&IDENTITY), "{name} gets its tokens of identity");
            let unknown: Vec<_> = asks.iter().filter(|grpc| upstreams().all(|(served, _)| served != **grpc)).collect();
            assert!(unknown.is_empty(), "{name} calls {unknown:?}, which nobody serves");
        }
    }

    #[test]
    fn no_two_services_share_a_port_or_a_name() {
        let ports = || SERVICES.iter().flat_map(|service| service.port.into_iter().chain([service.ops_port]));
        assert_eq!(ports().collect::<BTreeSet<_>>().len(), ports().count());
        assert_eq!(SERVICES.iter().map(|service| service.name).collect::<BTreeSet<_>>().len(), SERVICES.len());
    }

    #[test]
    fn who_publishes_events_is_registered_with_them() {
        let registered: BTreeSet<_> = contracts::events::all().map(|event| (event.service, event.owner)).collect();
        let listed: BTreeSet<_> =
            SERVICES.iter().filter(|service| service.produces).map(|service| (service.name, service.owner)).collect();
        assert_eq!(registered, listed);
    }

    #[test]
    fn the_owner_of_a_service_is_asked_when_it_changes() {
        let line = |service: &Service| {
            let events = match service.produces {
                true => format!("/crates/contracts/src/events/{0}.rs @flotilla/{1}\n", service.name, service.owner),
                false => String::new(),
            };
            format!("/services/{}/ @flotilla/{}\n{events}", service.name, service.owner)
        };
        let (_, lines) =
            include_str!("../../../.github/CODEOWNERS").split_once("* @flotilla/platform\n").expect("the default");
        assert_eq!(lines, SERVICES.iter().map(line).collect::<String>());
    }
}
