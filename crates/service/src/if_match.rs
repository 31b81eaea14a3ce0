//! The condition of a change: the resource must still be as the caller has read it.

use crate::{Code, Failure};

/// The etags at which a change is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IfMatch {
    /// Any etag: the caller named none, or `*`.
    Any,
    /// One of these.
    OneOf(Vec<String>),
}

impl IfMatch {
    /// Parses the field `etag` of a request: nothing, `*`, or etags without quotes, separated by commas.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if text.is_empty() || text == "*" {
            Self::Any
        } else {
            Self::OneOf(text.split(',').map(|etag| etag.trim().to_owned()).collect())
        }
    }

    /// Refuses a change when the etag does not match; `what` names the resource, and `is` is its etag.
    ///
    /// # Errors
    /// ABORTED, ETAG_MISMATCH.
    pub fn check(&self, what: &str, is: &str) -> Result<(), Failure> {
        if self.allows(is) {
            return Ok(());
        }
        let message = format_args!("the {what} has changed: its etag is {is} now; read it again");
        Err(Failure::new(Code::Aborted, "ETAG_MISMATCH", message))
    }

    /// Whether this etag matches.
    #[must_use]
    pub fn allows(&self, etag: &str) -> bool {
        match self {
            Self::Any => true,
            Self::OneOf(etags) => etags.iter().any(|known| known == etag),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_read_as_it_is_written() {
        for (text, etag, allowed) in [
            ("", "v2", true),
            ("*", "v2", true),
            ("v2", "v2", true),
            ("v1, v2", "v2", true),
            ("v1", "v2", false),
            ("v1,*", "v2", false),
        ] {
            assert_eq!(IfMatch::parse(text).allows(etag), allowed, "{text:?}");
        }
    }
}
