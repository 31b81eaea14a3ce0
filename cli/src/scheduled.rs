//! `flotilla verify --every`: the check again and again, as metrics.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusBuilder;
use service::tls::Tls;
use service::{Process, ops};
use tokio::signal::unix::{SignalKind, signal};

use crate::context::Context;
use crate::verify::{self, Report, VerifyArgs};

#[derive(Debug, Clone, Args)]
pub struct VerifyCommand {
    #[command(flatten)]
    what: VerifyArgs,
    /// Check again after so many seconds (1 to 86400), or nine times as long as the last check took, whichever is longer, until
    /// Ctrl-C, and show the outcome as metrics at --listen.
    #[arg(long, requires = "listen", conflicts_with = "to", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    every: Option<u64>,
    /// The address of the metrics, for example 127.0.0.1:19105.
    #[arg(long, requires = "every")]
    listen: Option<SocketAddr>,
    /// Of each check only events written, and todos changed, in so many seconds before it.
    #[arg(long, requires = "every", conflicts_with = "from", value_parser = clap::value_parser!(u32).range(1..))]
    last: Option<u32>,
    #[command(flatten)]
    tls: Tls,
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
    let mut process = Process::new("verify", env!("CARGO_PKG_VERSION"));
    process.certificate = args.tls.open(&process.lifecycle)?;
    let address = ops::serve(&process, listen, Some(metrics)).await?;
    process.readiness.set("started", true);
    println!("What is checked is at http://{address}/metrics");
    // In a container it is the first process, which a signal ends only where it is handled.
    let mut stops = signal(SignalKind::terminate())?;
    tokio::select! {
        ended = again_and_again(context, args, every) => ended,
        _ = stops.recv() => Ok(()),
    }
}

async fn again_and_again(context: &Context, args: &VerifyCommand, every: Duration) -> Result<(), anyhow::Error> {
    let mut printed = Vec::new();
    loop {
        let now = devstack::supervisor::now();
        let (from, started) = (args.last.map(|seconds| now - TimeDelta::seconds(seconds.into())), Instant::now());
        let report = Box::pin(verify::check(context, &args.what.since(from))).await;
        let took = started.elapsed();
        show(&report, now, took);
        // Not the same again at each check.
        let summary = summary(&report);
        if summary != printed {
            println!("{now}");
            if context.json { println!("{}", serde_json::to_string(&report)?) } else { verify::print(&report, took) }
        }
        printed = summary;
        tokio::time::sleep(every.max(took * 9)).await;
    }
}

/// What makes a report worth to be printed again: how many there are of each kind, and what could not be checked.
fn summary(report: &Report) -> Vec<String> {
    let counts = report.kinds().into_iter().filter(|(_, findings)| findings.count > 0);
    let counts = counts.map(|(kind, findings)| format!("{} {kind}", findings.count));
    counts.chain(report.unchecked.iter().cloned()).collect()
}

fn show(report: &Report, began: DateTime<Utc>, took: Duration) {
    for (kind, findings) in report.kinds() {
        // Where something could not be checked, nothing found is no news.
        if findings.count > 0 || report.unchecked.is_empty() {
            gauge!("verify_findings", "kind" => kind).set(findings.count as f64);
        }
    }
    gauge!("verify_seconds").set(took.as_secs_f64());
    gauge!("verify_unchecked").set(report.unchecked.len() as f64);
    if report.unchecked.is_empty() {
        gauge!("verify_checked_timestamp_seconds").set(began.timestamp_millis() as f64 / 1e3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An alert that ends because the database is gone would be worse than none.
    #[test]
    fn a_finding_stays_until_a_whole_check_does_not_find_it() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let metrics = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            let shown = |report: &Report| {
                show(report, DateTime::UNIX_EPOCH, Duration::from_secs(1));
                let text = metrics.render();
                let line = text.lines().find(|line| line.starts_with("verify_findings{kind=\"diverged\"}"));
                line.and_then(|line| line.rsplit(' ').next()).unwrap_or_default().to_owned()
            };
            let (mut found, mut half) = (Report::default(), Report::default());
            found.diverged.count = 2;
            half.unchecked.push("the read model: gone".to_owned());
            assert_eq!([&found, &half, &Report::default()].map(shown), ["2", "2", "0"]);
        });
    }
}
