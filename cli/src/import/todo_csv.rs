//! Todos as CSV: a header with `title` and any of `notes`, `labels` (separated by `;`, or by `,` where `;` separates the
//! values), `due` (a date or RFC 3339 time), `assignee` and `completed` (true or false). Commas, semicolons or tabs separate
//! the values, as in the header.

use std::io::{BufRead, Read};

use anyhow::{Context as _, ensure};
use chrono::{DateTime, NaiveDate, Utc};
use serde::Deserialize;

use super::limits::{Bounded, MAX_LABEL, MAX_LABELS};

/// A row.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Row {
    pub title: String,
    #[serde(default)]
    notes: String,
    #[serde(default)]
    labels: String,
    #[serde(default)]
    due: String,
    #[serde(default)]
    pub assignee: String,
    #[serde(default)]
    completed: String,
    #[serde(skip)]
    between_labels: char,
}

impl Row {
    /// The labels that fit into a todo.
    pub fn labels(&self) -> Vec<String> {
        let mut labels: Vec<String> = Vec::new();
        for label in self.all_labels().into_iter().filter(|label| label.chars().count() <= MAX_LABEL) {
            if labels.len() < MAX_LABELS && !labels.contains(&label) {
                labels.push(label);
            }
        }
        labels
    }

    fn all_labels(&self) -> Vec<String> {
        self.labels
            .split(self.between_labels)
            .map(str::trim)
            .filter(|label| !label.is_empty())
            .map(ToOwned::to_owned)
            .collect()
    }

    /// The due time; none if the text is no time.
    pub fn due(&self) -> Option<DateTime<Utc>> {
        let text = self.due.trim();
        let date = text.parse::<NaiveDate>().ok().and_then(|date| date.and_hms_opt(0, 0, 0)).map(|time| time.and_utc());
        date.or_else(|| text.parse().ok())
    }

    /// The notes, followed by what fits no other field of a todo.
    pub fn notes(&self) -> String {
        let mut notes = self.notes.clone();
        let mut add = |name: &str, what: String| {
            if !what.is_empty() {
                notes.push_str(&format!("{}{name}: {what}", if notes.is_empty() { "" } else { "\n" }));
            }
        };
        add("due", if self.due().is_some() { String::new() } else { self.due.trim().to_owned() });
        let (labels, all) = (self.labels(), self.all_labels());
        add("labels", all.into_iter().filter(|label| !labels.contains(label)).collect::<Vec<_>>().join("; "));
        notes
    }

    pub fn completed(&self) -> Result<bool, String> {
        match self.completed.trim().to_ascii_lowercase().as_str() {
            "" | "false" | "no" | "0" => Ok(false),
            "true" | "yes" | "1" | "x" => Ok(true),
            other => Err(format!("completed is {other}, not true or false")),
        }
    }
}

/// A row and the line it starts on, or what is wrong there.
pub type Numbered = (u64, Result<Row, String>);

/// The columns that a todo has a field for.
const COLUMNS: [&str; 6] = ["title", "notes", "labels", "due", "assignee", "completed"];
/// The longest row: with an unclosed quote, all the rest is one row.
const MAX_ROW_BYTES: u64 = 1 << 20;

