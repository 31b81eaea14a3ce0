//! How a todo recurs: an RFC 5545 recurrence rule over the wall clock of a time zone. Pure.
//!
//! The rule runs over wall-clock times, so that 9 o'clock stays 9 o'clock when summer time begins. An occurrence keeps the wall-clock time
//! that the rule has given it. RFC 5545, 3.3.5, derives the due instant: a time that occurs twice is the first one, and a skipped time
//! takes the offset from before. The rule skips the 31st in a month without one; the last day of each month is `BYMONTHDAY=-1`.

use std::str::FromStr;

use chrono::{
    DateTime, Datelike as _, LocalResult, NaiveDateTime, Offset as _, TimeDelta, TimeZone as _, Timelike as _, Utc,
};
use chrono_tz::{GapInfo, Tz};
use contracts::SeriesId;
use rrule::{Frequency, NWeekday, RRule, RRuleSet, Unvalidated};

/// The longest rule, in bytes.
const MAX_RULE: usize = 256;
/// How far ahead to search for an occurrence: a rule without one in four centuries has none.
const HORIZON: TimeDelta = TimeDelta::days(400 * 366);

/// Why a todo cannot recur this way. Each message follows the field's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecurrenceError {
    /// The text is not a rule.
    #[error("is not a rule of RFC 5545 such as FREQ=WEEKLY;BYDAY=MO: {0}")]
    Malformed(String),
    /// A todo does not accept this rule.
    #[error("holds what a todo does not recur by: {0}")]
    Unsupported(&'static str),
    /// There is no such time zone.
    #[error("must name a time zone of the IANA database, such as Europe/Berlin")]
    TimeZone,
    /// The rule has no first time.
    #[error("needs a due_time: the rule goes on from there")]
    NeedsDueTime,
    /// The rule never gives another occurrence.
    #[error("never occurs again")]
    Never,
}

/// A recurrence rule, daily or slower, and its text as it was written.
#[derive(Debug, Clone)]
pub struct Rule {
    text: String,
    rule: RRule<Unvalidated>,
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Rule {}

impl Rule {
    /// Parses the value of an `RRULE`, such as `FREQ=MONTHLY;BYMONTHDAY=-1;COUNT=12`.
    ///
    /// # Errors
    /// The text is not a rule, or a todo does not accept it. The due time sets the time of day, so a rule names no hours.
    pub fn parse(text: &str) -> Result<Self, RecurrenceError> {
        let text = text.trim();
        // A character that no rule contains makes the parser panic (rrule 0.14), or begins another property (`EXRULE:`).
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"=;,+-".contains(&byte);
        if text.len() > MAX_RULE || !text.bytes().all(plain) {
            let what = format!("it may have {MAX_RULE} characters, of letters, digits and = ; , + -");
            return Err(RecurrenceError::Malformed(what));
        }
        let rule: RRule<Unvalidated> =
            text.parse().map_err(|error: rrule::RRuleError| RecurrenceError::Malformed(error.to_string()))?;
        let numbered = |day: &NWeekday| matches!(day, NWeekday::Nth(..));
        let days = rule.get_by_weekday();
        let times_of_day = [rule.get_by_hour(), rule.get_by_minute(), rule.get_by_second()];
        // What the library accepts but does not follow, or what would take seconds.
        let unsupported = [
            (rule.get_freq() > Frequency::Daily, "a FREQ below DAILY"),
            (times_of_day.iter().any(|times| !times.is_empty()), "BYHOUR, BYMINUTE or BYSECOND"),
            (!rule.get_by_year_day().is_empty() || !rule.get_by_week_no().is_empty(), "BYYEARDAY or BYWEEKNO"),
            (rule.get_interval() == 0 || rule.get_count() == Some(0), "an INTERVAL or a COUNT of 0"),
            (rule.get_count().is_some() && rule.get_until().is_some(), "COUNT and UNTIL together"),
            (
                rule.get_until().is_some_and(|until| until.timezone() != rrule::Tz::UTC),
                "an UNTIL that is not in UTC (…Z)",
            ),
            (rule.get_by_month_day().contains(&0), "a BYMONTHDAY of 0"),
            (days.iter().any(numbered) && rule.get_freq() > Frequency::Monthly, "a numbered BYDAY by week or day"),
            (days.iter().any(numbered) && !days.iter().all(numbered), "numbered and plain days in one BYDAY"),
            (text.split(';').any(|part| part.is_empty() || part.ends_with('=')), "an empty part"),
            (!days_are_spelled(text), "a BYDAY that is none"),
        ];
        match unsupported.into_iter().find(|(is, _)| *is) {
            Some((_, what)) => Err(RecurrenceError::Unsupported(what)),
            None => Ok(Self { text: text.to_owned(), rule }),
        }
    }

