//! `flotilla certificates`: a new certificate for a stack that speaks TLS; and NATS and PostgreSQL read theirs again.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Subcommand;
use devstack::certificates::Certificates;
use devstack::{StackDir, nats, postgres};
use serde_json::json;

use crate::context::Context;
use crate::outbox::say;

#[derive(Debug, Clone, Subcommand)]
pub enum CertificatesCommand {
    /// Give the stack of the folder, which runs with --tls, a new certificate. No connection ends by it.
    Renew,
    /// Have NATS and PostgreSQL read their certificates again. The processes of the fleet do that by themselves.
    Reload {
        /// NATS, whose system login is in the folder: nats://host:port, or tls://host:port.
        #[arg(long, value_name = "URL")]
        nats: String,
        /// A file that holds the login of a superuser of PostgreSQL.
        #[arg(long, value_name = "FILE", env = "FLOTILLA_SUPERUSER_DATABASE_URL_FILE")]
        superuser_url_file: PathBuf,
    },
}

pub async fn run(context: &Context, command: &CertificatesCommand) -> Result<(), anyhow::Error> {
    context.only_here("the folder with the keys")?;
    match command {
        CertificatesCommand::Renew => renew(context).await,
        CertificatesCommand::Reload { nats, superuser_url_file: file } => {
            let url = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
            reload(context, &StackDir::given(&context.home), nats, url.trim()).await
        }
    }
}

/// A new certificate for the stack of the folder.
pub async fn renew(context: &Context) -> Result<(), anyhow::Error> {
    let home = context.open_stack_dir()?;
    ensure!(home.authorities().is_some(), "the fleet speaks no TLS: start it with --tls");
    let url = context.stack_status()?.unit("postgres")?.login_url()?;
    Certificates::renew(&home)?;
    reload(context, &home, &context.nats()?, &url).await
}

async fn reload(context: &Context, home: &StackDir, address: &str, superuser_url: &str) -> Result<(), anyhow::Error> {
    // Each, whatever the other says.
    let (postgres, nats) = tokio::join!(postgres::reload(superuser_url), nats::reload(home, address));
    let servers = nats.and_then(|servers| postgres.map(|()| servers))?;
    let text = format!(
        "NATS ({}) has read its certificates again. PostgreSQL was asked to: its log says whether it could.",
        servers.join(", ")
    );
    say(context, &json!({"nats": servers}), &text);
    Ok(())
}
