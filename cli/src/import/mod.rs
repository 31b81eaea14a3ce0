//! `flotilla import`: a file of todos through the public API. The idempotency keys come from the content, so an import
//! that was killed, or runs again within a day, writes nothing twice.

mod limits;
mod members;
mod todo_csv;
mod todo_txt;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal as _};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use chrono::{NaiveTime, SecondsFormat};
use clap::{Args, ValueEnum};
use futures::{StreamExt as _, TryStreamExt as _};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use uuid::Uuid;

use limits::Bounded;
use members::Members;

use crate::api::{Answer, Api, Who};
use crate::context::Context;
use crate::exit::Exit;

/// The namespace of the keys: a UUIDv5 of tenant, content and which of equal lines it is.
const KEYS: Uuid = Uuid::from_u128(0x0193_a5b0_7a52_7c3e_9b1e_6a1f_0c9d_2e4f);
/// The largest file that is read.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// The most todos of a file: each is remembered, so that equal lines become different todos.
const MAX_ITEMS: usize = 5_000_000;
/// Why a line is left out that was written before, of the same content.
const REUSED: &str = "it was written within a day, when its assignee was a member and is none now, or the other way round: that todo stays as it is";
/// How many omitted lines keep their reason; the others are only counted.
const MAX_REASONS: usize = 1_000;

#[derive(Debug, Clone, Args)]
pub struct ImportArgs {
    /// The file: todo.txt (with `rec:1w` or `rec:+1w` beside `due:`, a task recurs), or CSV with a header of title, notes, labels,
    /// due, assignee (a member's user or e-mail address; anybody else goes into the notes), completed.
    file: PathBuf,
    #[command(flatten)]
    who: Who,
    /// The file's format; by default its name decides.
    #[arg(long)]
    format: Option<Format>,
    /// Ignore CSV columns that no todo has, instead of refusing the file.
    #[arg(long)]
    ignore_other_columns: bool,
    /// How many writes may run at once; with 1, todos are created in the file's order (lists show the newest first).
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,
}

#[derive(Debug, Clone, Copy, ValueEnum, PartialEq, Eq)]
enum Format {
    /// One task per line.
    TodoTxt,
    /// Values separated by commas, semicolons or tabs, with a header.
    Csv,
}

/// A todo to create.
#[derive(Debug, Clone, PartialEq)]
struct Item {
    line: u64,
    key: Uuid,
    body: Value,
    completed: bool,
    remarks: Vec<String>,
}

/// What became of a line.
enum Outcome {
    /// It exists; whether it did before, and the remarks about it.
    Written(bool, u64, Vec<String>),
    Refused(u64, String),
}

/// Lines with remarks.
#[derive(Default)]
struct Said {
    count: u64,
    reasons: Vec<(u64, String)>,
}

impl Said {
    fn add(&mut self, line: u64, why: String) {
        self.count += 1;
        if self.reasons.len() < MAX_REASONS {
            self.reasons.push((line, why));
        }
    }
}

