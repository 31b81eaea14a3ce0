//! `flotilla import`: a file of todos through the public API. The idempotency keys come from the content, so an import
//! that was killed, or is run again within a day, writes nothing twice.

use std::collections::HashMap;
use std::fs::File;
use std::io::IsTerminal as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail};
use chrono::{NaiveTime, SecondsFormat};
use clap::{Args, ValueEnum};
use futures::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::{Answer, Api, Who};
use crate::stack::Context;
use crate::{todo_csv, todo_txt};

/// The namespace of the keys: a UUIDv5 of tenant, content and which of equal lines it is.
const KEYS: Uuid = Uuid::from_u128(0x0193_a5b0_7a52_7c3e_9b1e_6a1f_0c9d_2e4f);

#[derive(Debug, Clone, Args)]
pub struct ImportArgs {
    /// The file: todo.txt, or CSV with a head of title, notes, labels, due, assignee, completed.
    file: PathBuf,
    #[command(flatten)]
    who: Who,
    /// What the file is; by its name if not said.
    #[arg(long)]
    format: Option<Format>,
    /// How many writes may be under way.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,
}

#[derive(Debug, Clone, Copy, ValueEnum, PartialEq, Eq)]
enum Format {
    /// One task a line.
    TodoTxt,
    /// Comma-separated values with a head.
    Csv,
}

/// A todo to write.
#[derive(Debug, Clone, PartialEq)]
struct Item {
    line: u64,
    key: Uuid,
    body: Value,
    completed: bool,
}

/// What became of a line.
enum Outcome {
    /// It is there; whether it was before.
    Written(bool),
    Refused(u64, String),
}

/// The largest file that is read.
const MAX_FILE_BYTES: u64 = 256 << 20;

fn read_file(file: &Path) -> Result<Vec<u8>, anyhow::Error> {
    let mut text = Vec::new();
    let mut read = || File::open(file)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut text);
    read().with_context(|| format!("reading {}", file.display()))?;
    let fits = u64::try_from(text.len()).is_ok_and(|length| length <= MAX_FILE_BYTES);
    anyhow::ensure!(fits, "{} has more than {} MiB: split it", file.display(), MAX_FILE_BYTES >> 20);
    Ok(text)
}

pub async fn run(context: &Context, args: &ImportArgs) -> Result<(), anyhow::Error> {
    let text = read_file(&args.file)?;
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&text);
    let format = args.format.unwrap_or_else(|| {
        let csv = args.file.extension().is_some_and(|end| end.eq_ignore_ascii_case("csv"));
        if csv { Format::Csv } else { Format::TodoTxt }
    });
    let (items, mut refused) = read(text, format, args.who.tenant.as_str())?;
    let api = Api::new(context, args.who.tenant.as_str(), args.who.user.as_str())?;
    let bar = progress(items.len() as u64, context.json);
    let started = Instant::now();
    let (mut written, mut replayed) = (0_u64, 0_u64);
    let mut answers = futures::stream::iter(items.into_iter().map(|item| write(&api, item)))
        .buffer_unordered(usize::from(args.concurrency));
    while let Some(outcome) = answers.next().await {
        match outcome? {
            Outcome::Written(before) => {
                written += 1;
                replayed += u64::from(before);
            }
            Outcome::Refused(line, why) => refused.push((line, why)),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    refused.sort();
    let seconds = started.elapsed().as_secs_f64();
    if context.json {
        let refused: Vec<Value> = refused.iter().map(|(line, why)| json!({"line": line, "reason": why})).collect();
        println!("{}", json!({"written": written, "replayed": replayed, "refused": refused, "seconds": seconds}));
    } else {
        for (line, why) in &refused {
            println!("line {line}: left out: {why}");
        }
        println!(
            "{written} todos written to {} in {seconds:.1} s ({:.0} a second), {} lines left out.",
            args.who.tenant,
            written as f64 / seconds.max(0.001),
            refused.len()
        );
        if replayed > 0 {
            println!(
                "Of these, {replayed} had been written before by equal lines of this tenant and user within a day, or their \
                 answer was lost on its way: nothing was written for them now, and one that was deleted since stays deleted."
            );
        }
    }
    Ok(())
}

fn progress(total: u64, json: bool) -> ProgressBar {
    if json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {eta}") {
        bar.set_style(style);
    }
    bar
}

/// A line, and what to write for it and whether it is completed, or what is wrong with it.
type Body = (u64, Result<(Value, bool), String>);
type Refused = Vec<(u64, String)>;

fn read(text: &[u8], format: Format, tenant: &str) -> Result<(Vec<Item>, Refused), anyhow::Error> {
    let mut seen: HashMap<String, u32> = HashMap::new();
    let (mut items, mut refused) = (Vec::new(), Vec::new());
    let bodies: Vec<Body> = match format {
        Format::TodoTxt => (1..)
            .zip(text.split(|byte| *byte == b'\n'))
            .filter(|(_, line)| !line.trim_ascii().is_empty())
            .map(|(number, line)| {
                let line = std::str::from_utf8(line).map_err(|_| "it is not UTF-8".to_owned());
                (number, line.and_then(todo_txt::parse).map(|task| task_body(&task)))
            })
            .collect(),
        Format::Csv => {
            todo_csv::rows(text)?.into_iter().map(|(line, row)| (line, row.and_then(|row| row_body(&row)))).collect()
        }
    };
    for (line, body) in bodies {
        match body.and_then(|(body, completed)| checked(body).map(|body| (body, completed))) {
            Ok((body, completed)) => {
                // Equal lines are different todos: the first, the second, and so on.
                let content = format!("{body}{completed}");
                let count = seen.entry(content.clone()).and_modify(|count| *count += 1).or_insert(1);
                let key = Uuid::new_v5(&KEYS, format!("{tenant}\n{count}\n{content}").as_bytes());
                items.push(Item { line, key, body, completed });
            }
            Err(why) => refused.push((line, why)),
        }
    }
    Ok((items, refused))
}

