//! The administration: logs in to each owner's account, and idempotently makes streams and durable consumers as the fleet's table says.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::{self, ErrorCode, stream};
use async_nats::subject::ToSubject;
use async_nats::{Client, ConnectOptions};
use consumer::RecordStreams;
use fleet::Login;
use futures::StreamExt as _;
use nkeys::KeyPairType;
use serde_json::Value;

use super::accounts::{self, administration};
use super::keys::{credentials_file, key};
use super::{claims, team, teams};
use crate::stack_dir::StackDir;

const PATIENCE: Duration = Duration::from_secs(10);

/// A login in the account of one owner.
pub struct Administration {
    /// JetStream there.
    pub js: jetstream::Context,
}

impl Administration {
    /// Logs in.
    ///
    /// # Errors
    /// There are no credentials, or NATS does not answer.
    pub async fn connect(home: &StackDir, address: &str, owner: &str) -> Result<Self, anyhow::Error> {
        let client = connect(home, address, &credentials_file(home, &administration(owner))).await?;
        Ok(Self { js: jetstream::ContextBuilder::new().timeout(PATIENCE).build(client) })
    }
}

/// Connects by a credentials file, and trusts the folder's authorities; to one of the servers, where the address names several, with commas
/// between.
///
/// # Errors
/// The file or an address cannot be read, or NATS does not answer.
pub async fn connect(home: &StackDir, address: &str, credentials: &Path) -> Result<Client, anyhow::Error> {
    let options = ConnectOptions::new().credentials_file(credentials).await;
    let mut options = options.with_context(|| format!("reading {}", credentials.display()))?;
    if let Some(authorities) = home.authorities() {
        options = options.add_root_certificates(authorities);
    }
    options.connect(service::nats::addresses(address)?).await.context("connecting to NATS")
}

/// The settings of the streams.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// How long the streams of events keep an event.
    pub max_age: Duration,
    /// How many servers hold each stream; None keeps the present number.
    pub replicas: Option<usize>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { max_age: Duration::from_secs(fleet::STREAM_DAYS * 86_400), replicas: None }
    }
}

/// Gives a server that runs the accounts of the table as this release has it, and these beside them; their credentials are
/// written again. A new login works at once; a service gets changed permissions when it starts.
///
/// # Errors
/// NATS does not answer, or refuses.
pub async fn announce(home: &StackDir, address: &str, more: &[Login]) -> Result<(), anyhow::Error> {
    push(home, address, &accounts::make(home, more)?.jwts()).await
}

/// Makes every stream and every durable consumer of the table, and changes what differs.
///
/// # Errors
/// Something cannot be made: the error says what.
pub async fn provision(home: &StackDir, address: &str, wanted: Wanted) -> Result<(), anyhow::Error> {
    let records = Administration::connect(home, address, fleet::RECORDS).await?.js;
    let names = RecordStreams::default();
    let replicas = match wanted.replicas {
        Some(replicas) => replicas,
        None => match records.get_stream(names.dead_letters()).await {
            Ok(letters) => letters.cached_info().config.num_replicas,
            // Only then: a server that does not answer now may have three.
            Err(error) if is_not_found(&error) => 1,
            Err(error) => return Err(error).context("asking on how many servers the streams are"),
        },
    };
    consumer::administer::streams(&records, &names, replicas).await?;
    let audit = stream::Config {
        name: "AUDIT".to_owned(),
        subjects: vec!["audit.>".to_owned()],
        discard: stream::DiscardPolicy::New,
        storage: stream::StorageType::File,
        num_replicas: replicas,
        deny_delete: true,
        deny_purge: true,
        ..Default::default()
    };
    consumer::administer::stream(&records, audit).await?;
    consumer::administer::letter_reader(&records, &names, fleet::OPERATIONS).await?;
    for producer in fleet::producers() {
        let owner = fleet::account(producer);
        let events = Administration::connect(home, address, &owner).await?.js;
        outbox::administer::stream(&events, &fleet::stream(producer, wanted.max_age, replicas)).await?;
        for config in fleet::consumers().iter().filter(|config| fleet::owner(&config.stream) == owner) {
            consumer::administer::durables(&events, &records, config, None).await?;
        }
        for team in team::all(home)?.iter().filter(|team| team.events == producer && !team.is_expired()) {
            teams::provide(&events, team).await?;
        }
    }
    Ok(())
}

fn is_not_found(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// Gives a server that runs the JWTs of accounts, new or changed.
///
/// # Errors
/// NATS does not answer, or refuses.
pub async fn push(home: &StackDir, address: &str, jwts: &[String]) -> Result<(), anyhow::Error> {
    let system = connect(home, address, &credentials_file(home, "sys")).await?;
    for jwt in jwts {
        request(&system, "$SYS.REQ.CLAIMS.UPDATE", jwt.clone()).await?;
    }
    Ok(())
}

/// Has a server that runs forget accounts.
pub async fn remove(home: &StackDir, address: &str, accounts: &[String]) -> Result<(), anyhow::Error> {
    let system = connect(home, address, &credentials_file(home, "sys")).await?;
    let operator = key(home, KeyPairType::Operator, "operator")?;
    request(&system, "$SYS.REQ.CLAIMS.DELETE", claims::removal(&operator, accounts)?).await
}

/// Has every server of a cluster read its configuration and its certificate again; returns their names. Connections go on.
///
/// # Errors
/// A server does not answer, or refuses.
pub async fn reload(home: &StackDir, address: &str) -> Result<Vec<String>, anyhow::Error> {
    let system = connect(home, address, &credentials_file(home, "sys")).await?;
    let inbox = system.new_inbox();
    let mut answers = system.subscribe(inbox.clone()).await?;
    system.publish_with_reply("$SYS.REQ.SERVER.PING", inbox, "".into()).await?;
    // Each answers by itself, and says how many there are.
    let (mut servers, mut expected) = (BTreeMap::new(), 1);
    while servers.len() < expected {
        let answer = tokio::time::timeout(PATIENCE, answers.next()).await.ok().flatten();
        let answer = answer.with_context(|| format!("of {expected} servers of NATS, {} answer", servers.len()))?;
        let answer: Value = serde_json::from_slice(&answer.payload).context("reading a server's answer")?;
        let text = |field: &str| answer["server"][field].as_str().map(ToOwned::to_owned);
        servers.insert(text("id").context("a server without an id")?, text("name").unwrap_or_default());
        let active = answer["statsz"]["active_servers"].as_u64().and_then(|active| usize::try_from(active).ok());
        expected = expected.max(active.unwrap_or_default());
    }
    for (id, name) in &servers {
        let asked = request(&system, format!("$SYS.REQ.SERVER.{id}.RELOAD"), String::new()).await;
        asked.with_context(|| format!("the server {name}"))?;
    }
    Ok(servers.into_values().collect())
}

async fn request(system: &Client, subject: impl ToSubject, jwt: String) -> Result<(), anyhow::Error> {
    let answer = tokio::time::timeout(PATIENCE, system.request(subject, jwt.into())).await;
    let answer = answer.context("nats-server does not answer")?.context("telling nats-server")?;
    let answer: Value = serde_json::from_slice(&answer.payload).context("reading the server's answer")?;
    ensure!(answer["error"].is_null(), "nats-server refuses: {}", answer["error"]);
    Ok(())
}
