//! Consistency tokens: what a change says of its place in its service's outbox, and what a read of a copy is asked to wait for.
//!
//! A token is a hint: it names a place and authorizes nothing. Whoever makes one up waits for a moment.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue};

use crate::{Failure, deadline};

/// The header and the metadata of tokens, of an answer and of a request.
pub const TOKEN: &str = "consistency-token";
/// Says of an answer that the copy did not have the change in time.
pub const PENDING: &str = "consistency-token-pending";

/// Counts the answers that were pending.
pub const PENDING_METRIC: &str = "consistency_tokens_pending_total";

/// The longest that a read waits for its copy.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many tokens a request may bring.
const MOST: usize = 8;

/// The token of a row in a service's outbox.
pub(crate) fn token(service: &str, row: i64) -> Option<HeaderValue> {
    HeaderValue::try_from(URL_SAFE_NO_PAD.encode(format!("{service}:{row}"))).ok()
}

/// What a request asks to wait for: the last of these rows of a service's outbox, and for how long. None where no token of it is that service's.
///
/// # Errors
/// INVALID_ARGUMENT for what is no token.
pub fn wanted(metadata: &HeaderMap, service: &str) -> Result<Option<(u64, Duration)>, Failure> {
    let wrong =
        || Failure::invalid("Consistency-Token", "is not one that an answer to a change has given you: leave it out");
    let mut last = None;
    let values = metadata.get_all(TOKEN).iter().map(|value| value.to_str().map_err(|_| wrong()));
    let values = values.collect::<Result<Vec<_>, _>>()?;
    let tokens: Vec<_> = values.iter().flat_map(|value| value.split(',')).collect();
    if tokens.len() > MOST {
        return Err(Failure::invalid(
            "Consistency-Token",
            format_args!("names more than {MOST}: send the newest ones"),
        ));
    }
    for token in tokens {
        let bytes = URL_SAFE_NO_PAD.decode(token.trim()).map_err(|_| wrong())?;
        let text = String::from_utf8(bytes).map_err(|_| wrong())?;
        let (of, row) = text.split_once(':').ok_or_else(wrong)?;
        let row: u64 = row.parse().map_err(|_| wrong())?;
        if of == service {
            last = last.max(Some(row));
        }
    }
    let patience = deadline::of(metadata).map_or(PATIENCE, |deadline| PATIENCE.min(deadline / 2));
    Ok(last.map(|row| (row, patience)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_by_whom_it_concerns() {
        let with = |values: &[&str]| {
            let values = values.iter().map(|value| (http::HeaderName::from_static(TOKEN), value.parse().unwrap()));
            wanted(&values.collect(), "todo").map(|wanted| wanted.map(|(row, _)| row)).map_err(|failure| failure.reason)
        };
        let of = |service: &str, row| token(service, row).unwrap().to_str().unwrap().to_owned();
        assert_eq!(with(&[]), Ok(None));
        assert_eq!(with(&[&of("todo", 7)]), Ok(Some(7)));
        assert_eq!(with(&[&of("identity", 9)]), Ok(None));
        assert_eq!(with(&[&format!("{}, {}", of("todo", 7), of("identity", 9)), &of("todo", 3)]), Ok(Some(7)));
        assert_eq!(with(&[of("todo", 7).as_str(); 9]), Err("INVALID_ARGUMENT"));
        for wrong in
            ["", "x", "todo:7", &URL_SAFE_NO_PAD.encode("todo"), &URL_SAFE_NO_PAD.encode("todo:-1"), &"A".repeat(9_000)]
        {
            assert_eq!(with(&[wrong]), Err("INVALID_ARGUMENT"), "{wrong}");
        }
    }

    #[test]
    fn a_read_waits_less_than_its_caller() {
        let mut metadata = HeaderMap::new();
        metadata.insert(TOKEN, token("todo", 7).unwrap());
        assert_eq!(wanted(&metadata, "todo").unwrap(), Some((7, PATIENCE)));
        metadata.insert("grpc-timeout", HeaderValue::from_static("1S"));
        assert_eq!(wanted(&metadata, "todo").unwrap(), Some((7, Duration::from_millis(500))));
    }
}
