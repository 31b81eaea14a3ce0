//! Finds the RPC of a request, by the `google.api.http` options of the descriptors.

use std::sync::LazyLock;

use prost_reflect::{DynamicMessage, MethodDescriptor, Value};
use service::policy::Policy;

use crate::template::Template;

/// A route to an RPC.
#[derive(Debug)]
pub struct Route {
    /// The HTTP method.
    pub verb: http::Method,
    /// The path template as written, for logs and metrics.
    pub pattern: String,
    /// The request field that the body fills: `*` for the whole request, empty for none.
    pub body: String,
    /// The RPC.
    pub rpc: MethodDescriptor,
    /// How its calls are let in.
    pub policy: Policy,
    template: Template,
    service: String,
}

impl Route {
    /// The full name of the RPC's service.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.service
    }
}

static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(read_all);

/// Every route of every service, the closest template first.
#[must_use]
pub fn all() -> &'static [Route] {
    &ROUTES
}

/// The result for a path.
#[derive(Debug)]
pub enum Found {
    /// An RPC, and the fields that the path sets.
    Route(&'static Route, Vec<(String, String)>),
    /// The path exists, but only for these methods.
    OtherMethods(Vec<&'static http::Method>),
    /// There is no such path.
    Nothing,
}

/// Finds the RPC of a request. A HEAD has the route of a GET.
#[must_use]
pub fn find(method: &http::Method, path: &str) -> Found {
    let mut others = Vec::new();
    let verb = if method == http::Method::HEAD { &http::Method::GET } else { method };
    for route in all() {
        if let Some(fields) = route.template.matches(path) {
            if route.verb == *verb {
                return Found::Route(route, fields);
            }
            others.push(&route.verb);
            if route.verb == http::Method::GET {
                others.push(&http::Method::HEAD);
            }
        }
    }
    if others.is_empty() { Found::Nothing } else { Found::OtherMethods(others) }
}

#[expect(clippy::expect_used, reason = "our own annotations, read at start: a wrong one must not be served around")]
fn read_all() -> Vec<Route> {
    let http =
        proto::POOL.get_extension_by_name("google.api.http").expect("google/api/annotations.proto is compiled in");
    let mut routes = Vec::new();
    for rpc in proto::POOL.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
        let options = rpc.options();
        if !options.has_extension(&http) {
            continue;
        }
        let rule = options.get_extension(&http);
        let rule = rule.as_message().expect("google.api.http is a message");
        read_rule(&rpc, rule, &mut routes);
    }
    routes.sort_by_key(|route| std::cmp::Reverse(route.template.literals()));
    routes
}

#[expect(clippy::expect_used, reason = "as read_all")]
fn read_rule(rpc: &MethodDescriptor, rule: &DynamicMessage, routes: &mut Vec<Route>) {
    let text = |name: &str| {
        let value = rule.get_field_by_name(name)?;
        value.as_str().filter(|text| !text.is_empty()).map(ToOwned::to_owned)
    };
    for name in ["get", "put", "post", "delete", "patch"] {
        let Some(pattern) = text(name) else { continue };
        routes.push(Route {
            verb: name.to_ascii_uppercase().parse().expect("an HTTP method"),
            template: Template::parse(&pattern).expect("a path template"),
            pattern,
            body: text("body").unwrap_or_default(),
            rpc: rpc.clone(),
            policy: Policy::of(rpc),
            service: rpc.parent_service().full_name().to_owned(),
        });
    }
    if let Some(Value::List(more)) = rule.get_field_by_name("additional_bindings").as_deref() {
        for binding in more.iter().filter_map(Value::as_message) {
            read_rule(rpc, binding, routes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rpc(method: http::Method, path: &str) -> String {
        match find(&method, path) {
            Found::Route(route, _) => route.rpc.full_name().to_owned(),
            Found::OtherMethods(others) => format!("{others:?}"),
            Found::Nothing => String::new(),
        }
    }

    #[test]
    fn no_two_rpcs_have_one_method_and_path() {
        let all = all();
        for (number, route) in all.iter().enumerate() {
            let twice = |other: &&Route| other.verb == route.verb && other.template.is_like(&route.template);
            let other = all[..number].iter().find(twice);
            assert!(
                other.is_none(),
                "{} and {}",
                route.rpc.full_name(),
                other.map_or("", |other| other.rpc.full_name())
            );
        }
    }

    #[test]
    fn the_routes_of_the_fleet() {
        use http::Method;
        for (method, path, wanted) in [
            (Method::POST, "/v1/todos", "flotilla.todo.v1.TodoService.CreateTodo"),
            (Method::GET, "/v1/todos", "flotilla.todo.v1.TodoService.ListTodos"),
            (Method::GET, "/v1/todos/1", "flotilla.todo.v1.TodoService.GetTodo"),
            (Method::PATCH, "/v1/todos/1", "flotilla.todo.v1.TodoService.UpdateTodo"),
            (Method::DELETE, "/v1/todos/1", "flotilla.todo.v1.TodoService.DeleteTodo"),
            (Method::POST, "/v1/todos/1:complete", "flotilla.todo.v1.TodoService.CompleteTodo"),
            (Method::POST, "/v1/todos/1:reopen", "flotilla.todo.v1.TodoService.ReopenTodo"),
            (Method::GET, "/v1/todos:search", "flotilla.search.v1.SearchService.SearchTodos"),
            (Method::HEAD, "/v1/todos/1", "flotilla.todo.v1.TodoService.GetTodo"),
            (Method::HEAD, "/v1/todos/1:complete", "[POST]"),
            (Method::PUT, "/v1/todos:search", "[GET, HEAD]"),
            (Method::POST, "/v1/todos/1:explode", ""),
            (Method::GET, "/v2/todos", ""),
        ] {
            assert_eq!(rpc(method.clone(), path), wanted, "{method} {path}");
        }
    }

    #[test]
    fn every_rpc_of_the_fleet_has_a_route_and_none_of_the_operators_has() {
        for rpc in proto::POOL.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
            if rpc.full_name().starts_with("flotilla.ops.") {
                assert!(!all().iter().any(|route| route.rpc == rpc), "{} is the operators' alone", rpc.full_name());
                continue;
            }
            assert!(all().iter().any(|route| route.rpc == rpc), "{} has no google.api.http option", rpc.full_name());
            let policy = proto::POOL.get_extension_by_name("flotilla.edge.v1.policy").unwrap();
            assert!(rpc.options().has_extension(&policy), "{} has no flotilla.edge.v1.policy option", rpc.full_name());
        }
    }
}
