//! `flotilla lag`: how long each stage takes, read from the services' own metrics, and what waits in between.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use crate::context::Context;
use crate::{consumers, table};

/// A histogram as Prometheus exposes it: upper bounds and how many were at or below each.
#[derive(Debug, Clone, PartialEq, Default)]
struct Histogram(Vec<(f64, f64)>);

impl Histogram {
    fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |(_, count)| *count)
    }

    /// The quantile of this share, by linear interpolation within its bucket.
    fn quantile(&self, share: f64) -> Option<f64> {
        let rank = share * self.count();
        if rank == 0.0 {
            return None;
        }
        let (mut below, mut least) = (0.0, 0.0);
        for (bound, count) in &self.0 {
            if *count >= rank {
                let width = if bound.is_finite() { bound - least } else { 0.0 };
                return Some(least + width * (rank - below) / (count - below).max(1.0));
            }
            (below, least) = (*count, *bound);
        }
        None
    }
}

/// The histogram of a metric, over all its labels that hold this text.
fn histogram(metrics: &str, name: &str, label: &str) -> Histogram {
    let prefix = format!("{name}_bucket{{");
    let mut buckets: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
    let lines = metrics.lines().filter_map(|line| line.strip_prefix(&prefix)).filter(|line| line.contains(label));
    for line in lines {
        let (Some((labels, value)), Some(bound)) = (line.rsplit_once(' '), line.split("le=\"").nth(1)) else {
            continue;
        };
        let bound = bound.split('"').next().unwrap_or_default();
        let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap_or(f64::INFINITY) };
        let count: f64 = if labels.is_empty() { 0.0 } else { value.parse().unwrap_or(0.0) };
        buckets.entry(bound.to_bits()).or_insert((bound, 0.0)).1 += count;
    }
    Histogram(buckets.into_values().collect())
}

/// Whether a line is a value, and not of a rebuild beside what is searched.
fn counts(line: &str) -> bool {
    !line.starts_with('#') && (!line.contains("consumer=\"") || !line.contains("-rebuild\""))
}

/// The largest value of a metric, over its labels and replicas.
pub fn gauge(metrics: &str, name: &str) -> Option<f64> {
    let lines = metrics.lines().filter(|line| counts(line));
    let values = lines.filter_map(|line| line.strip_prefix(name).filter(|rest| rest.starts_with([' ', '{'])));
    values.filter_map(|rest| rest.rsplit_once(' ')?.1.parse().ok()).reduce(f64::max)
}

/// The metrics of every service, by service, those of its replicas one after the other; an empty text where none answers.
pub async fn metrics(context: &Context) -> Result<BTreeMap<String, String>, anyhow::Error> {
    let http = context.http(Duration::from_secs(3))?;
    let ask = context.ops()?.into_iter().map(|(name, ops)| {
        let request = http.get(format!("{}/metrics", context.ops_url(&ops))).send();
        async move {
            let text = match request.await {
                Ok(response) => response.text().await.unwrap_or_default(),
                Err(_) => String::new(),
            };
            (name, text)
        }
    });
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    for (name, text) in futures::future::join_all(ask).await {
        all.entry(name).or_default().push_str(&text);
    }
    Ok(all)
}

/// How long a stage took since the services started, by their histograms: between two bucket bounds.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// The service, or the durable consumer.
    pub of: &'static str,
    /// From what to what.
    pub stage: &'static str,
    /// How many were measured.
    pub count: f64,
    pub p50_seconds: Option<f64>,
    pub p99_seconds: Option<f64>,
}

