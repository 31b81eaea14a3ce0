//! Todos as CSV: a head with `title` and any of `notes`, `labels` (separated by `;`), `due` (a date or RFC 3339 time),
//! `assignee` and `completed` (true or false).

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
}

impl Row {
    pub fn labels(&self) -> Vec<String> {
        self.labels.split(';').map(str::trim).filter(|label| !label.is_empty()).map(ToOwned::to_owned).collect()
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

/// The rows of a file, each with the line it starts on.
///
/// # Errors
/// The head names no title.
pub fn rows(text: &[u8]) -> Result<Vec<Numbered>, anyhow::Error> {
    let mut reader = csv::ReaderBuilder::new().flexible(false).trim(csv::Trim::Headers).from_reader(text);
    let head = reader.headers()?.clone();
    anyhow::ensure!(head.iter().any(|name| name == "title"), "the first line of the CSV must name a column `title`");
    let mut rows = Vec::new();
    for record in reader.records() {
        match record {
            Ok(record) => {
                let line = record.position().map_or(0, csv::Position::line);
                rows.push((line, record.deserialize(Some(&head)).map_err(|error| error.to_string())));
            }
            Err(error) => {
                let line = error.position().map_or(0, csv::Position::line);
                rows.push((line, Err(error.to_string())));
            }
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let rows = rows(b"title,due,completed\na,tomorrow,maybe\nb\n").unwrap();
        let first = rows[0].1.as_ref().unwrap();
        assert!(first.due().unwrap_err().contains("tomorrow") && first.completed().unwrap_err().contains("maybe"));
        assert!(rows[1].1.is_err(), "a row with too few fields");
    }
}