    /// The rule as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The first wall-clock time after `than` that the rule gives when it begins at `from`. Ignores COUNT and UNTIL.
    fn after(&self, from: NaiveDateTime, than: NaiveDateTime) -> Option<NaiveDateTime> {
        let start = rrule::Tz::UTC.from_utc_datetime(&from.with_nanosecond(0)?);
        let than = rrule::Tz::UTC.from_utc_datetime(&than.with_nanosecond(0)?);
        let horizon = than.checked_add_signed(HORIZON)?;
        // Neither can be unset, so both are set out of reach.
        let rule = self.rule.clone().count(u32::MAX).until(horizon).validate(start).ok()?;
        let next = RRuleSet::new(start).rrule(rule).limit().into_iter().find(|at| *at > start && *at > than);
        next.map(|at| at.naive_utc())
    }

    /// Whether the rule names days or months, beside its interval.
    fn names_days(&self) -> bool {
        self.text.split(';').any(|part| part.len() > 2 && part.as_bytes()[..2].eq_ignore_ascii_case(b"BY"))
    }
}

/// Whether each day of BYDAY is two letters, after a number that is not 0. (The library accepts `0MO` and `XXMO` for MO.)
fn days_are_spelled(text: &str) -> bool {
    let parts = text.split(';').filter_map(|part| part.split_once('='));
    let days = parts.filter(|(name, _)| ["BYDAY", "BYWEEKDAY"].iter().any(|known| name.eq_ignore_ascii_case(known)));
    let number = |text: &str| text.is_empty() || text.parse::<i16>().is_ok_and(|number| number != 0);
    days.flat_map(|(_, days)| days.split(',')).all(|day| day.len() >= 2 && number(&day[..day.len() - 2]))
}

/// Where the next occurrence is reckoned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The due time of this occurrence.
    DueTime,
    /// The day on which this one was completed.
    Completion,
}

/// How a user wants a todo to recur.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// The recurrence rule.
    pub rule: Rule,
    /// The time zone of the wall clock.
    pub time_zone: Tz,
    /// Where the next occurrence is reckoned from.
    pub basis: Basis,
}

impl Pattern {
    /// Parses a rule and the name of a time zone in the IANA database.
    ///
    /// # Errors
    /// One of them cannot be parsed, or no todo recurs this way.
    pub fn parse(rule: &str, time_zone: &str, basis: Basis) -> Result<Self, RecurrenceError> {
        let time_zone = Tz::from_str(time_zone).map_err(|_| RecurrenceError::TimeZone)?;
        Ok(Self { rule: Rule::parse(rule)?, time_zone, basis })
    }
}

/// A pattern, and the wall-clock time that it has given to this todo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recurrence {
    /// The pattern as requested.
    pub pattern: Pattern,
    /// The todo's due time by the wall clock, whether that time exists on that day or not.
    pub wall_time: NaiveDateTime,
}

/// Which todo of a series it is. This never changes, whatever happens to its recurrence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occurrence {
    /// The id of the first todo of the series.
    pub series: SeriesId,
    /// Counts from 1.
    pub number: i32,
}

