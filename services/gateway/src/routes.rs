//! Finds the RPC of a request, by the `google.api.http` options of the descriptors.

use std::collections::HashMap;
use std::sync::LazyLock;

use anyhow::{Context as _, ensure};
use http::{HeaderMap, HeaderName, Method};
use prost::Message as _;
use prost_reflect::prost_types::FileDescriptorProto;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MethodDescriptor, Value};
use service::consistency;
use service::policy::{Idempotency, Policy};

use crate::promises;
use crate::template::Template;

/// The message that is sent over HTTP as it is.
pub const HTTP_BODY: &str = "google.api.HttpBody";

/// The largest request body, in bytes.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;
/// Of a caller whom nobody has verified: otherwise strangers take the memory for all bodies.
const MAX_PUBLIC_BODY_BYTES: usize = 16 * 1024;
/// The largest body of a method that says its own, in bytes: beside it, other fields have room in a message of 4 MiB.
const MAX_OF_ANY_BODY: usize = 3 * 1_024 * 1_024;

/// A route to an RPC.
#[derive(Debug)]
pub struct Route {
    /// The HTTP method.
    pub verb: Method,
    /// The path template as written, for logs and metrics.
    pub pattern: String,
    /// The request field that the body fills: `*` for the whole request, empty for none.
    pub body: String,
    /// The field of the answer that is sent alone; none for the whole.
    pub response_body: Option<FieldDescriptor>,
    /// Which of the RPC's bindings it is, from 1.
    pub binding: usize,
    /// What the body is written in.
    pub takes: Takes,
    /// What the answer is written in.
    pub answers: Answers,
    /// The RPC.
    pub rpc: MethodDescriptor,
    /// How its calls are let in.
    pub policy: Policy,
    /// What its answers say where it is deprecated.
    pub deprecated: HeaderMap,
    template: Template,
    service: String,
}

/// What the body of a request is written in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Takes {
    /// JSON.
    Json,
    /// A form, with files or without.
    Form,
    /// A form of OAuth's.
    OauthForm,
    /// Whatever its sender says, as it is: this field of the request, or the request itself.
    Raw(Option<FieldDescriptor>),
}

impl Takes {
    /// Its name for people.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Json => "JSON",
            Self::Form | Self::OauthForm => "a form",
            Self::Raw(_) => "what it is",
        }
    }

    /// Its names in `Content-Type`, the usual one first; none where all will do.
    #[must_use]
    pub const fn names(&self) -> &'static [&'static str] {
        match self {
            Self::Json => &["application/json", "application/merge-patch+json"],
            Self::Form => &["application/x-www-form-urlencoded", "multipart/form-data"],
            Self::OauthForm => &["application/x-www-form-urlencoded"],
            Self::Raw(_) => &[],
        }
    }
}

/// What an answer is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// JSON.
    Json,
    /// JSON as OAuth has it.
    Oauth,
    /// Whatever the service says, as it is.
    Raw,
    /// Server-sent events.
    Events,
}

impl Route {
    /// The full name of the RPC's service.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Whether its path names one object, by an id that no other tenant's has.
    #[must_use]
    pub const fn names_one(&self) -> bool {
        self.template.has_variables()
    }

    /// The largest body of a call, in bytes.
    #[must_use]
    pub fn max_body_bytes(&self) -> usize {
        let usual = if self.policy.public { MAX_PUBLIC_BODY_BYTES } else { MAX_BODY_BYTES };
        self.policy.max_body_bytes.unwrap_or(usual)
    }

    /// Whether a call takes an idempotency key.
    #[must_use]
    pub fn takes_key(&self) -> bool {
        self.policy.idempotency != Idempotency::None
    }
}

/// All routes.
#[derive(Debug)]
pub struct Routes {
    /// The closest template first.
    all: Vec<Route>,
    /// Of each RPC, by its path over gRPC, the first one.
    rpcs: HashMap<String, usize>,
    /// Where they come from.
    pool: DescriptorPool,
    /// The same descriptors with their comments, where the pool has none.
    described: Option<&'static [u8]>,
}

/// A `FileDescriptorSet` whose files are as they came: prost's types would lose their options.
#[derive(Clone, PartialEq, prost::Message)]
struct FileSet {
    #[prost(bytes = "vec", repeated, tag = "1")]
    file: Vec<Vec<u8>>,
}

/// Contracts of these packages are for operators alone.
const OPERATORS: &str = "flotilla.ops.";

static FLEET: LazyLock<Routes> = LazyLock::new(fleet_of_the_pool);

#[expect(clippy::expect_used, reason = "our own annotations, read at start: a wrong one must not be served around")]
fn fleet_of_the_pool() -> Routes {
    let routes = Routes::of(&proto::POOL).expect("the options of the fleet's methods");
    Routes { described: Some(proto::DESCRIBED), ..routes }
}

