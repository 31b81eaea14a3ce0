//! Page tokens: opaque, url-safe, and bound to the question they were given for. They hold a position and never a permission.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use crate::Failure;
use crate::list::{Found, Place};
use crate::secret::{ExposeSecret as _, Secret, SecretString};

const TAG_BYTES: usize = 16;
/// The largest page: half of what a gRPC client accepts by default (4 MiB).
const MAX_BYTES: usize = 2 << 20;

/// Shortens a page to the largest answer; the first item always stays. The caller continues after the last one.
pub fn fit<M: prost::Message>(items: &mut Vec<M>) {
    let mut bytes = 0;
    let fits = items.iter().take_while(|item| {
        bytes += item.encoded_len();
        bytes <= MAX_BYTES
    });
    let fits = fits.count().max(1);
    items.truncate(fits);
}

/// How many items a page has: 50 by default, 200 at most.
///
/// # Errors
/// INVALID_ARGUMENT for a negative number.
pub fn size(asked: i32) -> Result<usize, Failure> {
    match usize::try_from(asked) {
        Err(_) => Err(Failure::invalid("page_size", "must not be negative")),
        Ok(0) => Ok(50),
        Ok(size) => Ok(size.min(200)),
    }
}

/// Makes and reads page tokens.
#[derive(Clone)]
pub struct PageTokens(Secret);

impl PageTokens {
    /// With the keys that this service's replicas share, a line each.
    #[must_use]
    pub const fn new(keys: Secret) -> Self {
        Self(keys)
    }

    /// A token for continuing at `position` with the same `question` (everything else that shapes the answer).
    pub fn make(&self, question: &impl Serialize, position: &impl Serialize) -> Result<String, Failure> {
        let mut bytes = serde_json::to_vec(position).map_err(Failure::internal)?;
        let keys = self.0.lines();
        let key = keys.first().ok_or_else(|| Failure::internal(anyhow::anyhow!("there is no key for page tokens")))?;
        bytes.splice(0..0, tag(key, question, &bytes)?);
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// A page of `size` items, and the token of the next one, from what was `found` when one more was asked for. An item's position is
    /// its `id`, and the `message` what the answer has of it.
    pub fn page<T, P: Serialize, M: prost::Message>(
        &self,
        question: &impl Serialize,
        size: usize,
        mut found: Vec<T>,
        (id, message): (impl Fn(&T) -> P, impl Fn(&T) -> M),
    ) -> Result<(Vec<M>, String), Failure> {
        let all = found.len();
        found.truncate(size);
        let mut listed: Vec<M> = found.iter().map(message).collect();
        fit(&mut listed);
        let next = match found.get(..listed.len()).and_then(<[_]>::last) {
            Some(last) if listed.len() < all => self.make(question, &id(last))?,
            _ => String::new(),
        };
        Ok((listed, next))
    }

    /// A page of `size` items from what a [list](crate::list) has found, and the token of the next one.
    pub fn found<T, M: prost::Message>(
        &self,
        question: &impl Serialize,
        size: usize,
        Found { items, stopped }: Found<T>,
        message: impl Fn(&T) -> M,
    ) -> Result<(Vec<M>, String), Failure> {
        let of = (|(place, _): &(Place, T)| place.clone(), |(_, item): &(Place, T)| message(item));
        let (listed, next) = self.page(question, size, items, of)?;
        match stopped {
            // What was examined was not enough to fill the page.
            Some(place) if next.is_empty() => Ok((listed, self.make(question, &place)?)),
            _ => Ok((listed, next)),
        }
    }

    /// The position of a token; `None` for the first page.
    ///
    /// # Errors
    /// INVALID_ARGUMENT when the token is not ours, or belongs to another question.
    pub fn read<P: DeserializeOwned>(&self, question: &impl Serialize, token: &str) -> Result<Option<P>, Failure> {
        let what =
            "is not one that was given for these filters: start over without it, or send the filters it was given for";
        self.read_from(("page_token", what), question, token)
    }

    /// The same of another field than `page_token`, with what its caller is told of one that is not ours.
    ///
    /// # Errors
    /// INVALID_ARGUMENT when the token is not ours, or belongs to another question.
    pub fn read_from<P: DeserializeOwned>(
        &self,
        (field, what): (&str, &str),
        question: &impl Serialize,
        token: &str,
    ) -> Result<Option<P>, Failure> {
        if token.is_empty() {
            return Ok(None);
        }
        let wrong = || Failure::invalid(field, what);
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| wrong())?;
        let (tag, position) = bytes.split_at_checked(TAG_BYTES).ok_or_else(wrong)?;
        if !self.knows(question, position, tag)? {
            // Another replica may have a newer key already.
            self.0.look();
            if !self.knows(question, position, tag)? {
                return Err(wrong());
            }
        }
        serde_json::from_slice(position).map(Some).map_err(|_| wrong())
    }

