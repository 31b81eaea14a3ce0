//! The lanes of a lead: one attempt at an event, and what is made of its outcome.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{self, AckKind};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, warn};

use crate::claim::{self, Handler, Outcome};
use crate::event::Event;
use crate::failures::Place;
use crate::floors::Floors;
use crate::handler::Failure;
use crate::inbox::{Death, Inbox};
use crate::lines::{self, Line};
use crate::settle::{Acker, unknown_here};
use crate::spans;
use crate::status::Status;
use crate::time::{delay, now};

/// The pause before an event is tried again because what its handler needs is unavailable.
const AWAY_PAUSE: Duration = Duration::from_secs(2);

/// An event in hand.
#[derive(Clone)]
pub struct Held {
    pub message: jetstream::Message,
    pub event: Arc<Event>,
    pub place: Place,
}

/// What follows an attempt.
pub enum After {
    /// It is acknowledged: the next of its aggregate.
    Next,
    /// It is tried again after a pause.
    Again(Duration),
    /// This process is stopping: it is left to the next one.
    Left,
}

/// What the process that leads works with.
pub struct Lanes<'a> {
    pub acker: &'a Acker,
    pub inbox: &'a Inbox,
    pub stop: &'a CancellationToken,
    pub epoch: i64,
    pub status: &'a watch::Sender<Status>,
    pub floors: Floors,
    pub permits: Semaphore,
}

impl Lanes<'_> {
    /// One attempt, after a pause, and what is made of its outcome.
    pub async fn attempt<H>(
        &self,
        aggregate: String,
        held: Held,
        pause: Duration,
        handler: &H,
    ) -> (String, Result<After, anyhow::Error>)
    where
        H: Handler,
    {
        let ready = async {
            tokio::time::sleep(pause).await;
            self.permits.acquire().await
        };
        let Some(permit) = self.stop.run_until_cancelled(ready).await else {
            return (aggregate, Ok(After::Left));
        };
        let span = spans::process(&self.acker.config, std::slice::from_ref(&*held.event));
        let started = Instant::now();
        let outcome = self.handle(&held.event, handler).instrument(span).await;
        drop(permit);
        let outcome = outcome.unwrap_or_else(|error| Outcome::Failed(error.into()));
        Line::of(&held.event).write(&self.acker.config.durable, outcome.name(), started.elapsed());
        let after = self.settle(&held, outcome).await;
        (aggregate, after)
    }

    async fn handle<H>(&self, event: &Arc<Event>, handler: &H) -> Result<Outcome, sqlx::Error>
    where
        H: Handler,
    {
        if event.replay.as_ref().is_some_and(|replay| replay.discarded) {
            let leads = self.inbox.discard(&self.acker.config.durable, self.epoch, event).await?;
            return Ok(if leads { Outcome::Discarded } else { Outcome::Lost });
        }
        if !self.acker.knows(event.event_type()) {
            return Ok(Outcome::Failed(Failure::Retry(unknown_here(event.event_type()))));
        }
        let Acker { config, .. } = self.acker;
        claim::attempt(self.inbox, &config.durable, self.epoch, event, handler, config.handle_within).await
    }

    async fn handled(&self, held: &Held, outcome: &'static str) -> Result<After, anyhow::Error> {
        self.acker.handled(&held.message, held.place, outcome).await?;
        self.acker.failures.forget(held.place);
        Ok(After::Next)
    }

    /// Acknowledges by the outcome.
    async fn settle(&self, held: &Held, outcome: Outcome) -> Result<After, anyhow::Error> {
        let durable = &self.acker.config.durable;
        let trace_id = lines::trace_id(held.event.attribute("traceparent"));
        let again = |times| Ok(After::Again(delay(times)));
        let (name, away) = (outcome.name(), matches!(outcome, Outcome::Failed(Failure::Away(_))));
        let reason = match outcome {
            Outcome::Lost => anyhow::bail!("another process pulls by now"),
            Outcome::Done => {
                if !held.place.0 {
                    self.acker.record_age(now() - held.event.stored_at);
                }
                None
            }
            Outcome::Duplicate | Outcome::Discarded => None,
            Outcome::Dead(reason) | Outcome::Behind(reason) => Some(reason),
            Outcome::Failed(Failure::Retry(reason) | Failure::Away(reason) | Failure::Reject(reason)) => Some(reason),
        };
        let Some(reason) = reason else {
            return self.handled(held, name).await;
        };
        if away {
            warn!(
                trace_id,
                consumer = durable,
                subject = held.event.nats_subject,
                reason,
                "what it needs is unavailable"
            );
            self.acker.count("retry");
            return Ok(After::Again(AWAY_PAUSE));
        }
        let failed = self.acker.failures.one_more(held.place);
        // To give an event up cannot fail for good.
        let gives_up = held.event.replay.as_ref().is_some_and(|replay| replay.discarded);
        if name == "retry" && (gives_up || failed.times < self.acker.config.max_attempts) {
            let (subject, attempts) = (&held.event.nats_subject, failed.times);
            warn!(trace_id, consumer = durable, subject, attempts, reason, "again later");
            self.acker.count("retry");
            return again(failed.times);
        }
        // Do this before the letter, so that no later event of the aggregate slips by.
        match self.inbox.die(durable, self.epoch, &held.event, &reason).await {
            Ok(Death::Written) => {}
            Ok(Death::Lost) => anyhow::bail!("another process pulls by now"),
            // Its commit had come through, though nobody heard of it.
            Ok(Death::Handled) => return self.handled(held, Outcome::Duplicate.name()).await,
            Err(error) => {
                warn!(trace_id, %error, "the event's death could not be written down: again later");
                return again(failed.times);
            }
        }
        if !self.acker.bury(&held.message, &reason, failed).await {
            return again(failed.times);
        }
        let (source, id) = (held.event.attribute("source"), held.event.attribute("id"));
        if let Err(error) = self.inbox.remember_letter(durable, source, id).await {
            warn!(trace_id, %error, "the letter could not be remembered: again later");
            return again(failed.times);
        }
        self.acker.acknowledge(&held.message, name, AckKind::Ack).await?;
        self.acker.failures.forget(held.place);
        Ok(After::Next)
    }
}
