//! `flotilla verify`: whether outbox, stream and read model agree, live or at rest.
//!
//! Every row of the outbox up to the one that the stream's last message carries must be in the stream, once, as it is,
//! and no later than a newer one of its aggregate; nothing else may be there. Every todo must be in the index as the
//! database has it, and nothing else may be there. What differs is checked again once the projector has handled what
//! was in the stream by then: a working fleet is always moments behind.
//!
//! Memory is bounded: rows and messages are merged in chunks, and some thousand examples of each finding are kept.

pub mod index;
mod report;
mod stream;

pub use report::{Report, Tenant, VerifyArgs};

use std::time::{Duration, Instant};

use fleet::PROJECTOR;
use report::EXAMPLES;

use crate::context::Context;
use crate::exit::Exit;

pub async fn run(context: &Context, args: &VerifyArgs) -> Result<(), anyhow::Error> {
    let started = Instant::now();
    let report = Box::pin(check(context, args)).await;
    if context.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report, started.elapsed());
    }
    let found = report.findings();
    let silent = |text: String| if context.json { String::new() } else { text };
    if found > 0 {
        return Err(Exit::found(silent(format!("{found} findings"))).into());
    }
    if !report.unchecked.is_empty() {
        return Err(Exit::unchecked(silent("not everything could be checked".to_owned())).into());
    }
    Ok(())
}

/// Compares everything. What cannot be compared is named in the report.
pub async fn check(context: &Context, args: &VerifyArgs) -> Report {
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
    report
}

pub fn print(report: &Report, took: Duration) {
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
