//! The relay's life: stand by, take the lease, take the place from the stream's tail, publish, and start over on a
//! fault. `reader` says what may be published, `chain` how; this module decides from where, and what is set aside.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::{self, stream};
use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff as _;
use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt;
use sqlx::PgPool;
use std::sync::Arc;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::chain::{Chain, Fault, Stored};
use crate::reader::{Place, Reader};
use crate::store::{self, Checkpoint, Row};
use crate::{CREATED_HEADER, EVENT_ID_HEADER, SEQ_HEADER};

/// How often the stream's tail, the checkpoint and the lease are looked at while nothing happens.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often the coming days' partitions are looked after.
const PARTITIONS_EVERY: Duration = Duration::from_secs(3_600);
/// How often a row may fail alone, while the stream answers, before it is parked.
const FAILS_ALONE: u32 = 3;

/// The stream that the relay publishes to; made if it does not exist.
#[derive(Debug, Clone)]
pub struct StreamSpec {
    /// The stream's name.
    pub name: String,
    /// The subjects it takes; nobody else may publish on them.
    pub subjects: Vec<String>,
    /// How long it keeps a message; the outbox must keep its rows for at least as long.
    pub max_age: Duration,
    /// On how many servers.
    pub replicas: usize,
}

/// How a relay works.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// Where to publish.
    pub stream: StreamSpec,
    /// The content type of every payload.
    pub content_type: String,
    /// A core-NATS subject on which writers in other processes hint that there is something to publish.
    pub hint_subject: String,
    /// Who this relay is, for the lease: new for each process.
    pub holder: Uuid,
    /// For how long the lead is had without a renewal.
    pub lease: Duration,
    /// How often to look for rows when nobody hinted.
    pub poll: Duration,
    /// How many messages may be in flight.
    pub window: usize,
    /// The largest payload; a larger one parks its aggregate.
    pub max_bytes: usize,
}

/// What a relay does right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Another relay leads, or a dependency is not there.
    Standby,
    /// This relay publishes.
    Leader {
        /// Rises with each change of the lead.
        epoch: i64,
    },
}

/// Where a relay stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// What it does.
    pub role: Role,
    /// Every row up to this `seq` is stored in the stream, parked, or was rolled back.
    pub done: i64,
    /// The stream's last sequence.
    pub stream_seq: u64,
}

/// The relay cannot go on without a person: the stream and the outbox contradict each other.
#[derive(Debug, thiserror::Error)]
#[error("the relay of {stream} has stopped: {reason}")]
pub struct Halted {
    /// The stream.
    pub stream: String,
    /// What contradicts what, and what to do.
    pub reason: String,
}

/// For writers and observers of a relay.
#[derive(Debug, Clone)]
pub struct Handle {
    wake: Arc<Notify>,
    status: watch::Receiver<Status>,
}

impl Handle {
    /// Says that a transaction with an event has committed. Never waits; if it is lost, the poll finds the row.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Where the relay stands; the receiver tells of changes.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }
}

/// Publishes the outbox of one database to one stream.
pub struct Relay {
    db: PgPool,
    nats: async_nats::Client,
    config: RelayConfig,
    wake: Arc<Notify>,
    status: watch::Sender<Status>,
}

/// What is known against rows that were not stored.
struct Suspects {
    /// How often each failed alone.
    fails: HashMap<i64, u32>,
    /// Whether a row has passed since the last one was parked: when nothing passes, it is not the rows' fault.
    may_park: bool,
}

enum Trouble {
    Fault(Fault),
    Lost(&'static str),
    Down(anyhow::Error),
    Halted(String),
    Stop,
}

impl<E: Into<anyhow::Error>> From<E> for Trouble {
    fn from(error: E) -> Self {
        match error.into().downcast::<Fault>() {
            Ok(fault) => Self::Fault(fault),
            Err(other) => Self::Down(other),
        }
    }
}

impl Relay {
    /// A relay that reads as the role of `db` and publishes as the user of `nats`.
    #[must_use]
    pub fn new(db: PgPool, nats: async_nats::Client, config: RelayConfig) -> Self {
        let status = watch::Sender::new(Status { role: Role::Standby, done: 0, stream_seq: 0 });
        Self { db, nats, config, wake: Arc::new(Notify::new()), status }
    }

    /// For those who write and those who watch.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle { wake: Arc::clone(&self.wake), status: self.status.subscribe() }
    }

