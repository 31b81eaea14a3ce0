//! Runs jobs: sends the selected items, at the job's pace, to the one consumer. `events` receives the outcome of each.
//! When a job loses its process, the next process takes it over.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use consumer::{ReplayRequest, ReplayStatus, Replayer};
use service::clock;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::pace::{Progress, Step, step};
use crate::store::Store;
use crate::store_jobs::Job;
use crate::store_range::Ranged;
use crate::store_work::{OnItsWay, ToSend};

const TICK: Duration = Duration::from_millis(100);
const LEASE: Duration = Duration::from_secs(5);
/// An item in flight for longer than this is checked.
const LONG: Duration = Duration::from_secs(5);
const CHECK_EVERY: Duration = Duration::from_secs(2);
/// An acknowledged item has a reported outcome. Should the report be lost, the item goes again after this.
const UNREPORTED: Duration = Duration::from_secs(60);

/// A discard is settled when its consumer has been absent for this long.
const NO_CONSUMER: Duration = Duration::from_secs(900);

/// Runs the jobs that no other process runs.
pub(crate) struct Runner {
    pub store: Store,
    pub replayer: Replayer,
    pub holder: Uuid,
}

/// What this process remembers of a job.
struct Memory {
    sent_at: Instant,
    checked_at: Instant,
}

