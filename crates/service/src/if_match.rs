//! The condition of a change: it happens only while the resource is as the caller has read it.

use crate::{Code, Failure};

/// Which etags a change is to be made at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IfMatch {
    /// Whatever it is: none was asked for, or any (`*`).
    Any,
    /// One of these.
    OneOf(Vec<String>),
}

impl IfMatch {
    /// Reads the field `etag` of a request: nothing, `*`, or etags without quotes and with commas between.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if text.is_empty() || text == "*" {
            Self::Any
        } else {
            Self::OneOf(text.split(',').map(|etag| etag.trim().to_owned()).collect())
        }
    }

    /// Refuses a change of what is not as it was asked for; `what` names it, and `is` is its etag.
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

    /// Whether a resource with this etag is as it was asked for.
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