    /// Relays until `stop`. A dependency that is down is waited for.
    ///
    /// # Errors
    /// [`Halted`] when stream and outbox contradict each other.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Halted> {
        let mut pauses = ExponentialBackoffBuilder::new()
            .with_initial_interval(Duration::from_millis(100))
            .with_max_interval(Duration::from_secs(5))
            .with_max_elapsed_time(None)
            .build();
        loop {
            let trouble = match self.try_to_lead(&stop).await {
                Ok(()) => {
                    pauses.reset();
                    continue;
                }
                Err(trouble) => trouble,
            };
            self.status.send_modify(|status| status.role = Role::Standby);
            metrics::gauge!("outbox_leader").set(0.0);
            match trouble {
                Trouble::Stop => return Ok(()),
                Trouble::Halted(reason) => {
                    error!(stream = self.config.stream.name, reason, "the relay has stopped");
                    return Err(Halted { stream: self.config.stream.name.clone(), reason });
                }
                Trouble::Lost(why) => warn!(why, "the lead is lost"),
                Trouble::Fault(fault) => warn!(%fault, "the chain broke"),
                Trouble::Down(error) => {
                    warn!(error = format!("{error:#}"), "a dependency of the relay is down: waiting")
                }
            }
            let pause = pauses.next_backoff().unwrap_or(LOOK_EVERY);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Waits for the lease and leads for as long as it holds; `Ok` after a stand-by round.
    async fn try_to_lead(&self, stop: &CancellationToken) -> Result<(), Trouble> {
        let lease = self.config.lease.as_secs_f64();
        let Some(epoch) = store::take_lease(&self.db, self.config.holder, lease).await? else {
            tokio::select! {
                () = stop.cancelled() => return Err(Trouble::Stop),
                () = tokio::time::sleep(self.config.lease / 4) => {}
                () = self.wake.notified() => self.hint().await,
            }
            return Ok(());
        };
        info!(epoch, stream = self.config.stream.name, "leading");
        metrics::gauge!("outbox_leader").set(1.0);
        let result = tokio::select! {
            result = self.lead(epoch, stop) => result,
            lost = self.keep_lease(epoch) => Err(lost),
        };
        if matches!(result, Err(Trouble::Stop)) {
            store::give_up_lease(&self.db, epoch).await.ok();
        }
        result
    }

    /// Tells the leader, in another process, that there is something to publish.
    async fn hint(&self) {
        self.nats.publish(self.config.hint_subject.clone(), bytes::Bytes::new()).await.ok();
    }

    async fn keep_lease(&self, epoch: i64) -> Trouble {
        let lease = self.config.lease;
        let mut held_until = Instant::now() + lease;
        loop {
            tokio::time::sleep(lease / 4).await;
            let asked = Instant::now();
            match tokio::time::timeout_at(held_until, store::renew_lease(&self.db, epoch, lease.as_secs_f64())).await {
                Ok(Ok(true)) => held_until = asked + lease,
                Ok(Ok(false)) => return Trouble::Lost("another relay took it"),
                Ok(Err(error)) if Instant::now() >= held_until => return Trouble::Down(error.into()),
                Ok(Err(error)) => warn!(%error, "the lease could not be renewed: trying again"),
                Err(_) => return Trouble::Lost("the database did not renew the lease in time"),
            }
        }
    }

    /// Sessions, one after the other: each takes its place from the stream's tail.
    async fn lead(&self, epoch: i64, stop: &CancellationToken) -> Result<(), Trouble> {
        let mut suspects = Suspects { fails: HashMap::new(), may_park: true };
        let mut hints = self.nats.subscribe(self.config.hint_subject.clone()).await?;
        // Where the stream stood when the chain last broke on a wrong sequence.
        let mut broke_at = None;
        loop {
            let mut session = Session::open(self, epoch).await?;
            // If the stream still stands there, nobody else has published: a message of ours was dropped without an
            // answer. It goes out alone then, and so does a row that failed, to know which one it is.
            let dropped = broke_at.take() == Some(session.stored.stream_seq);
            session.window = if dropped || !suspects.fails.is_empty() { 1 } else { self.config.window };
            self.status.send_replace(session.status());
            let trouble = match session.pump(&mut hints, stop, &mut suspects).await {
                Ok(()) => continue,
                Err(trouble) => trouble,
            };
            let (seq, reason) = match trouble {
                Trouble::Fault(Fault::WrongLast(what)) => {
                    warn!(what, "taking the place anew from the stream's tail");
                    metrics::counter!("outbox_sessions_total", "reason" => "wrong_last").increment(1);
                    broke_at = Some(session.stored.stream_seq);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
                Trouble::Fault(Fault::Silent { seq }) => (seq, "no acknowledgement".to_owned()),
                Trouble::Fault(Fault::Refused { seq, reason }) => (seq, reason),
                other @ (Trouble::Fault(Fault::Stalled(_))
                | Trouble::Lost(_)
                | Trouble::Down(_)
                | Trouble::Halted(_)
                | Trouble::Stop) => return Err(other),
            };
            metrics::counter!("outbox_sessions_total", "reason" => "row_failed").increment(1);
            let alone = session.window == 1;
            let count = suspects.fails.entry(seq).or_insert(0);
            *count += u32::from(alone);
            warn!(seq, reason, fails = *count, "a row was not stored");
            if *count >= FAILS_ALONE {
                if !suspects.may_park {
                    let what = format!("no row passes any more, not only {seq}: {reason}");
                    return Err(Trouble::Fault(Fault::Stalled(what)));
                }
                if session.park_seq(seq, &reason).await? {
                    suspects.may_park = false;
                }
                suspects.fails.remove(&seq);
            }
        }
    }
}

/// From taking the place to the first fault.
struct Session<'a> {
    relay: &'a Relay,
    epoch: i64,
    stream_created_at: DateTime<Utc>,
    stream: stream::Stream,
    chain: Chain,
    reader: Reader,
    /// The first parked row of each aggregate that has one.
    parked: HashMap<String, i64>,
    window: usize,
    stored: Stored,
    /// Whether `stored` is a row of this session.
    acknowledged: bool,
    saved: i64,
    partitions_looked_after: Instant,
}

impl<'a> Session<'a> {
    async fn open(relay: &'a Relay, epoch: i64) -> Result<Self, Trouble> {
        let config = &relay.config;
        make_partitions(&relay.db).await?;
        let stream = open_stream(&relay.nats, &config.stream).await?;
        let info = stream.get_info().await.context("reading the stream's state")?;
        let created = micros(info.created);
        let base = info.state.last_sequence;
        let place = find_place(relay, &stream, &info, created).await?;
        info!(seq = place.seq, base, messages = info.state.messages, "place taken from the stream's tail");
        let chain = Chain::open(relay.nats.clone(), &config.content_type, base).await?;
        Ok(Self {
            relay,
            epoch,
            stream_created_at: created,
            stream,
            chain,
            reader: Reader::new(place, i64::try_from(config.window.clamp(1, 2_000)).unwrap_or(2_000)),
            parked: store::parked_aggregates(&relay.db).await?.into_iter().collect(),
            window: config.window,
            stored: Stored { outbox_seq: place.seq, created_at: place.created_at, stream_seq: base },
            acknowledged: false,
            saved: 0,
            partitions_looked_after: Instant::now(),
        })
    }