/// The rows of a file, each with the line it starts on. It reports ignored columns on standard error.
///
/// # Errors
/// The header has no title, a column twice, or, unless those are ignored, a column that no todo has.
pub fn rows<R: BufRead>(
    mut text: R,
    ignore_other_columns: bool,
) -> Result<impl Iterator<Item = Result<Numbered, anyhow::Error>>, anyhow::Error> {
    let delimiter = delimiter(text.fill_buf()?);
    let reader = Watched { reader: text, quoting: Quoting::new(delimiter) };
    let beyond = || "a row has more than 1 MiB: is a quote never closed?".to_owned();
    let bounded = Bounded { reader, left: MAX_ROW_BYTES, beyond };
    let mut reader =
        csv::ReaderBuilder::new().flexible(false).delimiter(delimiter).trim(csv::Trim::Headers).from_reader(bounded);
    let head = reader.headers().context("the head of the CSV")?;
    let head: csv::StringRecord = head.iter().map(str::to_lowercase).collect();
    ensure!(head.iter().any(|name| name == "title"), "the first line of the CSV must name a column `title`");
    for column in COLUMNS {
        let times = head.iter().filter(|name| *name == column).count();
        ensure!(times <= 1, "the first line of the CSV names `{column}` {times} times");
    }
    let other: Vec<&str> = head.iter().filter(|name| !COLUMNS.contains(name)).collect();
    ensure!(
        other.is_empty() || ignore_other_columns,
        "no todo has a place for these columns: {}. Rename them to one of {}, or leave them out with --ignore-other-columns",
        other
            .iter()
            .map(|name| if name.is_empty() { "one without a name" } else { name })
            .collect::<Vec<_>>()
            .join(", "),
        COLUMNS.join(", ")
    );
    if !other.is_empty() {
        eprintln!("These columns are left out: {}.", other.join(", "));
    }
    let between_labels = if delimiter == b';' { ',' } else { ';' };
    let mut record = csv::StringRecord::new();
    let line_of = |position: Option<&csv::Position>| position.map_or(0, csv::Position::line);
    let mut ended = false;
    Ok(std::iter::from_fn(move || {
        if ended {
            return None;
        }
        reader.get_mut().left = MAX_ROW_BYTES;
        let read = reader.read_record(&mut record);
        // Where quotes are ambiguous, the parser makes values of whole rows.
        let next_line = reader.position().line();
        let quoting = &reader.get_ref().reader.quoting;
        let wrong = quoting.wrong.filter(|wrong| quoting.at_end || *wrong < next_line);
        if let (Some(wrong), Ok(true)) = (wrong, &read) {
            ended = true;
            let why = format!("the quote on line {wrong} is not closed as it should be: nothing from here on is read");
            return Some(Ok((line_of(record.position()), Err(why))));
        }
        match read {
            Ok(false) => None,
            Ok(true) => {
                let line = line_of(record.position());
                let row = record.deserialize(Some(&head)).map(|row: Row| Row { between_labels, ..row });
                Some(Ok((line, row.map_err(|error| error.to_string()))))
            }
            Err(error) if error.is_io_error() => Some(Err(error.into())),
            Err(error) => Some(Ok((line_of(error.position()), Err(error.to_string())))),
        }
    }))
}

/// The most frequent separator in the header.
fn delimiter(text: &[u8]) -> u8 {
    let head = text.split(|byte| matches!(byte, b'\n' | b'\r')).next().unwrap_or_default();
    let count = |delimiter: u8| head.iter().filter(|byte| **byte == delimiter).count();
    [b'\t', b';', b','].into_iter().max_by_key(|delimiter| count(*delimiter)).unwrap_or(b',')
}

/// Follows the quotes of what is read.
struct Watched<R> {
    reader: R,
    quoting: Quoting,
}

/// Follows the quotes of a CSV (RFC 4180): a value in quotes ends with one that a delimiter, a line end or the end follows.
struct Quoting {
    delimiter: u8,
    state: State,
    line: u64,
    /// The line of the quote that was opened last.
    opened: u64,
    /// The line of the first quote that is closed in the middle of a value, or never.
    wrong: Option<u64>,
    at_end: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Begins,
    Plain,
    Quoted,
    Closed,
}

impl Quoting {
    const fn new(delimiter: u8) -> Self {
        Self { delimiter, state: State::Begins, line: 1, opened: 0, wrong: None, at_end: false }
    }

