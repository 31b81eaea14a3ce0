//! The relay alone, as a process of its own, between this machine's Postgres and nats-server.

use std::time::Instant;

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::jetstream;
use bytes::Bytes;
use clap::Args;
use futures::StreamExt as _;
use sqlx::{Connection as _, PgConnection};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::latency::{self, Publisher};
use crate::process;
use crate::relays::{EVENT_ID, OTHERS, PAYLOAD, TRACEPARENT, make, spawn, stop, stream_config, until_stored};
use crate::report::{figure, heading, median, ratios};
use crate::stack::{Bench, Database, NatsLogin, first_and_last};

#[derive(Args)]
pub struct DrainArgs {
    /// How many rows.
    #[arg(long, default_value = "500000")]
    rows: u64,
}

impl Default for DrainArgs {
    fn default() -> Self {
        Self { rows: 500_000 }
    }
}

#[derive(Args)]
pub struct HeldArgs {
    /// Rows that were published long ago.
    #[arg(long, default_value = "1000000")]
    old_rows: u64,
    /// Commits behind the held xmin.
    #[arg(long, default_value = "100000")]
    commits: u64,
    /// For how many seconds events are written at a steady rate, with the xmin held.
    #[arg(long, default_value = "30")]
    seconds: u64,
}

impl Default for HeldArgs {
    fn default() -> Self {
        Self { old_rows: 1_000_000, commits: 100_000, seconds: 30 }
    }
}

#[derive(Args)]
pub struct RelayArgs {
    #[arg(long, env = "BENCH_DATABASE_URL", hide_env_values = true)]
    database: String,
    #[command(flatten)]
    nats: NatsLogin,
    #[arg(long)]
    name: String,
}

/// A relay and nothing else.
pub async fn run(args: RelayArgs) -> Result<(), anyhow::Error> {
    tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::WARN).init();
    let relay = make(&args.database, &args.nats, &args.name).await?;
    let stop = CancellationToken::new();
    let asked = stop.clone();
    let mut signal = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::join!(relay.run(stop), async move {
        signal.recv().await;
        asked.cancel();
    });
    Ok(())
}

async fn append(database: &Database, name: &str, rows: u64) -> Result<(), anyhow::Error> {
    let mut db = PgConnection::connect(&database.superuser).await?;
    sqlx::query(
        "insert into outbox (event_id, tenant, aggregate_id, subject, traceparent, payload) \
         select gen_random_uuid(), 'acme', 'todo-' || g % 10000, $1, $2, convert_to(repeat('x', $3), 'UTF8') \
         from generate_series(1, $4) g",
    )
    .bind(format!("{name}.todo.created.v1.acme"))
    .bind(TRACEPARENT)
    .bind(PAYLOAD as i32)
    .bind(rows as i64)
    .execute(&mut db)
    .await?;
    sqlx::query("checkpoint").execute(&mut db).await?;
    Ok(())
}

/// One drain: its rate, and the relay's CPU time per event and peak memory.
async fn drain_once(
    bench: &Bench,
    database: &Database,
    name: &str,
    rows: u64,
) -> Result<(f64, f64, f64), anyhow::Error> {
    append(database, name, rows).await?;
    let js = jetstream::new(bench.nats().await?);
    let before = match js.get_stream(name).await {
        Ok(stream) => stream.get_info().await?.state.last_sequence,
        Err(_) => 0,
    };
    let relay = spawn(bench, database, name)?;
    let pid = relay.id().context("the relay has ended")?;
    let stream = until_stored(&js, name, before + rows).await?;
    let (cpu, peak) = (process::cpu(pid), process::peak(pid));
    let (first, last) = first_and_last(&stream, before + 1).await?;
    stop(relay).await?;
    Ok((rows as f64 / (last - first), cpu.as_secs_f64() * 1e6 / rows as f64, peak))
}

