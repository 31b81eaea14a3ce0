//! Batches: what comes within a moment goes to the handler together, several batches beside each other, and each event is
//! settled by its verdict. An event that may be why a batch had no verdicts is handled alone.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use async_nats::jetstream::{self, AckKind};
use chrono::{DateTime, Utc};
use futures::future::{BoxFuture, join_all};
use futures::stream::{self as streams, FuturesUnordered};
use futures::{FutureExt as _, StreamExt as _};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, error};

use crate::event::Event;
use crate::failures::Place;
use crate::handler;
use crate::lines::Line;
use crate::pull::Messages;
use crate::settle::{Acker, Read, Unknown, Verdict};
use crate::spans;
use crate::time::{self, delay, now};

/// What has come and is not at work.
#[derive(Default)]
struct Buffer {
    messages: Vec<jetstream::Message>,
    since: Option<Instant>,
}

impl Buffer {
    fn push(&mut self, message: jetstream::Message) {
        self.since.get_or_insert_with(Instant::now);
        self.messages.push(message);
    }

    /// When it is to be handed over: never while there is nothing, at once when it is full.
    fn due(&self, limits: &Limits) -> Option<Instant> {
        let since = self.since?;
        Some(if self.messages.len() < limits.size { since + limits.linger } else { since })
    }
}

/// The limits of [`Mode::Batches`](crate::Mode::Batches).
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub size: usize,
    pub linger: Duration,
    pub in_flight: usize,
}

/// One pull, until `stop` or until it is broken. What is at work is finished either way.
pub async fn run<H, F>(
    (acker, limits): (&Acker, Limits),
    stop: &CancellationToken,
    messages: &mut Messages<'_>,
    handler: &mut H,
    handled: &mut bool,
) -> Result<(), anyhow::Error>
where
    H: FnMut(Vec<Event>) -> F,
    F: Future<Output = Vec<Verdict>>,
{
    let full = limits.size;
    let mut gathered = Buffer::default();
    let mut at_work = FuturesUnordered::new();
    // These are handled one at a time.
    let mut suspects: VecDeque<jetstream::Message> = VecDeque::new();
    let mut suspect_at_work = FuturesUnordered::new();
    let mut begin = |messages| {
        let mut batch = take_apart(acker, messages);
        let events = std::mem::take(&mut batch.events);
        let work = (!events.is_empty()).then(|| {
            let span = spans::process(&acker.config, &events);
            handler::outcome(handler::begin(|| handler(events)), acker.config.handle_within).instrument(span)
        });
        handle(acker, stop, batch, work)
    };
    let mut progress = time::progress();
    let broken = loop {
        if suspect_at_work.is_empty()
            && let Some(suspect) = suspects.pop_front()
        {
            suspect_at_work.push(begin(vec![suspect]));
        }
        let room = at_work.len() < limits.in_flight.max(1);
        let due = gathered.due(&limits).filter(|_| room);
        tokio::select! {
            biased;
            () = stop.cancelled() => break Ok(()),
            // Before what may always be ready.
            _ = progress.tick() => {
                report(&gathered.messages).await;
                report(suspects.make_contiguous()).await;
            }
            Some(settled) = at_work.next() => {
                *handled = true;
                if let Err(error) = settled {
                    break Err(error);
                }
            }
            Some(settled) = suspect_at_work.next() => {
                *handled = true;
                if let Err(error) = settled {
                    break Err(error);
                }
            }
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let messages = std::mem::take(&mut gathered).messages.into_iter();
                let (alone, together): (Vec<_>, Vec<_>) = messages.partition(|message| acker.is_suspect(message));
                suspects.extend(alone);
                at_work.push(begin(together));
            }
            next = messages.next(), if gathered.messages.len() < full => {
                match next {
                    Some(Ok(next)) => gathered.push(next),
                    Some(Err(error)) => break Err(error),
                    None => break Err(anyhow::anyhow!("the pull has ended")),
                }
                while gathered.messages.len() < full
                    && let Some(Some(Ok(next))) = messages.next().now_or_never()
                {
                    gathered.push(next);
                }
            }
        }
    };
    // Nobody has begun with these: the next process, or the next pull, gets them at once.
    for message in gathered.messages.into_iter().chain(suspects) {
        acker.acknowledge(&message, "left", AckKind::Nak(Some(delay(1)))).await.ok();
    }
    let mut rest = streams::select(at_work, suspect_at_work);
    while let Some(settled) = rest.next().await {
        *handled = true;
        settled?;
    }
    broken
}

