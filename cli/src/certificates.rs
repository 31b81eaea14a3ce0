//! `flotilla certificates`: a new certificate for a stack that speaks TLS; and NATS, PostgreSQL and Redis read theirs again.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Subcommand;
use devstack::certificates::Certificates;
use devstack::{StackDir, nats, postgres, redis};
use serde_json::json;

use crate::context::Context;
use crate::outbox::say;

#[derive(Debug, Clone, Subcommand)]
pub enum CertificatesCommand {
    /// Give the stack of the folder, which runs with --tls, a new certificate. No connection ends by it.
    Renew,
    /// Have NATS, PostgreSQL and Redis read their certificates again. The processes of the fleet do that by themselves.
    Reload {
        /// NATS, whose system login is in the folder: nats://host:port, or tls://host:port.
        #[arg(long, value_name = "URL")]
        nats: String,
        /// A file that holds the login of a superuser of PostgreSQL.
        #[arg(long, value_name = "FILE", env = "FLOTILLA_SUPERUSER_DATABASE_URL_FILE")]
        superuser_url_file: PathBuf,
        /// A file that holds the login of the administration of Redis, where there is one: rediss://user:password@host:port.
        #[arg(long, value_name = "FILE")]
        redis_url_file: Option<PathBuf>,
        /// A PEM file with the authorities that its certificate is trusted by.
        #[arg(long, value_name = "FILE", env = "FLOTILLA_TLS_AUTHORITIES")]
        authorities: Option<PathBuf>,
    },
}

pub async fn run(context: &Context, command: &CertificatesCommand) -> Result<(), anyhow::Error> {
    context.only_here("the folder with the keys")?;
    match command {
        CertificatesCommand::Renew => renew(context).await,
        CertificatesCommand::Reload { nats, superuser_url_file, redis_url_file, authorities } => {
            let read =
                |file: &PathBuf| std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()));
            let (url, redis) = (read(superuser_url_file)?, redis_url_file.as_ref().map(read).transpose()?);
            let redis = (redis, authorities.as_ref().map(read).transpose()?);
            reload(context, &StackDir::given(&context.home), nats, url.trim(), redis).await
        }
    }
}

/// A new certificate for the stack of the folder.
pub async fn renew(context: &Context) -> Result<(), anyhow::Error> {
    let home = context.open_stack_dir()?;
    ensure!(home.authorities().is_some(), "the fleet speaks no TLS: start it with --tls");
    let url = context.stack_status()?.unit("postgres")?.login_url()?;
    Certificates::renew(&home)?;
    let runs = context.stack_status()?.unit("redis").is_ok();
    let redis = home.path("secrets").join(redis::ADMINISTRATION_URL);
    let redis = if runs { Some(std::fs::read_to_string(redis)?) } else { None };
    let authorities = std::fs::read_to_string(home.path("tls/ca.crt"))?;
    reload(context, &home, &context.nats()?, &url, (redis, Some(authorities))).await
}

async fn reload(
    context: &Context,
    home: &StackDir,
    address: &str,
    superuser_url: &str,
    (redis, authorities): (Option<String>, Option<String>),
) -> Result<(), anyhow::Error> {
    let redis = async {
        let Some(url) = redis else { return Ok(()) };
        redis::reload(url.trim(), authorities.map(String::into_bytes)).await.context("Redis")
    };
    // Each, whatever the others say.
    let (postgres, nats, redis) = tokio::join!(postgres::reload(superuser_url), nats::reload(home, address), redis);
    let servers = nats.and_then(|servers| postgres.map(|()| servers)).and_then(|servers| redis.map(|()| servers))?;
    let text = format!(
        "NATS ({}) has read its certificates again. PostgreSQL was asked to: its log says whether it could.",
        servers.join(", ")
    );
    say(context, &json!({"nats": servers}), &text);
    Ok(())
}
