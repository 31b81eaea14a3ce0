//! The headers that say what is left of a caller's rates (draft-ietf-httpapi-ratelimit-headers-11). A rate is in units a second; what a call costs
//! is in the description of its method.

use std::collections::HashMap;
use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue};
use service::limits::{QUOTA, SCOPE};
use service::shared_rates::Standing;

/// The rates.
pub const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// What is left of them.
pub const LEFT: HeaderName = HeaderName::from_static("ratelimit");

/// Whether this is one of them.
pub fn is_said(name: &HeaderName) -> bool {
    *name == POLICY || *name == LEFT
}

/// Says what is left; nothing where nothing was charged, or the answer says it already.
pub fn say(headers: &mut HeaderMap, standing: &[Standing]) {
    if standing.is_empty() || headers.contains_key(&LEFT) {
        return;
    }
    let (mut policy, mut left) = (String::with_capacity(64), String::with_capacity(64));
    for Standing { scope, quota, remaining } in standing {
        let comma = if policy.is_empty() { "" } else { ", " };
        // A String takes all that is written.
        let _ = write!(policy, "{comma}\"{scope}\";q={quota};w=1");
        let _ = write!(left, "{comma}\"{scope}\";r={remaining};t=1");
    }
    for (name, value) in [(POLICY, policy), (LEFT, left)] {
        headers.extend(HeaderValue::try_from(value).map(|value| (name, value)));
    }
}

/// The same of a call that was refused for one of them: nothing is left, until it may be sent again.
pub fn of_refusal(metadata: &HashMap<String, String>, seconds: u64) -> Vec<(HeaderName, HeaderValue)> {
    let (Some(scope), Some(quota)) = (metadata.get(SCOPE), metadata.get(QUOTA)) else { return Vec::new() };
    let said = [(POLICY, format!("\"{scope}\";q={quota};w=1")), (LEFT, format!("\"{scope}\";r=0;t={seconds}"))];
    said.into_iter().filter_map(|(name, value)| Some((name, HeaderValue::try_from(value).ok()?))).collect()
}
