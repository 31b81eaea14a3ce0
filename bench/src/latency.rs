//! The time from the commit of an event to its storage in the stream, at a steady rate.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::jetstream;
use bytes::Bytes;
use clap::Args;
use futures::StreamExt as _;
use sqlx::{Connection as _, PgConnection};
use tokio::process::Child;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::process::{self, Guests};
use crate::relays::{EVENT_ID, OTHERS, PAYLOAD, TRACEPARENT, hint, make, spawn, stop, stream_config, until_stored};
use crate::report::{figure, heading, median, quantile};
use crate::stack::{Bench, Database};

#[derive(Args)]
pub struct LatencyArgs {
    /// Events a second.
    #[arg(long, default_value = "500")]
    rate: u64,
    /// For how many seconds.
    #[arg(long, default_value = "30")]
    seconds: u64,
}

impl Default for LatencyArgs {
    fn default() -> Self {
        Self { rate: 500, seconds: 30 }
    }
}

/// A relay in this process, on a thread of its own, so that its CPU time is separate from the writers'.
struct Within {
    handle: outbox::Handle,
    thread: i32,
    stop: CancellationToken,
    ended: tokio::sync::oneshot::Receiver<()>,
}

impl Within {
    async fn start(bench: &Bench, database: &Database, name: &str) -> Result<Self, anyhow::Error> {
        let (database, nats, name) = (database.relay.clone(), bench.nats_login(), name.to_owned());
        let (said, hear) = tokio::sync::oneshot::channel();
        let (end, ended) = tokio::sync::oneshot::channel();
        let stop = CancellationToken::new();
        let asked = stop.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async move {
                let relay = make(&database, &nats, &name).await?;
                said.send((relay.handle(), nix::unistd::gettid().as_raw())).ok();
                relay.run(asked).await;
                end.send(()).ok();
                Ok::<_, anyhow::Error>(())
            })
        });
        let (handle, thread) = hear.await.context("the relay did not start")?;
        Ok(Self { handle, thread, stop, ended })
    }
}

/// The results of one run at a steady rate, in ms.
pub struct Latency {
    /// From an event's commit.
    commit_to_stored: Vec<f64>,
    /// From the commit of the last event that goes before it, or its own: what the relay adds.
    settled_to_stored: Vec<f64>,
    /// The commits themselves, as their writers saw them: the latency of the disk.
    commit: Vec<f64>,
    /// The share of a core that the relay used.
    used: f64,
    /// Commit to stored in the quiet seconds alone.
    quiet: Vec<f64>,
    /// The CPU time that other guests of the machine took meanwhile.
    guests: Guests,
}

/// The publisher of committed events.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Publisher {
    /// The relay in the writers' process, which hand it what they commit: as in a service.
    Relay,
    /// A relay in another process, which is only notified to query the outbox: as with a second replica.
    RelayBeside,
    /// Each writer, right after its commit, without an outbox: the machine's best, and a crash loses events.
    Writer,
}

