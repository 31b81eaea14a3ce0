//! The subjects of events: `evt.<service>.<event>.v<N>.<tenant>`.

use crate::TenantId;

/// The subject of an event type (`todo.completed.v2`) for one tenant: `evt.todo.completed.v2.acme`.
#[must_use]
pub fn of(event_type: &str, tenant: &TenantId) -> String {
    format!("evt.{event_type}.{tenant}")
}

/// The stream that holds a service's events: `EVENTS_TODO`.
#[must_use]
pub fn stream(service: &str) -> String {
    format!("EVENTS_{}", service.to_ascii_uppercase().replace('-', "_"))
}

/// Every subject of a service: `evt.todo.>`.
#[must_use]
pub fn all(service: &str) -> String {
    format!("evt.{service}.>")
}

/// Every subject of a service for one tenant: `evt.todo.*.*.acme`.
#[must_use]
pub fn all_of_tenant(service: &str, tenant: &TenantId) -> String {
    format!("evt.{service}.*.*.{tenant}")
}

/// Where each event of a service is published once more when it is stored: the prefix of its subject there.
pub const LIVE: &str = "live.";

/// Every subject of a service under which its stored events are published once more: `live.evt.todo.>`.
#[must_use]
pub fn live(service: &str) -> String {
    format!("{LIVE}{}", all(service))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_subject_names_service_event_version_and_tenant() {
        let tenant = "acme".parse().unwrap();
        assert_eq!(super::of("todo.completed.v2", &tenant), "evt.todo.completed.v2.acme");
        assert_eq!(super::all_of_tenant("todo", &tenant), "evt.todo.*.*.acme");
        assert_eq!(super::live("todo"), "live.evt.todo.>");
        assert_eq!(super::stream("todo"), "EVENTS_TODO");
        assert_eq!(super::stream("search-projector"), "EVENTS_SEARCH_PROJECTOR");
    }
}
