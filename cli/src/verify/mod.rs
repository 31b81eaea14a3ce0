//! `flotilla verify`: whether outbox, stream and read model agree, live or at rest.
//!
//! Every row of the outbox up to the one that the stream's last message carries must be in the stream, once, as it is,
//! and no later than a newer one of its aggregate; nothing else may be there. Every todo must be in the index as the
//! database has it, and nothing else may be there. What differs is checked again once the projector has handled what
//! was in the stream by then: a working fleet is always moments behind.
//!
//! Memory is bounded: rows and messages are merged in chunks, and some thousand examples of each finding are kept.

pub mod index;
mod stream;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use clap::Args;
use contracts::TenantId;
pub use fleet::PROJECTOR;
use proto::ops::Which;
use serde::Serialize;
use serde_json::Value;

use crate::exit::Exit;
use crate::stack::Context;

/// How many of each finding are named; more are only counted.
const EXAMPLES: usize = 1_000;

#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// Only this tenant's events and todos.
    #[arg(long)]
    tenant: Option<TenantId>,
    /// Only events written, and todos changed, at or after this time (RFC 3339).
    #[arg(long)]
    from: Option<DateTime<Utc>>,
    /// Only events written, and todos changed, before this time (RFC 3339).
    #[arg(long)]
    to: Option<DateTime<Utc>>,
    #[arg(skip = Which::Searched)]
    which: Which,
    /// The most rows to read a second from each source, to spare a running fleet.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// How long to wait for the projector before checking differences again, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    patience: u64,
}

impl VerifyArgs {
    /// Everything of one read model, at full speed.
    pub const fn of_index(which: Which) -> Self {
        Self { tenant: None, from: None, to: None, which, rate: 1_000_000, patience: 60 }
    }
}

/// The findings of one kind.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Findings {
    /// How many.
    pub count: u64,
    /// The first of them.
    pub examples: Vec<Value>,
}

impl Findings {
    fn add(&mut self, example: Value) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(example);
        }
    }
}

/// The counts of one tenant, deleted todos and their tombstones included.
#[derive(Debug, Default, Serialize)]
pub struct Tenant {
    /// In the database.
    pub todos: u64,
    /// In the read model.
    pub documents: u64,
    /// How many of them are not the same.
    pub differing: u64,
}

/// What was checked, and what is wrong.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    outbox_rows: u64,
    messages: u64,
    todos: u64,
    documents: u64,
    /// The counts of each tenant in the database and the read model.
    pub tenants: BTreeMap<String, Tenant>,
    /// Committed, and not in the stream.
    lost: Findings,
    /// More than once in the stream.
    duplicated: Findings,
    /// Behind a newer one of its aggregate.
    out_of_order: Findings,
    /// In the stream, but not in the outbox; or different from the outbox.
    foreign: Findings,
    /// The read model shows a todo differently from the database, not at all, or one that does not exist.
    pub diverged: Findings,
    /// By design beyond this check: dropped by retention, set aside or confirmed by operators.
    outside: Vec<String>,
    /// What could not be checked, and why.
    pub unchecked: Vec<String>,
}

impl Report {
    /// Adds the findings of one service's outbox and stream.
    fn add(&mut self, service: &str, of_one: Self) {
        self.outbox_rows += of_one.outbox_rows;
        self.messages += of_one.messages;
        let lines = |lines: Vec<String>| lines.into_iter().map(move |line| format!("{service}: {line}"));
        self.outside.extend(lines(of_one.outside));
        self.unchecked.extend(lines(of_one.unchecked));
        for (all, found) in [
            (&mut self.lost, of_one.lost),
            (&mut self.duplicated, of_one.duplicated),
            (&mut self.out_of_order, of_one.out_of_order),
            (&mut self.foreign, of_one.foreign),
        ] {
            let more = found.count - found.examples.len() as u64;
            for mut example in found.examples {
                example["service"] = service.into();
                all.add(example);
            }
            all.count += more;
        }
    }

    fn kinds(&self) -> [(&'static str, &Findings); 5] {
        [
            ("lost", &self.lost),
            ("duplicated", &self.duplicated),
            ("out of order", &self.out_of_order),
            ("foreign", &self.foreign),
            ("diverged", &self.diverged),
        ]
    }
}

/// Limits the rate of reading.
struct Throttle {
    rate: f64,
    started: Instant,
    read: f64,
}

impl Throttle {
    fn new(rate: u32) -> Self {
        Self { rate: rate.into(), started: Instant::now(), read: 0.0 }
    }

    async fn read(&mut self, rows: usize) {
        self.read += rows as f64;
        let due = Duration::from_secs_f64(self.read / self.rate);
        tokio::time::sleep(due.saturating_sub(self.started.elapsed())).await;
    }
}

pub async fn run(context: &Context, args: &VerifyArgs) -> Result<(), anyhow::Error> {
    let started = Instant::now();
    let mut report = Report::default();
    // Report what is unavailable, and check the rest all the same.
    for service in fleet::producers() {
        let mut of_one = Report::default();
        if let Err(error) = stream::verify(context, args, service, &mut of_one).await {
            of_one.unchecked.push(format!("outbox and stream: {error:#}"));
        }
        report.add(service, of_one);
    }
    if let Err(error) = index::verify(context, args, PROJECTOR, &mut report).await {
        report.unchecked.push(format!("the read model: {error:#}"));
    }
    if context.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report, started.elapsed());
    }
    let found: u64 = report.kinds().iter().map(|(_, findings)| findings.count).sum();
    let silent = |text: String| if context.json { String::new() } else { text };
    if found > 0 {
        return Err(Exit::found(silent(format!("{found} findings"))).into());
    }
    if !report.unchecked.is_empty() {
        return Err(Exit::unchecked(silent("not everything could be checked".to_owned())).into());
    }
    Ok(())
}

fn print(report: &Report, took: Duration) {
    const SHOWN: usize = 20;
    println!(
        "Compared {} rows of the outbox with {} messages, and {} todos with {} documents, in {:.1} s.",
        report.outbox_rows,
        report.messages,
        report.todos,
        report.documents,
        took.as_secs_f64()
    );
    for (kind, findings) in report.kinds() {
        println!("{:>8} {kind}", findings.count);
        for example in findings.examples.iter().take(SHOWN) {
            println!("         {example}");
        }
        if findings.count > SHOWN as u64 {
            println!("         ... and {} more; --json names {EXAMPLES}", findings.count - SHOWN as u64);
        }
    }
    for line in &report.outside {
        println!("outside:     {line}");
    }
    for line in &report.unchecked {
        println!("NOT CHECKED: {line}");
    }
}
