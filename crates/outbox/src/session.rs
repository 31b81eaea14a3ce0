//! One session of the leader: from taking its place at the stream's tail to the first fault.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::{self, stream};
use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt;
use sqlx::PgPool;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::chain::{Chain, Fault, Stored};
use crate::reader::{Place, Reader};
use crate::relay::{LOOK_EVERY, Relay, Role, Status, StreamSpec, Suspects, Trouble};
use crate::store::{self, Checkpoint, Row};
use crate::{CREATED_HEADER, EVENT_ID_HEADER, SEQ_HEADER};

/// How often the coming days' partitions are looked after.
const PARTITIONS_EVERY: Duration = Duration::from_secs(3_600);

/// From taking the place to the first fault.
pub struct Session<'a> {
    relay: &'a Relay,
    epoch: i64,
    stream_created_at: DateTime<Utc>,
    stream: stream::Stream,
    chain: Chain,
    reader: Reader,
    /// The first parked row of each aggregate that has one.
    parked: HashMap<String, i64>,
    pub window: usize,
    pub stored: Stored,
    /// Whether `stored` is a row of this session.
    acknowledged: bool,
    saved: i64,
    partitions_looked_after: Instant,
}

impl<'a> Session<'a> {
    pub async fn open(relay: &'a Relay, epoch: i64) -> Result<Self, Trouble> {
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

    pub fn status(&self) -> Status {
        // With nothing in flight, everything the reader has passed is done, gaps and parked rows included.
        let done = if self.chain.in_flight() == 0 { self.reader.done() } else { self.stored.outbox_seq };
        Status { role: Role::Leader { epoch: self.epoch }, done, stream_seq: self.stored.stream_seq }
    }

    /// Publishes what is settled, until a fault. `Ok` once a row that had failed before is through.
    pub async fn pump(
        &mut self,
        hints: &mut async_nats::Subscriber,
        stop: &CancellationToken,
        suspects: &mut Suspects,
    ) -> Result<(), Trouble> {
        let mut poll = tokio::time::interval(self.relay.config.poll);
        let mut look = tokio::time::interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
        let mut waiting: VecDeque<Row> = VecDeque::new();
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
    pub async fn park_seq(&mut self, seq: i64, reason: &str) -> Result<bool, Trouble> {
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
