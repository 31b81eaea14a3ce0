//! `flotilla secrets`: new passwords, keys and credentials for a fleet that runs.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Subcommand, ValueEnum};
use devstack::StackDir;
use devstack::rotation::{self, Kind};
use serde_json::json;

use crate::certificates;
use crate::context::Context;
use crate::outbox::say;

/// How long the processes may take to read what was staged: they look at their files every five seconds.
const READ_WITHIN: Duration = Duration::from_secs(8);

#[derive(Debug, Clone, Subcommand)]
pub enum SecretsCommand {
    /// Rotate secrets of the stack of the folder while it runs: stage, wait until they are read, finish. No caller's request fails by it.
    Rotate {
        /// Which; by default all.
        what: Vec<What>,
    },
    /// Draw new secrets into the folder, beside those that are in use: for a fleet that runs elsewhere and takes its secrets from here
    /// (`flotilla k8s secrets`).
    Stage {
        /// Which; by default all but certificates.
        what: Vec<What>,
    },
    /// Put what was staged into use, once every process has it. Then give it to the fleet, and its servers what they take (`flotilla
    /// databases`, `flotilla provision`).
    Finish {
        /// Which; by default all but certificates.
        what: Vec<What>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// The passwords of the services' roles in PostgreSQL.
    Databases,
    /// The credentials by which services and the administration log in at NATS. Those of programs: `flotilla nats-credentials`.
    Nats,
    /// The keys of page tokens. Tokens by the keys before are taken until the next rotation.
    PageTokens,
    /// The password of the proxy before OpenSearch. The earlier one is taken until the next rotation.
    Search,
    /// The keys by which services say to identity who they are. Those before are taken until the next rotation.
    Services,
    /// The development issuer's key. Tokens by the one before are taken until the next rotation.
    Issuer,
    /// The certificates, where the fleet speaks TLS.
    Certificates,
}

impl What {
    const fn kind(self) -> Option<Kind> {
        Some(match self {
            Self::Databases => Kind::Databases,
            Self::Nats => Kind::Nats,
            Self::PageTokens => Kind::PageTokens,
            Self::Search => Kind::Search,
            Self::Services => Kind::Services,
            Self::Issuer => Kind::Issuer,
            Self::Certificates => return None,
        })
    }
}

fn kinds(what: &[What]) -> Vec<Kind> {
    if what.is_empty() { rotation::ALL.to_vec() } else { what.iter().filter_map(|what| what.kind()).collect() }
}

pub async fn run(context: &Context, command: &SecretsCommand) -> Result<(), anyhow::Error> {
    context.only_here("the folder with the secrets")?;
    match command {
        SecretsCommand::Rotate { what } => rotate(context, what).await,
        SecretsCommand::Stage { what } => {
            let next = "Give the secrets to the fleet; once its processes have read them, `flotilla secrets finish`.";
            each(context, what, rotation::stage, ("staged", next))
        }
        SecretsCommand::Finish { what } => {
            let next = "Give the secrets to the fleet; then run `flotilla databases --superuser-url-file FILE` and `flotilla provision`.";
            each(context, what, rotation::finish, ("finished", next))
        }
    }
}

/// Held for as long as secrets are changed.
fn lock(home: &StackDir) -> Result<File, anyhow::Error> {
    let lock = File::create(home.path("run/rotation"))?;
    ensure!(lock.try_lock().is_ok(), "another rotation is at work in {}", home.path("").display());
    Ok(lock)
}

/// Does this with the files alone, and says what comes next.
fn each(
    context: &Context,
    what: &[What],
    act: impl Fn(&StackDir, Kind) -> Result<(), anyhow::Error>,
    (done, next): (&str, &str),
) -> Result<(), anyhow::Error> {
    ensure!(!what.contains(&What::Certificates), "certificates are not staged: `flotilla certificates`");
    ensure!(!context.is_supervised(), "a stack runs in {}: `flotilla secrets rotate`", context.home.display());
    let home = context.open_stack_dir()?;
    let _lock = lock(&home)?;
    kinds(what).into_iter().try_for_each(|kind| act(&home, kind))?;
    say(context, &json!({done: names(what)}), &format!("The secrets are {done}. {next}"));
    Ok(())
}

async fn rotate(context: &Context, what: &[What]) -> Result<(), anyhow::Error> {
    let status = context.stack_status()?;
    ensure!(status.up, "the fleet is starting, or stopping: wait until it is up");
    let home = context.open_stack_dir()?;
    let _lock = lock(&home)?;
    let speaks_tls = home.authorities().is_some();
    ensure!(speaks_tls || !what.contains(&What::Certificates), "the fleet speaks no TLS: start it with --tls");
    let superuser_url = status.unit("postgres")?.login_url()?;
    let nats_url = context.nats()?;
    let kinds = kinds(what);
    for kind in &kinds {
        rotation::stage(&home, *kind)?;
    }
    if !kinds.is_empty() {
        tokio::time::sleep(READ_WITHIN).await;
    }
    // One that fails holds up no other: a second rotation finishes it.
    let mut failed = Ok(());
    for kind in &kinds {
        let finished = async {
            if *kind == Kind::Databases {
                // Until the server has them they stay staged, and no other is drawn.
                Box::pin(rotation::apply(&home, *kind, &superuser_url, &nats_url)).await?;
                return rotation::finish(&home, *kind);
            }
            rotation::finish(&home, *kind)?;
            Box::pin(rotation::apply(&home, *kind, &superuser_url, &nats_url)).await
        };
        failed = failed.and(finished.await);
    }
    failed.context("run it again")?;
    if speaks_tls && (what.is_empty() || what.contains(&What::Certificates)) {
        certificates::renew(&context.as_part()).await?;
    }
    let mut rotated = names(what);
    if what.is_empty() && speaks_tls {
        rotated.extend(names(&[What::Certificates]));
    }
    say(context, &json!({"rotated": rotated}), &format!("Rotated: {}.", rotated.join(", ")));
    Ok(())
}

fn names(what: &[What]) -> Vec<String> {
    let of = |what: &What| what.to_possible_value().map(|value| value.get_name().to_owned());
    let all = What::value_variants().iter().filter(|what| what.kind().is_some());
    if what.is_empty() { all.filter_map(of).collect() } else { what.iter().filter_map(of).collect() }
}
