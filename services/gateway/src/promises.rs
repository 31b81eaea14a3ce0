//! What the edge says of methods that will be gone.

use anyhow::{Context as _, ensure};
use chrono::{DateTime, Days, NaiveDate, NaiveTime, Utc};
use http::header::LINK;
use http::{HeaderMap, HeaderName, HeaderValue};
use service::policy::Deprecation;

/// How long a method answers after it was deprecated, at least: clients have half a year (docs/clients/promises.md).
const NOTICE: Days = Days::new(182);
const DEPRECATION: HeaderName = HeaderName::from_static("deprecation");
const SUNSET: HeaderName = HeaderName::from_static("sunset");

/// The headers of a deprecated method: `Deprecation` (RFC 9745), `Sunset` (RFC 8594), and `Link` to what it promises and what to call instead.
///
/// # Errors
/// A date cannot be read, the notice is too short, or there is no successor.
pub fn headers(deprecation: &Deprecation) -> Result<HeaderMap, anyhow::Error> {
    let day = |text: &str| text.parse::<NaiveDate>().with_context(|| format!("{text:?} is no day as 2027-01-31"));
    let (since, sunset) = (day(&deprecation.since)?, day(&deprecation.sunset)?);
    ensure!(
        since.checked_add_days(NOTICE).is_some_and(|end| end <= sunset),
        "a deprecated method answers for half a year"
    );
    ensure!(deprecation.successor.starts_with('/'), "a deprecated method names the path of what to call instead");
    let at = |day: NaiveDate| -> DateTime<Utc> { day.and_time(NaiveTime::MIN).and_utc() };
    let link = format!(
        "</promises>; rel=\"deprecation\"; type=\"text/html\", <{}>; rel=\"successor-version\"",
        deprecation.successor
    );
    let all = [
        (DEPRECATION, format!("@{}", at(since).timestamp())),
        (SUNSET, at(sunset).format("%a, %d %b %Y %H:%M:%S GMT").to_string()),
        (LINK, link),
    ];
    all.into_iter().map(|(name, value)| Ok((name, HeaderValue::try_from(value)?))).collect()
}