/// What can be said without asking the fleet.
fn checked(body: Value) -> Result<Value, String> {
    let title = body["title"].as_str().unwrap_or_default().trim().chars().count();
    match title {
        0 => Err("there is no title".to_owned()),
        1..=500 => Ok(body),
        _ => Err(format!("the title has {title} characters, at most 500 are taken")),
    }
}

fn task_body(task: &todo_txt::Task) -> (Value, bool) {
    let mut dates = Vec::new();
    dates.extend(task.created.map(|date| format!("created {date}")));
    dates.extend(task.completed_on.map(|date| format!("completed {date}")));
    let notes = if dates.is_empty() { String::new() } else { format!("todo.txt: {}", dates.join(", ")) };
    let mut body = json!({"title": task.title, "notes": notes, "labels": task.labels});
    if let Some(due) = task.due {
        body["dueTime"] = due.and_time(NaiveTime::MIN).and_utc().to_rfc3339_opts(SecondsFormat::Secs, true).into();
    }
    (body, task.completed)
}

fn row_body(row: &todo_csv::Row) -> Result<(Value, bool), String> {
    let mut body =
        json!({"title": row.title, "notes": row.notes, "labels": row.labels(), "assignee": row.assignee.trim()});
    if let Some(due) = row.due()? {
        body["dueTime"] = due.to_rfc3339_opts(SecondsFormat::Secs, true).into();
    }
    Ok((body, row.completed()?))
}

async fn write(api: &Api, item: Item) -> Result<Outcome, anyhow::Error> {
    let refused = |answer: &Answer| {
        let why = answer.body["detail"].as_str().unwrap_or("no reason given").to_owned();
        match answer.status {
            // Of no use to go on: the next line would fare no better.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => bail!("the fleet refuses: {why}"),
            _ => Ok(Outcome::Refused(item.line, why)),
        }
    };
    let created = api.write("/v1/todos", &item.key.to_string(), &item.body).await?;
    if !created.status.is_success() {
        return refused(&created);
    }
    if item.completed {
        let id = created.body["id"].as_str().context("a todo has an id")?;
        let key = Uuid::new_v5(&item.key, b"complete").to_string();
        let completed = api.write(&format!("/v1/todos/{id}:complete"), &key, &json!({})).await?;
        // Completed after all, by an earlier import whose keys are forgotten.
        if !completed.status.is_success() && completed.body["code"] != "TODO_ALREADY_COMPLETED" {
            return refused(&completed);
        }
    }
    Ok(Outcome::Written(created.replayed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_follow_from_the_content_and_equal_lines_are_different_todos() {
        let text = "Buy rope\nBuy rope\n\nBuy tar";
        let read = |text: &str, format, tenant| read(text.as_bytes(), format, tenant);
        let (first, _) = read(text, Format::TodoTxt, "acme").unwrap();
        let (again, _) = read(text, Format::TodoTxt, "acme").unwrap();
        assert_eq!(first, again);
        assert_eq!(first.iter().map(|item| item.line).collect::<Vec<_>>(), [1, 2, 4]);
        assert_ne!(first[0].key, first[1].key);
        let (other, _) = read(text, Format::TodoTxt, "globex").unwrap();
        assert_ne!(first[0].key, other[0].key);
        // A line more before it does not change a line's key.
        let (longer, _) = read(&format!("New first line\n{text}"), Format::TodoTxt, "acme").unwrap();
        assert_eq!(longer[3].key, first[2].key);
    }

    #[test]
    fn a_line_that_is_not_utf_8_is_left_out_alone() {
        let (items, refused) = read(b"Buy rope\nCaf\xe9\r\nBuy tar", Format::TodoTxt, "acme").unwrap();
        assert_eq!(items.iter().map(|item| item.line).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(refused, [(2, "it is not UTF-8".to_owned())]);
    }

    #[test]
    fn the_shipped_samples_are_read_as_they_should() {
        let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/../samples/");
        let read_file = |name: &str| std::fs::read(format!("{samples}{name}")).unwrap();
        let (items, refused) = read(&read_file("todo.txt"), Format::TodoTxt, "acme").unwrap();
        assert!(items.len() > 300 && refused.is_empty(), "{refused:?}");
        assert!(items.iter().any(|item| item.completed));
        let (items, refused) = read(&read_file("todos.csv"), Format::Csv, "acme").unwrap();
        assert_eq!((items.len(), refused), (40, Vec::new()));
        let (items, refused) = read(&read_file("malformed.txt"), Format::TodoTxt, "acme").unwrap();
        assert_eq!(items.len(), 6);
        assert_eq!(refused.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 5, 7, 9]);
    }
}
