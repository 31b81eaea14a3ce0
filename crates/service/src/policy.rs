//! How calls of a method are let in: its option `flotilla.edge.v1.policy`.

use std::num::NonZeroU32;

use prost_reflect::{DynamicMessage, MethodDescriptor};

/// The policy of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Units of its caller's rate that a call costs.
    pub cost: NonZeroU32,
    /// Whether it is called without a verified caller.
    pub public: bool,
    /// Whether it takes a form over HTTP, and answers as OAuth's endpoints do.
    pub form: bool,
}

impl Policy {
    /// The policy of this method; without the option, that of a call that costs one unit.
    #[must_use]
    pub fn of(method: &MethodDescriptor) -> Self {
        let option = method.parent_pool().get_extension_by_name("flotilla.edge.v1.policy");
        let options = method.options();
        let policy = option.as_ref().map(|option| options.get_extension(option));
        let policy = policy.as_deref().and_then(|value| value.as_message());
        let is = |name: &str| policy.is_some_and(|policy| flag(policy, name));
        let cost = policy.and_then(|policy| policy.get_field_by_name("cost")?.as_u32());
        Self { cost: cost.and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN), public: is("public"), form: is("form") }
    }
}

fn flag(policy: &DynamicMessage, name: &str) -> bool {
    policy.get_field_by_name(name).and_then(|value| value.as_bool()).unwrap_or_default()
}