pub async fn run(context: &Context, args: &ImportArgs) -> Result<(), anyhow::Error> {
    let file = File::open(&args.file).with_context(|| format!("reading {}", args.file.display()))?;
    let bytes = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|of| of.len());
    // Before anything is written, where that is known.
    ensure!(bytes.is_none_or(|bytes| bytes <= MAX_FILE_BYTES), "{}: {}", args.file.display(), too_large());
    let bar = progress(bytes, context.json);
    let format = args.format.unwrap_or_else(|| {
        let csv = args.file.extension().is_some_and(|end| end.eq_ignore_ascii_case("csv"));
        if csv { Format::Csv } else { Format::TodoTxt }
    });
    let text = BufReader::new(Bounded { reader: bar.wrap_read(file), left: MAX_FILE_BYTES, beyond: too_large });
    let (tenant, ignore) = (args.who.tenant.as_str().to_owned(), args.ignore_other_columns);
    let (sender, mut lines) = mpsc::channel(1_024);
    // A file may be a pipe that is silent for long: writes under way go on meanwhile.
    let reading = tokio::task::spawn_blocking(move || -> Result<(), anyhow::Error> {
        for line in items(text, format, ignore, &tenant)? {
            if sender.blocking_send(line?).is_err() {
                break;
            }
        }
        Ok(())
    });
    let api = Api::new(context, args.who.tenant.as_str(), args.who.user.as_str()).await?;
    let members = match format {
        Format::Csv => Members::read(&api).await?,
        Format::TodoTxt => Members::default(),
    };
    let started = Instant::now();
    let (mut written, mut replayed) = (0_u64, 0_u64);
    let (mut left_out, mut remarks) = (Said::default(), Said::default());
    let sent = {
        let lines = futures::stream::poll_fn(|cx| lines.poll_recv(cx)).map(Ok::<_, anyhow::Error>);
        let write_one = async |line: Line| match line {
            Ok(mut item) => {
                // Behind the key: a line is the same one whoever is a member.
                item.remarks.extend(members.assign(&mut item.body));
                write(&api, item).await
            }
            Err((number, why)) => Ok(Outcome::Refused(number, why)),
        };
        let mut outcomes = std::pin::pin!(lines.map_ok(write_one).try_buffer_unordered(usize::from(args.concurrency)));
        loop {
            match outcomes.try_next().await {
                Ok(Some(Outcome::Written(before, line, said))) => {
                    written += 1;
                    replayed += u64::from(before);
                    said.into_iter().for_each(|what| remarks.add(line, what));
                }
                Ok(Some(Outcome::Refused(line, why))) => left_out.add(line, why),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        }
    };
    drop(lines);
    bar.finish_and_clear();
    let read = match &sent {
        Ok(()) => reading.await?.with_context(|| format!("reading {}", args.file.display())),
        // A pipe may keep its reader waiting for ever.
        Err(_) => Ok(()),
    };
    left_out.reasons.sort();
    remarks.reasons.sort();
    report(context, args, (written, replayed), (&left_out, &remarks), started.elapsed().as_secs_f64());
    sent.and(read)?;
    if left_out.count > 0 {
        return Err(Exit::unfinished(format!("{} lines were left out", left_out.count)).into());
    }
    Ok(())
}

fn report(
    context: &Context,
    args: &ImportArgs,
    (written, replayed): (u64, u64),
    (Said { count, reasons }, remarks): (&Said, &Said),
    seconds: f64,
) {
    if context.json {
        let lines = |said: &[(u64, String)]| {
            said.iter().map(|(line, why)| json!({"line": line, "reason": why})).collect::<Vec<Value>>()
        };
        let (refused, remarks) = (lines(reasons), lines(&remarks.reasons));
        let counts = json!({"written": written, "replayed": replayed, "leftOut": count, "refused": refused,
            "remarks": remarks, "seconds": seconds});
        println!("{counts}");
        return;
    }
    for (line, why) in reasons {
        println!("line {line}: left out: {why}");
    }
    if *count > reasons.len() as u64 {
        println!("and {} more", count - reasons.len() as u64);
    }
    for (line, what) in &remarks.reasons {
        println!("line {line}: taken, but {what}");
    }
    if remarks.count > remarks.reasons.len() as u64 {
        println!("and {} more", remarks.count - remarks.reasons.len() as u64);
    }
    println!(
        "{written} todos written to {} in {seconds:.1} s ({:.0} a second), {count} lines left out.",
        args.who.tenant,
        written as f64 / seconds.max(0.001),
    );
    if replayed > 0 {
        println!(
            "Of these, {replayed} had been written before by equal lines of this tenant and user within a day, or their \
             answer was lost on its way: nothing was written for them now, and one that was deleted since stays deleted."
        );
    }
}

