//! How calls of a method are let in: its option `flotilla.edge.v1.policy`.

use std::num::NonZeroU32;

use http::HeaderName;
use prost_reflect::{DynamicMessage, MethodDescriptor, Value};

use crate::consistency;

/// The policy of a method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Units of its caller's rate that a call costs.
    pub cost: NonZeroU32,
    /// Whether it is called without a verified caller.
    pub public: bool,
    /// Whether it takes a form over HTTP.
    pub form: bool,
    /// Whether it takes a form and answers as OAuth's endpoints do.
    pub oauth: bool,
    /// Whether its answer is a stream.
    pub streams: bool,
    /// Whether a call takes an idempotency key.
    pub idempotency: Idempotency,
    /// The largest body over HTTP, in bytes; none where it is that of every method.
    pub max_body_bytes: Option<usize>,
    /// For how many seconds anybody may keep an answer over HTTP; none where only its caller may.
    pub shared_seconds: Option<NonZeroU32>,
    /// Whether it will be gone.
    pub deprecation: Option<Deprecation>,
    /// The headers that the method gets as metadata.
    pub request_headers: Vec<HeaderName>,
    /// The metadata of its answer that become headers.
    pub response_headers: Vec<HeaderName>,
}

/// Since when and until when a method is deprecated, as its option has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deprecation {
    /// The day from which on it should not be called.
    pub since: String,
    /// The day from which on it may be gone.
    pub sunset: String,
    /// What to call instead.
    pub successor: String,
}

/// Whether a call takes an idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idempotency {
    /// It may bring one.
    Optional,
    /// It must.
    Required,
    /// It takes none.
    None,
}

impl Policy {
    /// The policy of this method; without the option, that of a call that costs one unit.
    #[must_use]
    pub fn of(method: &MethodDescriptor) -> Self {
        let option = method.parent_pool().get_extension_by_name("flotilla.edge.v1.policy");
        let options = method.options();
        let policy = option.as_ref().map(|option| options.get_extension(option));
        let policy = policy.as_deref().and_then(Value::as_message);
        let is = |name: &str| policy.is_some_and(|policy| flag(policy, name));
        let number = |name: &str| policy.and_then(|policy| policy.get_field_by_name(name)?.as_u32());
        let oauth = is("oauth");
        let listed = |name: &str| policy.map_or_else(Vec::new, |policy| headers(policy, name));
        let (mut request_headers, mut response_headers) = (listed("request_headers"), listed("response_headers"));
        if is("reads_copy") {
            request_headers.push(HeaderName::from_static(consistency::TOKEN));
            response_headers.push(HeaderName::from_static(consistency::PENDING));
        }
        let idempotency = policy.and_then(|policy| policy.get_field_by_name("idempotency")?.as_enum_number());
        Self {
            cost: number("cost").and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN),
            public: is("public"),
            form: oauth || is("form"),
            oauth,
            streams: method.is_server_streaming(),
            idempotency: match idempotency {
                Some(1) => Idempotency::Required,
                Some(2) => Idempotency::None,
                _ => Idempotency::Optional,
            },
            max_body_bytes: number("max_body_bytes").filter(|bytes| *bytes > 0).map(|bytes| bytes as usize),
            shared_seconds: number("shared_seconds").and_then(NonZeroU32::new),
            deprecation: policy.filter(|policy| policy.has_field_by_name("deprecation")).and_then(|policy| {
                let deprecation = policy.get_field_by_name("deprecation")?;
                let deprecation = deprecation.as_message()?;
                let text = |name: &str| Some(deprecation.get_field_by_name(name)?.as_str()?.to_owned());
                Some(Deprecation { since: text("since")?, sunset: text("sunset")?, successor: text("successor")? })
            }),
            request_headers,
            response_headers,
        }
    }
}

fn flag(policy: &DynamicMessage, name: &str) -> bool {
    policy.get_field_by_name(name).and_then(|value| value.as_bool()).unwrap_or_default()
}

#[expect(clippy::expect_used, reason = "our own options, read at start: a wrong one must not be served around")]
fn headers(policy: &DynamicMessage, name: &str) -> Vec<HeaderName> {
    let names = policy.get_field_by_name(name);
    let names = names.as_deref().and_then(Value::as_list).unwrap_or_default();
    let name = |name: &str| HeaderName::from_lowercase(name.as_bytes()).expect("a header's name in small letters");
    names.iter().filter_map(Value::as_str).map(name).collect()
}
