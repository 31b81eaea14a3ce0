//! The fields of requests and stored answers, parsed into types that cannot be wrong.

use std::fmt::Display;
use std::str::FromStr;

use chrono::{DateTime, SubsecRound as _, Utc};
use prost_types::{FieldMask, Timestamp};

use crate::Failure;

/// The seconds of the years that a time may have: 1 to 9999.
const YEARS: std::ops::Range<i64> = -62_135_596_800..253_402_300_800;

/// The domain parser's result for a field.
///
/// # Errors
/// INVALID_ARGUMENT: the parser's message, after the field's name.
pub fn text<T, E: Display>(field: &str, parsed: Result<T, E>) -> Result<T, Failure> {
    parsed.map_err(|error| Failure::invalid(field, error))
}

/// An id.
///
/// # Errors
/// INVALID_ARGUMENT when it is not an id.
pub fn id<T: FromStr<Err: Display>>(field: &str, text: &str) -> Result<T, Failure> {
    text.parse().map_err(|error| Failure::invalid(field, format_args!("is not one: {error}")))
}

/// An optional id.
///
/// # Errors
/// As [`id`].
pub fn optional_id<T: FromStr<Err: Display>>(field: &str, text: &str) -> Result<Option<T>, Failure> {
    if text.is_empty() { Ok(None) } else { id(field, text).map(Some) }
}

/// An optional time, to the microsecond.
///
/// # Errors
/// INVALID_ARGUMENT when it is out of range.
pub fn time(field: &str, time: Option<&Timestamp>) -> Result<Option<DateTime<Utc>>, Failure> {
    let Some(time) = time else { return Ok(None) };
    proto::time(time)
        .filter(|_| time.nanos < 1_000_000_000 && YEARS.contains(&time.seconds))
        .map(|time| Some(time.trunc_subsecs(6)))
        .ok_or_else(|| Failure::invalid(field, "must be between the years 1 and 9999"))
}

/// A time that a stored answer always has.
///
/// # Errors
/// INTERNAL when the time is absent.
pub fn stored_time(time: Option<Timestamp>) -> Result<DateTime<Utc>, Failure> {
    time.and_then(|time| proto::time(&time))
        .ok_or_else(|| Failure::internal(anyhow::anyhow!("a stored answer lacks a time")))
}

/// Which fields a change takes.
pub struct Mask<'a>(Vec<&'a str>);

impl<'a> Mask<'a> {
    /// Parses `update_mask`: names of fields that can be changed, or `*` for all of them.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for any other name.
    pub fn of(mask: Option<&'a FieldMask>, writable: &[&str]) -> Result<Self, Failure> {
        let paths: Vec<&str> = mask.into_iter().flat_map(|mask| &mask.paths).map(String::as_str).collect();
        if let Some(unknown) = paths.iter().find(|path| **path != "*" && !writable.contains(path)) {
            let what = format!("names {unknown}: it may name {} or *", writable.join(", "));
            return Err(Failure::invalid("update_mask", what));
        }
        Ok(Self(paths))
    }

    /// Whether the change takes a field; without a mask, whether that field is set.
    #[must_use]
    pub fn takes(&self, field: &str, is_set: bool) -> bool {
        match self.0.as_slice() {
            [] => is_set,
            named => named.iter().any(|path| *path == "*" || *path == field),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_takes_what_it_names_and_without_one_what_is_set() {
        let mask = |paths: &[&str]| FieldMask { paths: paths.iter().map(|&path| path.to_owned()).collect() };
        let none = Mask::of(None, &["name"]).unwrap();
        assert!(none.takes("name", true) && !none.takes("name", false));
        let (named, all) = (mask(&["name"]), mask(&["*"]));
        let named = Mask::of(Some(&named), &["name", "notes"]).unwrap();
        assert!(named.takes("name", false) && !named.takes("notes", true));
        assert!(Mask::of(Some(&all), &["name"]).unwrap().takes("name", false));
        let refused = Mask::of(Some(&mask(&["id"])), &["name"]).err().unwrap();
        assert_eq!(refused.message, "update_mask names id: it may name name or *");
    }

    #[test]
    fn a_time_is_kept_to_the_microsecond_and_in_range() {
        let at = |seconds, nanos| time("due_time", Some(&Timestamp { seconds, nanos }));
        assert_eq!(at(5, 7_999).unwrap().unwrap().timestamp_subsec_nanos(), 7_000);
        assert_eq!(time("due_time", None).unwrap(), None);
        for (seconds, nanos) in [(YEARS.end, 0), (YEARS.start - 1, 0), (0, -1), (0, 1_000_000_000)] {
            assert!(at(seconds, nanos).is_err(), "{seconds} {nanos}");
        }
    }
}
