//! A live copy of a service's events, one in a process, for those who watch a tenant's: each event is read and decoded once, and handed to all
//! of them. A watcher begins with now or behind an event that it has had, and then misses none; where it may have, it gets a reset.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use contracts::{Envelope, TenantId};
use futures::stream::{self, Stream};
use metrics::gauge;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::{self, Receiver, Sender};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::readiness::Readiness;
use crate::tail::{Events, Extent, From, Next, Stored, Tail};
use crate::{Code, Failure, Process, nats};

/// How many events of its tenant a watcher may be behind before it is ended.
const KEPT: usize = 256;
/// How many messages the copy reads to catch up; beyond, its watchers get a reset.
const MOST_BEHIND: u64 = 10_000;
/// How often a watcher hears where it is, when nothing happens.
const HEARD_OF_EVERY: Duration = Duration::from_secs(15);
/// For how long the copy may not have been compared with the stream: beyond, nobody knows what watchers miss.
const LEVEL_WITHIN: Duration = Duration::from_secs(30);
/// The pause after NATS has failed.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Which stream, and the sequence of an event in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place(i64, u64);

/// What a watcher hears, with its place: whoever watches from there on has had it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard<T> {
    /// An event.
    Change(Place, T),
    /// Events may have been missed: all has to be listed again. The next ones come behind this.
    Reset(Place),
    /// All up to there was heard.
    Level(Place),
}

/// What an event is to those who watch; none for one that they do not hear of. What fails resets them. Its text goes into the log.
pub type Decode<T> = fn(&Envelope<&RawValue>) -> Result<Option<T>, anyhow::Error>;

/// The copy. Clones share it.
pub struct Live<T>(Arc<Shared<T>>);

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<T> {
    events: Events,
    decode: Decode<T>,
    now: Mutex<Now<T>>,
    stop: CancellationToken,
}

/// Where the copy is, and who watches.
struct Now<T> {
    /// None before it was ever known.
    place: Option<Place>,
    /// When the copy was last compared with the stream.
    level: Option<Instant>,
    tenants: HashMap<TenantId, Sender<Arc<Heard<T>>>>,
}

impl<T: Clone + Send + Sync + 'static> Live<T> {
    /// Follows the events of a service until the process stops, by a login that watches them. The process is ready once it has begun.
    ///
    /// # Errors
    /// None that NATS causes.
    pub async fn follow(
        process: &Process,
        nats: nats::Client,
        service: &str,
        decode: Decode<T>,
    ) -> Result<Self, anyhow::Error> {
        let events = Events::of(nats, service).await?;
        let now = Mutex::new(Now { place: None, level: None, tenants: HashMap::new() });
        let live = Self(Arc::new(Shared { events, decode, now, stop: process.lifecycle.stopping() }));
        let (shared, ready) = (Arc::clone(&live.0), process.readiness.clone());
        ready.set("live copy of events", false);
        process.lifecycle.run("live copy of events", |stop| async move {
            let mut failing = false;
            while let Some(Err(error)) = stop.run_until_cancelled(shared.run(&ready, &mut failing)).await {
                if !failing {
                    warn!(error = format!("{error:#}"), "events are not heard as they are stored: trying again");
                }
                failing = true;
                stop.run_until_cancelled(tokio::time::sleep(AGAIN_AFTER)).await;
            }
        });
        Ok(live)
    }

    /// What happens to a tenant from now on, or behind a place; it ends with the process, or by a failure. An aggregate's version may come
    /// twice.
    ///
    /// # Errors
    /// UNAVAILABLE while NATS was not heard of for half a minute.
    pub fn watch(
        &self,
        tenant: &TenantId,
        after: Option<Place>,
    ) -> Result<impl Stream<Item = Result<Heard<T>, Failure>> + use<T>, Failure> {
        let mut now = self.0.now();
        let head = now.place.filter(|_| now.is_level()).ok_or_else(away)?;
        // Under the lock: the copy hands out what is behind `head`, and nothing else.
        let sender = now.tenants.entry(tenant.clone()).or_insert_with(|| broadcast::channel(KEPT).0);
        let live = sender.subscribe();
        gauge!("watchers").increment(1);
        drop(now);
        let mut tick = tokio::time::interval(HEARD_OF_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reads = after.map(|after| Reads { after, before: Vec::new().into_iter() });
        let watcher = Watcher { shared: Arc::clone(&self.0), tenant: tenant.clone(), head, live, reads, tick };
        Ok(stream::unfold(Some(watcher), |watcher| async {
            let mut watcher = watcher?;
            match watcher.next().await? {
                Ok(heard) => Some((Ok(heard), Some(watcher))),
                Err(failure) => Some((Err(failure), None)),
            }
        }))
    }
}

impl<T> Shared<T> {
    fn now(&self) -> MutexGuard<'_, Now<T>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What those who watch its tenant hear of a stored event.
    fn decoded(&self, place: Place, stored: &Stored) -> Option<Heard<T>> {
        let decoded = match serde_json::from_slice::<Envelope<&RawValue>>(&stored.payload) {
            Ok(envelope) if contracts::subject::of(&envelope.event_type, &envelope.tenant) == stored.subject => {
                (self.decode)(&envelope)
            }
            // The error may quote the event.
            Ok(_) | Err(_) => Err(anyhow::anyhow!("it is no event of its subject")),
        };
        match decoded {
            Ok(change) => change.map(|change| Heard::Change(place, change)),
            Err(error) => {
                let (sequence, error) = (stored.sequence, format!("{error:#}"));
                error!(
                    sequence,
                    subject = stored.subject,
                    error,
                    "a stored event cannot be read: its watchers are reset"
                );
                Some(Heard::Reset(place))
            }
        }
    }
}

