//! Relays between this machine's Postgres and nats-server, and their streams.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::jetstream::{self, stream};
use outbox::{Relay, RelayConfig, StreamSpec};
use sqlx::PgPool;
use tokio::process::{Child, Command};

use crate::stack::{Bench, Database, NatsLogin, connect};

/// The units that would use the processor.
pub const OTHERS: [&str; 4] = ["opensearch", "gateway", "todo", "search-projector"];
pub const PAYLOAD: usize = 600;
pub const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
pub const EVENT_ID: async_nats::HeaderName = async_nats::HeaderName::from_static("Outbox-Event-Id");
const AGE: Duration = Duration::from_secs(30 * 86_400);

/// A relay as a service has it, metrics included.
pub async fn make(database: &str, nats: &NatsLogin, name: &str) -> Result<Relay, anyhow::Error> {
    metrics_exporter_prometheus::PrometheusBuilder::new()
        .set_buckets(&[0.0005, 0.001, 0.002, 0.005, 0.01, 0.1, 1.0])?
        .install_recorder()
        // The run before may have installed it.
        .ok();
    let config = RelayConfig { hint_subject: hint(name), ..spec(name).into() };
    let nats = connect(nats).await?;
    outbox::administer::stream(&jetstream::new(nats.clone()), &config.stream).await?;
    Ok(Relay::new(PgPool::connect_lazy(database)?, nats, config))
}

fn spec(name: &str) -> StreamSpec {
    StreamSpec { max_age: AGE, ..StreamSpec::new(name, [format!("{name}.>")]) }
}

pub fn hint(name: &str) -> String {
    format!("hint.bench.{name}")
}

pub fn spawn(bench: &Bench, database: &Database, name: &str) -> Result<Child, anyhow::Error> {
    Command::new(std::env::current_exe()?)
        .args(["relay", "--name", name])
        .env("BENCH_DATABASE_URL", &database.relay)
        .envs(bench.nats_login().env())
        .kill_on_drop(true)
        .spawn()
        .context("starting the relay")
}

pub async fn stop(mut relay: Child) -> Result<(), anyhow::Error> {
    devstack::process::signal(relay.id().context("the relay has ended")?, nix::sys::signal::Signal::SIGTERM)?;
    relay.wait().await?;
    Ok(())
}

pub async fn until_stored(js: &jetstream::Context, name: &str, last: u64) -> Result<stream::Stream, anyhow::Error> {
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        tick.tick().await;
        if let Ok(stream) = js.get_stream(name).await
            && stream.get_info().await?.state.last_sequence >= last
        {
            return Ok(stream);
        }
        anyhow::ensure!(Instant::now() < deadline, "the relay did not store {last} messages");
    }
}

/// A stream as the administration makes it.
pub fn stream_config(name: &str) -> stream::Config {
    stream::Config {
        name: name.to_owned(),
        subjects: vec![format!("{name}.>")],
        max_age: AGE,
        discard: stream::DiscardPolicy::New,
        ..Default::default()
    }
}