/// A batch, taken apart.
#[derive(Default)]
struct Batch {
    events: Vec<Event>,
    /// For each event its message, its position in the stream, when it was stored, and its log line.
    messages: Vec<jetstream::Message>,
    facts: Vec<(Place, DateTime<Utc>, Line)>,
    /// Those of types that the handler does not know.
    unknown: Vec<(jetstream::Message, Event, Place)>,
    /// What is nothing for the handler, and why.
    others: Vec<(jetstream::Message, Result<&'static str, String>)>,
    discarded: Vec<(jetstream::Message, Place)>,
}

fn take_apart(acker: &Acker, messages: Vec<jetstream::Message>) -> Batch {
    let mut batch = Batch::default();
    for message in messages {
        match acker.read(&message) {
            Read::Event(event, place) if event.replay.as_ref().is_some_and(|replay| replay.discarded) => {
                batch.discarded.push((message, place));
            }
            Read::Event(event, place) => {
                batch.facts.push((place, event.stored_at, Line::of(&event)));
                batch.events.push(event);
                batch.messages.push(message);
            }
            Read::Unknown(event, place) => batch.unknown.push((message, event, place)),
            Read::Skip(reason) => batch.others.push((message, Ok(reason))),
            Read::Malformed(reason) => batch.others.push((message, Err(reason))),
        }
    }
    batch
}

/// Settles each event of a batch by its verdict, and what was nothing for the handler.
async fn handle(
    acker: &Acker,
    stop: &CancellationToken,
    batch: Batch,
    work: Option<impl Future<Output = Result<Vec<Verdict>, String>>>,
) -> Result<(), anyhow::Error> {
    let Batch { mut messages, mut facts, unknown, others, discarded, .. } = batch;
    let started = Instant::now();
    let verdicts = match work {
        Some(work) => watched(work, &messages).await,
        None => Ok(Vec::new()),
    };
    let verdicts = match verdicts {
        Ok(verdicts) => verdicts,
        Err(reason) if messages.len() == 1 => vec![Verdict::Retry(reason)],
        Err(reason) => {
            error!(consumer = acker.config.durable, events = messages.len(), reason, "each is handled alone");
            for (message, (place, _, line)) in messages.drain(..).zip(facts.drain(..)) {
                acker.failures.suspect(place);
                line.write(&acker.config.durable, "retry", started.elapsed());
                acker.acknowledge(&message, "retry", AckKind::Nak(Some(delay(1)))).await?;
            }
            Vec::new()
        }
    };
    anyhow::ensure!(verdicts.len() == messages.len(), "a handler must give one verdict per event");
    let mut settled = Vec::new();
    let took = started.elapsed();
    for ((message, verdict), (place, stored_at, line)) in messages.iter().zip(verdicts).zip(facts) {
        let outcome = if stop.is_cancelled() && matches!(verdict, Verdict::Retry(_)) { "left" } else { verdict.name() };
        line.write(&acker.config.durable, outcome, took);
        if verdict == Verdict::Done && !place.0 {
            acker.record_age(now() - stored_at);
        }
        settled.push(match verdict {
            // Stopping is nobody's failure, however often it happens: the next process has it soon.
            Verdict::Retry(_) if stop.is_cancelled() => {
                acker.acknowledge(message, "left", AckKind::Nak(Some(delay(1)))).boxed()
            }
            verdict => acker.settle(message, place, verdict).boxed(),
        });
    }
    settled.extend(discarded.iter().map(|(message, place)| acker.handled(message, *place, "discarded").boxed()));
    settled.extend(others.iter().map(|(message, reason)| match reason {
        Ok(reason) => acker.skip(message, reason).boxed(),
        Err(reason) => acker.reject(message, reason.clone()).boxed(),
    }));
    all(settled).await?;
    let (mut asked, mut settled) = (None, Vec::new());
    for (message, event, place) in &unknown {
        settled.push(match acker.unknown(event, &mut asked).await? {
            Unknown::Skip(reason) => acker.skip(message, reason).boxed(),
            Unknown::Failed(reason) if place.0 => acker.settle(message, *place, Verdict::Reject(reason)).boxed(),
            Unknown::Failed(reason) => acker.settle(message, *place, Verdict::Retry(reason)).boxed(),
        });
    }
    all(settled).await
}

/// Settles together, each to its end: every dead letter waits for its stream to answer, and one after the other they
/// would outlast `ACK_WAIT`. Returns the first error, if there is one.
async fn all(settled: Vec<BoxFuture<'_, Result<(), anyhow::Error>>>) -> Result<(), anyhow::Error> {
    join_all(settled).await.into_iter().collect()
}

/// Runs the handler, and meanwhile reports progress to the server.
async fn watched<T>(work: impl Future<Output = T>, messages: &[jetstream::Message]) -> T {
    let mut work = std::pin::pin!(work);
    let mut progress = time::progress();
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = progress.tick() => report(messages).await,
        }
    }
}

/// Reports to the server that these are in hand: else it delivers them again.
async fn report(messages: &[jetstream::Message]) {
    for message in messages {
        message.ack_with(AckKind::Progress).await.ok();
    }
}
