//! Batches: what has come by now goes to the handler at once, several batches beside each other, and each event is
//! settled by its verdict.

use std::future::Future;

use async_nats::jetstream::{self, AckKind};
use chrono::{DateTime, Utc};
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::event::Event;
use crate::pull::{self, ACK_WAIT, Messages};
use crate::settle::{Read, Settler, Verdict, delay, now};

/// One pull, until `stop` or until it is broken. What is in hand is finished either way.
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
    let mut at_work = FuturesUnordered::new();
    let broken = loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break Ok(()),
            Some(settled) = at_work.next() => {
                *handled = true;
                if let Err(error) = settled {
                    break Err(error);
                }
            }
            first = pull::next(messages, &mut missed), if at_work.len() < settler.config.in_flight.max(1) => {
                let first = match first {
                    Ok(first) => first,
                    Err(error) => break Err(error),
                };
                let mut batch = vec![first];
                while batch.len() < settler.config.batch
                    && let Some(Some(Ok(next))) = messages.next().now_or_never()
                {
                    batch.push(next);
                }
                let (events, batch) = match take_apart(settler, batch).await {
                    Ok(parts) => parts,
                    Err(error) => break Err(error),
                };
                if !events.is_empty() {
                    let span = settler.span(&events);
                    let facts = events.iter().map(|event| (event.delivered, event.stored_at)).collect();
                    at_work.push(handle(settler, stop, batch, facts, handler(events).instrument(span)));
                }
            }
        }
    };
    while let Some(settled) = at_work.next().await {
        *handled = true;
        settled?;
    }
    broken
}

/// The events of a batch and their messages; what is nothing for the handler is settled.
async fn take_apart(
    settler: &Settler,
    batch: Vec<jetstream::Message>,
) -> Result<(Vec<Event>, Vec<jetstream::Message>), anyhow::Error> {
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
    Ok((events, messages))
}

/// Settles each event of a batch by its verdict.
async fn handle(
    settler: &Settler,
    stop: &CancellationToken,
    messages: Vec<jetstream::Message>,
    facts: Vec<(i64, DateTime<Utc>)>,
    work: impl Future<Output = Vec<Verdict>>,
) -> Result<(), anyhow::Error> {
    let verdicts = watched(work, &messages).await;
    anyhow::ensure!(verdicts.len() == messages.len(), "a handler must give one verdict per event");
    for ((message, verdict), (delivered, stored_at)) in messages.iter().zip(&verdicts).zip(facts) {
        if *verdict == Verdict::Done {
            settler.record_age(now() - stored_at);
        }
        match verdict {
            // Stopping is nobody's failure, however often it happens: the next process has it soon.
            Verdict::Retry(_) if stop.is_cancelled() => {
                settler.acknowledge(message, "left", AckKind::Nak(Some(delay(1)))).await?;
            }
            verdict => settler.settle(message, verdict, delivered).await?,
        }
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
