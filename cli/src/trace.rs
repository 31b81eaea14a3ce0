//! `flotilla trace`: the log lines of one trace from all services. An answer's `trace-id` header, a problem's `traceId`, an event's
//! `traceparent` and a dead letter name it.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};

use anyhow::Context as _;
use clap::Args;
use serde_json::{Map, Value};

use crate::context::Context;
use crate::exit::Exit;
use crate::table;

/// The most lines shown of one log: external callers name traces as they like.
const MAX_LINES: usize = 10_000;
/// The longest line that is read.
const MAX_LINE_BYTES: u64 = 1 << 20;

#[derive(Debug, Clone, Args)]
pub struct TraceArgs {
    /// The trace id: 32 hex digits, or a whole traceparent.
    #[arg(value_parser = trace_id)]
    id: String,
}

fn trace_id(text: &str) -> Result<String, String> {
    let text = text.to_ascii_lowercase();
    // Accept a whole traceparent, too.
    let id = text.split('-').nth(1).unwrap_or(&text);
    let is_one = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
    is_one.then(|| id.to_owned()).ok_or_else(|| "a trace id is 32 hex digits, as the header trace-id has it".to_owned())
}

pub fn run(context: &Context, args: &TraceArgs) -> Result<(), anyhow::Error> {
    context.only_here("a log file")?;
    let folder = context.home.join("logs");
    let mut lines = Vec::new();
    for entry in folder.read_dir().with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "log") {
            let log = File::open(&path).with_context(|| format!("reading {}", path.display()))?;
            let found = of(BufReader::new(log), &args.id)?;
            if found.len() == MAX_LINES {
                eprintln!("{} has more lines of this trace: the first {MAX_LINES} are shown", path.display());
            }
            lines.extend(found);
        }
    }
    // RFC 3339 in UTC with equally many digits: text order is time order.
    lines.sort_by(|one, other| text(one, "timestamp").cmp(text(other, "timestamp")));
    if lines.is_empty() {
        let message =
            "no log line names this trace: is it of this fleet, and of the share that is logged (FLOTILLA_SAMPLE)?";
        return Err(Exit::unfinished(message.to_owned()).into());
    }
    if context.json {
        lines.iter().for_each(|line| println!("{}", Value::Object(line.clone())));
    } else {
        let rows: Vec<_> = lines.iter().map(row).collect();
        table::print(&["AT (UTC)", "SERVICE", "WHAT", "OUTCOME", "MS", "TENANT", "DETAIL"], &rows);
    }
    Ok(())
}

/// The lines of a log that name a trace, by itself or among others.
fn of(mut log: impl std::io::BufRead, trace_id: &str) -> Result<Vec<Map<String, Value>>, anyhow::Error> {
    let (mut lines, mut line) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        if log.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
            return Ok(lines);
        }
        let names = line.windows(trace_id.len()).any(|part| part == trace_id.as_bytes());
        let Some(Value::Object(line)) = names.then(|| serde_json::from_slice(&line).ok()).flatten() else { continue };
        let named = text(&line, "trace_id") == trace_id || text(&line, "trace_ids").split(',').any(|id| id == trace_id);
        if named {
            lines.push(line);
        }
        if lines.len() == MAX_LINES {
            return Ok(lines);
        }
    }
}

fn text<'a>(line: &'a Map<String, Value>, name: &str) -> &'a str {
    line.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn row(line: &Map<String, Value>) -> Vec<String> {
    const SHOWN: [&str; 13] = [
        "timestamp",
        "service",
        "release",
        "level",
        "target",
        "message",
        "method",
        "outcome",
        "duration_ms",
        "tenant",
        "trace_id",
        "trace_ids",
        "span",
    ];
    let at = text(line, "timestamp");
    let at = at.split_once('T').map_or(at, |(_, time)| time.trim_end_matches('Z'));
    let what = [text(line, "message"), text(line, "method")].join(" ");
    let outcome = if line.contains_key("outcome") { text(line, "outcome") } else { text(line, "level") };
    let duration = line.get("duration_ms").and_then(Value::as_f64);
    let rest = line.iter().filter(|(name, _)| !SHOWN.contains(&name.as_str()));
    let rest = rest
        .map(|(name, value)| format!("{name}={}", value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)));
    vec![
        at.to_owned(),
        text(line, "service").to_owned(),
        what.trim().to_owned(),
        outcome.to_owned(),
        duration.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}")),
        text(line, "tenant").to_owned(),
        rest.collect::<Vec<_>>().join(" "),
    ]
}

#[cfg(test)]
mod tests {
    use super::{of, trace_id};

    #[test]
    fn lines_that_name_a_trace_are_found_and_nothing_else() {
        let (ours, other) = ("4bf92f3577b34da6a3ce929d0e0e4736", "5bf92f3577b34da6a3ce929d0e0e4736");
        let log = format!(
            "{{\"message\":\"one\",\"trace_id\":\"{ours}\"}}\nnot JSON {ours}\n{{\"message\":\"other\",\"trace_id\":\"{other}\"}}\n\
             {{\"message\":\"batch\",\"trace_ids\":\"{other},{ours}\"}}\n{{\"message\":\"text\",\"reason\":\"{ours}\"}}\n{{\"trace_id\":\"{ours}"
        );
        let found: Vec<_> = of(log.as_bytes(), ours).unwrap().into_iter().map(|line| line["message"].clone()).collect();
        assert_eq!(found, ["one", "batch"]);
        assert_eq!(trace_id(&format!("00-{ours}-00f067aa0ba902b7-01")).as_deref(), Ok(ours));
        assert_eq!(trace_id(&ours.to_uppercase()).as_deref(), Ok(ours));
        assert!(trace_id("4bf9").is_err() && trace_id(&"g".repeat(32)).is_err());
    }
}