/// How much of the file is read, where its length is known.
fn progress(bytes: Option<u64>, json: bool) -> ProgressBar {
    let (Some(bytes), true) = (bytes, !json && std::io::stderr().is_terminal()) else { return ProgressBar::hidden() };
    let bar = ProgressBar::new(bytes);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {eta}") {
        bar.set_style(style);
    }
    bar
}

fn too_large() -> String {
    format!(
        "it has more than {} MiB: split it. Of lines that are equal in two parts, the second is taken for the first again, for a day",
        MAX_FILE_BYTES >> 20
    )
}

/// What to write for a line, whether it is completed, and the remarks about it.
type Wanted = (Value, bool, Vec<String>);
/// A line, and what to write for it, or what is wrong with it.
type Body = (u64, Result<Wanted, String>);
/// What to write, or the omitted line and why.
type Line = Result<Item, (u64, String)>;

/// What to write for each line, as it is read.
fn items(
    mut text: impl BufRead + 'static,
    format: Format,
    ignore_other_columns: bool,
    tenant: &str,
) -> Result<impl Iterator<Item = Result<Line, anyhow::Error>>, anyhow::Error> {
    if text.fill_buf()?.starts_with("\u{feff}".as_bytes()) {
        text.consume(3);
    }
    let bodies: Box<dyn Iterator<Item = Result<Body, anyhow::Error>>> = match format {
        Format::TodoTxt => Box::new(todo_txt::tasks(text).map(|task| {
            let (line, task) = task?;
            Ok((line, task.map(task_body)))
        })),
        Format::Csv => Box::new(todo_csv::rows(text, ignore_other_columns)?.map(|row| {
            let (line, row) = row?;
            Ok((line, row.and_then(|row| row_body(&row)).map(|(body, completed)| (body, completed, Vec::new()))))
        })),
    };
    let (tenant, mut seen) = (tenant.to_owned(), HashMap::<Uuid, u32>::new());
    Ok(bodies.map(move |body| {
        let (line, body) = body?;
        let checked = |(body, completed, remarks)| Ok((checked(body)?, completed, remarks));
        let (body, completed, remarks) = match body.and_then(checked) {
            Ok(body) => body,
            Err(why) => return Ok(Err((line, why))),
        };
        // Equal lines are different todos: the first, the second, and so on.
        let content = format!("{body}{completed}");
        ensure!(seen.len() < MAX_ITEMS, "it holds more than {MAX_ITEMS} todos: split it");
        let count = seen.entry(Uuid::new_v5(&KEYS, content.as_bytes())).and_modify(|count| *count += 1).or_insert(1);
        let key = Uuid::new_v5(&KEYS, format!("{tenant}\n{count}\n{content}").as_bytes());
        Ok(Ok(Item { line, key, body, completed, remarks }))
    }))
}

/// The problems that can be found without the fleet.
fn checked(body: Value) -> Result<Value, String> {
    let title = body["title"].as_str().unwrap_or_default().trim().chars().count();
    match title {
        0 => Err("there is no title".to_owned()),
        1..=500 => Ok(body),
        _ => Err(format!("the title has {title} characters, at most 500 are taken")),
    }
}

fn task_body(task: todo_txt::Task) -> Wanted {
    let mut dates = Vec::new();
    dates.extend(task.created.map(|date| format!("created {date}")));
    dates.extend(task.completed_on.map(|date| format!("completed {date}")));
    let notes = if dates.is_empty() { String::new() } else { format!("todo.txt: {}", dates.join(", ")) };
    let mut body = json!({"title": task.title, "notes": notes, "labels": task.labels});
    if let Some(due) = task.due {
        body["dueTime"] = due.and_time(NaiveTime::MIN).and_utc().to_rfc3339_opts(SecondsFormat::Secs, true).into();
    }
    if let Some(todo_txt::Recurs { rule, from_due }) = &task.recurs {
        // Dates are taken as midnight UTC, and so go on by that clock.
        let basis = if *from_due { "DUE_TIME" } else { "COMPLETION" };
        body["recurrence"] = json!({"rule": rule, "timeZone": "UTC", "basis": basis});
    }
    (body, task.completed, task.remarks)
}