    fn status(&self) -> Status {
        // With nothing in flight, everything the reader has passed is done, gaps and parked rows included.
        let done = if self.chain.in_flight() == 0 { self.reader.done() } else { self.stored.outbox_seq };
        Status { role: Role::Leader { epoch: self.epoch }, done, stream_seq: self.stored.stream_seq }
    }

    /// Publishes what is settled, until a fault. `Ok` once a row that had failed before is through.
    async fn pump(
        &mut self,
        hints: &mut async_nats::Subscriber,
        stop: &CancellationToken,
        suspects: &mut Suspects,
    ) -> Result<(), Trouble> {
        let mut poll = tokio::time::interval(self.relay.config.poll);
        let mut look = tokio::time::interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
        let mut waiting: std::collections::VecDeque<Row> = std::collections::VecDeque::new();
        let mut more = true;
        loop {
            // Asked to stop, it finishes what is in flight and begins nothing new.
            if stop.is_cancelled() {
                waiting.clear();
                more = false;
            }
            if waiting.is_empty() && more && self.chain.in_flight() < self.window {
                waiting.extend(self.reader.next(&self.relay.db).await?);
                more = !waiting.is_empty();
            }
            while self.chain.in_flight() < self.window
                && let Some(row) = waiting.pop_front()
            {
                self.publish(row).await?;
            }
            if waiting.is_empty() {
                self.relay.status.send_if_modified(|status| {
                    let now = self.status();
                    let changed = *status != now;
                    *status = now;
                    changed
                });
            }
            tokio::select! {
                biased;
                () = stop.cancelled(), if self.chain.in_flight() == 0 => {
                    self.save_checkpoint().await?;
                    return Err(Trouble::Stop);
                }
                stored = self.chain.next(), if self.chain.in_flight() > 0 => {
                    if let Some(stored) = stored? {
                        self.stored = stored;
                        self.acknowledged = true;
                        if waiting.is_empty() {
                            self.relay.status.send_replace(self.status());
                        }
                        suspects.may_park = true;
                        suspects.fails.retain(|seq, _| *seq > stored.outbox_seq);
                        if self.window == 1 && suspects.fails.is_empty() {
                            return Ok(());
                        }
                    }
                }
                () = std::future::ready(()), if more && waiting.is_empty() && self.chain.in_flight() < self.window => {}
                () = self.relay.wake.notified() => more = true,
                Some(_) = hints.next() => more = true,
                _ = poll.tick() => more = true,
                _ = look.tick() => self.look().await?,
            }
        }
    }

