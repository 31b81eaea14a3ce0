//! `flotilla replay`: sends one consumer a stream's messages of a subject and a range of time again.

use anyhow::Context as _;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::stream::Stream;
use chrono::{DateTime, Utc};
use clap::Args;
use futures::StreamExt as _;
use proto::ops::{CreateRangeJobRequest, RangedEvent};
use serde_json::{Value, json};

use crate::context::Context;
use crate::dlq::{self, PaceArgs};
use crate::operator::ActArgs;
use crate::processes::said;
use crate::{events, outbox};

/// The most events of one job.
const MAX: usize = 1_000_000;
/// How many events go in one message.
const CHUNK: usize = 10_000;

#[derive(Debug, Clone, Args)]
pub struct ReplayArgs {
    /// The durable consumer that gets the events; no other consumer does.
    #[arg(long)]
    consumer: String,
    /// The subjects, as NATS filters: `evt.todo.*.*.acme`.
    #[arg(long, default_value = "evt.todo.>")]
    subject: String,
    /// Only events stored at or after this time (RFC 3339).
    #[arg(long)]
    from: DateTime<Utc>,
    /// Only events stored before this time (RFC 3339); now by default.
    #[arg(long)]
    to: Option<DateTime<Utc>>,
    /// Only show what would be replayed.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pace: PaceArgs,
    #[command(flatten)]
    act: ActArgs,
}

pub async fn run(context: &Context, args: &ReplayArgs) -> Result<(), anyhow::Error> {
    let (_js, stream) = events::open(context).await?;
    let name = stream.cached_info().config.name.clone();
    let consumer = stream
        .consumer_info(&args.consumer)
        .await
        .with_context(|| format!("{} has no consumer {}; `flotilla consumers` lists them", name, args.consumer))?;
    let events = select(&stream, args, consumer.ack_floor.stream_sequence).await?;
    anyhow::ensure!(
        !events.is_empty(),
        "the stream holds nothing of {} in that range that the consumer has had",
        args.subject
    );
    let (first, last) =
        (events.first().map_or(0, |event| event.sequence), events.last().map_or(0, |event| event.sequence));
    let selection = json!({
        "stream": name, "streamCreatedAt": stream.cached_info().created, "subject": args.subject, "from": args.from, "to": args.to, "firstSequence": first, "lastSequence": last,
    });
    let what = format!("{} events ({first} to {last} of {name}) go to {} and nobody else", events.len(), args.consumer);
    if args.dry_run {
        outbox::say(
            context,
            &json!({"events": events.len(), "selection": selection}),
            &format!("{what}. Nothing was changed."),
        );
        return Ok(());
    }
    args.act.check(context)?;
    args.act.confirm(&format!("{what}: replay them?"))?;
    let mut jobs = dlq::jobs(context).await?;
    let mut messages: Vec<_> = events
        .chunks(CHUNK)
        .map(|some| CreateRangeJobRequest { events: some.to_vec(), ..CreateRangeJobRequest::default() })
        .collect();
    if let Some(first) = messages.first_mut() {
        first.consumer.clone_from(&args.consumer);
        first.selection = selection.to_string();
        first.pace = Some(args.pace.pace()?);
        first.reason.clone_from(&args.act.reason);
    }
    let job = jobs.create_range_job(futures::stream::iter(messages)).await.map_err(said)?.into_inner();
    dlq::started(context, &mut jobs, &job, args.pace.detach()).await
}

/// The selected events, as the stream holds them now.
async fn select(stream: &Stream, args: &ReplayArgs, handled: u64) -> Result<Vec<RangedEvent>, anyhow::Error> {
    let state = &stream.cached_info().state;
    let mut selected = Vec::new();
    if state.messages == 0 {
        return Ok(selected);
    }
    let config = pull::OrderedConfig {
        filter_subject: args.subject.clone(),
        deliver_policy: DeliverPolicy::ByStartTime { start_time: args.from },
        ..Default::default()
    };
    let consumer = stream.create_consumer(config).await.context("reading the stream")?;
    let mut left = consumer.cached_info().num_pending;
    let mut messages = consumer.messages().await?;
    while left > 0 {
        let message = messages.next().await.context("the stream has ended")?.context("reading the stream")?;
        let info = message.info().map_err(|error| anyhow::anyhow!(error))?;
        left -= 1;
        // What the consumer has not received yet comes by itself, in order.
        if info.stream_sequence > handled || args.to.is_some_and(|to| info.published >= to) {
            break;
        }
        anyhow::ensure!(selected.len() < MAX, "more than {MAX} events: replay a shorter range at a time");
        selected.push(of(info.stream_sequence, &message.payload));
    }
    Ok(selected)
}

/// The event in a message, at this sequence.
fn of(sequence: u64, payload: &[u8]) -> RangedEvent {
    let event: Value = serde_json::from_slice(payload).unwrap_or_default();
    let text = |name: &str| event[name].as_str().map(ToOwned::to_owned);
    RangedEvent { sequence, aggregate_id: text("partitionkey").unwrap_or_default(), event_id: text("id") }
}
