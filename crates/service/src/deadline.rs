//! How long a call may take.

use std::time::Duration;

use http::HeaderMap;

/// The longest duration of a call, whatever deadline it brings.
pub const LONGEST: Duration = Duration::from_secs(10);
/// A caller that allows less time than this has chosen not to have its answer: that it comes too late is no failure.
pub const SHORT: Duration = Duration::from_secs(1);

/// How much longer a backing service may work for a call: it gives up once the call was answered.
pub const AFTER: Duration = Duration::from_millis(50);

/// How long the caller waits: `grpc-timeout`, up to eight digits and a unit. An unreadable one counts as none.
pub fn of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_deadline_is_read_as_it_is_written() {
        for (text, wanted) in [
            ("1u", Some(Duration::from_micros(1))),
            ("15S", Some(Duration::from_secs(15))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3_600))),
            ("S", None),
            ("", None),
            ("123456789m", None),
            ("5x", None),
            ("5\u{20ac}", None),
        ] {
            let headers = HeaderMap::from_iter([(
                "grpc-timeout".parse().unwrap(),
                HeaderValue::from_bytes(text.as_bytes()).unwrap(),
            )]);
            assert_eq!(of(&headers), wanted, "{text}");
        }
    }
}
