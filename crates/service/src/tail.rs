//! Reads a service's stream in order while it grows, without a consumer: what is stored is heard as it is published once more, and what was
//! not heard is asked for. A login needs `watches` in its row of the fleet's table.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use async_nats::{Client, Message, StatusCode, Subscriber};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use contracts::{TenantId, subject};
use futures::StreamExt as _;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::{Interval, MissedTickBehavior, timeout};

/// How often to look whether something was not heard.
const LOOKS_EVERY: Duration = Duration::from_secs(1);
/// How long a request may take.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);
/// How many messages are asked for at once, and how many bytes.
const AT_ONCE: usize = 256;
const BYTES_AT_ONCE: usize = 1 << 20;
/// How many such requests run at once: each has a subscription, of which a login may have so many.
const REQUESTS: usize = 8;
/// How long one waits for the others.
const WAITS: Duration = Duration::from_secs(10);

/// A message, as the stream has it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// When it was stored.
    pub time: DateTime<Utc>,
    /// What it was published on.
    pub subject: String,
    /// The event.
    pub payload: Bytes,
}

impl Stored {
    /// The tenant whose event it is: the last part of its subject.
    #[must_use]
    pub fn tenant(&self) -> Option<TenantId> {
        self.subject.rsplit('.').next()?.parse().ok()
    }

    /// A message that is published once more, or that was asked for.
    fn read(message: Message) -> Option<Self> {
        let headers = message.headers?;
        let text = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
        Some(Self {
            sequence: text("Nats-Sequence")?.parse().ok()?,
            time: text("Nats-Time-Stamp")?.parse().ok()?,
            subject: text("Nats-Subject")?,
            payload: message.payload,
        })
    }
}

/// Which stream it is, and what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// When it was made, in microseconds since 1970: one that is made anew begins again.
    pub made: i64,
    /// The first sequence that it holds.
    pub first: u64,
    /// The newest.
    pub last: u64,
}

/// The events of a service, by a login that watches them.
#[derive(Clone)]
pub struct Events {
    client: Client,
    stream: Stream<()>,
    service: String,
    requests: Arc<Semaphore>,
}

impl Events {
    /// Sends no request yet.
    ///
    /// # Errors
    /// None that NATS causes.
    pub async fn of(client: Client, service: &str) -> Result<Self, anyhow::Error> {
        let js = jetstream::ContextBuilder::new().timeout(ANSWERS_WITHIN).build(client.clone());
        let stream = js.get_stream_no_info(subject::stream(service)).await?;
        Ok(Self { client, stream, service: service.to_owned(), requests: Arc::new(Semaphore::new(REQUESTS)) })
    }

    /// What the stream holds now, by its leader.
    ///
    /// # Errors
    /// NATS does not answer, or there is no stream.
    pub async fn extent(&self) -> Result<Extent, anyhow::Error> {
        let info = self.stream.get_info().await.with_context(|| format!("asking for {}'s stream", self.service))?;
        let (made, state) = (info.created.timestamp_micros(), info.state);
        Ok(Extent { made, first: state.first_sequence, last: state.last_sequence })
    }

    /// The next events from this sequence on, of one tenant or of all, 256 and 1 MiB at most. None: the leader has no more.
    ///
    /// # Errors
    /// NATS does not answer.
    pub async fn from(&self, sequence: u64, tenant: Option<&TenantId>) -> Result<Vec<Stored>, anyhow::Error> {
        let filter =
            tenant.map_or_else(|| subject::all(&self.service), |tenant| subject::all_of_tenant(&self.service, tenant));
        let read = self.direct(sequence, &filter).await?;
        if !read.is_empty() {
            return Ok(read);
        }
        // A replica of the stream may be behind: only the leader says that there is nothing.
        match self.stream.get_first_raw_message_by_subject(&filter, sequence).await {
            Ok(message) => Ok(vec![Stored {
                sequence: message.sequence,
                time: message.time,
                subject: message.subject.to_string(),
                payload: message.payload,
            }]),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(Vec::new()),
            Err(error) => Err(error).with_context(|| format!("reading {}'s stream", self.service)),
        }
    }

