//! The todo.txt format (<https://github.com/todotxt/todo.txt>): one task a line, with completion, priority, dates,
//! `+project`, `@context` and `key:value`.

use std::collections::HashSet;
use std::io::BufRead;

use chrono::{Datelike as _, NaiveDate};

use super::limits::{MAX_LABEL, MAX_LABELS};

/// The longest line that is read.
const MAX_LINE_BYTES: usize = 64 << 10;

/// A task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The text, without the marks before it, without `due:` and without a `rec:` that is taken.
    pub title: String,
    /// `+project`, `@context`, and the priority as `priority-a`.
    pub labels: Vec<String>,
    /// `due:2026-12-01`
    pub due: Option<NaiveDate>,
    /// `rec:+1w`
    pub recurs: Option<Recurs>,
    /// Remarks on what was read otherwise than a user may expect.
    pub remarks: Vec<String>,
    /// `x` at the start.
    pub completed: bool,
    /// The creation date.
    pub created: Option<NaiveDate>,
    /// The completion date.
    pub completed_on: Option<NaiveDate>,
}

/// How a task recurs, by the rules of the apps that write `rec:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recurs {
    /// An RFC 5545 rule.
    pub rule: String,
    /// From when it was due (`rec:+1w`), and not from when it is completed (`rec:1w`).
    pub from_due: bool,
}

/// Reads what follows `rec:`: a plus sign or none, a number, and d, b (business days), w, m or y.
///
/// # Errors
/// No todo can recur like this: the error says why.
fn recurs(text: &str) -> Result<Recurs, &'static str> {
    let (from_due, text) = text.strip_prefix('+').map_or((false, text), |rest| (true, rest));
    let unit = text.chars().last().unwrap_or_default();
    let number = text.strip_suffix(unit).and_then(|number| number.parse::<u16>().ok()).filter(|number| *number > 0);
    let number = number.ok_or("it is not a number above 0 and one of d, b, w, m, y")?;
    let freq = match unit {
        'd' => "DAILY",
        'w' => "WEEKLY",
        'm' => "MONTHLY",
        'y' => "YEARLY",
        'b' if number == 1 => return Ok(Recurs { rule: "FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR".to_owned(), from_due }),
        'b' => return Err("no rule counts business days"),
        _ => return Err("it is not a number above 0 and one of d, b, w, m, y"),
    };
    let interval = if number == 1 { String::new() } else { format!(";INTERVAL={number}") };
    Ok(Recurs { rule: format!("FREQ={freq}{interval}"), from_due })
}

/// The tasks of a file, each with its line, or what is wrong there. Empty lines are left out.
pub fn tasks<R: BufRead>(reader: R) -> impl Iterator<Item = std::io::Result<(u64, Result<Task, String>)>> {
    let lines = Lines { reader, number: 0, after_return: false };
    lines.filter_map(|line| match line {
        Ok((_, Ok(line))) if line.trim_ascii().is_empty() => None,
        Ok((number, line)) => {
            let text = line.and_then(|line| String::from_utf8(line).map_err(|_| "it is not UTF-8".to_owned()));
            Some(Ok((number, text.and_then(|line| parse(&line)))))
        }
        Err(error) => Some(Err(error)),
    })
}

/// Lines that end with a line feed, a carriage return, or both, as on different systems.
struct Lines<R> {
    reader: R,
    number: u64,
    after_return: bool,
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = std::io::Result<(u64, Result<Vec<u8>, String>)>;