/// The same payload and headers but for the expected sequence, published by a client that does nothing else, with a fixed number in flight.
async fn raw_once(bench: &Bench, name: &str, rows: u64, window: u64) -> Result<f64, anyhow::Error> {
    let client = bench.nats().await?;
    let js = jetstream::new(client.clone());
    let stream = js.create_stream(stream_config(name)).await?;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    let payload = Bytes::from(vec![b'x'; PAYLOAD]);
    let subject = async_nats::Subject::from(format!("{name}.todo.created.v1.acme"));
    let (mut sent, mut answered) = (0, 0);
    while answered < rows {
        while sent < rows && sent - answered < window {
            let mut headers = HeaderMap::new();
            headers.insert("content-type", "application/cloudevents+json; charset=utf-8");
            headers.insert("Outbox-Seq", (sent + 1).to_string());
            headers.insert("Outbox-Created", "1790000000000000");
            headers.insert(EVENT_ID, "0199a0e0-0000-7000-8000-000000000000");
            headers.insert("traceparent", TRACEPARENT);
            let reply = async_nats::Subject::from(inbox.clone());
            client.publish_with_reply_and_headers(subject.clone(), reply, headers, payload.clone()).await?;
            sent += 1;
        }
        answers.next().await.context("the answers have ended")?;
        answered += 1;
        while let Some(Some(_)) = futures::FutureExt::now_or_never(answers.next()) {
            answered += 1;
        }
    }
    let (first, last) = first_and_last(&stream, 1).await?;
    js.delete_stream(name).await?;
    Ok(rows as f64 / (last - first))
}

pub async fn drain(bench: &Bench, args: &DrainArgs) -> Result<(), anyhow::Error> {
    heading(&format!("Relay: drain of {} rows of {PAYLOAD} bytes", args.rows));
    bench.pause(&OTHERS)?;
    let mut best = (0, 0.0);
    for window in [500, 1_000, 2_000, 4_000, 8_000] {
        let rate = raw_once(bench, &format!("RAW{window}"), args.rows, window).await?;
        figure(&format!("raw publish, {window} in flight"), &format!("{rate:.0}/s"));
        if rate > best.1 {
            best = (window, rate);
        }
    }
    let (mut ours, mut raw, mut cpu, mut peak) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut before = raw_once(bench, "RAW", args.rows, best.0).await?;
    for run in 0..bench.runs {
        let database = bench.database().await?;
        let name = format!("DRAIN{run}");
        let (rate, micros, memory) = drain_once(bench, &database, &name, args.rows).await?;
        bench.drop_with_stream(database, &name).await?;
        // Against the mean of the raw runs before and after: a shared machine has faster and slower minutes.
        let after = raw_once(bench, "RAW", args.rows, best.0).await?;
        raw.push(f64::midpoint(before, after));
        before = after;
        ours.push(rate);
        cpu.push(micros);
        peak.push(memory);
    }
    bench.resume(&OTHERS)?;
    ratios(&format!("relay, of raw with {} in flight", best.0), &ours, &raw);
    figure("relay: CPU per event, peak memory", &format!("{:.1} µs, {:.1} MiB", median(&cpu), median(&peak)));
    Ok(())
}

/// Rows of a day long gone, all published.
async fn append_old(database: &Database, rows: u64) -> Result<(), anyhow::Error> {
    let mut db = PgConnection::connect(&database.superuser).await?;
    for sql in [
        "create table outbox_old (like outbox including all)".to_owned(),
        "alter table outbox attach partition outbox_old for values from ('2020-01-01 00:00+00') to ('2020-01-02 00:00+00')"
            .to_owned(),
        format!(
            "insert into outbox (created_at, event_id, tenant, aggregate_id, subject, traceparent, payload) \
             select '2020-01-01 12:00+00', gen_random_uuid(), 'acme', 'todo-' || g % 10000, 'old', null, \
             convert_to(repeat('x', {PAYLOAD}), 'UTF8') from generate_series(1, {rows}) g"
        ),
        "update outbox_relay set outbox_seq = (select last_value from outbox_seq), outbox_created_at = '2020-01-01 12:00+00', \
         stream_created_at = '2020-01-01'"
            .to_owned(),
        "vacuum analyze outbox".to_owned(),
        "checkpoint".to_owned(),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut db).await?;
    }
    Ok(())
}