impl<T> Now<T> {
    fn is_level(&self) -> bool {
        self.level.is_some_and(|level| level.elapsed() < LEVEL_WITHIN)
    }
}

fn away() -> Failure {
    let what = "events cannot be read for the moment: try again";
    Failure::new(Code::Unavailable, "UNAVAILABLE", what).retry_after(AGAIN_AFTER)
}

impl<T: Clone + Send + Sync + 'static> Shared<T> {
    /// Reads until NATS fails.
    async fn run(&self, ready: &Readiness, failing: &mut bool) -> Result<(), anyhow::Error> {
        let before = self.now().place;
        let from = before.map_or(From::Now, |Place(made, sequence)| From::Behind(made, sequence));
        let mut tail = Tail::begin(self.events.clone(), from, MOST_BEHIND).await?;
        let place = |tail: &Tail| {
            let (made, sequence) = tail.place();
            Place(made, sequence)
        };
        if before.is_none() {
            self.now().place = Some(place(&tail));
        }
        loop {
            match tail.next().await? {
                Next::Event(stored) => self.hand_out(place(&tail), &stored),
                Next::Lost => self.lost(place(&tail)),
                Next::Level => {
                    *failing = false;
                    ready.set("live copy of events", true);
                    self.now().level = Some(Instant::now());
                }
            }
        }
    }

    fn hand_out(&self, place: Place, stored: &Stored) {
        let tenant = {
            let mut now = self.now();
            let Some(tenant) = stored.tenant().filter(|tenant| now.tenants.contains_key(tenant)) else {
                // Whoever comes from now on is behind it.
                now.place = Some(place);
                return;
            };
            tenant
        };
        let heard = self.decoded(place, stored);
        let mut now = self.now();
        now.place = Some(place);
        let (Some(heard), Some(watchers)) = (heard, now.tenants.get(&tenant)) else { return };
        // Nobody is there any more: forgotten.
        if watchers.send(Arc::new(heard)).is_err() {
            now.tenants.remove(&tenant);
        }
    }

    fn lost(&self, place: Place) {
        let mut now = self.now();
        now.place = Some(place);
        now.tenants.retain(|_, watchers| watchers.send(Arc::new(Heard::Reset(place))).is_ok());
    }
}

/// What a watcher reads of before it came.
struct Reads {
    after: Place,
    before: std::vec::IntoIter<Stored>,
}

struct Watcher<T> {
    shared: Arc<Shared<T>>,
    tenant: TenantId,
    /// Where the copy was when it came.
    head: Place,
    live: Receiver<Arc<Heard<T>>>,
    reads: Option<Reads>,
    tick: Interval,
}

impl<T> Drop for Watcher<T> {
    fn drop(&mut self) {
        gauge!("watchers").decrement(1);
        let mut now = self.shared.now();
        // Its own is there still.
        if now.tenants.get(&self.tenant).is_some_and(|watchers| watchers.receiver_count() <= 1) {
            now.tenants.remove(&self.tenant);
        }
    }
}

impl<T: Clone> Watcher<T> {
    async fn next(&mut self) -> Option<Result<Heard<T>, Failure>> {
        let read = match &mut self.reads {
            Some(_) => self.read().await,
            None => Ok(None),
        };
        match read {
            Ok(None) => {}
            Ok(Some(heard)) => return Some(Ok(heard)),
            Err(error) => return Some(Err(Failure::unavailable("NATS", error))),
        }
        loop {
            tokio::select! {
                () = self.shared.stop.cancelled() => return None,
                heard = self.live.recv() => {
                    self.tick.reset();
                    return match heard {
                        Ok(heard) => Some(Ok(Heard::clone(&heard))),
                        Err(RecvError::Closed) => None,
                        Err(RecvError::Lagged(_)) => {
                            let what = "you read more slowly than events come: watch again, from the last one that you have";
                            Some(Err(Failure::new(Code::ResourceExhausted, "SLOW_READER", what)))
                        }
                    };
                }
                // At first at once: whoever is cut off then, knows from where.
                _ = self.tick.tick() => {
                    let now = self.shared.now();
                    if !now.is_level() {
                        return Some(Err(away()));
                    }
                    // What is handed out already comes first.
                    if let Some(place) = now.place.filter(|_| self.live.is_empty()) {
                        return Some(Ok(Heard::Level(place)));
                    }
                }
            }
        }
    }

    /// What was stored before it came, and behind what it has had.
    async fn read(&mut self) -> Result<Option<Heard<T>>, anyhow::Error> {
        loop {
            let Some(reads) = &mut self.reads else { return Ok(None) };
            let Place(made, head) = self.head;
            for stored in reads.before.by_ref() {
                if stored.sequence > head {
                    break;
                }
                let place = Place(made, stored.sequence);
                reads.after = place;
                if let Some(heard) = self.shared.decoded(place, &stored) {
                    return Ok(Some(heard));
                }
            }
            let Place(of, after) = reads.after;
            let read =
                if after < head { self.shared.events.from(after + 1, Some(&self.tenant)).await? } else { Vec::new() };
            // Asked afterwards: what is removed meanwhile may be what was not read.
            let Extent { made: is, first, last } = self.shared.events.extent().await?;
            if is != of || is != made || after > last || first > after + 1 {
                self.reads = None;
                return Ok(Some(Heard::Reset(self.head)));
            }
            if after >= head {
                self.reads = None;
                return Ok(None);
            }
            if read.first().is_none_or(|stored| stored.sequence > head) {
                reads.after = self.head;
            }
            reads.before = read.into_iter();
        }
    }
}
