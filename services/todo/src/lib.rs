//! The todo service, the exemplar: every pattern of the fleet appears here first.
//!
//! A request comes in at `grpc`, becomes domain types in `wire`, and runs one function of `commands`: one visible transaction that
//! asks `permissions`, loads from `store`, decides in `todo` (pure), saves, and appends the events of `outgoing` to the outbox.

pub mod grpc;

mod wire;

pub mod commands;

pub mod permissions;

pub mod todo;

pub mod recurrence;

pub mod texts;

mod outgoing;

pub mod store;

mod events;

mod schedule;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use authz::Verifier;
use clap::Args;
use consumer::{Claim, Consumer, Inbox};
use contracts::envelope;
use futures::FutureExt as _;
use outbox::{Relay, RelayConfig};
use proto::todo::todo_service_server::TodoServiceServer;
use secrecy::SecretString;
use service::config::{Common, CommonArgs, ConfigError, Problems};
use service::ops::{self, Readiness};
use service::page::PageTokens;
use service::telemetry::Telemetry;
use service::{Db, Lifecycle, Outbox, clock, database, idempotency, nats, retry};

/// The service's name.
pub const NAME: &str = contracts::events::todo::SERVICE;

/// The schema, in steps.
pub static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// How the service is told what it needs.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// What every service is told.
    #[command(flatten)]
    pub common: CommonArgs,
    /// The database, as the role `todo_app`: postgres://user:password@host:port/name.
    #[arg(long, env = "FLOTILLA_DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
    /// A file that holds it.
    #[arg(long, env = "FLOTILLA_DATABASE_URL_FILE")]
    database_url_file: Option<PathBuf>,
    /// The same database, as the role `todo_relay`.
    #[arg(long, env = "FLOTILLA_RELAY_DATABASE_URL", hide_env_values = true)]
    relay_database_url: Option<String>,
    /// A file that holds it.
    #[arg(long, env = "FLOTILLA_RELAY_DATABASE_URL_FILE")]
    relay_database_url_file: Option<PathBuf>,
    /// NATS: nats://host:port, or the servers of a cluster, with commas between.
    #[arg(long, env = "FLOTILLA_NATS_URL")]
    nats_url: Option<String>,
    /// The credentials file of this service's login there.
    #[arg(long, env = "FLOTILLA_NATS_CREDS")]
    nats_creds: Option<PathBuf>,
    /// The credentials file of the login by which its handlers read events.
    #[arg(long, env = "FLOTILLA_CONSUMER_NATS_CREDS")]
    consumer_nats_creds: Option<PathBuf>,
    /// The key for page tokens, the same for all replicas.
    #[arg(long, env = "FLOTILLA_PAGE_TOKEN_KEY", hide_env_values = true)]
    page_token_key: Option<String>,
    /// A file that holds it.
    #[arg(long, env = "FLOTILLA_PAGE_TOKEN_KEY_FILE")]
    page_token_key_file: Option<PathBuf>,
    /// How many database connections to use at most.
    #[arg(long, env = "FLOTILLA_DATABASE_CONNECTIONS", default_value = "16")]
    database_connections: String,
    /// How long the stream is to keep events, in days; `flotilla provision` makes it so.
    #[arg(long, env = "FLOTILLA_STREAM_MAX_AGE_DAYS", default_value = "30")]
    stream_max_age_days: String,
    /// On how many servers the stream is to keep each event: 1, 3 or 5.
    #[arg(long, env = "FLOTILLA_STREAM_REPLICAS", default_value = "1")]
    stream_replicas: String,
    /// How long the outbox keeps its rows, in days; at least as long as the stream keeps events.
    #[arg(long, env = "FLOTILLA_OUTBOX_DAYS", default_value = "31")]
    outbox_days: String,
    /// After how many days what a deleted todo held is removed; not before the stream has forgotten its events.
    #[arg(long, env = "FLOTILLA_DELETED_DAYS", default_value = "31")]
    deleted_days: String,
}

/// [`ConfigArgs`], checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// What every service is told.
    pub common: Common,
    /// The database as `todo_app`.
    pub database_url: SecretString,
    /// The database as `todo_relay`.
    pub relay_database_url: SecretString,
    /// Where NATS is, and this service's credentials there.
    pub nats: nats::Login,
    /// The same for its handlers, which read events.
    pub consumer_nats: nats::Login,
    /// The key for page tokens.
    pub page_token_key: SecretString,
    /// At most so many connections.
    pub database_connections: u32,
    /// How long the stream is to keep events.
    pub stream_max_age: Duration,
    /// On how many servers it is to keep each.
    pub stream_replicas: usize,
    /// How many days the outbox keeps its rows.
    pub outbox_days: i32,
    /// After how long what a deleted todo held is removed.
    pub keep_deleted: Duration,
}

