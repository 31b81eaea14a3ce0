//! The effect on one tenant of another that writes as fast as it can.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use futures::future::try_join_all;
use serde_json::Value;

use crate::edge::{Writer, token};
use crate::report::{figure, heading, median, quantile};
use crate::stack::{Bench, allowed};

#[derive(Args)]
pub struct NeighbourArgs {
    /// How many writers of one tenant hammer one todo.
    #[arg(long, default_value = "190")]
    writers: usize,
    /// For how many seconds.
    #[arg(long, default_value = "10")]
    seconds: u64,
    /// Units of cost that a tenant may spend in a second, instead of the services' default; 0: no limit.
    #[arg(long)]
    rate: Option<u32>,
}

impl Default for NeighbourArgs {
    fn default() -> Self {
        Self { writers: 190, seconds: 10, rate: None }
    }
}

impl NeighbourArgs {
    /// The configuration of the services beyond what they need.
    pub fn env(&self) -> Vec<(String, String)> {
        match self.rate {
            None => Vec::new(),
            Some(0) => allowed(1_000_000, 1_000),
            Some(rate) => allowed(rate, 8),
        }
    }
}

pub async fn run(bench: &Bench, args: &NeighbourArgs) -> Result<(), anyhow::Error> {
    heading(&format!("A neighbour's reads while {} writers of one tenant hammer one todo", args.writers));
    let (quiet, loud) = (token(bench, "bench-quiet")?, token(bench, "bench-loud")?);
    let mut reader = Writer::connect(bench, &quiet).await?;
    let read = create(&mut reader).await?;
    let written = create(&mut Writer::connect(bench, &loud).await?).await?;
    let mut all = Vec::new();
    for _ in 0..bench.runs {
        let alone = reads(&mut reader, &read, args).await?;
        let until = Instant::now() + Duration::from_secs(args.seconds + 1);
        let writers = (0..args.writers).map(|_| hammer(bench, &loud, &written, until));
        let beside = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            reads(&mut reader, &read, args).await
        };
        let (answers, beside) = tokio::try_join!(try_join_all(writers), beside)?;
        let mut counted: BTreeMap<u16, usize> = BTreeMap::new();
        answers.into_iter().flatten().for_each(|(status, count)| *counted.entry(status).or_default() += count);
        let [alone, beside] = [alone, beside].map(|latencies| (quantile(&latencies, 0.5), quantile(&latencies, 0.99)));
        let ratio = beside.1 / alone.1;
        let text = format!(
            "{:.2}/{:.2} ms alone, {:.2}/{:.2} ms beside: {ratio:.1} times",
            alone.0, alone.1, beside.0, beside.1
        );
        figure("GET p50/p99", &text);
        figure("  the writers were answered", &format!("{counted:?}"));
        all.push(ratio);
    }
    figure("GET p99 beside, of that alone (goal: 3)", &format!("{:.1} times", median(&all)));
    Ok(())
}

async fn create(writer: &mut Writer) -> Result<String, anyhow::Error> {
    let todo: Value = serde_json::from_str(&writer.ask("POST", "/v1/todos", r#"{"title":"Mend the hatch"}"#).await?)?;
    Ok(format!("/v1/todos/{}", todo["id"].as_str().context("a todo has an id")?))
}

async fn reads(reader: &mut Writer, path: &str, args: &NeighbourArgs) -> Result<Vec<f64>, anyhow::Error> {
    let until = Instant::now() + Duration::from_secs(args.seconds);
    let mut latencies = Vec::new();
    while Instant::now() < until {
        let asked = Instant::now();
        reader.ask("GET", path, "").await?;
        latencies.push(asked.elapsed().as_secs_f64() * 1e3);
    }
    Ok(latencies)
}

async fn hammer(bench: &Bench, token: &str, path: &str, until: Instant) -> Result<BTreeMap<u16, usize>, anyhow::Error> {
    let mut writer = Writer::connect(bench, token).await?;
    let mut counted = BTreeMap::new();
    let mut number = 0;
    while Instant::now() < until {
        number += 1;
        let (status, _) = writer.send("PATCH", path, &format!(r#"{{"title":"Mend it {number}"}}"#)).await?;
        *counted.entry(status).or_default() += 1;
    }
    Ok(counted)
}
