//! The process of a service: one `main` for all, with `serve`, `migrate` and `healthcheck`.

use std::fmt::Display;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use authz::Verifier;
use clap::{Args, Command};
use contracts::UserId;
use contracts::ids::IdError;
use http::HeaderValue;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use metrics::gauge;
use secrecy::SecretString;
use sqlx::PgPool;
use tracing::{info, warn};

use crate::arguments::{self, ConfigErrors, Settings};
use crate::config::{Base, Common, Database};
use crate::migrations::Migrations;
use crate::operators::Operators;
use crate::ops::{self, Readiness};
use crate::telemetry::Telemetry;
use crate::{Db, Lifecycle, connections, idempotency, retry};

/// How often to check that a dependency answers, and to count connections.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long a health check waits for its answer.
const HEALTH_WITHIN: Duration = Duration::from_secs(2);

/// A service of the fleet, as its process knows it.
pub trait Service {
    /// Names its program, and the service in logs, metrics and the permission matrix.
    const NAME: &'static str;
    /// What the service is for, in one sentence, for `--help`.
    const ABOUT: &'static str;
    /// The schema of its database, where it has one.
    const MIGRATIONS: Option<Migrations> = None;
    /// Its configuration, beside [`Base`].
    type Config: Settings;
    /// What tests read while it runs: its address, say.
    type App: Send;

    /// Starts everything, and waits for dependencies that are down; the tests start exactly this.
    ///
    /// # Errors
    /// A port cannot be bound, or an address cannot be read.
    fn start(config: &Self::Config, process: &Process)
    -> impl Future<Output = Result<Self::App, anyhow::Error>> + Send;
}

/// What runs in a process, and whether it is ready. Clones are the same process.
#[derive(Clone)]
pub struct Process {
    /// What runs in it, and how it ends.
    pub lifecycle: Lifecycle,
    /// The conditions for its readiness.
    pub readiness: Readiness,
    /// The service's name.
    pub name: &'static str,
    /// Its release.
    pub release: Arc<str>,
    /// Its services for operators.
    pub(crate) operators: Operators,
}

impl Process {
    /// A process in which nothing runs yet.
    #[must_use]
    pub fn new(name: &'static str, release: &str) -> Self {
        Self {
            lifecycle: Lifecycle::default(),
            readiness: Readiness::default(),
            name,
            release: release.into(),
            operators: Operators::default(),
        }
    }

    /// The identity of the service when it acts by itself.
    ///
    /// # Errors
    /// Its name is no id.
    pub fn acts_as(&self) -> Result<UserId, IdError> {
        self.name.parse()
    }

    /// Name and release, as dead letters name the handler of an event.
    #[must_use]
    pub fn version(&self) -> String {
        format!("{} {}", self.name, self.release)
    }

    /// The header that names the release, where answers are to have it.
    #[must_use]
    pub fn release_header(&self, common: &Common) -> Option<HeaderValue> {
        common.release_header.then(|| HeaderValue::try_from(&*self.release).ok()).flatten()
    }

    /// Verifies access tokens. The process is ready once it has the issuer's keys.
    ///
    /// # Errors
    /// The client for the keys cannot be made.
    pub fn verifier(&self, common: &Common) -> Result<Arc<Verifier>, anyhow::Error> {
        anyhow::ensure!(
            common.audience != common.issuer.operators_audience,
            "FLOTILLA_OPERATORS_AUDIENCE: must differ from FLOTILLA_AUDIENCE, or each tenant's token is an operator's"
        );
        let verifier = Arc::new(Verifier::new(common.issuer.jwks.clone(), &common.issuer.name, &common.audience)?);
        self.readiness.set("keys", false);
        let (ready, keys) = (self.readiness.clone(), Arc::clone(&verifier));
        self.lifecycle.run("keys", |stop| async move {
            let had = retry::retry_forever("the issuer's keys", || keys.refresh());
            if stop.run_until_cancelled(had).await.is_some() {
                ready.set("keys", true);
            }
            stop.cancelled().await;
        });
        Ok(verifier)
    }