    fn next(&mut self) -> Option<Self::Item> {
        let (mut line, mut length, mut begun) = (Vec::new(), 0, false);
        loop {
            let buffer = match self.reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) => return Some(Err(error)),
            };
            let Some(first) = buffer.first() else {
                if begun {
                    break;
                }
                return None;
            };
            if std::mem::take(&mut self.after_return) && *first == b'\n' {
                self.reader.consume(1);
                continue;
            }
            begun = true;
            let end = buffer.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let text = &buffer[..end.unwrap_or(buffer.len())];
            length += text.len();
            if length <= MAX_LINE_BYTES {
                line.extend_from_slice(text);
            }
            self.after_return = end.is_some_and(|end| buffer[end] == b'\r');
            let used = text.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                break;
            }
        }
        self.number += 1;
        let fits = length <= MAX_LINE_BYTES;
        Some(Ok((
            self.number,
            if fits { Ok(line) } else { Err(format!("it has {length} bytes, at most {MAX_LINE_BYTES} are taken")) },
        )))
    }
}

/// Reads one line.
///
/// # Errors
/// The line is wrong: the error says how.
pub fn parse(line: &str) -> Result<Task, String> {
    let mut rest = line.trim();
    let mut task = Task {
        title: String::new(),
        labels: Vec::new(),
        due: None,
        recurs: None,
        remarks: Vec::new(),
        completed: false,
        created: None,
        completed_on: None,
    };
    if let Some(after) = rest.strip_prefix("x ") {
        task.completed = true;
        rest = after.trim_start();
    }
    if let Some((priority, after)) = priority(rest) {
        task.labels.push(format!("priority-{}", priority.to_ascii_lowercase()));
        rest = after;
    }
    let mut dates = Vec::new();
    while let Some((date, after)) = leading_date(rest) {
        if dates.len() == 2 {
            break;
        }
        dates.push(date);
        rest = after;
    }
    match (task.completed, dates.as_slice()) {
        (true, [completed, created]) => (task.completed_on, task.created) = (Some(*completed), Some(*created)),
        (true, [completed]) => task.completed_on = Some(*completed),
        (false, [created]) => task.created = Some(*created),
        (false, [_, _]) => return Err("an open task has one date at the start, its creation".to_owned()),
        _ => {}
    }
    let mut words = Vec::new();
    for word in rest.split_whitespace() {
        // What is no date, and a second one, is the user's text.
        if task.due.is_none()
            && let Some(date) = word.strip_prefix("due:").and_then(|date| date.parse().ok())
        {
            task.due = Some(date);
            continue;
        }
        if (word.starts_with('+') || word.starts_with('@')) && word.len() > 1 {
            task.labels.push(word.to_owned());
        }
        // A finished task keeps its priority as pri:A.
        match word.strip_prefix("pri:") {
            Some(letter) if letter.len() == 1 && letter.as_bytes()[0].is_ascii_uppercase() => {
                task.labels.push(format!("priority-{}", letter.to_ascii_lowercase()));
            }
            _ => words.push(word),
        }
    }
    take_recurrence(&mut task, &mut words);
    // What no todo has room for as a label stays in the text, where it stands anyway. A priority does not, so it is kept. (The
    // order and repeats stay as they are: the keys of a run before follow from them.)
    let mut different: HashSet<String> =
        task.labels.iter().filter(|label| label.starts_with("priority-")).cloned().collect();
    task.labels.retain(|label| {
        label.chars().count() <= MAX_LABEL
            && (different.contains(label) || (different.len() < MAX_LABELS && different.insert(label.clone())))
    });
    task.title = words.join(" ");
    if task.title.is_empty() {
        return Err("there is no text".to_owned());
    }
    Ok(task)
}