impl Recurrence {
    /// The recurrence of a todo that is due then.
    #[must_use]
    pub fn new(pattern: Pattern, due_time: DateTime<Utc>) -> Self {
        let wall_time = due_time.with_timezone(&pattern.time_zone).naive_local();
        Self { pattern, wall_time }
    }

    /// The same, refused for the `number`th todo of a series when no occurrence follows it.
    ///
    /// # Errors
    /// [`RecurrenceError::Never`]
    pub fn checked(self, number: i32) -> Result<Self, RecurrenceError> {
        let due_time = instant(self.pattern.time_zone, self.wall_time).ok_or(RecurrenceError::Never)?;
        if self.next(number, due_time).is_some() { Ok(self) } else { Err(RecurrenceError::Never) }
    }

    /// Whether `due_time` is the instant of this wall-clock time.
    #[must_use]
    pub fn is_due(&self, due_time: DateTime<Utc>) -> bool {
        instant(self.pattern.time_zone, self.wall_time) == Some(due_time)
    }

    /// The next occurrence after the `number`th todo of a series was completed at `completed`: its recurrence and its due time. None when
    /// the series ends. By completion, an interval starts at the day of completion. A rule that names days keeps them, and continues after
    /// both that day and this one's due time.
    #[must_use]
    pub fn next(&self, number: i32, completed: DateTime<Utc>) -> Option<(Self, DateTime<Utc>)> {
        let Pattern { rule, time_zone, basis } = &self.pattern;
        if rule.rule.get_count().is_some_and(|count| i64::from(number) >= i64::from(count)) {
            return None;
        }
        let completed = completed.with_timezone(time_zone).date_naive().and_time(self.wall_time.time());
        let wall_time = match basis {
            Basis::DueTime => rule.after(self.wall_time, self.wall_time),
            Basis::Completion if rule.names_days() => rule.after(self.wall_time, completed),
            Basis::Completion => rule.after(completed, completed),
        }?;
        let due_time = instant(*time_zone, wall_time).filter(|due| due.year() < 10_000)?;
        let until = rule.rule.get_until().map(DateTime::to_utc);
        let next = Self { pattern: self.pattern.clone(), wall_time };
        until.is_none_or(|until| due_time <= until).then_some((next, due_time))
    }
}

