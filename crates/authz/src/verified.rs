//! Recently verified tokens, so that a client that sends a token with every call costs one signature check a
//! minute and not one a call (45 µs each).

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::Caller;

/// How long a verified token skips the signature check; the keys may have changed meanwhile.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// The most tokens that are kept, of at most [`crate::trusted::MAX_TOKEN_BYTES`] each. One more, and all are dropped.
const MAX: usize = 2_000;

/// The time, on the clock of the tokens and on one that never goes back.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    unix_seconds: f64,
    steady: Instant,
}

impl Now {
    pub fn read() -> Self {
        let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Self { unix_seconds, steady: Instant::now() }
    }

    pub const fn unix_seconds(self) -> f64 {
        self.unix_seconds
    }
}

struct Entry {
    caller: Caller,
    expires_unix_seconds: f64,
    checked: Instant,
}

#[derive(Default)]
pub struct Verified(RwLock<HashMap<String, Entry>>);

impl Verified {
    /// The caller of this very token, if it was verified within the last minute and has not expired.
    pub fn get(&self, token: &str, now: Now) -> Option<Caller> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let entry = known.get(token)?;
        let fresh = now.steady.saturating_duration_since(entry.checked) < AGAIN_AFTER;
        (fresh && now.unix_seconds < entry.expires_unix_seconds).then(|| entry.caller.clone())
    }

    /// Keeps a token that was just verified; after `expires_unix_seconds` it is refused.
    pub fn put(&self, token: &str, caller: Caller, expires_unix_seconds: f64, now: Now) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX {
            known.clear();
        }
        known.insert(token.to_owned(), Entry { caller, expires_unix_seconds, checked: now.steady });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(unix_seconds: f64, after: Duration) -> Now {
        // One origin for all times of a test.
        static ORIGIN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        Now { unix_seconds, steady: *ORIGIN.get_or_init(Instant::now) + after }
    }

    fn ann() -> Caller {
        Caller {
            tenant: "acme".parse().unwrap(),
            actor: "user:ann".parse().unwrap(),
            role: None,
            scopes: None,
            sign_in: None,
            issued: None,
            expires_unix_seconds: 0,
        }
    }

    #[test]
    fn only_the_very_token_counts_until_it_expires_or_a_minute_has_passed() {
        let verified = Verified::default();
        verified.put("token", ann(), 1_030.0, at(1_000.0, Duration::ZERO));
        let second = Duration::from_secs(1);
        assert_eq!(verified.get("token", at(1_029.0, second)), Some(ann()));
        assert_eq!(verified.get("toker", at(1_001.0, second)), None);
        assert_eq!(verified.get("token", at(1_030.0, second)), None, "it has expired");
        assert_eq!(verified.get("token", at(1_001.0, AGAIN_AFTER)), None, "its keys may be others by now");
    }

    #[test]
    fn they_never_grow_without_end() {
        let verified = Verified::default();
        for n in 0..3 * MAX {
            verified.put(&n.to_string(), ann(), 2_000.0, at(1_000.0, Duration::ZERO));
        }
        assert!(verified.0.read().unwrap().len() <= MAX);
        let last = (3 * MAX - 1).to_string();
        assert_eq!(verified.get(&last, at(1_000.0, Duration::ZERO)), Some(ann()));
    }
}