impl Config {
    /// Checks everything, before any port is bound.
    ///
    /// # Errors
    /// Tells every wrong value.
    pub fn check(args: &ConfigArgs) -> Result<Self, ConfigError> {
        let mut problems = Problems::default();
        let config = Self::parse(args, &mut problems);
        problems.finish(config)
    }

    fn parse(args: &ConfigArgs, problems: &mut Problems) -> Option<Self> {
        let common = args.common.check(problems);
        let database_url =
            problems.secret("FLOTILLA_DATABASE_URL", args.database_url.as_deref(), args.database_url_file.as_deref());
        let relay_database_url = problems.secret(
            "FLOTILLA_RELAY_DATABASE_URL",
            args.relay_database_url.as_deref(),
            args.relay_database_url_file.as_deref(),
        );
        let nats = problems.nats(args.nats_url.as_deref(), args.nats_creds.as_deref());
        let consumer_nats = problems.file("FLOTILLA_CONSUMER_NATS_CREDS", args.consumer_nats_creds.as_deref());
        let page_token_key = problems.secret(
            "FLOTILLA_PAGE_TOKEN_KEY",
            args.page_token_key.as_deref(),
            args.page_token_key_file.as_deref(),
        );
        let connections = problems.parse("FLOTILLA_DATABASE_CONNECTIONS", Some(&args.database_connections));
        let days: Option<u64> = problems.parse("FLOTILLA_STREAM_MAX_AGE_DAYS", Some(&args.stream_max_age_days));
        if days.is_some_and(|days| !(1..=3_650).contains(&days)) {
            problems.add("FLOTILLA_STREAM_MAX_AGE_DAYS: must be 1 to 3650".to_owned());
        }
        let stream_replicas: Option<usize> = problems.parse("FLOTILLA_STREAM_REPLICAS", Some(&args.stream_replicas));
        if stream_replicas.is_some_and(|replicas| ![1, 3, 5].contains(&replicas)) {
            problems.add("FLOTILLA_STREAM_REPLICAS: must be 1, 3 or 5".to_owned());
        }
        let outbox_days: Option<i32> = problems.parse("FLOTILLA_OUTBOX_DAYS", Some(&args.outbox_days));
        if let (Some(days), Some(stream)) = (outbox_days, days)
            && i64::from(days) < stream.cast_signed()
        {
            problems.add(format!("FLOTILLA_OUTBOX_DAYS: must not be less than the stream's {stream} days"));
        }
        let deleted_days: Option<u32> = problems.parse("FLOTILLA_DELETED_DAYS", Some(&args.deleted_days));
        if let (Some(deleted), Some(stream)) = (deleted_days, days)
            && (u64::from(deleted) < stream || deleted > 36_500)
        {
            problems.add(format!(
                "FLOTILLA_DELETED_DAYS: must be 36500 at most, and not less than the stream's {stream} days"
            ));
        }
        Some(Self {
            common: common?,
            database_url: database_url?,
            relay_database_url: relay_database_url?,
            consumer_nats: nats::Login { credentials: consumer_nats?, ..nats.clone()? },
            nats: nats?,
            page_token_key: page_token_key?,
            database_connections: connections?,
            stream_max_age: Duration::from_secs(days.filter(|days| (1..=3_650).contains(days))? * 86_400),
            stream_replicas: stream_replicas?,
            outbox_days: outbox_days?,
            keep_deleted: Duration::from_secs(u64::from(deleted_days?) * 86_400),
        })
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
    database::migrate(&problems.finish(url)?, &MIGRATIONS).await
}

/// Runs the service to its end.
///
/// # Errors
/// Fails when it cannot start.
pub async fn serve(config: Config, args: &CommonArgs) -> Result<ExitCode, anyhow::Error> {
    let telemetry = Telemetry::init(NAME, &args.telemetry)?;
    let lifecycle = Lifecycle::default();
    let readiness = Readiness::default();
    let (release, metrics) = (&config.common.release, Some(telemetry.metrics()));
    ops::serve(&lifecycle, config.common.ops_listen, readiness.clone(), release, metrics).await?;
    let app = build(&config, &lifecycle, &readiness).await?;
    let tenant = config.common.door.allowances.tenant.at_work;
    if u32::try_from(tenant).is_ok_and(|tenant| tenant >= config.database_connections) {
        tracing::warn!(tenant, config.database_connections, "one tenant's calls at work can take all connections");
    }
    tracing::info!(address = %app.address, "serving");
    let code = lifecycle.run_to_end().await;
    telemetry.flush().await;
    Ok(code)
}

/// The running service.
pub struct App {
    /// Where its gRPC door is.
    pub address: SocketAddr,
    /// Its relay.
    pub relay: outbox::Handle,
}

/// Starts everything; the tests start exactly this.
///
/// # Errors
/// Fails when a port cannot be bound or an address cannot be read. A dependency that is down is waited for.
pub async fn build(config: &Config, lifecycle: &Lifecycle, readiness: &Readiness) -> Result<App, anyhow::Error> {
    let db = Db::lazy(&config.database_url, NAME, config.database_connections)?;
    let verifier = Arc::new(Verifier::new(config.common.jwks.clone(), &config.common.issuer, &config.common.audience)?);
    let nats = nats::connect(NAME, &config.nats).await?;
    let relay_db = database::pool(&config.relay_database_url, "todo-relay", 3)?;
    let relay = Relay::new(relay_db, nats, relay_config(config));
    let handle = relay.handle();
    let stop = lifecycle.stopping();
    lifecycle.spawn("relay", async move {
        relay.run(stop).await;
        Ok::<_, anyhow::Error>(())
    });
    watch(lifecycle, readiness, db.clone(), Arc::clone(&verifier));
    lifecycle.spawn("sweep", idempotency::sweep(db.clone(), lifecycle.stopping()));
    let app = commands::App { db, outbox: Outbox::new(handle.clone()) };
    handle_events(config, lifecycle, app.clone()).await?;
    schedule::run(lifecycle, &app, &NAME.parse()?, config.keep_deleted);
    let todos = grpc::Todos { app, pages: PageTokens::new(config.page_token_key.clone()) };
    let service = TodoServiceServer::new(todos);
    let address = service::grpc::serve(lifecycle, &config.common, verifier, proto::DESCRIPTORS, service).await?;
    Ok(App { address, relay: handle })
}

/// Runs the handlers of events.
async fn handle_events(config: &Config, lifecycle: &Lifecycle, app: commands::App) -> Result<(), anyhow::Error> {
    let nats = nats::connect(&fleet::consumer_login(NAME), &config.consumer_nats).await?;
    let recurrence = fleet::todo_recurrence(format!("{NAME} {}", config.common.release));
    // One connection for the lease, and one for each event that is handled at once.
    let connections = u32::try_from(recurrence.batch + 1)?;
    let inbox = Inbox {
        db: database::pool(&config.database_url, "todo-inbox", connections)?,
        tenant_setting: None,
        holder: clock::new_id(),
        keep_days: config.outbox_days,
    };
    let (consumer, service, stop) = (Consumer::new(nats, recurrence), Arc::new(NAME.parse()?), lifecycle.stopping());
    lifecycle.spawn("recurrence", async move {
        let handler = |claim: Claim| {
            let (app, service) = (app.clone(), Arc::clone(&service));
            async move { events::on_event(&app, &service, &claim).await }.boxed()
        };
        consumer.run_claims(stop, inbox, handler).await;
        Ok::<_, anyhow::Error>(())
    });
    Ok(())
}

fn relay_config(config: &Config) -> RelayConfig {
    RelayConfig {
        stream: fleet::stream(NAME, config.stream_max_age, config.stream_replicas),
        content_type: envelope::CONTENT_TYPE.to_owned(),
        hint_subject: format!("hint.outbox.{NAME}"),
        holder: clock::new_id(),
        lease: Duration::from_secs(4),
        poll: Duration::from_millis(500),
        window: 2_000,
        retention_days: Some(config.outbox_days),
        max_bytes: envelope::MAX_BYTES,
    }
}

/// Keeps readiness true to the database and the keys.
fn watch(lifecycle: &Lifecycle, readiness: &Readiness, db: Db, verifier: Arc<Verifier>) {
    readiness.set("database", false);
    readiness.set("keys", false);
    let (stop, readiness) = (lifecycle.stopping(), readiness.clone());
    lifecycle.spawn("watch", async move {
        let keys = retry::until_it_works("the issuer's keys", || verifier.refresh());
        if stop.run_until_cancelled(keys).await.is_some() {
            readiness.set("keys", true);
        }
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            let answer = db.ping().await;
            if let Err(error) = &answer {
                tracing::warn!(%error, "the database does not answer");
            }
            readiness.set("database", answer.is_ok());
        }
        Ok::<_, anyhow::Error>(())
    });
}