/// The result for a path.
#[derive(Debug)]
pub enum Found<'a> {
    /// An RPC, and the fields that the path sets.
    Route(&'a Route, Vec<(String, String)>),
    /// The path exists, but only for these methods.
    OtherMethods(Vec<&'a Method>),
    /// There is no such path.
    Nothing,
}

impl Routes {
    /// Those of the fleet.
    #[must_use]
    pub fn fleet() -> &'static Self {
        &FLEET
    }

    /// The routes to all RPCs of these descriptors that have a `google.api.http` option.
    ///
    /// # Errors
    /// An option says what cannot be served.
    pub fn of(pool: &DescriptorPool) -> Result<Self, anyhow::Error> {
        let http = pool.get_extension_by_name("google.api.http").context("no google/api/annotations.proto")?;
        let mut routes = Vec::new();
        for rpc in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
            let options = rpc.options();
            if !options.has_extension(&http) {
                continue;
            }
            let rule = options.get_extension(&http);
            let rule = rule.as_message().context("google.api.http is a message")?;
            read_rule(&rpc, rule, &mut routes).with_context(|| format!("the options of {}", rpc.full_name()))?;
        }
        routes.sort_by_key(|route| std::cmp::Reverse(route.template.literals()));
        let mut rpcs = HashMap::new();
        for (number, route) in routes.iter().enumerate() {
            rpcs.entry(format!("/{}/{}", route.service, route.rpc.name())).or_insert(number);
        }
        Ok(Self { rpcs, pool: pool.clone(), described: None, all: routes })
    }

    /// The same, with the comments of their descriptors. They take so much memory that nobody should keep them.
    ///
    /// # Errors
    /// The descriptors cannot be read.
    pub fn described(&self) -> Result<Self, anyhow::Error> {
        match self.described {
            Some(described) => Self::of(&DescriptorPool::decode(described)?),
            None => Self::of(&self.pool),
        }
    }

    /// The route of an RPC, by its path over gRPC: `/flotilla.todo.v1.TodoService/CreateTodo`.
    #[must_use]
    pub fn rpc(&self, path: &str) -> Option<&Route> {
        self.all.get(*self.rpcs.get(path)?)
    }

    /// The descriptors of what is served, as a `FileDescriptorSet` with options and comments.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn descriptors(&self) -> Result<Vec<u8>, anyhow::Error> {
        let all = match self.described {
            Some(described) => FileSet::decode(described)?,
            None => FileSet { file: self.pool.files().map(|file| file.encode_to_vec()).collect() },
        };
        let mut served = FileSet::default();
        for file in all.file {
            if !FileDescriptorProto::decode(&*file)?.package().starts_with(OPERATORS) {
                served.file.push(file);
            }
        }
        Ok(served.encode_to_vec())
    }

    /// Each of them.
    pub fn all(&self) -> impl Iterator<Item = &Route> {
        self.all.iter()
    }

    /// Finds the RPC of a request. A HEAD has the route of a GET.
    #[must_use]
    pub fn find(&self, method: &Method, path: &str) -> Found<'_> {
        let mut others = Vec::new();
        let verb = if method == Method::HEAD { &Method::GET } else { method };
        for route in &self.all {
            if let Some(fields) = route.template.matches(path) {
                if route.verb == *verb {
                    return Found::Route(route, fields);
                }
                others.push(&route.verb);
                if route.verb == Method::GET {
                    others.push(&Method::HEAD);
                }
            }
        }
        if others.is_empty() { Found::Nothing } else { Found::OtherMethods(others) }
    }
}

fn read_rule(rpc: &MethodDescriptor, rule: &DynamicMessage, routes: &mut Vec<Route>) -> Result<(), anyhow::Error> {
    let text = |name: &str| {
        let value = rule.get_field_by_name(name)?;
        value.as_str().filter(|text| !text.is_empty()).map(ToOwned::to_owned)
    };
    ensure!(!rule.has_field_by_name("custom"), "google.api.http with custom is not served");
    let (body, policy) = (text("body").unwrap_or_default(), Policy::of(rpc));
    for name in policy.request_headers.iter().chain(&policy.response_headers) {
        ensure!(
            !is_of_the_edge(name.as_str()),
            "the header {name} is the edge's own: a method neither gets nor sets it"
        );
    }
    let (takes, answers) = (takes(rpc, &body, &policy)?, answers(rpc, &policy)?);
    let reads = text("get").is_some();
    let shared = policy.shared_seconds.is_some();
    let depends = !policy.request_headers.is_empty();
    ensure!(
        !shared || (policy.public && reads && !policy.streams && !depends),
        "what is not read by anybody, or depends on headers, nobody else may keep"
    );
    let deprecated = policy.deprecation.as_ref().map(promises::headers).transpose()?.unwrap_or_default();
    let policy = if reads { policy } else { says_where_it_stands(policy) };
    let response_body = match text("response_body") {
        None => None,
        Some(name) => {
            let field = rpc.output().get_field_by_name(&name).context("the response body is no field of the answer")?;
            ensure!(answers == Answers::Json, "a response body is JSON");
            Some(field)
        }
    };
    for name in ["get", "put", "post", "delete", "patch"] {
        let Some(pattern) = text(name) else { continue };
        let binding = 1 + routes.iter().filter(|route| route.rpc == *rpc).count();
        routes.push(Route {
            verb: name.to_ascii_uppercase().parse()?,
            template: Template::parse(&pattern)?,
            pattern,
            body: body.clone(),
            response_body: response_body.clone(),
            binding,
            takes: takes.clone(),
            answers,
            rpc: rpc.clone(),
            policy: policy.clone(),
            deprecated: deprecated.clone(),
            service: rpc.parent_service().full_name().to_owned(),
        });
    }
    if let Some(Value::List(more)) = rule.get_field_by_name("additional_bindings").as_deref() {
        for binding in more.iter().filter_map(Value::as_message) {
            read_rule(rpc, binding, routes)?;
        }
    }
    Ok(())
}