/// The stages of an event's path: out of each outbox, through each consumer that keeps something, into each index.
pub fn stages(metrics: &BTreeMap<String, String>) -> Vec<Stage> {
    let mut stages = Vec::new();
    let mut add = |of: &'static str, stage, h: Histogram| {
        let (p50_seconds, p99_seconds) = (h.quantile(0.5), h.quantile(0.99));
        stages.push(Stage { of, stage, count: h.count(), p50_seconds, p99_seconds });
    };
    let said = |service: &fleet::Service| metrics.get(service.name).map_or("", String::as_str);
    for service in fleet::SERVICES.iter().filter(|service| service.produces) {
        add(service.name, "commit -> stored", histogram(said(service), "outbox_commit_to_stored_seconds", ""));
    }
    for service in fleet::SERVICES {
        for durable in durables(service) {
            let label = format!("consumer=\"{durable}\"");
            add(durable, "stored -> handled", histogram(said(service), "consumer_stored_to_handled_seconds", &label));
        }
    }
    for service in fleet::SERVICES.iter().filter(|service| service.search_engine) {
        add(
            service.name,
            "handled -> searchable",
            histogram(said(service), "search_handled_to_searchable_seconds", ""),
        );
    }
    stages
}

/// The consumers of a service, except one that only rebuilds.
fn durables(service: &fleet::Service) -> impl Iterator<Item = &'static str> {
    service.durables.iter().filter(|durable| !durable.on_demand).map(|durable| durable.name)
}

/// Prints the stages.
pub fn print_stages(stages: &[Stage]) {
    let millis = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{:.1} ms", value * 1e3));
    let row = |stage: &Stage| {
        vec![
            stage.of.to_owned(),
            stage.stage.to_owned(),
            stage.count.to_string(),
            millis(stage.p50_seconds),
            millis(stage.p99_seconds),
        ]
    };
    table::print(&["OF", "STAGE", "COUNT", "P50", "P99"], &stages.iter().map(row).collect::<Vec<_>>());
}

pub async fn run(context: &Context) -> Result<(), anyhow::Error> {
    let metrics = metrics(context).await?;
    let stages = stages(&metrics);
    let backlog = |service| gauge(metrics.get(service).map_or("", String::as_str), "outbox_backlog_rows");
    let backlogs: BTreeMap<_, _> = fleet::producers().into_iter().map(|service| (service, backlog(service))).collect();
    let consumers = consumers::of_all(context).await;
    if context.json {
        let consumers = consumers.map_err(|error| json!({"error": format!("{error:#}")}));
        let consumers = consumers.map_or_else(|error| error, |all| json!(all));
        println!("{}", json!({"stages": stages, "outboxBacklogs": backlogs, "consumers": consumers}));
        return Ok(());
    }
    print_stages(&stages);
    println!();
    for (service, rows) in backlogs {
        let rows = rows.map_or_else(|| "?".to_owned(), |rows| rows.to_string());
        println!("outbox rows of {service} not yet settled   {rows}");
    }
    match consumers {
        Ok(all) => consumers::print(&all),
        Err(error) => println!("The consumers cannot be asked: {error:#}"),
    }
    println!("\nSince the services started; from their histograms, so between two bucket bounds.");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = "# TYPE lag_seconds histogram\n\
        lag_seconds_bucket{consumer=\"a\",le=\"0.1\"} 50\nlag_seconds_bucket{consumer=\"a\",le=\"0.2\"} 100\n\
        lag_seconds_bucket{consumer=\"a\",le=\"+Inf\"} 100\nlag_seconds_sum{consumer=\"a\"} 1\nrows 7\n";

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let histogram = histogram(METRICS, "lag_seconds", "consumer=\"a\"");
        assert_eq!(histogram.count(), 100.0);
        assert_eq!(histogram.quantile(0.5), Some(0.1));
        assert!((histogram.quantile(0.75).unwrap() - 0.15).abs() < 1e-9);
        assert_eq!(Histogram::default().quantile(0.5), None);
    }

    #[test]
    fn a_gauge_is_read() {
        assert_eq!(gauge(METRICS, "rows"), Some(7.0));
        assert_eq!(gauge(&format!("{METRICS}rows_max 9\nrows{{of=\"b\"}} 8\n"), "rows"), Some(8.0));
        assert_eq!(gauge(METRICS, "columns"), None);
    }
}