fn row_body(row: &todo_csv::Row) -> Result<(Value, bool), String> {
    let mut body =
        json!({"title": row.title, "notes": row.notes(), "labels": row.labels(), "assignee": row.assignee.trim()});
    if let Some(due) = row.due() {
        body["dueTime"] = due.to_rfc3339_opts(SecondsFormat::Secs, true).into();
    }
    Ok((body, row.completed()?))
}

async fn write(api: &Api, item: Item) -> Result<Outcome, anyhow::Error> {
    let refused = |answer: &Answer| {
        let why = match answer.body["code"].as_str() {
            Some("IDEMPOTENCY_KEY_REUSED") => REUSED,
            _ => answer.body["detail"].as_str().unwrap_or("no reason given"),
        };
        let why = why.to_owned();
        match answer.status {
            // Stop: the next line would fail as well.
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
        // An earlier import, whose keys are forgotten, completed it after all.
        if !completed.status.is_success() && completed.body["code"] != "TODO_ALREADY_COMPLETED" {
            return refused(&completed);
        }
    }
    Ok(Outcome::Written(created.replayed, item.line, item.remarks))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Sorted = (Vec<Item>, Vec<(u64, String)>);

    fn read(text: &[u8], format: Format, tenant: &str) -> Result<Sorted, anyhow::Error> {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for line in items(std::io::Cursor::new(text.to_vec()), format, false, tenant)? {
            match line? {
                Ok(item) => good.push(item),
                Err(left_out) => bad.push(left_out),
            }
        }
        Ok((good, bad))
    }

    #[test]
    fn keys_follow_from_the_content_and_equal_lines_are_different_todos() {
        let text = "Buy rope\nBuy rope\n\nBuy tar";
        let read = |text: &str, tenant| read(text.as_bytes(), Format::TodoTxt, tenant).unwrap().0;
        let first = read(text, "acme");
        assert_eq!(first, read(text, "acme"));
        assert_eq!(first.iter().map(|item| item.line).collect::<Vec<_>>(), [1, 2, 4]);
        assert_ne!(first[0].key, first[1].key);
        assert_ne!(first[0].key, read(text, "globex")[0].key);
        // A line more before it does not change a line's key.
        let longer = read(&format!("New first line\n{text}"), "acme");
        assert_eq!(longer[3].key, first[2].key);
        // Nor does a byte order mark, or another kind of line end.
        assert_eq!(read("\u{feff}Buy rope\rBuy rope\r\rBuy tar\r", "acme"), first);
    }

    #[test]
    fn a_line_that_is_not_utf_8_is_left_out_alone() {
        let (items, refused) = read(b"Buy rope\nCaf\xe9\r\nBuy tar", Format::TodoTxt, "acme").unwrap();
        assert_eq!(items.iter().map(|item| item.line).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(refused, [(2, "it is not UTF-8".to_owned())]);
    }

    #[test]
    fn a_file_that_never_ends_is_read_to_its_bound() {
        for (byte, format) in [(b'a', Format::TodoTxt), (b'\n', Format::TodoTxt), (b'a', Format::Csv)] {
            let endless = BufReader::new(Bounded { reader: std::io::repeat(byte), left: 3 << 20, beyond: too_large });
            let error =
                items(endless, format, false, "acme").and_then(|mut lines| lines.try_for_each(|line| line.map(drop)));
            let error = format!("{:#}", error.unwrap_err());
            assert!(error.contains("MiB"), "{error}");
        }
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
        assert_eq!(refused.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 5, 9]);
        assert_eq!(items.len(), 7);
    }
}