    fn follow(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let ends = *byte == self.delimiter || matches!(byte, b'\n' | b'\r');
            self.state = match (self.state, *byte) {
                (State::Begins, b'"') => {
                    self.opened = self.line;
                    State::Quoted
                }
                (State::Closed, b'"') => State::Quoted,
                (State::Quoted, b'"') => State::Closed,
                (State::Quoted, _) => State::Quoted,
                (State::Begins | State::Plain | State::Closed, _) if ends => State::Begins,
                (State::Closed, _) => {
                    self.wrong.get_or_insert(self.opened);
                    State::Plain
                }
                (State::Begins | State::Plain, _) => State::Plain,
            };
            self.line += u64::from(*byte == b'\n');
        }
    }

    fn end(&mut self) {
        self.at_end = true;
        if self.state == State::Quoted {
            self.wrong.get_or_insert(self.opened);
        }
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.quoting.follow(&buffer[..read]);
        if read == 0 {
            self.quoting.end();
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &[u8]) -> Result<Vec<Numbered>, anyhow::Error> {
        super::rows(text, false)?.collect()
    }

    #[test]
    fn quotes_commas_and_line_breaks_are_read_and_lines_counted() {
        let text = "title,notes,labels,due,completed\n\"Sail, mend\",\"a\nb\",x; y,2026-12-01,true\nOnly title,,,,\n";
        let rows = rows(text.as_bytes()).unwrap();
        let (line, first) = &rows[0];
        let first = first.as_ref().unwrap();
        assert_eq!((*line, first.title.as_str(), first.notes()), (2, "Sail, mend", "a\nb".to_owned()));
        assert_eq!(first.labels(), ["x", "y"]);
        assert_eq!(first.due().unwrap().to_rfc3339(), "2026-12-01T00:00:00+00:00");
        assert_eq!((first.completed(), rows[1].0), (Ok(true), 4));
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert!(rows(b"name\nx\n").unwrap_err().to_string().contains("title"));
        assert!(rows(b"title,due,Title\na,,b\n").unwrap_err().to_string().contains("`title` 2 times"));
        let rows = rows(b"title,due,completed\na,tomorrow,maybe\nb\n").unwrap();
        let first = rows[0].1.as_ref().unwrap();
        assert!(first.completed().unwrap_err().contains("maybe"));
        assert!(rows[1].1.is_err(), "a row with too few fields");
    }

    #[test]
    fn what_does_not_fit_stays_in_the_notes_and_costs_no_row() {
        let many: Vec<String> = (0..22).map(|n| format!("l{n}")).collect();
        let long = "x".repeat(51);
        let text = format!("title,notes,labels,due\nTar,n,{};{long},tomorrow\nTar,,,asap\n", many.join(";"));
        let rows = rows(text.as_bytes()).unwrap();
        let first = rows[0].1.as_ref().unwrap();
        assert_eq!((first.labels(), first.due()), (many[..20].to_vec(), None));
        assert_eq!(first.notes(), format!("n\ndue: tomorrow\nlabels: l20; l21; {long}"));
        assert_eq!(rows[1].1.as_ref().unwrap().notes(), "due: asap");
    }

    #[test]
    fn columns_that_no_todo_has_are_named_before_any_row_is_read() {
        let text = b"title,tags,isDone,dueDay,\n\"Write the log\",\"a,b\",true,2026-02-01,\n";
        let error = rows(text).unwrap_err().to_string();
        assert!(error.contains("tags, isdone, dueday, one without a name"), "{error}");
        let rows: Vec<_> = super::rows(&text[..], true).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(rows[0].1.as_ref().unwrap().title, "Write the log");
    }

    #[test]
    fn heads_of_other_programs_are_read() {
        for text in ["Title;Labels;DUE\nTar;a,b;2026-12-01\n", "title\tlabels\tdue\rTar\ta; b\t2026-12-01\r"] {
            let rows = rows(text.as_bytes()).unwrap();
            let first = rows[0].1.as_ref().unwrap();
            assert_eq!((first.title.as_str(), first.labels()), ("Tar", vec!["a".to_owned(), "b".to_owned()]), "{text}");
            assert!(first.due().is_some());
        }
    }

    #[test]
    fn a_quote_that_is_never_closed_does_not_take_the_whole_file() {
        let refused =
            |text: &str| -> Vec<bool> { rows(text.as_bytes()).unwrap().iter().map(|(_, row)| row.is_err()).collect() };
        for (text, wanted) in [
            ("title,notes\ngood,\"a \"\"b\"\"\"\na,\"half\nb,x\nc,y\n", &[false, true][..]),
            ("title,notes\n6\" nail,x\na,\"half\nb,x\nc,y\n", &[false, true]),
            ("title,notes\na,\"half\nb,\"x\"\nc,y\n", &[true]),
            ("title\na\n\"half", &[false, true]),
            ("title,notes\n6\" nail,x\nfoo,\"a\nb\"", &[false, false]),
            ("title\n\"a\nb\"\n6\" nail", &[false, false]),
            ("title\r\n\"closed\"\r\n", &[false]),
        ] {
            assert_eq!(refused(text), wanted, "{text}");
        }
        let text = format!("title\ngood\n\"open\n{}", "line\n".repeat(1 << 20));
        let error = rows(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("quote"), "{error}");
    }
}
