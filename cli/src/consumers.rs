//! `flotilla consumers`: the durable consumers of the event streams, paused and resumed.

use anyhow::Context as _;
use async_nats::jetstream::stream::Stream;
use clap::{Args, Subcommand};
use futures::TryStreamExt as _;
use serde_json::{Value, json};

use crate::context::Context;
use crate::operator::ActArgs;
use crate::outbox::say;
use crate::{audit, events, table};

#[derive(Debug, Clone, Args)]
pub struct ConsumersArgs {
    #[command(subcommand)]
    command: Option<ConsumersCommand>,
}

#[derive(Debug, Clone, Subcommand)]
enum ConsumersCommand {
    /// List each consumer's state; the default command.
    List,
    /// Pause delivery to a consumer for a while. It finishes the events it already has.
    Pause {
        /// The durable consumer.
        name: String,
        /// How many minutes to pause, unless somebody resumes it earlier.
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=10_080))]
        minutes: u32,
        #[command(flatten)]
        act: ActArgs,
    },
    /// Resume delivery to a consumer.
    Resume {
        /// The durable consumer.
        name: String,
        #[command(flatten)]
        act: ActArgs,
    },
}

pub async fn run(context: &Context, args: &ConsumersArgs) -> Result<(), anyhow::Error> {
    match &args.command {
        None | Some(ConsumersCommand::List) => list(context).await,
        Some(ConsumersCommand::Pause { name, minutes, act }) => {
            act.verify(context).await?;
            let stream = stream_of(context, name).await?;
            act.confirm(&format!("Pause {name} for {minutes} minutes?"))?;
            let now = std::time::SystemTime::now();
            let until = chrono::DateTime::<chrono::Utc>::from(now) + chrono::TimeDelta::minutes((*minutes).into());
            stream.pause_consumer(name, until).await.with_context(|| format!("pausing {name}"))?;
            let detail = json!({"consumer": name, "until": until});
            audit::record(context, "pause consumer", 1, &detail, &act.reason).await?;
            let text = format!("{name} is paused until {until}, unless it is resumed before.");
            say(context, &json!({"paused": name, "until": until}), &text);
            Ok(())
        }
        Some(ConsumersCommand::Resume { name, act }) => {
            act.verify(context).await?;
            let stream = stream_of(context, name).await?;
            act.confirm(&format!("Let {name} go on?"))?;
            stream.resume_consumer(name).await.with_context(|| format!("resuming {name}"))?;
            audit::record(context, "resume consumer", 1, &json!({"consumer": name}), &act.reason).await?;
            say(context, &json!({"resumed": name}), &format!("{name} goes on."));
            Ok(())
        }
    }
}

/// The state of each durable consumer of each event stream.
pub async fn of_all(context: &Context) -> Result<Vec<Value>, anyhow::Error> {
    let mut consumers = Vec::new();
    for service in fleet::producers() {
        consumers.extend(all(&events::open_of(context, service).await?.1).await?);
    }
    Ok(consumers)
}

/// The state of each durable consumer of a stream.
async fn all(stream: &Stream) -> Result<Vec<Value>, anyhow::Error> {
    let mut all: Vec<Value> = Vec::new();
    let mut consumers = stream.consumers();
    while let Some(info) = consumers.try_next().await.context("reading the consumers")? {
        // Ephemeral consumers have no name by which to pause or resume them.
        if info.config.durable_name.is_some() {
            all.push(json!({
                "name": info.name, "stream": info.stream_name, "pending": info.num_pending, "inHand": info.num_ack_pending,
                "redelivered": info.num_redelivered, "ackFloor": info.ack_floor.stream_sequence, "paused": info.paused,
            }));
        }
    }
    Ok(all)
}

/// Prints them.
pub fn print(all: &[Value]) {
    let cell = |value: &Value| value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
    let row = |consumer: &Value| {
        ["name", "stream", "pending", "inHand", "redelivered", "ackFloor", "paused"]
            .map(|f| cell(&consumer[f]))
            .to_vec()
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    table::print(&["CONSUMER", "STREAM", "WAITING", "IN HAND", "REDELIVERED", "ACK FLOOR", "PAUSED"], &rows);
}

/// The stream that a durable consumer reads.
async fn stream_of(context: &Context, name: &str) -> Result<Stream, anyhow::Error> {
    for service in fleet::producers() {
        let (_, stream) = events::open_of(context, service).await?;
        if stream.consumer_info(name).await.is_ok() {
            return Ok(stream);
        }
    }
    anyhow::bail!("there is no consumer {name}; `flotilla consumers` lists them")
}

async fn list(context: &Context) -> Result<(), anyhow::Error> {
    let all = of_all(context).await?;
    if context.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        print(&all);
    }
    Ok(())
}
