//! Todos as CSV: a head with `title` and any of `notes`, `labels` (separated by `;`, or by `,` where `;` separates the
//! values), `due` (a date or RFC 3339 time), `assignee` and `completed` (true or false). Commas, semicolons or tabs stand
//! between the values, as the head has it.

use std::io::{BufRead, ErrorKind, Read};

use anyhow::{Context as _, ensure};
use chrono::{DateTime, NaiveDate, Utc};
use serde::Deserialize;

/// A row.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Row {
    pub title: String,
    #[serde(default)]
    pub notes: String,
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
    pub fn labels(&self) -> Vec<String> {
        self.labels
            .split(self.between_labels)
            .map(str::trim)
            .filter(|label| !label.is_empty())
            .map(ToOwned::to_owned)
            .collect()
    }

    pub fn due(&self) -> Result<Option<DateTime<Utc>>, String> {
        let text = self.due.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let date = text.parse::<NaiveDate>().ok().and_then(|date| date.and_hms_opt(0, 0, 0)).map(|time| time.and_utc());
        date.or_else(|| text.parse().ok()).map(Some).ok_or_else(|| format!("{text} is not a date such as 2026-12-01"))
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

/// The columns that a todo has a place for.
const COLUMNS: [&str; 6] = ["title", "notes", "labels", "due", "assignee", "completed"];
/// The longest row: where a quote is never closed, all the rest is one.
const MAX_ROW_BYTES: u64 = 1 << 20;

/// The rows of a file, each with the line it starts on.
///
/// # Errors
/// The head names no title, a column twice, or, unless those are to be ignored, one that no todo has.
pub fn rows<R: BufRead>(
    mut text: R,
    ignore_other_columns: bool,
) -> Result<impl Iterator<Item = Result<Numbered, anyhow::Error>>, anyhow::Error> {
    let delimiter = delimiter(text.fill_buf()?);
    let bounded = BoundedRows { reader: text, left: MAX_ROW_BYTES };
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
    let between_labels = if delimiter == b';' { ',' } else { ';' };
    let mut record = csv::StringRecord::new();
    Ok(std::iter::from_fn(move || {
        reader.get_mut().left = MAX_ROW_BYTES;
        match reader.read_record(&mut record) {
            Ok(false) => None,
            Ok(true) => {
                let line = record.position().map_or(0, csv::Position::line);
                let row = record.deserialize(Some(&head)).map(|row: Row| Row { between_labels, ..row });
                Some(Ok((line, row.map_err(|error| error.to_string()))))
            }
            Err(error) if error.is_io_error() => Some(Err(error.into())),
            Err(error) => Some(Ok((error.position().map_or(0, csv::Position::line), Err(error.to_string())))),
        }
    }))
}

/// What the head has most of between its names.
fn delimiter(text: &[u8]) -> u8 {
    let head = text.split(|byte| matches!(byte, b'\n' | b'\r')).next().unwrap_or_default();
    let count = |delimiter: u8| head.iter().filter(|byte| **byte == delimiter).count();
    [b'\t', b';', b','].into_iter().max_by_key(|delimiter| count(*delimiter)).unwrap_or(b',')
}

/// Fails when a row has no end.
struct BoundedRows<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Read for BoundedRows<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            std::io::Error::new(ErrorKind::InvalidData, "a row has more than 1 MiB: is a quote never closed?")
        })?;
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
        assert_eq!((*line, first.title.as_str(), first.notes.as_str()), (2, "Sail, mend", "a\nb"));
        assert_eq!(first.labels(), ["x", "y"]);
        assert_eq!(first.due().unwrap().unwrap().to_rfc3339(), "2026-12-01T00:00:00+00:00");
        assert_eq!((first.completed(), rows[1].0), (Ok(true), 4));
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert!(rows(b"name\nx\n").unwrap_err().to_string().contains("title"));
        assert!(rows(b"title,due,Title\na,,b\n").unwrap_err().to_string().contains("`title` 2 times"));
        let rows = rows(b"title,due,completed\na,tomorrow,maybe\nb\n").unwrap();
        let first = rows[0].1.as_ref().unwrap();
        assert!(first.due().unwrap_err().contains("tomorrow") && first.completed().unwrap_err().contains("maybe"));
        assert!(rows[1].1.is_err(), "a row with too few fields");
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
            assert!(first.due().unwrap().is_some());
        }
    }

    #[test]
    fn a_quote_that_is_never_closed_does_not_take_the_whole_file() {
        let text = format!("title\ngood\n\"open\n{}", "line\n".repeat(1 << 20));
        let error = rows(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("quote"), "{error}");
    }
}
