//! Batches: what has come by now goes to the handler at once, and each event is settled by its verdict.

use std::future::Future;

use async_nats::jetstream::{self, AckKind};
use futures::{FutureExt as _, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::event::Event;
use crate::pull::{self, ACK_WAIT, Messages};
use crate::settle::{Read, Settler, Verdict, now};

/// One pull, until `stop` or until it is broken.
pub async fn run<H, F>(
    settler: &Settler,
    stop: &CancellationToken,
    messages: &mut Messages,
    handler: &mut H,
    handled: &mut bool,
) -> Result<(), anyhow::Error>
where
    H: FnMut(Vec<Event>) -> F,
    F: Future<Output = Vec<Verdict>>,
{
    let mut missed = 0;
    loop {
        let first = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            first = pull::next(messages, &mut missed) => first?,
        };
        let mut batch = vec![first];
        while batch.len() < settler.config.batch
            && let Some(Some(Ok(next))) = messages.next().now_or_never()
        {
            batch.push(next);
        }
        handle(settler, batch, handler).await?;
        *handled = true;
    }
}

async fn handle<H, F>(settler: &Settler, batch: Vec<jetstream::Message>, handler: &mut H) -> Result<(), anyhow::Error>
where
    H: FnMut(Vec<Event>) -> F,
    F: Future<Output = Vec<Verdict>>,
{
    let mut messages = Vec::with_capacity(batch.len());
    let mut events = Vec::with_capacity(batch.len());
    for message in batch {
        match settler.read(&message) {
            Read::Event(event) => {
                events.push(event);
                messages.push(message);
            }
            Read::Skip(reason) => settler.skip(&message, reason).await?,
            Read::Malformed(reason) => settler.settle(&message, &Verdict::Reject(reason), 0).await?,
        }
    }
    if events.is_empty() {
        return Ok(());
    }
    let facts: Vec<_> = events.iter().map(|event| (event.delivered, event.stored_at)).collect();
    let span = settler.span(&events);
    let verdicts = watched(handler(events).instrument(span), &messages).await;
    anyhow::ensure!(verdicts.len() == messages.len(), "a handler must give one verdict per event");
    for ((message, verdict), (delivered, stored_at)) in messages.iter().zip(&verdicts).zip(facts) {
        if *verdict == Verdict::Done {
            settler.record_age(now() - stored_at);
        }
        settler.settle(message, verdict, delivered).await?;
    }
    Ok(())
}

/// Runs the handler, and tells the server meanwhile that work goes on.
async fn watched<T>(work: impl Future<Output = T>, messages: &[jetstream::Message]) -> T {
    let mut work = std::pin::pin!(work);
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + ACK_WAIT / 3, ACK_WAIT / 3);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = tick.tick() => {
                for message in messages {
                    message.ack_with(AckKind::Progress).await.ok();
                }
            }
        }
    }
}