/// The instant of a wall-clock time, by RFC 5545, 3.3.5.
fn instant(zone: Tz, wall: NaiveDateTime) -> Option<DateTime<Utc>> {
    match zone.from_local_datetime(&wall) {
        LocalResult::Single(at) | LocalResult::Ambiguous(at, _) => Some(at.to_utc()),
        LocalResult::None => {
            let (_, before) = GapInfo::new(&wall, &zone)?.begin?;
            Some(wall.checked_sub_offset(before.fix())?.and_utc())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wall(text: &str) -> NaiveDateTime {
        NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M").unwrap()
    }

    fn recurrence(rule: &str, zone: &str, basis: Basis, at: &str) -> Recurrence {
        let pattern = Pattern::parse(rule, zone, basis).unwrap();
        Recurrence { pattern, wall_time: wall(at) }
    }

    /// The wall-clock times of the occurrences after one, each of the one before.
    fn series(rule: &str, first: &str, count: usize) -> Vec<String> {
        let mut current = recurrence(rule, "Europe/Berlin", Basis::DueTime, first);
        let mut times = Vec::new();
        for number in 1.. {
            let Some((next, _)) = current.next(number, DateTime::UNIX_EPOCH) else { break };
            if times.len() == count {
                break;
            }
            times.push(next.wall_time.format("%Y-%m-%d %H:%M").to_string());
            current = next;
        }
        times
    }

    #[test]
    fn a_month_without_the_day_is_left_out_and_the_last_day_is_minus_one() {
        for (rule, first, wanted) in [
            ("FREQ=MONTHLY", "2026-01-31 09:00", &["2026-03-31 09:00", "2026-05-31 09:00", "2026-07-31 09:00"][..]),
            ("FREQ=MONTHLY;BYMONTHDAY=-1", "2026-01-31 09:00", &["2026-02-28 09:00", "2026-03-31 09:00"]),
            ("FREQ=MONTHLY;BYMONTHDAY=30", "2026-01-30 09:00", &["2026-03-30 09:00"]),
            ("FREQ=YEARLY", "2024-02-29 09:00", &["2028-02-29 09:00"]),
            ("FREQ=MONTHLY;BYDAY=-1FR", "2026-01-30 09:00", &["2026-02-27 09:00", "2026-03-27 09:00"]),
            ("FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1", "2026-01-30 09:00", &["2026-02-27 09:00"]),
            ("FREQ=WEEKLY;INTERVAL=2;BYDAY=MO,WE", "2026-02-02 09:00", &["2026-02-04 09:00", "2026-02-16 09:00"]),
            ("freq=daily;interval=3", "2026-12-30 23:59", &["2027-01-02 23:59"]),
        ] {
            assert_eq!(series(rule, first, wanted.len()), wanted, "{rule}");
        }
    }

    #[test]
    fn a_series_ends_by_its_count_and_at_its_until() {
        assert_eq!(series("FREQ=DAILY;COUNT=3", "2026-01-01 09:00", 9), ["2026-01-02 09:00", "2026-01-03 09:00"]);
        // UNTIL is an instant: 9 o'clock of Berlin is 8 o'clock UTC.
        assert_eq!(series("FREQ=DAILY;UNTIL=20260102T080000Z", "2026-01-01 09:00", 9), ["2026-01-02 09:00"]);
        assert!(series("FREQ=DAILY;UNTIL=20260102T075959Z", "2026-01-01 09:00", 9).is_empty());
        assert!(series("FREQ=DAILY;UNTIL=20250101T000000Z", "2026-01-01 09:00", 9).is_empty());
        assert!(series("FREQ=DAILY;COUNT=1", "2026-01-01 09:00", 9).is_empty());
    }

    #[test]
    fn the_wall_clock_counts_when_summer_time_begins_and_ends() {
        let due = |zone: &str, from: &str| {
            let (next, due) =
                recurrence("FREQ=DAILY", zone, Basis::DueTime, from).next(1, DateTime::UNIX_EPOCH).unwrap();
            let (after, _) = next.next(2, DateTime::UNIX_EPOCH).unwrap();
            (due.format("%d %H:%M").to_string(), after.wall_time.format("%d %H:%M").to_string())
        };
        let is = |due: &str, after: &str| (due.to_owned(), after.to_owned());
        assert_eq!(due("Europe/Berlin", "2026-03-28 09:00"), is("29 07:00", "30 09:00"));
        // There is no 02:30 on that day: 03:30 it is, and 02:30 again on the next day.
        assert_eq!(due("Europe/Berlin", "2026-03-28 02:30"), is("29 01:30", "30 02:30"));
        // There are two: the first one counts.
        assert_eq!(due("Europe/Berlin", "2026-10-24 02:30"), is("25 00:30", "26 02:30"));
        assert_eq!(due("Australia/Lord_Howe", "2026-10-03 02:15"), is("03 15:45", "05 02:15"));
        // A whole day that Samoa skipped.
        assert_eq!(due("Pacific/Apia", "2011-12-29 09:00"), is("30 19:00", "31 09:00"));
    }

    #[test]
    fn by_completion_the_day_counts_on_which_it_was_done() {
        let weekly = recurrence("FREQ=WEEKLY", "Europe/Berlin", Basis::Completion, "2026-01-05 09:00");
        // 23:30 UTC is the next day in Berlin.
        let (next, due) = weekly.next(1, "2026-01-20T23:30:00Z".parse().unwrap()).unwrap();
        assert_eq!(
            (next.wall_time, due.to_rfc3339()),
            (wall("2026-01-28 09:00"), "2026-01-28T08:00:00+00:00".to_owned())
        );
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        for text in
            ["", "FREQ=WEEKLY;BYDAY=é1", "EXRULE:FREQ=DAILY", "weekly", "FREQ=DAILY;FREQ=DAILY", "FREQ=DAILY\nX"]
        {
            assert!(matches!(Rule::parse(text), Err(RecurrenceError::Malformed(_))), "{text:?}");
        }
        assert!(matches!(
            Rule::parse(&format!("FREQ=DAILY;BYMONTH={}1", "1,".repeat(200))),
            Err(RecurrenceError::Malformed(_))
        ));
        for text in [
            "FREQ=HOURLY",
            "FREQ=DAILY;BYHOUR=9",
            "FREQ=YEARLY;BYWEEKNO=3",
            "FREQ=DAILY;INTERVAL=0",
            "FREQ=DAILY;COUNT=3;UNTIL=20260101T000000Z",
            "FREQ=DAILY;UNTIL=20260101",
            "FREQ=MONTHLY;BYMONTHDAY=0",
            "FREQ=MONTHLY;BYMONTHDAY=",
            "FREQ=WEEKLY;BYDAY=2MO",
            "FREQ=MONTHLY;BYDAY=1MO,TU",
            "FREQ=MONTHLY;BYDAY=0MO",
            "FREQ=MONTHLY;BYDAY=XXMO",
            ";FREQ=DAILY",
        ] {
            assert!(
                matches!(Rule::parse(text), Err(RecurrenceError::Unsupported(_))),
                "{text:?}: {:?}",
                Rule::parse(text)
            );
        }
        for zone in ["", "Mars/Olympus", "+02:00", "europe/berlin"] {
            assert_eq!(Pattern::parse("FREQ=DAILY", zone, Basis::DueTime), Err(RecurrenceError::TimeZone), "{zone:?}");
        }
        for rule in [
            "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30",
            "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30;COUNT=5",
            "FREQ=DAILY;COUNT=1",
            "FREQ=DAILY;UNTIL=20250101T000000Z",
        ] {
            let never = recurrence(rule, "UTC", Basis::DueTime, "2026-01-01 09:00");
            assert_eq!(never.checked(1), Err(RecurrenceError::Never), "{rule}");
        }
    }

    fn part() -> impl Strategy<Value = String> {
        const NAMES: [&str; 10] =
            ["FREQ", "INTERVAL", "COUNT", "UNTIL", "BYDAY", "BYMONTHDAY", "BYMONTH", "BYSETPOS", "WKST", "X"];
        const VALUES: [&str; 15] = [
            "DAILY", "WEEKLY", "MONTHLY", "YEARLY", "0", "1", "-1", "2", "31", "65536", "MO", "-1FR", "99MO", "SU", "",
        ];
        let value = prop::collection::vec(prop::sample::select(&VALUES[..]), 1..3).prop_map(|values| values.join(","));
        (prop::sample::select(&NAMES[..]), value).prop_map(|(name, value)| format!("{name}={value}"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn no_text_is_more_than_refused_and_what_is_taken_goes_on(parts in prop::collection::vec(part(), 0..4), freq in 0..4_usize) {
            let freq = ["DAILY", "WEEKLY", "MONTHLY", "YEARLY"][freq];
            let text = [format!("FREQ={freq}")].into_iter().chain(parts).collect::<Vec<_>>().join(";");
            if let Ok(rule) = Rule::parse(&text) {
                let from = wall("2026-01-31 09:00");
                let next = rule.after(from, from);
                prop_assert!(next.is_none_or(|next| next > from && next.time() == from.time()), "{} {:?}", text, next);
                prop_assert_eq!(Rule::parse(rule.as_str()).unwrap(), rule);
            }
        }
    }
}
