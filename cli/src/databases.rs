//! `flotilla databases`: the roles and the database of each service, on a PostgreSQL that somebody else runs.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff as _;
use clap::Args;
use devstack::{StackDir, postgres};
use serde_json::json;

use crate::context::Context;
use crate::outbox::say;

/// How long a job waits for what starts beside it.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Args)]
pub struct DatabasesArgs {
    /// A file that holds the login of a superuser: postgres://user:password@host:port/postgres.
    #[arg(long, value_name = "FILE", env = "FLOTILLA_SUPERUSER_DATABASE_URL_FILE")]
    superuser_url_file: PathBuf,
}

/// Makes what is missing, and gives each role the password that the folder holds. It waits two minutes for the database.
pub async fn run(context: &Context, args: &DatabasesArgs) -> Result<(), anyhow::Error> {
    context.only_here("the folder with the passwords")?;
    let file = &args.superuser_url_file;
    let url = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let url = url.trim().parse().with_context(|| format!("{} holds no address of a database", file.display()))?;
    let home = StackDir::given(&context.home);
    let mut made = Vec::new();
    for service in fleet::SERVICES.iter().filter(|service| service.database.is_some()) {
        let passwords = postgres::roles(&home, service.name)?;
        patiently("PostgreSQL", || postgres::provision(&url, service.name, &passwords, service.name)).await?;
        made.push(service.name);
    }
    say(
        context,
        &json!({"databases": made}),
        &format!("The databases are there, with their roles: {}.", made.join(", ")),
    );
    Ok(())
}

/// Tries again until it succeeds, or two minutes have passed: what it needs may start beside it.
pub async fn patiently<F>(what: &str, mut attempt: impl FnMut() -> F) -> Result<(), anyhow::Error>
where
    F: Future<Output = Result<(), anyhow::Error>>,
{
    let mut delays = ExponentialBackoffBuilder::new()
        .with_initial_interval(Duration::from_millis(250))
        .with_max_interval(Duration::from_secs(5))
        .with_max_elapsed_time(Some(PATIENCE))
        .build();
    loop {
        let Err(error) = attempt().await else { return Ok(()) };
        let Some(delay) = delays.next_backoff() else { return Err(error) };
        eprintln!("waiting for {what}: {error:#}");
        tokio::time::sleep(delay).await;
    }
}
