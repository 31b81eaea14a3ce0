//! `flotilla events tail`: the fleet's events, as they are published.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::Client;
use async_nats::jetstream::{self, stream::Stream};
use chrono::{DateTime, Utc};
use clap::Subcommand;
use contracts::events::todo::SERVICE;
use contracts::{Envelope, TenantId, subject};
use serde_json::Value;
use service::tail::{Events, From, Next, Tail};

use crate::context::Context;
use crate::terminal;

#[derive(Debug, Clone, Subcommand)]
pub enum EventsCommand {
    /// Print events as they arrive.
    Tail {
        /// The service that publishes the events.
        #[arg(long, default_value = SERVICE)]
        service: String,
        /// Only this tenant's events.
        #[arg(long)]
        tenant: Option<TenantId>,
        /// Start from the first event that the stream holds, not from now.
        #[arg(long)]
        from_start: bool,
        /// Stop after this many events.
        #[arg(long)]
        count: Option<u64>,
    },
}

/// An event as received.
pub struct Received {
    pub envelope: Envelope<Value>,
    pub stored_at: DateTime<Utc>,
    raw: Vec<u8>,
}

/// A connection as the administration of an owner's account.
async fn connect(context: &Context, owner: &str) -> Result<Client, anyhow::Error> {
    let login = devstack::nats::administration(owner);
    let home = context.open_stack_dir()?;
    let credentials = devstack::nats::credentials_file(&home, &login);
    devstack::nats::connect(&home, &context.nats()?, &credentials).await
}

/// JetStream as the administration of an owner's account.
pub async fn administration(context: &Context, owner: &str) -> Result<jetstream::Context, anyhow::Error> {
    Ok(jetstream::new(connect(context, owner).await?))
}

/// A service's events, to be read without a consumer.
pub async fn of(context: &Context, service: &str) -> Result<Events, anyhow::Error> {
    Events::of(connect(context, &fleet::account(service)).await?, service).await
}

/// A connection as the administration, and the stream of todo events.
pub async fn open(context: &Context) -> Result<(jetstream::Context, Stream), anyhow::Error> {
    open_of(context, SERVICE).await
}

/// A connection as the administration, and the stream of a service's events.
pub async fn open_of(context: &Context, service: &str) -> Result<(jetstream::Context, Stream), anyhow::Error> {
    let js = administration(context, &fleet::account(service)).await?;
    let stream = js.get_stream(subject::stream(service)).await;
    let stream = stream.with_context(|| format!("opening the stream of {service}'s events"))?;
    Ok((js, stream))
}

/// The pause after NATS has failed.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Reads events until `each` stops it.
pub async fn tail(
    events: Events,
    tenant: Option<&TenantId>,
    from: From,
    mut each: impl FnMut(Received) -> bool,
) -> Result<(), anyhow::Error> {
    let mut tail = Tail::begin(events, from, u64::MAX).await?;
    loop {
        let stored = match tail.next().await {
            Ok(Next::Event(stored)) => stored,
            Ok(Next::Level) => continue,
            Err(error) => {
                eprintln!("NATS does not answer: trying again ({error:#})");
                tokio::time::sleep(AGAIN_AFTER).await;
                continue;
            }
            Ok(Next::Lost) => {
                eprintln!(
                    "the stream is another one now, or has removed events that were not read: going on behind them"
                );
                continue;
            }
        };
        if tenant.is_some() && stored.tenant().as_ref() != tenant {
            continue;
        }
        match serde_json::from_slice(&stored.payload) {
            Ok(envelope) => {
                if !each(Received { envelope, stored_at: stored.time, raw: stored.payload.to_vec() }) {
                    return Ok(());
                }
            }
            Err(error) => eprintln!("a message on {} is not an event: {error}", stored.subject),
        }
    }
}

pub async fn run(context: &Context, command: &EventsCommand) -> Result<(), anyhow::Error> {
    let EventsCommand::Tail { service, tenant, from_start, count } = command;
    let events = of(context, service).await?;
    let mut left = count.unwrap_or(u64::MAX);
    if left == 0 {
        return Ok(());
    }
    let each = |received: Received| {
        let text = if context.json { String::from_utf8_lossy(&received.raw).into_owned() } else { line(&received) };
        left -= 1;
        // The reader may close the pipe: `flotilla events tail | head`.
        println!("{text}");
        left > 0 && !terminal::is_closed()
    };
    tokio::select! {
        result = tail(events, tenant.as_ref(), if *from_start { From::Start } else { From::Now }, each) => result,
        stopped = tokio::signal::ctrl_c() => stopped.map_err(Into::into),
    }
}

/// One event on one line.
pub fn line(received: &Received) -> String {
    let envelope = &received.envelope;
    let texts = envelope.data.as_object().into_iter().flat_map(|data| data.values());
    let title = texts.filter_map(|about| about.get("title").or_else(|| about.get("name"))?.as_str()).next();
    let title: String = title.unwrap_or_default().chars().take(50).collect();
    let note = envelope.supersededby.as_ref().map(|newer| format!("  (superseded by {newer})")).unwrap_or_default();
    format!(
        "{}  {:<18}  {:<12}  {} v{}  {title}{note}",
        envelope.time.format("%H:%M:%S%.3f"),
        envelope.event_type,
        envelope.tenant.as_str(),
        envelope.subject,
        envelope.version().unwrap_or_default()
    )
}

/// Waits for the next message of a channel, but no longer than this.
pub const WAIT: Duration = Duration::from_secs(15);
