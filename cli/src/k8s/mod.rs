//! `flotilla k8s`: the manifests of the fleet, and its secrets on a development cluster.

mod certificates;
pub mod render;
pub mod secrets;

use std::path::PathBuf;

use clap::Subcommand;

use crate::context::Context;

#[derive(Debug, Clone, Subcommand)]
pub enum K8sCommand {
    /// Write the manifests that follow from the fleet's table.
    Render(render::RenderArgs),
    /// Print the secrets of the fleet as manifests; the folder keeps them, and makes what it lacks. For `kubectl apply`.
    Secrets(secrets::SecretsArgs),
    /// Make an authority and the certificates of a development cluster, or renew them: a job in it runs this.
    Certificates(certificates::CertificatesArgs),
    /// Fetch the programs of the backing services, and print where they are: for what packs them into images.
    #[command(hide = true)]
    Programs,
}

impl K8sCommand {
    /// Whether it neither reads nor writes what belongs to a fleet.
    pub const fn is_of_no_fleet(&self) -> bool {
        matches!(self, Self::Render(_) | Self::Certificates(_) | Self::Programs)
    }
}

pub async fn run(context: &Context, command: &K8sCommand) -> Result<(), anyhow::Error> {
    match command {
        K8sCommand::Render(args) => render::run(context, args),
        K8sCommand::Secrets(args) => secrets::run(context, args).await,
        K8sCommand::Certificates(args) => certificates::run(context, args).await,
        K8sCommand::Programs => programs().await,
    }
}

/// As assignments of a shell.
async fn programs() -> Result<(), anyhow::Error> {
    let say: devstack::Reporter = std::sync::Arc::new(|line| eprintln!("  {line}"));
    let found = devstack::install::all(&say).await?;
    let quoted = |path: &PathBuf| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    println!("postgres={}", quoted(&found.postgres));
    println!("nats_server={}", quoted(&found.nats_server));
    println!("java={}", quoted(&found.java));
    println!("opensearch_jars={}", quoted(&found.opensearch_jars));
    if let Some(redis) = &found.redis {
        println!("redis={}", quoted(&redis.path));
        let libraries = redis.env.first().map(|(_, folder)| folder.into()).unwrap_or_default();
        println!("redis_libraries={}", quoted(&libraries));
    }
    Ok(())
}
