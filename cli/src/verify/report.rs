//! What is checked, and what was found.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use clap::Args;
use contracts::TenantId;
use proto::ops::Which;
use serde::Serialize;
use serde_json::Value;

/// How many of each finding are named; more are only counted.
pub(super) const EXAMPLES: usize = 1_000;

#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// Only this tenant's events and todos.
    #[arg(long)]
    pub(super) tenant: Option<TenantId>,
    /// Only events written, and todos changed, at or after this time (RFC 3339).
    #[arg(long)]
    pub(super) from: Option<DateTime<Utc>>,
    /// Only events written, and todos changed, before this time (RFC 3339).
    #[arg(long)]
    pub(super) to: Option<DateTime<Utc>>,
    #[arg(skip = Which::Searched)]
    pub(super) which: Which,
    /// The most rows to read a second from each source, to spare a running fleet.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) rate: u32,
    /// How long to wait for the projector before checking differences again, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    pub(super) patience: u64,
}

impl VerifyArgs {
    /// The same, of what was written and changed since then.
    pub fn since(&self, from: Option<DateTime<Utc>>) -> Self {
        Self { from: from.or(self.from), ..self.clone() }
    }

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
    pub(super) fn add(&mut self, example: Value) {
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
    pub(super) outbox_rows: u64,
    pub(super) messages: u64,
    pub(super) todos: u64,
    pub(super) documents: u64,
    /// The counts of each tenant in the database and the read model.
    pub tenants: BTreeMap<String, Tenant>,
    /// Committed, and not in the stream.
    pub(super) lost: Findings,
    /// More than once in the stream.
    pub(super) duplicated: Findings,
    /// Behind a newer one of its aggregate.
    pub(super) out_of_order: Findings,
    /// In the stream, but not in the outbox; or different from the outbox.
    pub(super) foreign: Findings,
    /// The read model shows a todo differently from the database, not at all, or one that does not exist.
    pub diverged: Findings,
    /// By design beyond this check: dropped by retention, set aside or confirmed by operators.
    pub(super) outside: Vec<String>,
    /// What could not be checked, and why.
    pub unchecked: Vec<String>,
}

impl Report {
    /// Adds the findings of one service's outbox and stream.
    pub(super) fn add(&mut self, service: &str, of_one: Self) {
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

    /// How many findings there are of all kinds.
    pub fn findings(&self) -> u64 {
        self.kinds().iter().map(|(_, findings)| findings.count).sum()
    }

    pub fn kinds(&self) -> [(&'static str, &Findings); 5] {
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
pub(super) struct Throttle {
    pub(super) rate: f64,
    started: Instant,
    read: f64,
}

impl Throttle {
    pub(super) fn new(rate: u32) -> Self {
        Self { rate: rate.into(), started: Instant::now(), read: 0.0 }
    }

    pub(super) async fn read(&mut self, rows: usize) {
        self.read += rows as f64;
        let due = Duration::from_secs_f64(self.read / self.rate);
        tokio::time::sleep(due.saturating_sub(self.started.elapsed())).await;
    }
}
