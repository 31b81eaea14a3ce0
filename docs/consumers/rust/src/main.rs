//! Prints a tenant's todo events as they come. Its durable consumer remembers what was read: run it again, and it goes on
//! where it ended. It uses nothing of the fleet's crates: take it as it is.
//!
//!     cargo run --package consume-events -- .flotilla/secrets/nats-observer.json acme [how many]

use anyhow::Context as _;
use async_nats::jetstream::consumer::{AckPolicy, pull};
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
    data: Data,
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
const KNOWN: [&str; 6] = [
    "todo.created.v1",
    "todo.updated.v1",
    "todo.reopened.v1",
    "todo.deleted.v1",
    "todo.completed.v1",
    "todo.completed.v2",
];

#[tokio::main]
async fn main() -> Result<(), anyhow::Error> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: consume-events LOGIN-FILE TENANT [HOW MANY]";
    let (file, tenant) = (args.next().context(usage)?, args.next().context(usage)?);
    let count: usize = args.next().map_or(Ok(usize::MAX), |count| count.parse()).context(usage)?;

    let login: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).context(file)?)?;
    let part = |name: &str| login[name].as_str().unwrap_or_default().to_owned();
    let options = async_nats::ConnectOptions::new().user_and_password(part("user"), part("password"));
    let js = async_nats::jetstream::new(options.connect(part("url")).await?);
    let name = format!("rust-example-{tenant}");
    let config = pull::Config {
        durable_name: Some(name.clone()),
        filter_subject: format!("evt.todo.*.*.{tenant}"),
        ack_policy: AckPolicy::Explicit,
        ..Default::default()
    };
    let consumer = js.get_stream("EVENTS_TODO").await?.get_or_create_consumer(&name, config).await?;
    let mut messages = consumer.messages().await?;
    let mut seen = 0;
    while seen < count {
        // A missed heartbeat is an error in the stream and not its end.
        let Ok(message) = messages.next().await.context("the pull has ended")? else { continue };
        let event: Event = serde_json::from_slice(&message.payload)?;
        let knows = |event_type: &str| KNOWN.contains(&event_type);
        if knows(&event.event_type) && !event.supersededby.as_deref().is_some_and(knows) {
            let version: u64 = event.sequence.parse()?;
            println!("{} {} {version} {}", event.event_type, event.subject, event.data.todo.title);
            seen += 1;
        }
        // Once the server has the acknowledgement, the event is never delivered again.
        message.double_ack().await.map_err(|error| anyhow::anyhow!(error))?;
    }
    Ok(())
}
