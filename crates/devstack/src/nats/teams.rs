//! Credentials of event consumers that are no service of the fleet: each has one durable consumer with one tenant's events,
//! and an account of its own that can do nothing else.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use contracts::{TenantId, subject};
use nkeys::KeyPairType;

use super::accounts;
use super::administration::{self, Administration};
use super::claims;
use super::keys::{folder, key, user_key};
use super::team::{Team, all};
use crate::stack_dir::{StackDir, write_secret};
use crate::supervisor::now;

/// The longest that their pulls wait. Until then no other client gets what a disconnected one requested.
const MAX_EXPIRES: std::time::Duration = std::time::Duration::from_secs(30);
const ACK_WAIT: std::time::Duration = std::time::Duration::from_secs(30);
const MOST_IN_HAND: i64 = 1_000;

/// Issues a credential on a running fleet: its account, its durable consumer, its file. Nothing is restarted.
///
/// # Errors
/// The name is taken or invalid, the service is not known, or NATS does not answer.
pub async fn create(home: &StackDir, address: &str, team: &Team) -> Result<PathBuf, anyhow::Error> {
    let slug = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    ensure!(
        (1..=32).contains(&team.name.len()) && team.name.bytes().all(slug),
        "--name must be 1 to 32 of a-z, 0-9 and -"
    );
    ensure!(
        fleet::producers().contains(&team.events.as_str()),
        "no service `{}` publishes events: there is {}",
        team.events,
        fleet::producers().join(", ")
    );
    let record = record(home, team)?;
    if record.exists() {
        bail!("{} has a credential `{}`: revoke it first, or choose another name", team.tenant, team.name);
    }
    // First: a half-issued credential can be listed and revoked.
    write_secret(&record, serde_json::to_vec_pretty(team)?.as_slice())?;
    let login = team.login();
    let owner = Administration::connect(home, address, &fleet::account(&team.events)).await?;
    let durable = team.durable();
    provide(&owner.js, team).await?;
    let operator = key(home, KeyPairType::Operator, "operator")?;
    let (_, jwt) = accounts::make_reader(home, &operator, &login, None)?;
    let account = key(home, KeyPairType::Account, &login.account())?;
    let user = key(home, KeyPairType::User, &user_key(&durable))?;
    let (publish, subscribe) = accounts::permissions(&login);
    let token =
        claims::user(&account, &user, &durable, (&publish, &subscribe), (now().timestamp(), Some(team.expires)))?;
    administration::push(home, address, &[jwt]).await?;
    let file = team.credentials(home);
    write_secret(&file, claims::credentials(&token, &user)?.as_bytes())?;
    Ok(file)
}

/// Makes its durable consumer, or changes what differs.
pub(super) async fn provide(js: &jetstream::Context, team: &Team) -> Result<(), anyhow::Error> {
    let config = pull::Config {
        durable_name: Some(team.durable()),
        filter_subject: subject::all_of_tenant(&team.events, &team.tenant),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_deliver: -1,
        max_ack_pending: MOST_IN_HAND,
        max_expires: MAX_EXPIRES,
        ..Default::default()
    };
    consumer::administer::durable(js, &subject::stream(&team.events), config).await
}

/// Revokes a credential on a running fleet: its clients are disconnected, and its durable consumer is deleted.
///
/// # Errors
/// There is none, or NATS does not answer.
pub async fn revoke(home: &StackDir, address: &str, tenant: &TenantId, name: &str) -> Result<Team, anyhow::Error> {
    let team = all(home)?.into_iter().find(|team| &team.tenant == tenant && team.name == name);
    let team = team.with_context(|| format!("{tenant} has no credential `{name}`"))?;
    let account = key(home, KeyPairType::Account, &team.login().account())?;
    administration::remove(home, address, &[account.public_key()]).await?;
    let owner = Administration::connect(home, address, &fleet::account(&team.events)).await?;
    forget(&owner.js, &team).await?;
    // The keys too: a later credential of the same name is another one.
    let folder = folder(home)?;
    for file in [
        team.credentials(home),
        folder.join(format!("{}.nk", user_key(&team.durable()))),
        folder.join(format!("{}.nk", team.login().account())),
        record(home, &team)?,
    ] {
        match fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", file.display()));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(team)
}

async fn forget(js: &jetstream::Context, team: &Team) -> Result<(), anyhow::Error> {
    let stream = js.get_stream(subject::stream(&team.events)).await.context("opening the stream")?;
    match stream.delete_consumer(&team.durable()).await {
        Ok(_) => Ok(()),
        // Another try has removed it.
        Err(_) if stream.consumer_info(&team.durable()).await.is_err() => Ok(()),
        Err(error) => Err(error).context("removing its durable consumer"),
    }
}

fn record(home: &StackDir, team: &Team) -> Result<PathBuf, anyhow::Error> {
    Ok(folder(home)?.join(format!("{}.team", team.durable())))
}
