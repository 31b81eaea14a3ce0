//! Turns events into documents: a batch of events is one bulk request, with a verdict for each.

use std::time::Duration;

use consumer::{Consumer, Event as Delivered, Rewinder, Verdict};
use contracts::events::todo::{About, Event};
use service::retry::Delays;
use service::{Process, clock, handlers, nats};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::store::{Document, Filled, Index};
use crate::store_bulk::Outcome;
use crate::{rebuilt, upkeep};

/// Starts everything that keeps the index in step with the events; returns whether the index is whole, and what knows how far it is.
pub(crate) fn project(process: &Process, nats: nats::Client, index: &Index) -> (watch::Receiver<bool>, Rewinder) {
    let (Process { lifecycle, readiness, .. }, version) = (process.clone(), process.version());
    let durable = move |durable: fleet::Durable| durable.config(version.clone());
    readiness.set("index", false);
    let consumer = Consumer::new(nats.clone(), durable(fleet::PROJECTION));
    let (there, mut is_there) = watch::channel(false);
    let (whole, is_whole) = watch::channel(false);
    let (kept, rewinder, status) = (index.clone(), consumer.rewinder(), consumer.status());
    let knows = rewinder.clone();
    lifecycle.run("index upkeep", |stop| async move {
        upkeep::keep_index(&kept, &rewinder, &status, &stop, &there, &whole).await;
    });
    let projected = index.clone();
    let (sampled, samples) = watch::channel(None);
    lifecycle.run("projector", |stop| async move {
        if stop.run_until_cancelled(is_there.wait_for(|there| *there)).await.is_none() {
            return;
        }
        readiness.set("index", true);
        let projector = Projector { index: projected, stop: stop.clone(), sampled: Some(sampled) };
        consumer.run_batches(stop, |batch| projector.on_batch(batch)).await;
    });
    let next = index.behind(&rebuilt(index.alias()));
    lifecycle.run("rebuild", |stop| async move {
        rebuild(&next, move || Consumer::new(nats.clone(), durable(fleet::REBUILD)), &stop).await;
    });
    let visible = index.clone();
    lifecycle.run("lag sampler", |stop| async move {
        stop.run_until_cancelled(sample_lag(visible, samples)).await;
        stop.cancelled().await;
    });
    (is_whole, knows)
}

/// Writes what events say into the index.
pub(crate) struct Projector {
    pub index: Index,
    pub stop: CancellationToken,
    /// One document of the newest bulk, to measure when a search finds it; none while an index is rebuilt.
    pub sampled: Option<watch::Sender<Option<Sample>>>,
}

/// A document that was written, and when.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    id: String,
    version: i32,
    written: Instant,
}

impl Projector {
    /// Returns a verdict for each event. Waits while the index is unavailable: an outage makes no dead letters.
    pub async fn on_batch(&self, events: Vec<Delivered>) -> Vec<Verdict> {
        let read: Vec<Result<Document, String>> = events.iter().map(document).collect();
        let documents: Vec<&Document> = read.iter().filter_map(|document| document.as_ref().ok()).collect();
        let outcomes = self.write(&documents).await;
        // A document that was refused, or is there already, says nothing about how long indexing takes.
        let written = documents.iter().zip(&outcomes).rev().find(|(_, outcome)| **outcome == Outcome::Written);
        if let (Some((last, _)), Some(sampled)) = (written, &self.sampled) {
            let sample = Sample { id: last.id.to_string(), version: last.version, written: Instant::now() };
            sampled.send_replace(Some(sample));
        }
        let mut outcomes = outcomes.into_iter();
        let verdict = |document: &Result<Document, String>| match document {
            Err(reason) => Verdict::Reject(reason.clone()),
            Ok(_) => match outcomes.next() {
                Some(Outcome::Written | Outcome::Newer) => Verdict::Done,
                Some(Outcome::Busy(reason) | Outcome::Away(reason)) => Verdict::Retry(reason),
                Some(Outcome::Refused(reason)) => Verdict::Reject(reason),
                None => Verdict::Retry("the service is stopping".to_owned()),
            },
        };
        read.iter().map(verdict).collect()
    }

