//! `flotilla verify --every`: the check again and again, as metrics.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusBuilder;
use service::{Process, ops};

use crate::context::Context;
use crate::verify::{self, Report, VerifyArgs};

#[derive(Debug, Clone, Args)]
pub struct VerifyCommand {
    #[command(flatten)]
    what: VerifyArgs,
    /// Check again so many seconds after the end of the last check, until Ctrl-C, and show the outcome as metrics at --listen.
    #[arg(long, requires = "listen", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    every: Option<u64>,
    /// The address of the metrics, for example 127.0.0.1:19105.
    #[arg(long, requires = "every")]
    listen: Option<SocketAddr>,
    /// Of each check only events written, and todos changed, in so many seconds before it.
    #[arg(long, requires = "every", conflicts_with = "from", value_parser = clap::value_parser!(u32).range(1..))]
    last: Option<u32>,
}

/// Checks once, or again and again.
pub async fn run(context: &Context, args: &VerifyCommand) -> Result<(), anyhow::Error> {
    match (args.every, args.listen) {
        (Some(every), Some(listen)) => scheduled(context, args, Duration::from_secs(every), listen).await,
        _ => verify::run(context, &args.what).await,
    }
}

async fn scheduled(
    context: &Context,
    args: &VerifyCommand,
    every: Duration,
    listen: SocketAddr,
) -> Result<(), anyhow::Error> {
    let metrics = PrometheusBuilder::new().install_recorder()?;
    let process = Process::new("verify", env!("CARGO_PKG_VERSION"));
    let address = ops::serve(&process, listen, Some(metrics)).await?;
    println!("What is checked every {} s is at http://{address}/metrics", every.as_secs());
    let now = devstack::supervisor::now;
    // Until the first check has ended, nothing is late.
    checked_at(now());
    loop {
        let from = args.last.map(|seconds| now() - TimeDelta::seconds(seconds.into()));
        let (began, started) = (now(), Instant::now());
        let report = Box::pin(verify::check(context, &args.what.since(from))).await;
        show(&report, began, started.elapsed());
        tokio::time::sleep(every).await;
    }
}

fn checked_at(at: DateTime<Utc>) {
    gauge!("verify_checked_timestamp_seconds").set(at.timestamp_millis() as f64 / 1e3);
}

/// As metrics; what is wrong also on the standard output.
fn show(report: &Report, began: DateTime<Utc>, took: Duration) {
    for (kind, findings) in report.kinds() {
        gauge!("verify_findings", "kind" => kind).set(findings.count as f64);
    }
    gauge!("verify_seconds").set(took.as_secs_f64());
    gauge!("verify_unchecked").set(report.unchecked.len() as f64);
    if report.unchecked.is_empty() {
        checked_at(began);
    }
    if report.findings() > 0 || !report.unchecked.is_empty() {
        println!("{began}");
        verify::print(report, took);
    }
}