/// Takes the first `rec:` out of the words, if a todo can recur like this; otherwise it stays there, with a remark.
fn take_recurrence(task: &mut Task, words: &mut Vec<&str>) {
    let is_one = |word: &&str| word.starts_with("rec:");
    let Some(index) = words.iter().position(is_one) else { return };
    let word = words[index];
    for more in words[index + 1..].iter().filter(|word| is_one(word)) {
        task.remarks.push(format!("{more} stays in the text: a todo recurs in one way"));
    }
    let taken = match (task.due, recurs(&word["rec:".len()..])) {
        _ if task.completed => Err("it is completed, and the next one is a task of its own"),
        (_, Err(why)) => Err(why),
        (None, Ok(_)) => Err("a todo recurs from its due date, and there is none"),
        (Some(due), Ok(recurs)) => Ok((due, recurs)),
    };
    match taken {
        Err(why) => task.remarks.push(format!("{word} stays in the text: {why}")),
        Ok((due, recurs)) => {
            let (day, monthly, yearly) = (due.day(), recurs.rule.contains("MONTHLY"), recurs.rule.contains("YEARLY"));
            if recurs.from_due && (monthly && day > 28 || yearly && (due.month(), day) == (2, 29)) {
                task.remarks.push(format!("{word} leaves out what has no day {day}"));
            } else if !recurs.from_due && (monthly || yearly) {
                task.remarks
                    .push(format!("{word} leaves out what has no such day as the one on which it is completed"));
            }
            words.remove(index);
            task.recurs = Some(recurs);
        }
    }
}

fn priority(text: &str) -> Option<(char, &str)> {
    let mut chars = text.chars();
    let (open, letter, close) = (chars.next()?, chars.next()?, chars.next()?);
    let rest = chars.as_str();
    let marked =
        open == '(' && close == ')' && letter.is_ascii_uppercase() && (rest.is_empty() || rest.starts_with(' '));
    marked.then(|| (letter, rest.trim_start()))
}