/// Commit to stored, at a steady rate.
pub async fn once(
    bench: &Bench,
    database: &Database,
    name: &str,
    (rate, seconds): (u64, u64),
    publisher: Publisher,
) -> Result<Latency, anyhow::Error> {
    let client = bench.nats().await?;
    let js = jetstream::new(client.clone());
    let (mut within, mut beside) = (None, None);
    match publisher {
        Publisher::Relay => within = Some(Within::start(bench, database, name).await?),
        Publisher::RelayBeside => beside = Some(spawn(bench, database, name)?),
        Publisher::Writer => drop(js.create_stream(stream_config(name)).await?),
    }
    let used = || {
        let within = within.as_ref().map(|relay| process::cpu_of_thread(relay.thread));
        within.or_else(|| beside.as_ref().and_then(Child::id).map(process::cpu)).unwrap_or_default()
    };
    let before = until_stored(&js, name, 0).await?.get_info().await?.state.last_sequence;
    let clients = 8;
    let started = Instant::now() + Duration::from_millis(500);
    let writers = (0..clients).map(|client_number| {
        let (client, hint) = (client.clone(), hint(name));
        let (app, subject) = (database.app.clone(), format!("{name}.todo.created.v1.acme"));
        let relay = within.as_ref().map(|relay| relay.handle.clone());
        async move {
            let mut db = PgConnection::connect(&app).await?;
            sqlx::query("set app.tenant = 'acme'").execute(&mut db).await?;
            let payload = vec![b'x'; PAYLOAD];
            let mut committed = Vec::new();
            for n in (client_number..rate * seconds).step_by(clients as usize) {
                tokio::time::sleep_until((started + Duration::from_secs_f64(n as f64 / rate as f64)).into()).await;
                let (id, aggregate) = (Uuid::now_v7(), format!("todo-{n}"));
                let mut tx = db.begin().await?;
                let event = outbox::NewEvent {
                    id,
                    tenant: "acme".to_owned(),
                    aggregate_id: aggregate,
                    subject: subject.clone(),
                    traceparent: Some(TRACEPARENT.to_owned()),
                    payload: payload.clone(),
                };
                let mut commit = async |tx: sqlx::Transaction<'_, sqlx::Postgres>| {
                    let began = Instant::now();
                    tx.commit().await?;
                    committed.push((id, (chrono::Utc::now(), began.elapsed().as_secs_f64() * 1e3)));
                    Ok(())
                };
                match &relay {
                    Some(relay) => drop(relay.commit(tx, vec![event], commit).await?),
                    None => {
                        outbox::append(&mut tx, &event).await?;
                        commit(tx).await?;
                    }
                }
                match publisher {
                    Publisher::Relay => {}
                    Publisher::RelayBeside => client.publish(hint.clone(), Bytes::new()).await?,
                    Publisher::Writer => {
                        let headers = HeaderMap::from_iter([(EVENT_ID, id.to_string().parse()?)]);
                        client.publish_with_headers(subject.clone(), headers, Bytes::from(payload.clone())).await?;
                    }
                }
            }
            Ok::<_, anyhow::Error>(committed)
        }
    });
    let (cpu, wall, mut guests) = (used(), Instant::now(), Guests::default());
    let committed = tokio::select! {
        committed = futures::future::try_join_all(writers) => committed?,
        never = guests.watch() => match never {},
    };
    let used = (used() - cpu).as_secs_f64() / wall.elapsed().as_secs_f64();
    let stream = until_stored(&js, name, before + rate * seconds).await?;
    let committed: HashMap<Uuid, (chrono::DateTime<chrono::Utc>, f64)> = committed.into_iter().flatten().collect();
    let commit = committed.values().map(|(_, took)| *took).collect();
    let (mut commit_to_stored, mut settled_to_stored, mut quiet) = (Vec::new(), Vec::new(), Vec::new());
    let mut settled = chrono::DateTime::UNIX_EPOCH;
    let config = jetstream::consumer::pull::OrderedConfig {
        deliver_policy: jetstream::consumer::DeliverPolicy::ByStartSequence { start_sequence: before + 1 },
        headers_only: true,
        ..Default::default()
    };
    let mut messages = stream.create_consumer(config).await?.messages().await?.take(committed.len());
    while let Some(message) = messages.next().await {
        let message = message?;
        let stored = message.info().map_err(|error| anyhow::anyhow!(error))?.published;
        let id = message.headers.as_ref().and_then(|headers| headers.get(EVENT_ID)).context("an id")?;
        let (commit, _) = committed.get(&id.as_str().parse()?).context("a foreign event")?;
        settled = settled.max(*commit);
        // The relay may see a commit before its client does: never less than zero.
        let since = |from| ((stored - from) as chrono::TimeDelta).num_microseconds().unwrap_or(0).max(0) as f64 / 1e3;
        commit_to_stored.push(since(*commit));
        settled_to_stored.push(since(settled));
        if guests.quiet(*commit, stored) {
            quiet.push(since(*commit));
        }
    }
    if let Some(relay) = beside {
        stop(relay).await?;
    }
    if let Some(relay) = within {
        relay.stop.cancel();
        relay.ended.await?;
    }
    Ok(Latency { commit_to_stored, settled_to_stored, commit, used, quiet, guests })
}

pub fn tell(what: &str, runs: &[Latency]) {
    let of = |values: fn(&Latency) -> &[f64], share: f64| {
        let quantiles: Vec<f64> = runs.iter().map(|run| quantile(values(run), share)).collect();
        let each: Vec<String> = quantiles.iter().map(|value| format!("{value:.2}")).collect();
        (median(&quantiles), each.join(", "))
    };
    let tell = |name: &str, values: fn(&Latency) -> &[f64]| {
        let ((p50, _), (p99, each), (most, _)) = (of(values, 0.5), of(values, 0.99), of(values, 1.0));
        figure(name, &format!("p50 {p50:.2} ms, p99 {p99:.2} ms (runs: {each}), max {most:.1} ms"));
    };
    tell(&format!("commit to stored, {what}"), |run| &run.commit_to_stored);
    tell("  of it since all before it were committed", |run| &run.settled_to_stored);
    tell("  the commits themselves", |run| &run.commit);
    let used = median(&runs.iter().map(|run| run.used * 100.0).collect::<Vec<_>>());
    figure("  the relay's CPU", &format!("{used:.1} % of a core"));
    let quiet_seconds = Guests::tell(&runs.iter().map(|run| &run.guests).collect::<Vec<_>>());
    let quiet: Vec<f64> = runs.iter().flat_map(|run| &run.quiet).copied().collect();
    let (p50, p99) = (quantile(&quiet, 0.5), quantile(&quiet, 0.99));
    figure(&quiet_seconds, &format!("p50 {p50:.2} ms, p99 {p99:.2} ms over {} events", quiet.len()));
}

pub async fn run(bench: &Bench, args: &LatencyArgs) -> Result<(), anyhow::Error> {
    heading(&format!("Relay: commit to stored at {} events/s for {} s", args.rate, args.seconds));
    bench.pause(&OTHERS)?;
    let kinds = [
        (Publisher::Writer, "published by the writers, no outbox"),
        (Publisher::Relay, "relay in the writers' process"),
        (Publisher::RelayBeside, "relay in another process"),
    ];
    let mut all = kinds.map(|_| Vec::new());
    for run in 0..bench.runs {
        for ((publisher, _), runs) in kinds.iter().zip(&mut all) {
            let database = bench.database().await?;
            let name = format!("LATENCY{run}");
            runs.push(once(bench, &database, &name, (args.rate, args.seconds), *publisher).await?);
            bench.drop_with_stream(database, &name).await?;
        }
    }
    bench.resume(&OTHERS)?;
    for ((_, what), runs) in kinds.iter().zip(&all) {
        tell(what, runs);
    }
    Ok(())
}