/// Commits whose dead rows an old snapshot keeps, all relayed as they come.
async fn commit_many(bench: &Bench, database: &Database, name: &str, commits: u64) -> Result<f64, anyhow::Error> {
    let script = std::env::temp_dir().join(format!("{}.sql", database.name));
    let subject = format!("{name}.todo.created.v1.acme");
    std::fs::write(
        &script,
        format!(
            "insert into outbox (event_id, tenant, aggregate_id, subject, payload) values (gen_random_uuid(), 'acme', \
             'todo-' || (random() * 10000)::int, '{subject}', convert_to(repeat('x', {PAYLOAD}), 'UTF8'));\n"
        ),
    )?;
    let relay = spawn(bench, database, name)?;
    let mut pgbench = Command::new(bench.stack.postgres.bin.join("pgbench"));
    // This does not measure whether these commits outlive a power failure.
    pgbench.env("PGOPTIONS", "-c synchronous_commit=off");
    pgbench.args(["-n", "-M", "prepared", "-c", "8", "-j", "2", "-t", &(commits / 8).to_string(), "-f"]).arg(&script);
    let started = Instant::now();
    let output = pgbench.arg(&database.superuser).output().await?;
    std::fs::remove_file(&script)?;
    anyhow::ensure!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
    let rate = commits as f64 / started.elapsed().as_secs_f64();
    let js = jetstream::new(bench.nats().await?);
    until_stored(&js, name, commits / 8 * 8).await?;
    stop(relay).await?;
    Ok(rate)
}

pub async fn held(bench: &Bench, args: &HeldArgs) -> Result<(), anyhow::Error> {
    let HeldArgs { old_rows, commits, seconds } = *args;
    heading(&format!("Relay: {old_rows} old rows and an xmin held over {commits} commits, against without"));
    bench.pause(&OTHERS)?;
    let rows = 250_000;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let mut latencies = (Vec::new(), Vec::new());
    let database = bench.database().await?;
    append_old(&database, old_rows).await?;
    let mut holder = PgConnection::connect(&database.superuser).await?;
    for sql in ["begin isolation level repeatable read", "select pg_current_xact_id()"] {
        sqlx::query(sql).execute(&mut holder).await?;
    }
    let held_since = Instant::now();
    let rate = commit_many(bench, &database, "HELD", commits).await?;
    figure("commits behind it, relayed as they came", &format!("{rate:.0}/s"));
    for run in 0..bench.runs {
        let fresh = bench.database().await?;
        let name = format!("WITHOUT{run}");
        without.push(drain_once(bench, &fresh, &name, rows).await?.0);
        latencies.0.push(latency::once(bench, &fresh, &name, (500, 10), Publisher::RelayBeside).await?);
        bench.drop_with_stream(fresh, &name).await?;
        with.push(drain_once(bench, &database, "HELD", rows).await?.0);
        latencies.1.push(latency::once(bench, &database, "HELD", (500, 10), Publisher::RelayBeside).await?);
    }
    let long = latency::once(bench, &database, "HELD", (500, seconds), Publisher::RelayBeside).await?;
    let held_for = held_since.elapsed().as_secs();
    sqlx::query("rollback").execute(&mut holder).await?;
    bench.drop_with_stream(database, "HELD").await?;
    bench.resume(&OTHERS)?;
    ratios(&format!("drain of {rows} rows, of that without"), &with, &without);
    latency::tell("500/s, without", &latencies.0);
    latency::tell("with", &latencies.1);
    latency::tell(&format!("with, for {seconds} s; by then held for {held_for} s"), &[long]);
    Ok(())
}