fn leading_date(text: &str) -> Option<(NaiveDate, &str)> {
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    let shape = word.len() == 10
        && word.bytes().enumerate().all(|(at, b)| if at == 4 || at == 7 { b == b'-' } else { b.is_ascii_digit() });
    shape.then(|| word.parse().ok())?.map(|date| (date, rest.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn date(text: &str) -> Option<NaiveDate> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn a_recurrence_is_taken_where_a_todo_recurs_so_and_else_stays_in_the_text_and_is_said() {
        for (word, rule, from_due) in [
            ("rec:+1w", "FREQ=WEEKLY", true),
            ("rec:1w", "FREQ=WEEKLY", false),
            ("rec:3d", "FREQ=DAILY;INTERVAL=3", false),
            ("rec:+2m", "FREQ=MONTHLY;INTERVAL=2", true),
            ("rec:+1b", "FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR", true),
        ] {
            let task = parse(&format!("Air the sails {word} due:2026-12-01 please")).unwrap();
            assert_eq!(task.recurs, Some(Recurs { rule: rule.to_owned(), from_due }), "{word}");
            assert_eq!((task.title.as_str(), task.remarks.len()), ("Air the sails please", 0));
        }
        for (line, remark) in [
            ("Air the sails rec:1w", "there is none"),
            ("Air the sails rec:2b due:2026-12-01", "business days"),
            ("Air the sails rec:often due:2026-12-01", "one of d, b, w, m, y"),
            ("Air the sails rec:+0d due:2026-12-01", "above 0"),
            ("Air the sails rec:1é due:2026-12-01", "one of"),
            ("Air the sails rec: due:2026-12-01", "above 0"),
            ("x Air the sails rec:1w due:2026-12-01", "completed"),
        ] {
            let task = parse(line).unwrap();
            assert!(task.recurs.is_none() && task.title.contains("rec:"), "{line}");
            assert!(task.remarks.len() == 1 && task.remarks[0].contains(remark), "{line}: {:?}", task.remarks);
        }
        for (line, remark) in [
            ("Pay the berth rec:+1m due:2026-01-31", Some("no day 31")),
            ("Pay the berth rec:+1m due:2026-01-28", None),
            ("Pay the berth rec:1m due:2026-01-28", Some("on which it is completed")),
            ("Pay the berth rec:+1y due:2026-03-30", None),
            ("Pay the berth rec:+1y due:2028-02-29", Some("no day 29")),
            ("Pay the berth rec:+1d rec:+2d due:2028-02-29", Some("in one way")),
        ] {
            let task = parse(line).unwrap();
            assert!(task.recurs.is_some(), "{line}");
            assert_eq!(task.remarks.len(), usize::from(remark.is_some()), "{line}: {:?}", task.remarks);
            assert!(remark.is_none_or(|remark| task.remarks[0].contains(remark)), "{line}: {:?}", task.remarks);
        }
    }

    #[test]
    fn an_open_task() {
        let task = parse("(A) 2026-11-01 Call the sailmaker +spring-refit @phone due:2026-12-01 at 10:30").unwrap();
        assert_eq!(task.title, "Call the sailmaker +spring-refit @phone at 10:30");
        assert_eq!(task.labels, ["priority-a", "+spring-refit", "@phone"]);
        assert_eq!((task.due, task.created, task.completed), (date("2026-12-01"), date("2026-11-01"), false));
    }

    #[test]
    fn a_completed_task() {
        let task = parse("x 2026-11-02 2026-11-01 Paint the hull pri:B").unwrap();
        assert_eq!((task.completed, task.completed_on, task.created), (true, date("2026-11-02"), date("2026-11-01")));
        assert_eq!((task.title.as_str(), task.labels), ("Paint the hull", vec!["priority-b".to_owned()]));
    }

    #[test]
    fn what_looks_like_a_mark_and_is_none_stays_text() {
        for line in ["xylophone lesson", "X is not a mark", "(a) small letters", "(A)no space", "a + b @ c"] {
            let task = parse(line).unwrap();
            assert_eq!((task.title.as_str(), task.completed, task.labels.len()), (line, false, 0));
        }
    }

    #[test]
    fn what_does_not_fit_stays_in_the_text_and_costs_no_task() {
        let task = parse("Pay the berth due:2026-02-31 due:asap").unwrap();
        assert_eq!((task.title.as_str(), task.due), ("Pay the berth due:2026-02-31 due:asap", None));
        let twice = parse("x Paint due:2026-12-01 due:2026-12-02 pri:B").unwrap();
        assert_eq!((twice.title.as_str(), twice.due), ("Paint due:2026-12-02", date("2026-12-01")));
        let many: Vec<String> = (0..25).map(|n| format!("+p{n}")).collect();
        let long = format!("@{}", "x".repeat(50));
        let task = parse(&format!("x {} {long} pri:C", many.join(" "))).unwrap();
        assert_eq!(task.labels[19], "priority-c");
        assert_eq!(task.labels[..19], many[..19]);
        assert!(task.title.contains("+p24") && task.title.ends_with(&long));
    }

    #[test]
    fn a_line_ends_as_each_system_has_it() {
        let long = "x".repeat(MAX_LINE_BYTES + 1);
        let text = format!("one\rtwo\r\nthree\n\n\rsix\n{long}\nlast");
        for size in [1, 3, 8_192] {
            let reader = std::io::BufReader::with_capacity(size, text.as_bytes());
            let read: Vec<_> = tasks(reader).map(Result::unwrap).collect();
            let titles: Vec<_> =
                read.iter().map(|(line, task)| (*line, task.as_ref().map_or("", |task| task.title.as_str()))).collect();
            assert_eq!(titles, [(1, "one"), (2, "two"), (3, "three"), (6, "six"), (7, ""), (8, "last")], "{size}");
        }
    }

    #[test]
    fn a_malformed_line_says_why() {
        for (line, why) in
            [("(A) ", "no text"), ("x 2026-02-01", "no text"), ("2026-01-01 2026-01-02 two dates", "one date")]
        {
            assert!(parse(line).unwrap_err().contains(why), "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_line_panics_and_a_task_has_a_trimmed_title(line in "\\PC{0,60}") {
            if let Ok(task) = parse(&line) {
                prop_assert_eq!(task.title.trim(), task.title.as_str());
                prop_assert!(!task.title.is_empty());
            }
        }
    }
}
