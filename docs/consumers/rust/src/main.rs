//! Prints a tenant's todo events as they come. Its durable consumer remembers what was read: run it again, and it goes on
//! where it ended. It uses nothing of the fleet's crates: take it as it is.
//!
//!     bin/flotilla nats-credentials create --tenant acme --name reporting
//!     cargo run --package consume-events -- .flotilla/secrets/nats/team-acme_reporting.creds nats://127.0.0.1:14222 [how many]

use std::path::PathBuf;

use anyhow::Context as _;
use async_nats::jetstream::consumer::PullConsumer;
use futures::StreamExt as _;
use serde::Deserialize;

/// What this program reads of an event; unknown fields are none of its business.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    event_type: String,
    subject: String,
    sequence: String,
    supersededby: Option<String>,
    /// Of a type that the program does not know, it may be anything.
    data: serde_json::Value,
}

#[derive(Deserialize)]
struct Data {
    todo: Todo,
}

#[derive(Deserialize)]
struct Todo {
    title: String,
}

/// The types it knows. One whose newer twin it knows is passed over: the twin tells the same.
const KNOWN: [&str; 7] = [
    "todo.created.v1",
    "todo.updated.v1",
    "todo.reopened.v1",
    "todo.became_due.v1",
    "todo.deleted.v1",
    "todo.completed.v1",
    "todo.completed.v2",
];

#[tokio::main]
async fn main() -> Result<(), anyhow::Error> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: consume-events CREDENTIALS-FILE URL [HOW MANY]";
    let (file, url) = (PathBuf::from(args.next().context(usage)?), args.next().context(usage)?);
    let count: usize = args.next().map_or(Ok(usize::MAX), |count| count.parse()).context(usage)?;

    // The durable consumer was made with the credentials, and is called as their file is. Nothing is asked of the stream.
    let durable = file.file_stem().and_then(|stem| stem.to_str()).context(usage)?.to_owned();
    let options = async_nats::ConnectOptions::new().credentials_file(&file).await.context("reading the credentials")?;
    let js = async_nats::jetstream::new(options.connect(url).await?);
    let consumer: PullConsumer = js.get_consumer_from_stream(&durable, "EVENTS_TODO").await?;
    let mut messages = consumer.messages().await?;
    let mut seen = 0;
    while seen < count {
        // A missed heartbeat is an error in the stream and not its end.
        let Ok(message) = messages.next().await.context("the pull has ended")? else { continue };
        let event: Event = serde_json::from_slice(&message.payload)?;
        let knows = |event_type: &str| KNOWN.contains(&event_type);
        if knows(&event.event_type) && !event.supersededby.as_deref().is_some_and(knows) {
            let version: u64 = event.sequence.parse()?;
            let data: Data = serde_json::from_value(event.data)?;
            println!("{} {} {version} {}", event.event_type, event.subject, data.todo.title);
            seen += 1;
        }
        // Once the server has the acknowledgement, the event is never delivered again.
        message.double_ack().await.map_err(|error| anyhow::anyhow!(error))?;
    }
    Ok(())
}