    /// Opens the database of a service that serves callers. Watches it, counts its connections, and sweeps old idempotency records.
    ///
    /// # Errors
    /// The address cannot be read.
    pub fn database(&self, config: &Database, common: &Common) -> Result<Db, anyhow::Error> {
        let at_work = u32::from(common.admission.tenant_at_work.get());
        if at_work >= config.connections {
            warn!(at_work, config.connections, "one tenant's calls at work can take all connections");
        }
        let db = Db::lazy(&config.url, self.name, config.connections)?;
        let counted = db.clone();
        self.count(self.name, config.connections, move || counted.in_use());
        let asked = db.clone();
        self.watch("database", move || {
            let db = asked.clone();
            async move { db.ping().await }
        });
        self.lifecycle.run("sweep of idempotency records", |stop| idempotency::sweep(db.clone(), stop));
        Ok(db)
    }

    /// Opens a pool of its own, and counts its connections. `name` is its label, and its `application_name` in the database.
    ///
    /// # Errors
    /// The address cannot be read.
    pub fn pool(&self, url: &SecretString, name: &str, most: u32) -> Result<PgPool, sqlx::Error> {
        self.counted(name, most, connections::pool(url, name, most)?)
    }

    /// Opens a pool for operators, whose statements may take minutes.
    ///
    /// # Errors
    /// The address cannot be read.
    pub fn operators_pool(&self, url: &SecretString, most: u32) -> Result<PgPool, sqlx::Error> {
        let name = format!("{}-operators", self.name);
        self.counted(&name, most, connections::operators_pool(url, &name, most)?)
    }

    fn counted(&self, name: &str, most: u32, pool: PgPool) -> Result<PgPool, sqlx::Error> {
        let counted = pool.clone();
        let in_use = move || counted.size().saturating_sub(u32::try_from(counted.num_idle()).unwrap_or(u32::MAX));
        self.count(name, most, in_use);
        Ok(pool)
    }

    fn count(&self, pool: &str, most: u32, in_use: impl Fn() -> u32 + Send + 'static) {
        gauge!("database_connections_max", "pool" => pool.to_owned()).set(f64::from(most));
        let counted = gauge!("database_connections_in_use", "pool" => pool.to_owned());
        self.lifecycle.run("count of connections", |stop| async move {
            let mut tick = tokio::time::interval(ASK_EVERY);
            while stop.run_until_cancelled(tick.tick()).await.is_some() {
                counted.set(f64::from(in_use()));
            }
        });
    }