    /// The outcomes, in order; none when the service stops first.
    async fn write(&self, documents: &[&Document]) -> Vec<Outcome> {
        let mut delays = Delays::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut outcomes = vec![Outcome::Away("not written yet".to_owned()); documents.len()];
        while !self.stop.is_cancelled() {
            let left: Vec<usize> =
                (0..documents.len()).filter(|&index| matches!(outcomes[index], Outcome::Away(_))).collect();
            if left.is_empty() {
                return outcomes;
            }
            let again: Vec<&Document> = left.iter().map(|&index| documents[index]).collect();
            let why = match self.index.write(&again).await {
                Ok(written) => {
                    left.iter().zip(written).for_each(|(&index, outcome)| outcomes[index] = outcome);
                    outcomes.iter().find_map(|one| if let Outcome::Away(why) = one { Some(why.clone()) } else { None })
                }
                Err(error) => Some(format!("{error:#}")),
            };
            let Some(why) = why else { return outcomes };
            let delay = delays.next_delay();
            warn!(error = why, ?delay, "the index cannot be written: trying again");
            self.stop.run_until_cancelled(tokio::time::sleep(delay)).await;
        }
        Vec::new()
    }
}

/// The document that an event makes of its todo.
fn document(delivered: &Delivered) -> Result<Document, String> {
    let envelope = handlers::envelope(delivered)?;
    let event = Event::decode(&envelope.event_type, envelope.data)
        .map_err(|error| handlers::reason(&error))?
        .ok_or("its type is not known")?;
    // These fields key the document: an edited letter must not write another todo, or a version of its own.
    let About::Todo(todo) = event.about();
    let id = todo.id.to_string();
    if envelope.subject != id || envelope.partitionkey != id {
        return Err(format!("its todo is {id}, and its subject or partitionkey another"));
    }
    if todo.version < 1 || envelope.sequence != contracts::envelope::sequence(todo.version) {
        return Err(format!("its todo is at version {}, and its sequence says otherwise", todo.version));
    }
    let deleted = matches!(event, Event::Deleted(_));
    Ok(Document::new(envelope.tenant, todo, deleted, clock::now()))
}

/// Writes events into the index that is being rebuilt, whenever this alias has one.
pub(crate) async fn rebuild(index: &Index, consumer: impl Fn() -> Consumer, stop: &CancellationToken) {
    while let Some(()) = stop.run_until_cancelled(until(index, true)).await {
        info!("an index is being rebuilt: filling it");
        let ended = stop.child_token();
        let projector = Projector { index: index.clone(), stop: ended.clone(), sampled: None };
        let work = consumer().run_batches(ended.clone(), |batch| projector.on_batch(batch));
        let watch = async {
            stop.run_until_cancelled(until(index, false)).await;
            ended.cancel();
        };
        tokio::join!(work, watch);
        info!("the index is rebuilt, or given up");
    }
}

/// Waits until the alias has an index, or none any more.
async fn until(index: &Index, there: bool) {
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    loop {
        tick.tick().await;
        if index.filled().await.is_ok_and(|filled| there == (filled != Filled::Missing)) {
            return;
        }
    }
}

/// Measures, one document at a time, how long after its write a search finds it.
pub(crate) async fn sample_lag(index: Index, mut samples: watch::Receiver<Option<Sample>>) {
    while samples.changed().await.is_ok() {
        let Some(sample) = samples.borrow_and_update().clone() else { continue };
        let deadline = sample.written + Duration::from_secs(30);
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        while Instant::now() < deadline {
            tick.tick().await;
            if index.shows(&sample.id, sample.version).await.unwrap_or(false) {
                break;
            }
        }
        // A document that no search finds by then counts with the time that has passed.
        metrics::histogram!("search_handled_to_searchable_seconds").record(sample.written.elapsed().as_secs_f64());
    }
}
