//! Tokens of the fleet's that identity has given for credentials, kept as long as they last: an exchange costs a call.

use std::time::{Duration, Instant};

use http::HeaderValue;
use http::header::InvalidHeaderValue;
use moka::Expiry;
use moka::future::Cache;
use proto::identity::ExchangeTokenResponse;
use sha2::{Digest as _, Sha256};

/// The most tokens that are kept. Beyond them, those that are used least are exchanged again.
const MAX: u64 = 10_000;

/// By what a credential is known here: however long it is, and in no memory dump.
type Digest = [u8; 32];

/// How long a token is used before another attempt to renew it.
const RENEWS_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// A token that identity has given.
#[derive(Clone)]
pub struct Granted {
    authorization: HeaderValue,
    /// From when on another one is asked for.
    renews: Instant,
    ends: Instant,
}

impl Granted {
    /// The token of identity's answer. So long before its end another one is asked for: it must last for a whole call.
    ///
    /// # Errors
    /// It is none for a header.
    pub fn new(granted: &ExchangeTokenResponse, before_its_end: Duration) -> Result<Self, InvalidHeaderValue> {
        let mut authorization = HeaderValue::try_from(format!("Bearer {}", granted.access_token))?;
        authorization.set_sensitive(true);
        let (now, lasts) = (Instant::now(), Duration::from_secs(u64::try_from(granted.expires_in).unwrap_or_default()));
        Ok(Self { authorization, renews: now + lasts.saturating_sub(before_its_end), ends: now + lasts })
    }
}

struct Lifetime;

impl Expiry<Digest, Granted> for Lifetime {
    fn expire_after_create(&self, _: &Digest, token: &Granted, now: Instant) -> Option<Duration> {
        Some(token.ends.saturating_duration_since(now))
    }

    fn expire_after_update(
        &self,
        _: &Digest,
        token: &Granted,
        now: Instant,
        _until_then: Option<Duration>,
    ) -> Option<Duration> {
        Some(token.ends.saturating_duration_since(now))
    }
}

/// The tokens of a process, by the credentials that they were given for.
pub struct Tokens(Cache<Digest, Granted>);

impl Default for Tokens {
    fn default() -> Self {
        Self::of_at_most(MAX)
    }
}

impl Tokens {
    fn of_at_most(tokens: u64) -> Self {
        Self(Cache::builder().max_capacity(tokens).expire_after(Lifetime).build())
    }

    /// The authorization for a credential: that in hand, or that of `exchanged`, which runs once for all who wait for the first. One in hand
    /// lives to its end where `exchanged` fails with what `passes`.
    ///
    /// # Errors
    /// Those of `exchanged`; an error is not kept.
    pub async fn authorization<E, F>(
        &self,
        credential: &str,
        exchanged: impl FnOnce() -> F + Send,
        passes: fn(&E) -> bool,
    ) -> Result<HeaderValue, E>
    where
        E: Clone + Send + Sync + 'static,
        F: Future<Output = Result<Granted, E>> + Send,
    {
        let known = known(credential);
        let Some(mut in_hand) = self.0.get(&known).await else {
            let token = self.0.try_get_with(known, Box::pin(exchanged())).await;
            return token.map(|token| token.authorization).map_err(|error| E::clone(&error));
        };
        let now = Instant::now();
        if now < in_hand.renews {
            return Ok(in_hand.authorization);
        }
        // Who comes meanwhile, and for a while if this fails, takes the one in hand.
        in_hand.renews = now + RENEWS_AGAIN_AFTER;
        self.0.insert(known, in_hand.clone()).await;
        match Box::pin(exchanged()).await {
            // One that lasts no longer than the other did is not asked for by each call.
            Ok(token) => {
                let token = Granted { renews: token.renews.max(in_hand.renews), ..token };
                self.0.insert(known, token.clone()).await;
                Ok(token.authorization)
            }
            Err(error) if passes(&error) => Ok(in_hand.authorization),
            Err(error) => {
                self.0.invalidate(&known).await;
                Err(error)
            }
        }
    }

    /// Gives up the token in hand for a credential, if it is the one that was refused.
    pub async fn give_up(&self, credential: &str, refused: Option<&HeaderValue>) {
        let known = known(credential);
        if self.0.get(&known).await.is_some_and(|token| Some(&token.authorization) == refused) {
            self.0.invalidate(&known).await;
        }
    }
}

fn known(credential: &str) -> Digest {
    Sha256::digest(credential).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What identity answers, valid for so many seconds.
    fn granted(token: &str, expires_in: i32) -> Granted {
        let answer = ExchangeTokenResponse { access_token: token.to_owned(), expires_in, ..Default::default() };
        Granted::new(&answer, Duration::from_secs(60)).unwrap()
    }

    async fn asked(
        tokens: &Tokens,
        credential: &str,
        answer: Result<Granted, &'static str>,
    ) -> Result<String, &'static str> {
        let passes: fn(&&'static str) -> bool = |error| *error == "away";
        let authorization = tokens.authorization(credential, || async { answer }, passes).await?;
        Ok(authorization.to_str().unwrap().trim_start_matches("Bearer ").to_owned())
    }

    #[tokio::test]
    async fn a_token_is_kept_until_it_is_refused() {
        let tokens = Tokens::default();
        let is = async |credential: &str, answer, wanted: Result<&str, &'static str>| {
            assert_eq!(asked(&tokens, credential, answer).await, wanted.map(ToOwned::to_owned));
        };
        is("a", Ok(granted("first", 600)), Ok("first")).await;
        is("a", Ok(granted("second", 600)), Ok("first")).await;
        is("b", Ok(granted("another", 600)), Ok("another")).await;
        tokens.give_up("a", Some(&HeaderValue::from_static("Bearer older"))).await;
        is("a", Ok(granted("second", 600)), Ok("first")).await;
        tokens.give_up("a", Some(&HeaderValue::from_static("Bearer first"))).await;
        is("a", Ok(granted("second", 600)), Ok("second")).await;
        // An error is not kept.
        is("c", Err("away"), Err("away")).await;
        is("c", Ok(granted("now", 600)), Ok("now")).await;
    }

    #[tokio::test]
    async fn a_token_is_renewed_before_its_end_and_lives_to_it_while_identity_is_away() {
        let tokens = Tokens::default();
        let is = async |credential: &str, answer, wanted: Result<&str, &'static str>| {
            assert_eq!(asked(&tokens, credential, answer).await, wanted.map(ToOwned::to_owned));
        };
        for credential in ["a", "b", "c"] {
            is(credential, Ok(granted("short", 60)), Ok("short")).await;
        }
        is("a", Ok(granted("next", 600)), Ok("next")).await;
        is("b", Err("away"), Ok("short")).await;
        is("b", Err("not asked for a while"), Ok("short")).await;
        is("c", Err("revoked"), Err("revoked")).await;
        is("c", Err("away"), Err("away")).await;
        // What has ended is no token.
        is("d", Ok(granted("ended", 0)), Ok("ended")).await;
        is("d", Err("away"), Err("away")).await;
    }

    #[tokio::test]
    async fn no_more_are_kept_than_there_is_room_for() {
        let tokens = Tokens::of_at_most(10);
        for n in 0..1_000 {
            asked(&tokens, &n.to_string(), Ok(granted("t", 600))).await.unwrap();
        }
        tokens.0.run_pending_tasks().await;
        assert!(tokens.0.entry_count() <= 10, "{}", tokens.0.entry_count());
    }
}
