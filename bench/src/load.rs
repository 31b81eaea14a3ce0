//! More callers than the edge can answer, many that only stay connected, and many that watch.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use futures::future::try_join_all;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::edge::{Writer, token};
use crate::process::resident;
use crate::report::{figure, heading, median, quantile};
use crate::stack::{Bench, allowed};

/// How many tenants call.
const TENANTS: usize = 8;

#[derive(Args)]
pub struct OverloadArgs {
    /// How many calls each process works on at once; so many clients are what it can do.
    #[arg(long, default_value = "32")]
    at_work: usize,
    /// For how many seconds.
    #[arg(long, default_value = "10")]
    seconds: u64,
}

impl Default for OverloadArgs {
    fn default() -> Self {
        Self { at_work: 32, seconds: 10 }
    }
}

impl OverloadArgs {
    /// The configuration of the services beyond what they need.
    pub fn env(&self) -> Vec<(String, String)> {
        let mut env = allowed(1_000_000, 1_000);
        env.push(("FLOTILLA_AT_WORK".to_owned(), self.at_work.to_string()));
        env
    }
}

/// As many open files as this process, and the gateway that it starts, may have.
fn open_files(at_least: usize) -> Result<(), anyhow::Error> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    anyhow::ensure!(most > at_least as u64 + 1_000, "so many connections need more files (ulimit -n)");
    Ok(())
}

