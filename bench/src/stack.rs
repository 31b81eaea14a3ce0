//! The stack under measurement: the whole fleet from the release build, in a folder of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context as _;
use async_nats::jetstream;
use devstack::Unit;
use devstack::postgres::roles;
use devstack::stack::{Options, Stack};
use nix::sys::signal::Signal;
use sqlx::{Connection as _, PgConnection};
use tokio::process::Command;

/// A running fleet and how often to measure.
pub struct Bench {
    pub runs: usize,
    pub stack: Stack,
    pub programs: PathBuf,
    databases: AtomicU32,
}

/// A database with the schema of the todo service.
pub struct Database {
    pub name: String,
    pub relay: String,
    pub app: String,
    pub superuser: String,
}

/// The rate, and the calls in flight, for each tenant and principal.
pub fn allowed(rate: u32, at_work: u32) -> Vec<(String, String)> {
    let scope = |scope| [(format!("FLOTILLA_{scope}_RATE"), rate), (format!("FLOTILLA_{scope}_AT_WORK"), at_work)];
    let all = ["TENANT", "PRINCIPAL"].into_iter().flat_map(scope);
    all.map(|(name, value)| (name, value.to_string())).collect()
}

impl Bench {
    /// Starts one whose services have these additional variables.
    pub async fn start(runs: usize, env: Vec<(String, String)>) -> Result<Self, anyhow::Error> {
        let programs = std::env::current_exe()?.parent().context("a program is in a folder")?.to_owned();
        let home = programs.join("bench-stack");
        if home.exists() {
            devstack::StackDir::open(&home)?.wipe()?;
        }
        std::fs::create_dir_all(&home)?;
        let options = Options {
            tls: false,
            home,
            programs: programs.clone(),
            gateway_port: 0,
            usual_ports: false,
            durable: true,
            otlp_endpoint: None,
            observe: None,
            fault_proxy: false,
            provider: None,
            infra_only: false,
            env,
        };
        let say: devstack::Reporter = Arc::new(|line: &str| eprintln!("  {line}"));
        let stack = Stack::start(&options, say).await?;
        Ok(Self { runs, stack, programs, databases: AtomicU32::new(0) })
    }

    pub async fn stop(self) {
        let home = self.stack.home.clone();
        self.stack.stop().await;
        home.wipe().ok();
    }

    fn unit(&self, name: &str) -> Option<Unit> {
        self.stack.status_file.read().units.into_iter().find(|unit| unit.name == name)
    }

    pub fn pid(&self, unit: &str) -> u32 {
        self.unit(unit).and_then(|unit| unit.pid).unwrap_or(0)
    }

    pub fn address(&self, unit: &str) -> String {
        self.unit(unit).map(|unit| unit.address).unwrap_or_default()
    }

    /// The address of a service for operators.
    pub fn ops(&self, unit: &str) -> Option<String> {
        self.unit(unit)?.ops
    }

    pub fn url(&self, unit: &str) -> String {
        self.unit(unit).and_then(|unit| unit.url).unwrap_or_default()
    }

    /// OpenSearch, with its login.
    pub fn opensearch(&self) -> Result<String, anyhow::Error> {
        self.stack.status_file.read().unit("opensearch")?.login_url()
    }

    /// Stops units without ending them, so that they use no processor.
    pub fn pause(&self, units: &[&str]) -> Result<(), anyhow::Error> {
        units.iter().try_for_each(|unit| devstack::process::signal_all(self.pid(unit), Signal::SIGSTOP))
    }

    pub fn resume(&self, units: &[&str]) -> Result<(), anyhow::Error> {
        units.iter().try_for_each(|unit| devstack::process::signal_all(self.pid(unit), Signal::SIGCONT))
    }

    pub async fn database(&self) -> Result<Database, anyhow::Error> {
        let name = format!("bench_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let (postgres, roles) = (&self.stack.postgres, roles(&self.stack.home, "todo")?);
        postgres.provision("todo", &roles, &name).await?;
        let owner = postgres.url("todo_owner", &roles.owner, &name);
        let mut migrate = Command::new(self.programs.join("todo"));
        let status = migrate.arg("migrate").env("FLOTILLA_OWNER_DATABASE_URL", owner).status().await?;
        anyhow::ensure!(status.success(), "the migration failed");
        Ok(Database {
            relay: postgres.url("todo_relay", &roles.relay, &name),
            app: postgres.url("todo_app", &roles.app, &name),
            superuser: postgres.superuser_url(&name),
            name,
        })
    }

    /// Removes a database.
    pub async fn drop_database(&self, database: Database) -> Result<(), anyhow::Error> {
        let mut admin = PgConnection::connect(&self.stack.postgres.superuser_url("postgres")).await?;
        let sql = format!("drop database {} with (force)", database.name);
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut admin).await?;
        Ok(())
    }

    /// Removes a database and the stream that its relay published to.
    pub async fn drop_with_stream(&self, database: Database, stream: &str) -> Result<(), anyhow::Error> {
        jetstream::new(self.nats().await?).delete_stream(stream).await?;
        self.drop_database(database).await
    }

    /// The address of NATS, and the administration's credentials for the account of the todos' events.
    pub fn nats_login(&self) -> NatsLogin {
        let credentials = devstack::nats::credentials_file(&self.stack.home, &devstack::nats::administration("TODO"));
        NatsLogin { url: self.url("nats"), credentials }
    }

    pub async fn nats(&self) -> Result<async_nats::Client, anyhow::Error> {
        connect(&self.nats_login()).await
    }
}

/// The address of NATS, and the credentials file.
#[derive(Debug, Clone, clap::Args)]
pub struct NatsLogin {
    #[arg(long = "nats", env = "BENCH_NATS_URL")]
    pub url: String,
    #[arg(long = "nats-creds", env = "BENCH_NATS_CREDS")]
    pub credentials: PathBuf,
}

impl NatsLogin {
    /// The same, for a process of its own.
    pub fn env(&self) -> [(&'static str, std::ffi::OsString); 2] {
        [("BENCH_NATS_URL", self.url.clone().into()), ("BENCH_NATS_CREDS", self.credentials.clone().into())]
    }
}

pub async fn connect(login: &NatsLogin) -> Result<async_nats::Client, anyhow::Error> {
    let options = async_nats::ConnectOptions::new().credentials_file(&login.credentials).await?;
    Ok(options.client_capacity(8_192).connect(&login.url).await?)
}

/// When the stream stored the message with the sequence `first` and its last, in seconds.
pub async fn first_and_last(stream: &jetstream::stream::Stream, first: u64) -> Result<(f64, f64), anyhow::Error> {
    let state = stream.get_info().await?.state;
    let mut times = [0.0; 2];
    for (time, sequence) in times.iter_mut().zip([first, state.last_sequence]) {
        *time = stream.get_raw_message(sequence).await?.time.timestamp_micros() as f64 / 1e6;
    }
    Ok((times[0], times[1]))
}