impl Runner {
    /// Runs jobs until `stop`. Retries while a backing service is unavailable.
    pub async fn run(&self, stop: &CancellationToken) {
        let mut memories: HashMap<i64, Memory> = HashMap::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut said = false;
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            match self.round(&mut memories).await {
                Ok(()) => said = false,
                Err(error) if !said => {
                    warn!(error = format!("{error:#}"), "jobs do not go on: trying again");
                    said = true;
                }
                Err(_) => {}
            }
        }
    }

    async fn round(&self, memories: &mut HashMap<i64, Memory>) -> Result<(), anyhow::Error> {
        let jobs = self.store.lease(self.holder, LEASE.as_secs_f64()).await?;
        memories.retain(|id, _| jobs.iter().any(|(_, job)| job.id == *id));
        let mut failed = None;
        for (epoch, job) in &jobs {
            let now = Instant::now();
            let memory = memories.entry(job.id).or_insert(Memory { sent_at: now - TICK, checked_at: now });
            // One stuck job must not hold up the others.
            if let Err(error) = self.work(*epoch, job, memory).await {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn work(&self, epoch: i64, job: &Job, memory: &mut Memory) -> Result<(), anyhow::Error> {
        let progress = job.progress();
        if !job.has_ended() {
            self.go_on(epoch, job, progress, memory).await?;
        }
        if memory.checked_at.elapsed() > CHECK_EVERY {
            memory.checked_at = Instant::now();
            for item in self.store.long_on_their_way(job.id, LONG.as_secs_f64()).await? {
                self.look_for(job, &item).await?;
            }
        }
        Ok(())
    }

    async fn go_on(&self, epoch: i64, job: &Job, progress: Progress, memory: &mut Memory) -> Result<(), anyhow::Error> {
        let canary_passed = progress.settled() + progress.skipped >= job.pace().canary.min(job.total);
        if job.ramp_at.is_none() && canary_passed && progress.sent == 0 {
            self.store.ramp(job.id).await?;
        }
        let since_ramp = job.ramp_at.map(|at| (clock::now() - at).to_std().unwrap_or_default());
        match step(&job.pace(), &progress, since_ramp, memory.sent_at.elapsed()) {
            Step::Done => {
                info!(job = job.id, handled = job.handled, failed = job.failed, "the job is done");
                self.store.finish(job, epoch, "done", "all of it is settled").await?;
            }
            Step::Abort(why) => {
                warn!(job = job.id, why, "the job aborts itself");
                self.store.finish(job, epoch, "aborted", &why).await?;
            }
            Step::Send(0) => {}
            Step::Send(count) => {
                memory.sent_at = Instant::now();
                if let Some(why) = self.is_of_another_stream(job).await? {
                    warn!(job = job.id, why, "the job aborts itself");
                    return Ok(self.store.finish(job, epoch, "aborted", &why).await?);
                }
                for item in self.store.take(job.id, epoch, count).await? {
                    self.send(job, item).await?;
                }
            }
        }
        Ok(())
    }

    /// A range names events by their sequences, in the stream that existed when the job was created.
    async fn is_of_another_stream(&self, job: &Job) -> Result<Option<String>, anyhow::Error> {
        let created = job.selection["streamCreatedAt"].as_str().and_then(|text| text.parse::<DateTime<Utc>>().ok());
        let (Some(created), Some(stream)) = (created, job.selection["stream"].as_str()) else { return Ok(None) };
        let is = self.replayer.created(stream).await?;
        let same = is.timestamp_micros() == created.timestamp_micros();
        Ok((!same).then(|| format!("the stream {stream} was created again since: its sequences are other events")))
    }

    async fn send(&self, job: &Job, item: ToSend) -> Result<(), anyhow::Error> {
        let Some(sending) = self.sending(job, &item).await? else {
            return Ok(self.store.gone(job.id, item.n, "its stream no longer holds it").await?);
        };
        if is_another(&item, &sending.payload) {
            return Ok(self.store.gone(job.id, item.n, "its stream holds another event in its place").await?);
        }
        let sequence = self.replayer.send(&sending).await?;
        self.store.sent(job.id, &item, sequence).await?;
        Ok(())
    }

    async fn sending(&self, job: &Job, item: &ToSend) -> Result<Option<ReplayRequest>, anyhow::Error> {
        let id = name(job, item.n, item.tries);
        let (consumer, discarded) = (job.consumer.clone(), job.kind == "discard");
        let stream_sequence = item.stream_sequence.cast_unsigned();
        let (Some(subject), Some(stored_at)) = (item.subject.clone(), item.stored_at) else {
            let stream = job.selection["stream"].as_str().unwrap_or_default();
            let found = self.replayer.find(stream, stream_sequence).await?;
            return Ok(found.map(|found| ReplayRequest { consumer, id, discarded, ..found }));
        };
        let headers = item.headers.clone().unwrap_or_default();
        Ok(Some(ReplayRequest {
            consumer,
            id,
            subject,
            headers: serde_json::from_value(headers).unwrap_or_default(),
            payload: item.payload.clone().unwrap_or_default().into(),
            stream_sequence,
            stored_at,
            discarded,
        }))
    }

    /// Sends a lost item again; the consumer recognizes a repetition by the event.
    async fn look_for(&self, job: &Job, item: &OnItsWay) -> Result<(), anyhow::Error> {
        let way = match item.replay_sequence {
            None => ReplayStatus::Lost,
            Some(sequence) => {
                let id = name(job, item.n, item.tries);
                self.replayer.status(&job.consumer, &id, sequence.cast_unsigned()).await?
            }
        };
        let gone = job.kind == "discard" && item.seconds > NO_CONSUMER.as_secs_f64();
        if gone && !self.replayer.takes_replays(&job.consumer).await? {
            return Ok(self.store.settled(job.id, item.n, "there is no such consumer any more").await?);
        }
        if way == ReplayStatus::Lost || (way == ReplayStatus::Settled && item.seconds > UNREPORTED.as_secs_f64()) {
            warn!(job = job.id, item = item.n, ?way, "a replay was lost on its way: it goes again");
            self.store.again(job.id, item).await?;
        }
        Ok(())
    }
}

/// Whether another event now has the sequence of a range's event, as in a stream that was restored.
fn is_another(item: &ToSend, payload: &[u8]) -> bool {
    item.event_id.is_some() && item.event_id != Ranged::of(0, payload).event_id
}

/// The name of a replay: job, position in it, try, and when the job was created. A restored database gives out the numbers of
/// jobs again.
fn name(job: &Job, n: i64, tries: i32) -> String {
    format!("{}.{n}.{tries}.{}", job.id, job.created_at.timestamp_micros())
}