/// A todo for each tenant, with a token of it.
async fn todos(bench: &Bench) -> Result<Vec<(String, String)>, anyhow::Error> {
    try_join_all((0..TENANTS).map(|number| async move {
        let token = token(bench, &format!("bench-load-{number}"))?;
        let mut writer = Writer::connect(bench, &token).await?;
        let todo: Value =
            serde_json::from_str(&writer.ask("POST", "/v1/todos", r#"{"title":"Mend the hatch"}"#).await?)?;
        Ok((token, format!("/v1/todos/{}", todo["id"].as_str().context("a todo has an id")?)))
    }))
    .await
}

/// Reads by so many clients, each of which waits a second after a 503: the latencies of the answers in ms, and the number of refusals.
async fn reads(
    bench: &Bench,
    todos: &[(String, String)],
    (clients, seconds): (usize, u64),
) -> Result<(Vec<f64>, usize), anyhow::Error> {
    let until = Instant::now() + Duration::from_secs(seconds);
    let all = try_join_all((0..clients).map(|client| async move {
        let (token, path) = &todos[client % todos.len()];
        let mut reader = Writer::connect(bench, token).await?;
        let (mut latencies, mut refused) = (Vec::new(), 0);
        while Instant::now() < until {
            let asked = Instant::now();
            match reader.send("GET", path, "").await? {
                (200, _) => latencies.push(asked.elapsed().as_secs_f64() * 1e3),
                (503, _) => {
                    refused += 1;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                (status, answer) => anyhow::bail!("{status}\n{answer}"),
            }
        }
        Ok((latencies, refused))
    }))
    .await?;
    let refused = all.iter().map(|(_, refused)| refused).sum();
    Ok((all.into_iter().flat_map(|(latencies, _)| latencies).collect(), refused))
}

pub async fn overload(bench: &Bench, args: &OverloadArgs) -> Result<(), anyhow::Error> {
    let clients = args.at_work;
    heading(&format!("GET of one todo by {clients} clients, and by three times as many, of {TENANTS} tenants"));
    let todos = todos(bench).await?;
    reads(bench, &todos, (clients, 3)).await?;
    let mut all = Vec::new();
    for _ in 0..bench.runs {
        let (at_capacity, few) = reads(bench, &todos, (clients, args.seconds)).await?;
        let (beyond, refused) = reads(bench, &todos, (3 * clients, args.seconds)).await?;
        let [one, other] =
            [&at_capacity, &beyond].map(|latencies| (quantile(latencies, 0.5), quantile(latencies, 0.99)));
        let rate = |latencies: &[f64]| latencies.len() as f64 / args.seconds as f64;
        let ratio = other.1 / one.1;
        let text = format!(
            "{:.0}/s, {:.2}/{:.2} ms; then {:.0}/s, {:.2}/{:.2} ms: {ratio:.2} times",
            rate(&at_capacity),
            one.0,
            one.1,
            rate(&beyond),
            other.0,
            other.1
        );
        figure("answered, p50/p99 at capacity and at three times that", &text);
        figure("  refused with 503", &format!("{few}, then {refused}"));
        all.push(ratio);
    }
    figure("p99 of what is answered, of that at capacity (goal: 2)", &format!("{:.2} times", median(&all)));
    Ok(())
}

#[derive(Args)]
pub struct IdleArgs {
    /// How many connections are open and say nothing.
    #[arg(long, default_value = "10000")]
    connections: usize,
    /// For how many seconds others read.
    #[arg(long, default_value = "10")]
    seconds: u64,
}

impl Default for IdleArgs {
    fn default() -> Self {
        Self { connections: 10_000, seconds: 10 }
    }
}

impl IdleArgs {
    /// The configuration of the services beyond what they need.
    ///
    /// # Errors
    /// This process, and the gateway that it starts, may not have so many files.
    pub fn env(&self) -> Result<Vec<(String, String)>, anyhow::Error> {
        open_files(self.connections)?;
        let mut env = allowed(1_000_000, 1_000);
        env.push(("FLOTILLA_CONNECTIONS".to_owned(), (self.connections + 1_000).to_string()));
        Ok(env)
    }
}

pub async fn idle(bench: &Bench, args: &IdleArgs) -> Result<(), anyhow::Error> {
    heading(&format!(
        "GET of one todo by 16 clients, alone and beside {} idle keep-alive connections",
        args.connections
    ));
    let (todos, gateway) = (todos(bench).await?, bench.pid("gateway"));
    reads(bench, &todos, (16, 3)).await?;
    let (alone, _) = reads(bench, &todos, (16, args.seconds)).await?;
    let before = resident(gateway);
    let mut kept = Vec::with_capacity(args.connections);
    for _ in 0..args.connections {
        let mut connection = Writer::connect(bench, "").await?;
        connection.ask("GET", "/healthz", "").await?;
        kept.push(connection);
    }
    let beside_memory = resident(gateway);
    let (beside, _) = reads(bench, &todos, (16, args.seconds)).await?;
    let after = resident(gateway);
    for connection in kept.iter_mut().step_by(1_000) {
        connection.ask("GET", "/healthz", "").await.context("an idle connection was closed")?;
    }
    let [one, other] = [&alone, &beside].map(|latencies| (quantile(latencies, 0.5), quantile(latencies, 0.99)));
    let text = format!(
        "{:.2}/{:.2} ms alone, {:.2}/{:.2} ms beside: {:.2} times",
        one.0,
        one.1,
        other.0,
        other.1,
        other.1 / one.1
    );
    figure("p50/p99", &text);
    let each = (beside_memory - before) * 1024.0 / args.connections as f64;
    figure(
        "memory of the gateway",
        &format!("{before:.1} MiB, then {beside_memory:.1} and {after:.1}: {each:.1} KiB for each"),
    );
    Ok(())
}

#[derive(Args)]
pub struct WatchersArgs {
    /// How many read the changes of one tenant.
    #[arg(long, default_value = "1000")]
    watchers: usize,
    /// How many changes are made, one after the other.
    #[arg(long, default_value = "100")]
    changes: usize,
}

impl Default for WatchersArgs {
    fn default() -> Self {
        Self { watchers: 1_000, changes: 100 }
    }
}

impl WatchersArgs {
    /// The configuration of the services beyond what they need.
    ///
    /// # Errors
    /// This process may not have so many files.
    pub fn env(&self) -> Result<Vec<(String, String)>, anyhow::Error> {
        open_files(self.watchers)?;
        let mut env = allowed(1_000_000, 1_000);
        for scope in ["", "TENANT_", "PRINCIPAL_"] {
            env.push((format!("FLOTILLA_{scope}STREAMS"), self.watchers.to_string()));
        }
        Ok(env)
    }
}

/// Opens a stream of server-sent events, and reports each event until the stream ends.
async fn watch(bench: &Bench, token: &str, hears: mpsc::UnboundedSender<()>) -> Result<(), anyhow::Error> {
    let address = bench.address("gateway");
    let mut stream = TcpStream::connect(&address).await?;
    let request = format!("GET /v1/todos:watch HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = Vec::new();
    // The head, and the event by which a stream begins.
    while !text.windows(7).any(|bytes| bytes == b"retry: ") {
        anyhow::ensure!(stream.read_buf(&mut text).await? > 0, "{}", String::from_utf8_lossy(&text));
    }
    tokio::spawn(async move {
        loop {
            text.clear();
            // Each piece is at least one whole event.
            if stream.read_buf(&mut text).await.unwrap_or(0) == 0 {
                return;
            }
            for _ in text.windows(4).filter(|bytes| *bytes == b"id: ") {
                hears.send(()).ok();
            }
        }
    });
    Ok(())
}

pub async fn watchers(bench: &Bench, args: &WatchersArgs) -> Result<(), anyhow::Error> {
    heading(&format!("Changes of one todo, and {} who watch it", args.watchers));
    let (token, pids) = (token(bench, "bench-watched")?, [bench.pid("gateway"), bench.pid("todo")]);
    let mut writer = Writer::connect(bench, &token).await?;
    let todo: Value = serde_json::from_str(&writer.ask("POST", "/v1/todos", r#"{"title":"Mend the hatch"}"#).await?)?;
    let path = format!("/v1/todos/{}", todo["id"].as_str().context("a todo has an id")?);
    let before = pids.map(resident);
    let (hears, mut heard) = mpsc::unbounded_channel();
    for _ in 0..args.watchers {
        watch(bench, &token, hears.clone()).await?;
    }
    drop(hears);
    let open = pids.map(resident);
    let mut all = Vec::new();
    for change in 0..args.changes {
        writer.ask("PATCH", &path, &format!(r#"{{"notes":"{change}"}}"#)).await?;
        let answered = Instant::now();
        for _ in 0..args.watchers {
            let next = tokio::time::timeout(Duration::from_secs(30), heard.recv());
            next.await.context("a watcher does not hear of a change")?.context("all streams have ended")?;
        }
        all.push(answered.elapsed().as_secs_f64() * 1e3);
    }
    let after = pids.map(resident);
    let text = format!("p50/p99 {:.1}/{:.1} ms", quantile(&all, 0.5), quantile(&all, 0.99));
    figure("from the answer to a change until the last has heard of it", &text);
    for (at, name) in ["gateway", "todo"].into_iter().enumerate() {
        let each = (after[at] - before[at]) * 1024.0 / args.watchers as f64;
        let text = format!("{:.1} MiB, then {:.1} and {:.1}: {each:.1} KiB for each", before[at], open[at], after[at]);
        figure(&format!("memory of {name}, before, with all and after {} changes", args.changes), &text);
    }
    Ok(())
}
