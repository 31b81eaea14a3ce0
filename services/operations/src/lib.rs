//! The operations service: keeps dead letters beside the broker, and replays them as jobs.
//!
//! `events` keeps what consumers tell, `replay` works on jobs at the pace that `pace` (pure) gives, `letters` (pure)
//! knows what a letter says of itself. `store`, `store_audit` and `store_jobs` are also what `flotilla dlq` works with.

pub mod letters;

pub mod pace;

pub mod store;

pub mod store_audit;

pub mod store_kept;

pub mod store_jobs;

pub mod store_range;

mod store_work;

mod events;

mod replay;

mod publish;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use consumer::{Keeper, Replayer};
use secrecy::SecretString;
use service::config::{ConfigError, Problems, TelemetryArgs};
use service::nats::Record;
use service::ops::{self, Readiness};
use service::telemetry::Telemetry;
use service::{Lifecycle, clock, database, nats};

use crate::store::Store;

/// The service's name.
pub const NAME: &str = "operations";

/// How the service is told what it needs.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Address of the operations port: /metrics, /healthz, /readyz.
    #[arg(long, env = "FLOTILLA_OPS_LISTEN")]
    ops_listen: Option<String>,
    /// The database, as the role `operations_app`: postgres://user:password@host:port/name.
    #[arg(long, env = "FLOTILLA_DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
    /// A file that holds it.
    #[arg(long, env = "FLOTILLA_DATABASE_URL_FILE")]
    database_url_file: Option<PathBuf>,
    /// NATS: nats://host:port, or the servers of a cluster, with commas between.
    #[arg(long, env = "FLOTILLA_NATS_URL")]
    nats_url: Option<String>,
    /// The credentials file of this service's login there.
    #[arg(long, env = "FLOTILLA_NATS_CREDS")]
    nats_creds: Option<PathBuf>,
    /// See [`TelemetryArgs`].
    #[command(flatten)]
    telemetry: TelemetryArgs,
}

/// [`ConfigArgs`], checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The address of the operations port.
    pub ops_listen: SocketAddr,
    /// The database as `operations_app`.
    pub database_url: SecretString,
    /// Where NATS is, and this service's credentials there.
    pub nats: nats::Login,
}

impl Config {
    /// Checks everything, before any port is bound.
    ///
    /// # Errors
    /// Tells every wrong value.
    pub fn check(args: &ConfigArgs) -> Result<Self, ConfigError> {
        let mut problems = Problems::default();
        let ops_listen = problems.parse("FLOTILLA_OPS_LISTEN", args.ops_listen.as_deref());
        let database_url =
            problems.secret("FLOTILLA_DATABASE_URL", args.database_url.as_deref(), args.database_url_file.as_deref());
        args.telemetry.check(&mut problems);
        let nats = problems.nats(args.nats_url.as_deref(), args.nats_creds.as_deref());
        let config = || Some(Self { ops_listen: ops_listen?, database_url: database_url?, nats: nats? });
        let config = config();
        problems.finish(config)
    }
}

/// How `migrate` is told what it needs.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// The database, as its owner.
    #[arg(long, env = "FLOTILLA_OWNER_DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
    /// A file that holds it.
    #[arg(long, env = "FLOTILLA_OWNER_DATABASE_URL_FILE")]
    database_url_file: Option<PathBuf>,
}

/// Brings the schema up to date.
///
/// # Errors
/// Fails when a value is missing or a migration fails.
pub async fn migrate(args: &MigrateArgs) -> Result<(), anyhow::Error> {
    let mut problems = Problems::default();
    let url =
        problems.secret("FLOTILLA_OWNER_DATABASE_URL", args.database_url.as_deref(), args.database_url_file.as_deref());
    database::migrate(&problems.finish(url)?, &store::MIGRATIONS).await
}

/// Runs the service to its end.
///
/// # Errors
/// Fails when it cannot start.
pub async fn serve(config: Config, args: &ConfigArgs) -> Result<ExitCode, anyhow::Error> {
    let telemetry = Telemetry::init(NAME, &args.telemetry)?;
    let lifecycle = Lifecycle::default();
    let readiness = Readiness::default();
    let (release, metrics) = (&args.telemetry.release, Some(telemetry.metrics()));
    ops::serve(&lifecycle, config.ops_listen, readiness.clone(), release, metrics).await?;
    build(&config, &lifecycle, &readiness).await?;
    tracing::info!("working");
    let code = lifecycle.run_to_end().await;
    telemetry.flush().await;
    Ok(code)
}

/// Starts everything; the tests start exactly this.
///
/// # Errors
/// Fails when an address cannot be read. A dependency that is down is waited for.
pub async fn build(config: &Config, lifecycle: &Lifecycle, readiness: &Readiness) -> Result<(), anyhow::Error> {
    let store = Store(database::pool(&config.database_url, NAME, 8)?);
    let nats = nats::connect(NAME, &config.nats).await?;
    let (kept, keeper, stop) = (store.clone(), Keeper::new(nats.clone(), NAME), lifecycle.stopping());
    lifecycle.spawn("keeper", async move {
        events::keep(&kept, &keeper, clock::new_id(), &stop).await;
        Ok::<_, anyhow::Error>(())
    });
    let (told, record, stop) = (store.clone(), Record::new(nats.clone(), publish::STREAM), lifecycle.stopping());
    lifecycle.spawn("audit", async move {
        publish::tell(&told, &record, &stop).await;
        Ok::<_, anyhow::Error>(())
    });
    let runner = replay::Runner { store: store.clone(), replayer: Replayer::new(nats), holder: clock::new_id() };
    let stop = lifecycle.stopping();
    lifecycle.spawn("jobs", async move {
        runner.run(&stop).await;
        Ok::<_, anyhow::Error>(())
    });
    readiness.set("database", false);
    let (stop, readiness) = (lifecycle.stopping(), readiness.clone());
    lifecycle.spawn("watch", async move {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let mut known = Vec::new();
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            let answer = store.ping().await;
            readiness.set("database", answer.is_ok());
            match store.unsettled().await {
                Ok(unsettled) => tell(&unsettled, &mut known),
                Err(error) => tracing::warn!(%error, "the letters cannot be counted"),
            }
        }
        Ok::<_, anyhow::Error>(())
    });
    Ok(())
}

/// The unsettled letters as metrics; a kind that has none any more is zero.
fn tell(unsettled: &[(String, String, i64, f64)], known: &mut Vec<(String, String)>) {
    for (consumer, event_type, _, _) in unsettled {
        let kind = (consumer.clone(), event_type.clone());
        if !known.contains(&kind) {
            known.push(kind);
        }
    }
    for (consumer, event_type) in &*known {
        let one = unsettled.iter().find(|one| (&one.0, &one.1) == (consumer, event_type));
        let (count, age) = one.map_or((0, 0.0), |one| (one.2, one.3));
        let labels = [("consumer", consumer.clone()), ("event_type", event_type.clone())];
        metrics::gauge!("dlq_unsettled_letters", &labels).set(count as f64);
        metrics::gauge!("dlq_oldest_unsettled_seconds", &labels).set(age);
    }
}