    /// Messages from any replica of the stream (ADR-31 of NATS). An answer that ends in the middle is what there is of it: they come in order.
    async fn direct(&self, sequence: u64, filter: &str) -> Result<Vec<Stored>, anyhow::Error> {
        let _request = timeout(WAITS, self.requests.acquire()).await.context("too many read at once")??;
        let inbox = self.client.new_inbox();
        let mut answers = self.client.subscribe(inbox.clone()).await?;
        let wanted = json!({"seq": sequence, "batch": AT_ONCE, "max_bytes": BYTES_AT_ONCE, "next_by_subj": filter});
        let asked = format!("$JS.API.DIRECT.GET.{}", subject::stream(&self.service));
        self.client.publish_with_reply(asked, inbox, wanted.to_string().into()).await?;
        let mut read: Vec<Stored> = Vec::new();
        while read.len() < AT_ONCE {
            let answer = timeout(ANSWERS_WITHIN, answers.next()).await.ok().flatten();
            let answer = answer.with_context(|| format!("{}'s stream is not read in time", self.service))?;
            match answer.status {
                None => {}
                // The end, and that there is nothing.
                Some(status) if status.as_u16() == 204 || status == StatusCode::NOT_FOUND => break,
                Some(status) => anyhow::bail!("reading {}'s stream: {status}", self.service),
            }
            let before = answer.headers.as_ref().and_then(|headers| headers.get("Nats-Last-Sequence"));
            let before = before.and_then(|before| before.as_str().parse::<u64>().ok());
            let Some(stored) = Stored::read(answer) else { break };
            // Messages of NATS may be lost on the way: each says which one of this answer came before it.
            if before != Some(read.last().map_or(0, |last| last.sequence)) || stored.sequence < sequence {
                break;
            }
            read.push(stored);
        }
        Ok(read)
    }
}

/// Where to begin.
#[derive(Debug, Clone, Copy)]
pub enum From {
    /// With the first event that the stream holds.
    Start,
    /// With the next one.
    Now,
    /// Behind this one, of the stream that was made then.
    Behind(i64, u64),
}

/// What comes next.
#[derive(Debug)]
pub enum Next {
    /// An event.
    Event(Stored),
    /// There may have been events that nobody has any more, or this is another stream: behind it, all are read again.
    Lost,
    /// All that the stream held a moment ago was read.
    Level,
}

/// Reads the events of a service, one after the other.
pub struct Tail {
    events: Events,
    live: Subscriber,
    looks: Interval,
    made: i64,
    /// The sequence of the last event that was read, or passed over.
    place: u64,
    /// Up to where it is known to go.
    goes_to: u64,
    /// What the last look found there, until all of it is read.
    looked: Option<u64>,
    /// What was asked for, and is not read yet.
    read: VecDeque<Stored>,
    /// How much it reads before it gives up, and says [`Next::Lost`].
    most_behind: u64,
}

impl Tail {
    /// Begins there. A reader that would be further behind than `most_behind` messages loses them.
    ///
    /// # Errors
    /// NATS does not answer, or there is no stream.
    pub async fn begin(events: Events, from: From, most_behind: u64) -> Result<Self, anyhow::Error> {
        // It waits for nobody else who reads them.
        let events = Events { requests: Arc::new(Semaphore::new(REQUESTS)), ..events };
        let live = events.client.subscribe(subject::live(&events.service)).await?;
        let Extent { made, first, last } = events.extent().await?;
        let place = match from {
            From::Start => first.saturating_sub(1),
            From::Now => last,
            From::Behind(of, sequence) if of == made => sequence,
            // Another stream: there is no such place in it, and the first look finds that.
            From::Behind(..) => u64::MAX,
        };
        let mut looks = tokio::time::interval(LOOKS_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { events, live, looks, made, place, goes_to: place, looked: None, read: VecDeque::new(), most_behind })
    }

    /// Where it is: which stream, and the last event in it that was read.
    #[must_use]
    pub const fn place(&self) -> (i64, u64) {
        (self.made, self.place)
    }

    /// Waits for what comes next.
    ///
    /// # Errors
    /// NATS does not answer: call it again.
    pub async fn next(&mut self) -> Result<Next, anyhow::Error> {
        loop {
            if let Some(stored) = self.read.pop_front() {
                self.place = stored.sequence;
                return Ok(Next::Event(stored));
            }
            if self.place < self.goes_to {
                let read = self.events.from(self.place + 1, None).await?;
                if read.is_empty() {
                    // What was there is removed.
                    self.place = self.goes_to;
                    return Ok(Next::Lost);
                }
                self.read.extend(read);
                continue;
            }
            // However much was stored since: what was there when it looked is read.
            if self.looked.take_if(|looked| *looked <= self.place).is_some() {
                return Ok(Next::Level);
            }
            tokio::select! {
                heard = self.live.next() => {
                    let heard = heard.context("the connection to NATS has ended")?;
                    let Some(stored) = Stored::read(heard).filter(|stored| stored.sequence > self.place) else { continue };
                    if stored.sequence == self.place + 1 {
                        (self.place, self.goes_to) = (stored.sequence, stored.sequence);
                        return Ok(Next::Event(stored));
                    }
                    // One before it was not heard. A message that says what no stream has said is looked up, too.
                    self.looks.reset_immediately();
                }
                _ = self.looks.tick() => {
                    let Extent { made, first, last } = self.events.extent().await?;
                    let behind = last.saturating_sub(self.place);
                    if made != self.made || last < self.place || first > self.place + 1 || behind > self.most_behind {
                        (self.made, self.place, self.goes_to, self.looked) = (made, last, last, Some(last));
                        return Ok(Next::Lost);
                    }
                    (self.goes_to, self.looked) = (last, Some(last));
                }
            }
        }
    }
}