    /// Whether one of the keys has made this.
    fn knows(&self, question: &impl Serialize, position: &[u8], made: &[u8]) -> Result<bool, Failure> {
        for key in self.0.lines() {
            if tag(&key, question, position)? == made {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A keyed hash, with the key before and behind: the token guards against confusion, it authorizes nothing.
fn tag(key: &SecretString, question: &impl Serialize, position: &[u8]) -> Result<Vec<u8>, Failure> {
    let key = key.expose_secret().as_bytes();
    let question = serde_json::to_vec(question).map_err(Failure::internal)?;
    let mut hash = Sha256::new();
    for part in [key, &question, position, key] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    Ok(hash.finalize()[..TAG_BYTES].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_weighs_no_more_than_an_answer_may() {
        let sizes = |sizes: &[usize]| {
            let mut items: Vec<String> = sizes.iter().map(|size| "x".repeat(*size)).collect();
            fit(&mut items);
            items.len()
        };
        assert_eq!(sizes(&[]), 0);
        assert_eq!(sizes(&[10, 10]), 2);
        assert_eq!(sizes(&[MAX_BYTES / 2, MAX_BYTES / 3, MAX_BYTES / 2]), 2);
        assert_eq!(sizes(&[2 * MAX_BYTES, 10]), 1);
    }

    #[test]
    fn a_page_has_a_token_when_more_was_found() {
        let tokens = PageTokens::new("key".into());
        let page = |found: Vec<i64>| tokens.page(&"acme", 2, found, (|id| *id, |id| *id)).unwrap();
        let (items, token) = page(vec![9, 8, 7]);
        assert_eq!((items, tokens.read::<i64>(&"acme", &token).unwrap()), (vec![9, 8], Some(8)));
        assert_eq!(page(vec![9, 8]), (vec![9, 8], String::new()));
        assert_eq!(page(Vec::new()), (Vec::new(), String::new()));
        assert_eq!((size(0).unwrap(), size(7).unwrap(), size(201).unwrap()), (50, 7, 200));
        assert!(size(-1).is_err());
    }

    #[test]
    fn a_token_works_for_its_question_only() {
        let tokens = PageTokens::new("key".into());
        let token = tokens.make(&("acme", "OPEN"), &42).unwrap();
        assert_eq!(tokens.read::<i32>(&("acme", "OPEN"), &token).unwrap(), Some(42));
        assert_eq!(tokens.read::<i32>(&("acme", "OPEN"), "").unwrap(), None);
        assert!(tokens.read::<i32>(&("acme", "DONE"), &token).is_err());
        assert!(tokens.read::<i32>(&("acme", "OPEN"), "AAAA").is_err());
        assert!(tokens.read::<i32>(&("acme", "OPEN"), "not base64 !").is_err());
        let other = PageTokens::new("other key".to_owned().into());
        assert!(other.read::<i32>(&("acme", "OPEN"), &token).is_err());
    }
}