    /// Checks every second that a dependency answers; the process is ready while it does.
    pub fn watch<F, E>(&self, condition: &'static str, ask: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = Result<(), E>> + Send,
        E: Display + Send,
    {
        self.readiness.set(condition, false);
        let ready = self.readiness.clone();
        self.lifecycle.run(condition, |stop| async move {
            let mut tick = tokio::time::interval(ASK_EVERY);
            while stop.run_until_cancelled(tick.tick()).await.is_some() {
                let answer = ask().await;
                if let Err(error) = &answer {
                    warn!(%error, "{condition} does not answer");
                }
                ready.set(condition, answer.is_ok());
            }
        });
    }
}

/// The configuration of `serve`.
#[derive(Args)]
struct Served<S: Settings> {
    #[command(flatten)]
    base: Base,
    #[command(flatten)]
    settings: S,
}

impl<S: Settings> Settings for Served<S> {
    fn check(&self, problems: &mut ConfigErrors) {
        self.settings.check(problems);
    }
}

/// The configuration of `migrate`.
#[derive(Args)]
struct Owner {
    /// The database, as its owner.
    #[arg(long = "database-url", value_name = "URL", env = "FLOTILLA_OWNER_DATABASE_URL", hide_env_values = true)]
    owner_database_url: SecretString,
}

impl Settings for Owner {}

/// The configuration of `healthcheck`.
#[derive(Args)]
struct Health {
    /// Address of the operations port.
    #[arg(long, env = "FLOTILLA_OPS_LISTEN")]
    ops_listen: SocketAddr,
    /// What to ask for: whether it is `alive`, or `ready` to do its work.
    #[arg(long, default_value = "alive", value_parser = ["alive", "ready"])]
    is: String,
}

impl Settings for Health {}

/// The `main` of a service's program.
#[tokio::main]
pub async fn main<S: Service>() -> ExitCode {
    let subcommand = |command: Command, about: &'static str| command.about(about).long_about(None::<&str>);
    let mut command = Command::new(S::NAME)
        .about(S::ABOUT)
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(subcommand(arguments::command::<Served<S::Config>>("serve"), "Serves until SIGTERM"))
        .subcommand(subcommand(arguments::command::<Health>("healthcheck"), "Asks a process that serves how it is"));
    if S::MIGRATIONS.is_some() {
        let about = "Brings the database's schema up to date, as its owner";
        command = command.subcommand(subcommand(arguments::command::<Owner>("migrate"), about));
    }
    let result = match (command.get_matches().subcommand(), S::MIGRATIONS) {
        (Some(("healthcheck", given)), _) => healthcheck(given).await,
        (Some(("migrate", given)), Some(migrations)) => migrate(S::NAME, given, &migrations).await,
        (given, _) => match given {
            Some((_, given)) => Box::pin(serve::<S>(given)).await,
            None => Ok(ExitCode::FAILURE),
        },
    };
    result.unwrap_or_else(|error| {
        eprintln!("{}: {error:#}", S::NAME);
        ExitCode::FAILURE
    })
}

async fn serve<S: Service>(given: &clap::ArgMatches) -> Result<ExitCode, anyhow::Error> {
    let Served { base, settings } = arguments::parse::<Served<S::Config>>(given)?;
    let telemetry = Telemetry::init(S::NAME, &base)?;
    let process = Process::new(S::NAME, &base.release);
    // Whatever it has found to be so while it starts.
    process.readiness.set("started", false);
    let ops = ops::serve(&process, base.ops_listen, Some(telemetry.metrics())).await?;
    let app = S::start(&settings, &process).await?;
    process.readiness.set("started", true);
    info!(%ops, "serving");
    let code = process.lifecycle.run_to_end().await;
    drop(app);
    telemetry.flush().await;
    Ok(code)
}

async fn migrate(name: &str, given: &clap::ArgMatches, migrations: &Migrations) -> Result<ExitCode, anyhow::Error> {
    let owner = arguments::parse::<Owner>(given)?;
    migrations.run(name, &owner.owner_database_url).await.map(|()| ExitCode::SUCCESS)
}

async fn healthcheck(given: &clap::ArgMatches) -> Result<ExitCode, anyhow::Error> {
    let Health { mut ops_listen, is } = arguments::parse(given)?;
    anyhow::ensure!(
        ops_listen.port() != 0,
        "FLOTILLA_OPS_LISTEN: port 0 is any free one: name the one that the process has"
    );
    match ops_listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => ops_listen.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => ops_listen.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    let path = if is == "ready" { "readyz" } else { "healthz" };
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<bytes::Bytes>>();
    let ask = async {
        let answer = client.get(format!("http://{ops_listen}/{path}").parse()?).await?;
        let healthy = answer.status().is_success();
        Ok::<_, anyhow::Error>((healthy, answer.into_body().collect().await?.to_bytes()))
    };
    let answer = tokio::time::timeout(HEALTH_WITHIN, ask).await;
    let (healthy, body) = answer.map_err(|_| anyhow::anyhow!("no answer within {HEALTH_WITHIN:?}"))??;
    println!("{}", String::from_utf8_lossy(&body).trim_end());
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