/// A change's answer has its consistency token.
fn says_where_it_stands(mut policy: Policy) -> Policy {
    policy.response_headers.push(HeaderName::from_static(consistency::TOKEN));
    policy
}

/// Whether a header means something to the edge itself, to connections, or to gRPC.
fn is_of_the_edge(name: &str) -> bool {
    const NAMES: [&str; 31] = [
        "accept-encoding",
        "allow",
        "authorization",
        "cache-control",
        "connection",
        "content-encoding",
        "cookie",
        "deprecation",
        "etag",
        "flotilla-degraded",
        "host",
        "idempotency-key",
        "idempotency-replayed",
        "keep-alive",
        "last-event-id",
        "link",
        "origin",
        "ratelimit",
        "ratelimit-policy",
        "retry-after",
        "set-cookie",
        "sunset",
        "te",
        "trace-id",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "vary",
        "www-authenticate",
    ];
    const FAMILIES: [&str; 6] =
        ["access-control-", "content-length", "content-type", "grpc-", "proxy-", "x-forwarded-"];
    NAMES.contains(&name) || FAMILIES.iter().any(|family| name.starts_with(family))
}

fn takes(rpc: &MethodDescriptor, body: &str, policy: &Policy) -> Result<Takes, anyhow::Error> {
    ensure!(!rpc.is_client_streaming(), "a caller over HTTP streams nothing");
    ensure!(policy.max_body_bytes.is_none_or(|bytes| bytes <= MAX_OF_ANY_BODY), "no body has so many bytes");
    let is_raw = |kind: Kind| kind.as_message().is_some_and(|message| message.full_name() == HTTP_BODY);
    let field = match body {
        "" | "*" => None,
        name => Some(rpc.input().get_field_by_name(name).context("the body is no field of the request")?),
    };
    if policy.form {
        ensure!(body == "*", "a form fills the whole request: body: \"*\"");
        return Ok(if policy.oauth { Takes::OauthForm } else { Takes::Form });
    }
    let raw = match &field {
        Some(field) => is_raw(field.kind()),
        None => body == "*" && rpc.input().full_name() == HTTP_BODY,
    };
    Ok(if raw { Takes::Raw(field) } else { Takes::Json })
}

fn answers(rpc: &MethodDescriptor, policy: &Policy) -> Result<Answers, anyhow::Error> {
    let raw = rpc.output().full_name() == HTTP_BODY;
    ensure!(
        !(raw && rpc.is_server_streaming()),
        "a stream is sent as events: a google.api.HttpBody is sent as a whole"
    );
    Ok(match (rpc.is_server_streaming(), raw, policy.oauth) {
        (true, _, _) => Answers::Events,
        (_, true, _) => Answers::Raw,
        (_, _, true) => Answers::Oauth,
        _ => Answers::Json,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rpc(method: http::Method, path: &str) -> String {
        match Routes::fleet().find(&method, path) {
            Found::Route(route, _) => route.rpc.full_name().to_owned(),
            Found::OtherMethods(others) => format!("{others:?}"),
            Found::Nothing => String::new(),
        }
    }

    #[test]
    fn no_two_rpcs_have_one_method_and_path() {
        let all = &Routes::fleet().all;
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
    fn every_post_says_whether_it_takes_a_key() {
        for route in Routes::fleet().all().filter(|route| route.verb == Method::POST) {
            assert_ne!(route.policy.idempotency, Idempotency::Optional, "{}", route.rpc.full_name());
        }
    }

    #[test]
    fn every_rpc_of_the_fleet_has_a_route_and_none_of_the_operators_has() {
        for rpc in proto::POOL.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
            if rpc.full_name().starts_with("flotilla.ops.") {
                assert!(
                    !Routes::fleet().all().any(|route| route.rpc == rpc),
                    "{} is the operators' alone",
                    rpc.full_name()
                );
                continue;
            }
            assert!(
                Routes::fleet().all().any(|route| route.rpc == rpc),
                "{} has no google.api.http option",
                rpc.full_name()
            );
            let policy = proto::POOL.get_extension_by_name("flotilla.edge.v1.policy").unwrap();
            assert!(rpc.options().has_extension(&policy), "{} has no flotilla.edge.v1.policy option", rpc.full_name());
        }
    }
}