    async fn publish(&mut self, row: Row) -> Result<(), Trouble> {
        let behind = self.parked.get(&row.aggregate_id).is_some_and(|first| *first < row.seq);
        let known = self.parked.get(&row.aggregate_id) == Some(&row.seq);
        let reason = if known {
            Some("it was parked before")
        } else if behind {
            Some("an earlier event of its aggregate is parked")
        } else {
            unpublishable(&row, self.relay.config.max_bytes)
        };
        match reason {
            Some(reason) => self.park(&row, reason).await,
            None => Ok(self.chain.send(row).await?),
        }
    }

    /// Sets a row and its aggregate aside; recorded before anything behind it goes out.
    async fn park(&mut self, row: &Row, reason: &str) -> Result<(), Trouble> {
        if !store::park(&self.relay.db, self.epoch, row, reason).await? {
            return Err(Trouble::Lost("another relay took it"));
        }
        error!(seq = row.seq, aggregate = row.aggregate_id, subject = row.subject, reason, "parked");
        metrics::counter!("outbox_parked_rows_total").increment(1);
        self.parked.entry(row.aggregate_id.clone()).or_insert(row.seq);
        Ok(())
    }

    /// Parks a row by its number, unless it has been stored after all; whether it did.
    async fn park_seq(&mut self, seq: i64, reason: &str) -> Result<bool, Trouble> {
        // Only while the stream answers, and stands where it was left: else it is not the row's fault.
        let info = self.stream.get_info().await.context("reading the stream's state")?;
        if info.state.last_sequence != self.stored.stream_seq {
            return Ok(false);
        }
        match store::rows(&self.relay.db, seq - 1, seq, DateTime::UNIX_EPOCH, 1).await?.pop() {
            Some(row) => self.park(&row, reason).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// A look around while time passes: does the stream still stand where it was left?
    async fn look(&mut self) -> Result<(), Trouble> {
        self.save_checkpoint().await?;
        if self.partitions_looked_after.elapsed() > PARTITIONS_EVERY {
            make_partitions(&self.relay.db).await?;
            self.partitions_looked_after = Instant::now();
        }
        self.reader.forget_settled();
        if self.acknowledged {
            // The database may have been restored from a backup under a running relay.
            let (seq, created_at) = (self.stored.outbox_seq, self.stored.created_at);
            if store::event_at(&self.relay.db, seq, created_at).await?.is_none() {
                let what = format!("the outbox no longer holds its row {seq}");
                return Err(Trouble::Fault(Fault::WrongLast(what)));
            }
        }
        if self.chain.in_flight() == 0 {
            let info = self.stream.get_info().await.context("reading the stream's state")?;
            let (last, created) = (info.state.last_sequence, micros(info.created));
            let max_age = self.relay.config.stream.max_age;
            let young = (now() - self.stored.created_at).to_std().unwrap_or_default() < max_age;
            let emptied = info.state.messages == 0 && last > 0 && self.acknowledged && (max_age.is_zero() || young);
            if last != self.chain.end() || created != self.stream_created_at || emptied {
                let what = format!("it stands at {last}, not at {}", self.chain.end());
                return Err(Trouble::Fault(Fault::WrongLast(what)));
            }
        }
        Ok(())
    }

    async fn save_checkpoint(&mut self) -> Result<(), Trouble> {
        if self.saved == self.stored.outbox_seq {
            return Ok(());
        }
        let at = Checkpoint {
            outbox_seq: self.stored.outbox_seq,
            outbox_created_at: Some(self.stored.created_at),
            stream_seq: i64::try_from(self.stored.stream_seq).unwrap_or(i64::MAX),
            stream_created_at: Some(self.stream_created_at),
        };
        store::save_checkpoint(&self.relay.db, self.epoch, &at).await?;
        self.saved = self.stored.outbox_seq;
        Ok(())
    }
}

async fn make_partitions(db: &PgPool) -> Result<(), sqlx::Error> {
    if let made @ 1.. = store::create_partitions(db).await? {
        info!(made, "made outbox partitions ahead");
    }
    Ok(())
}

async fn open_stream(nats: &async_nats::Client, spec: &StreamSpec) -> Result<stream::Stream, anyhow::Error> {
    let js = jetstream::ContextBuilder::new().timeout(Duration::from_secs(3)).build(nats.clone());
    let config = stream::Config {
        name: spec.name.clone(),
        subjects: spec.subjects.clone(),
        max_age: spec.max_age,
        num_replicas: spec.replicas,
        // Refuse rather than drop: age is the only thing that may take an event away.
        discard: stream::DiscardPolicy::New,
        storage: stream::StorageType::File,
        ..Default::default()
    };
    js.get_or_create_stream(config).await.with_context(|| format!("opening the stream {}", spec.name))
}

/// Where to go on: behind the row of the stream's last message.
async fn find_place(
    relay: &Relay,
    stream: &stream::Stream,
    info: &stream::Info,
    created: DateTime<Utc>,
) -> Result<Place, Trouble> {
    let checkpoint = store::checkpoint(&relay.db).await?;
    if info.state.messages > 0 {
        let tail = stream.get_last_raw_message_by_subject(">").await.context("reading the stream's last message")?;
        let header = |name| tail.headers.get(name).map(|value| value.as_str());
        let place = header(SEQ_HEADER).and_then(|seq| seq.parse().ok()).zip(
            header(CREATED_HEADER).and_then(|micros| micros.parse().ok()).and_then(DateTime::from_timestamp_micros),
        );
        let (Some((seq, created_at)), Some(id)) = (place, header(EVENT_ID_HEADER)) else {
            return Err(Trouble::Halted(format!(
                "message {} on {} is not from this outbox: nobody else may publish to this stream; find out who did, \
                 and delete the message",
                tail.sequence, tail.subject
            )));
        };
        let place = Place { seq, created_at };
        return match store::event_at(&relay.db, seq, created_at).await? {
            Some(event) if event.to_string() == id => Ok(place),
            // Retention has dropped the row since, and the checkpoint vouches for it.
            None if checkpoint.outbox_seq == seq && checkpoint.stream_seq.cast_unsigned() == tail.sequence => Ok(place),
            found => Err(Trouble::Halted(format!(
                "the stream is ahead of the outbox: its last message {} is event {id} of row {seq}, the outbox has \
                 {found:?} there. Was Postgres restored from an older backup?",
                tail.sequence
            ))),
        };
    }
    // An empty stream: new, wiped, purged, or emptied by age. What has aged out is not published again; what has
    // never been published always is.
    // No age limit means that nothing ages out.
    let max_age = relay.config.stream.max_age;
    let oldest = match TimeDelta::from_std(max_age) {
        Ok(age) if !max_age.is_zero() => now() - age,
        _ => DateTime::UNIX_EPOCH,
    };
    let same = checkpoint.stream_created_at == Some(created)
        && checkpoint.stream_seq.cast_unsigned() <= info.state.last_sequence;
    let young = store::first_after(&relay.db, oldest).await?.map(|(seq, created_at)| Place { seq, created_at });
    let beginning = Place { seq: 0, created_at: DateTime::UNIX_EPOCH + TimeDelta::hours(2) };
    let known = checkpoint.outbox_created_at.map(|created_at| Place { seq: checkpoint.outbox_seq, created_at });
    let place = match (known, young) {
        (None, _) => beginning,
        (Some(known), Some(young)) if young.seq < known.seq => young,
        (Some(known), _) => known,
    };
    if let Some(known) = known {
        warn!(same, checkpoint = known.seq, from = place.seq, "the stream is empty: refilling from the outbox");
    }
    Ok(place)
}

/// Why this row can never be published, if so.
fn unpublishable(row: &Row, max_bytes: usize) -> Option<&'static str> {
    if row.payload.len() > max_bytes {
        return Some("its payload is larger than the largest event");
    }
    let token =
        |token: &str| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic() && b != b'*' && b != b'>');
    let subject = row.subject.len() <= 255 && row.subject.split('.').all(token);
    (!subject).then_some("its subject is not one that can be published on")
}

/// To the microsecond, as Postgres keeps it.
fn micros(time: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(time.timestamp_micros()).unwrap_or(time)
}

#[expect(clippy::disallowed_methods, reason = "compared with the age limit of a stream, in days")]
fn now() -> DateTime<Utc> {
    Utc::now()
}
