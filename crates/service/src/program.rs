//! The program of a service: one `main` for all, with `serve`, `migrate` and `healthcheck`.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Command};
use tracing::info;

use crate::arguments::{self, ConfigErrors, Settings};
use crate::config::Base;
use crate::lines;
use crate::login;
use crate::migrations::{self, Migrations};
use crate::ops;
use crate::process::Process;
use crate::retry::Delays;
use crate::secret::Secret;
use crate::telemetry::Telemetry;

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
    #[arg(long = "database-url", value_name = "URL", env = "FLOTILLA_OWNER_DATABASE_URL", hide_env_values = true, value_parser = login::urls)]
    owner_database_url: Secret,
    /// How many seconds to wait for a database that does not answer yet, or does not know the owner.
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = clap::value_parser!(u64).range(0..=3_600))]
    wait: u64,
}

impl Settings for Owner {}

/// The configuration of `healthcheck`.
#[derive(Args)]
struct Health {
    /// Address of the operations port.
    #[arg(long, env = "FLOTILLA_OPS_LISTEN")]
    ops_listen: SocketAddr,
    /// The certificate of the process, where it has one: it is asked over TLS then.
    #[arg(long, value_name = "FILE", env = "FLOTILLA_TLS_CERTIFICATE")]
    tls_certificate: Option<PathBuf>,
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

/// However the program ends, its last lines say why.
struct LastLines;

impl Drop for LastLines {
    fn drop(&mut self) {
        lines::write_waiting();
    }
}

async fn serve<S: Service>(given: &clap::ArgMatches) -> Result<ExitCode, anyhow::Error> {
    let Served { base, settings } = arguments::parse::<Served<S::Config>>(given)?;
    let _last = LastLines;
    let telemetry = Telemetry::init(S::NAME, &base)?;
    let mut process = Process { authorities: base.authorities, ..Process::new(S::NAME, &base.release) };
    process.certificate = base.tls.open(&process.lifecycle)?;
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
    if owner.wait > 0 {
        let answers = async {
            let mut delays = Delays::new(Duration::from_millis(100), Duration::from_secs(5));
            while let Err(error) = migrations::connect(&owner.owner_database_url.get()).await {
                eprintln!("waiting for the database: {error:#}");
                owner.owner_database_url.look_now().await;
                tokio::time::sleep(delays.next_delay()).await;
            }
        };
        // Whatever is still wrong then, the migration says.
        tokio::time::timeout(Duration::from_secs(owner.wait), answers).await.ok();
    }
    migrations.run(name, &owner.owner_database_url.get()).await.map(|()| ExitCode::SUCCESS)
}

async fn healthcheck(given: &clap::ArgMatches) -> Result<ExitCode, anyhow::Error> {
    let Health { mut ops_listen, tls_certificate, is } = arguments::parse(given)?;
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
    let scheme = if tls_certificate.is_some() { "https" } else { "http" };
    // It asks an address that no certificate has to name, and says nothing there: it trusts whoever answers, as a kubelet does.
    let client =
        reqwest::Client::builder().no_proxy().timeout(HEALTH_WITHIN).tls_danger_accept_invalid_certs(true).build()?;
    let answer = client.get(format!("{scheme}://{ops_listen}/{path}")).send().await?;
    let healthy = answer.status().is_success();
    println!("{}", answer.text().await?.trim_end());
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
