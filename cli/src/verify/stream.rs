//! Outbox against stream: both in the order of the outbox's `seq`, chunk by chunk.

use std::collections::BTreeMap;

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::stream::Stream;
use chrono::{DateTime, TimeDelta, Utc};
use contracts::subject;
use futures::StreamExt as _;
use proto::ops::{self, FindRowRequest, GetOutboxRequest, GetRowRequest, ListRowsRequest};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tonic::Code;

use super::report::{Report, Throttle, VerifyArgs};
use crate::context::Context;
use crate::events;
use crate::outbox::{self, Outbox};
use crate::processes::{self, said, time};

const CHUNK: i64 = 10_000;
/// The most messages behind newer ones: with more, something is so wrong that these suffice.
const LATE: usize = 100_000;
/// A stream with more messages delivers one within this.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(30);
/// How much later than its creation a row's message is searched for, and how much a clock may have been set back.
const SLACK: TimeDelta = TimeDelta::hours(1);

/// A row of the outbox.
struct Row {
    seq: i64,
    created_at: DateTime<Utc>,
    event_id: String,
    tenant: String,
    aggregate_id: String,
    digest: Vec<u8>,
    /// An operator or the relay has set it aside.
    parked: bool,
    stored: bool,
}

impl From<ops::Row> for Row {
    fn from(row: ops::Row) -> Self {
        let ops::Row { seq, created_at, event_id, tenant, aggregate_id, digest, parked } = row;
        Self {
            seq,
            created_at: time(created_at.as_ref()),
            event_id,
            tenant,
            aggregate_id,
            digest,
            parked,
            stored: false,
        }
    }
}

/// A message of the stream.
struct Message {
    sequence: u64,
    seq: i64,
    event_id: String,
    created_at: DateTime<Utc>,
    digest: Vec<u8>,
    subject: String,
}

/// A message that came behind newer ones: the newest `seq` before it, by which it is too late or a second one.
struct Late {
    message: Message,
    behind: i64,
}

struct Merge<'a> {
    service: &'static str,
    outbox: Outbox,
    args: &'a VerifyArgs,
    report: &'a mut Report,
    throttle: Throttle,
    relay: Relay,
    /// The chunk in hand, by `seq`, and up to where rows were read.
    rows: BTreeMap<i64, Row>,
    end: i64,
    /// The newest row that was found in the stream.
    newest: i64,
    missing: BTreeMap<i64, Row>,
    late: Vec<Late>,
    /// Messages whose row was not there when it was searched for.
    unknown: Vec<Message>,
    /// Messages that retention, or an operator, explains.
    explained: u64,
    /// Since when the stream keeps its messages, and how many rows are older.
    kept_since: DateTime<Utc>,
    aged: u64,
}

/// The outbox's own report, before anything else is read.
struct Relay {
    /// Known to be in the stream.
    outbox_seq: i64,
    dropped_seq: i64,
    accepted_stream_seq: Option<i64>,
    parked: i64,
}

/// Compares the outbox of a service with its stream.
pub(super) async fn verify(
    context: &Context,
    args: &VerifyArgs,
    service: &'static str,
    report: &mut Report,
) -> Result<(), anyhow::Error> {
    let mut outbox = outbox::open(context, service).await?;
    let said_of_itself = outbox.get_outbox(GetOutboxRequest {}).await.map_err(said)?.into_inner();
    let ops::Outbox { stored_seq, dropped_seq, parked, accepted_stream_seq, accepted_stream_created_at, now, .. } =
        said_of_itself;
    let (_js, stream) = events::open_of(context, service).await?;
    let info = stream.cached_info();
    // An operator has confirmed one stream, not every stream with its name.
    let created = DateTime::from_timestamp_micros(info.created.timestamp_micros());
    let of_this_one = accepted_stream_created_at.as_ref().and_then(proto::time) == created;
    let accepted_stream_seq = accepted_stream_seq.filter(|_| of_this_one);
    let relay = Relay { outbox_seq: stored_seq, dropped_seq, accepted_stream_seq, parked };
    let kept_since = match TimeDelta::from_std(info.config.max_age) {
        // The clock of NATS may be ahead of this database's.
        Ok(max_age) if !max_age.is_zero() => time(now.as_ref()) - max_age + SLACK.min(max_age / 10),
        _ => DateTime::UNIX_EPOCH,
    };
    let mut merge = Merge {
        service,
        outbox,
        args,
        report,
        throttle: Throttle::new(args.rate),
        relay,
        rows: BTreeMap::new(),
        end: 0,
        newest: 0,
        missing: BTreeMap::new(),
        late: Vec::new(),
        unknown: Vec::new(),
        explained: 0,
        kept_since,
        aged: 0,
    };
    if stream.cached_info().state.messages > 0 {
        merge.read(&stream).await?;
    }
    merge.judge().await
}

fn header(headers: &HeaderMap, name: &'static str) -> Option<String> {
    headers.get(name).map(|value| value.as_str().to_owned())
}

impl Merge<'_> {
    fn in_range(&self, created_at: DateTime<Utc>) -> bool {
        self.args.from.is_none_or(|from| created_at >= from) && self.args.to.is_none_or(|to| created_at < to)
    }

    async fn read(&mut self, stream: &Stream) -> Result<(), anyhow::Error> {
        let last = stream.cached_info().state.last_sequence;
        let filter = self.args.tenant.as_ref();
        let config = pull::OrderedConfig {
            filter_subject: filter
                .map_or_else(|| subject::all(self.service), |t| subject::all_of_tenant(self.service, t)),
            deliver_policy: match self.args.from {
                None => DeliverPolicy::All,
                Some(from) => DeliverPolicy::ByStartTime { start_time: from - SLACK },
            },
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.context("reading the stream")?;
        let mut left = consumer.cached_info().num_pending;
        let mut messages = consumer.messages().await?;
        while left > 0 {
            let message =
                tokio::time::timeout(SILENCE, messages.next()).await.context("the stream gives nothing any more")?;
            let message = message.context("the stream has ended")?.context("reading the stream")?;
            let info = message.info().map_err(|error| anyhow::anyhow!(error))?;
            left = info.pending;
            if info.stream_sequence > last {
                break;
            }
            let headers = message.headers.clone().unwrap_or_default();
            let seq = header(&headers, ::outbox::SEQ_HEADER).and_then(|seq| seq.parse().ok());
            let micros = header(&headers, ::outbox::CREATED_HEADER).and_then(|at| at.parse().ok());
            let (Some(seq), Some(created_at)) = (seq, micros.and_then(DateTime::from_timestamp_micros)) else {
                if self.in_range(info.published) {
                    self.report.messages += 1;
                    let message = Message {
                        sequence: info.stream_sequence,
                        seq: i64::MAX,
                        event_id: String::new(),
                        created_at: info.published,
                        digest: Vec::new(),
                        subject: message.subject.to_string(),
                    };
                    self.foreign(&message, "the relay did not send it");
                }
                continue;
            };
            if !self.in_range(created_at) {
                continue;
            }
            let message = Message {
                sequence: info.stream_sequence,
                seq,
                event_id: header(&headers, ::outbox::EVENT_ID_HEADER).unwrap_or_default(),
                created_at,
                digest: Sha256::digest(&message.payload).to_vec(),
                subject: message.subject.to_string(),
            };
            self.on_message(message).await?;
        }
        Ok(())
    }

    async fn on_message(&mut self, message: Message) -> Result<(), anyhow::Error> {
        self.report.messages += 1;
        anyhow::ensure!(
            self.late.len() + self.unknown.len() < LATE,
            "more than {LATE} messages are not in their place"
        );
        if message.seq <= self.newest {
            let behind = self.newest;
            self.late.push(Late { message, behind });
            return Ok(());
        }
        while message.seq > self.end && self.next_chunk().await? {}
        let row = self.rows.get_mut(&message.seq).filter(|row| !row.stored);
        let row = row.or_else(|| self.missing.get_mut(&message.seq));
        let Some(row) = row else {
            if message.seq <= self.relay.dropped_seq {
                self.explained += 1;
            } else {
                // It may have been committed after its number was read past.
                self.unknown.push(message);
            }
            return Ok(());
        };
        if row.event_id != message.event_id {
            // Not this row's message: the right one may follow.
            self.foreign(&message, "the outbox has another event there");
            return Ok(());
        }
        row.stored = true;
        let differs = differs(row, &message);
        self.missing.remove(&message.seq);
        self.newest = message.seq;
        if let Some(why) = differs {
            self.foreign(&message, why);
        }
        Ok(())
    }

    /// Adds a message that is not the outbox's, unless it is explained.
    fn foreign(&mut self, message: &Message, why: &str) {
        let accepted = self.relay.accepted_stream_seq.is_some_and(|to| message.sequence <= to.cast_unsigned());
        if message.seq <= self.relay.dropped_seq || accepted {
            self.explained += 1;
        } else {
            self.report.foreign.add(named(message, why));
        }
    }

    /// Reads the next chunk of the outbox; returns whether there was one.
    async fn next_chunk(&mut self) -> Result<bool, anyhow::Error> {
        self.put_by();
        anyhow::ensure!(
            self.missing.len() < LATE,
            "more than {LATE} rows are not in the stream, the first: {:?}",
            self.missing.keys().next()
        );
        let page = ListRowsRequest {
            after: self.end,
            tenant: self.args.tenant.as_ref().map(ToString::to_string),
            from: self.args.from.map(proto::timestamp),
            to: self.args.to.map(proto::timestamp),
            limit: CHUNK,
        };
        let rows = processes::all(self.outbox.list_rows(page).await).await.context("reading the outbox")?;
        self.throttle.read(rows.len()).await;
        let Some(last) = rows.last() else { return Ok(false) };
        self.end = last.seq;
        self.report.outbox_rows += rows.len() as u64;
        self.rows = rows.into_iter().map(|row| (row.seq, row.into())).collect();
        Ok(true)
    }

    /// Rows that were not found so far may still come.
    fn put_by(&mut self) {
        for (seq, row) in std::mem::take(&mut self.rows) {
            if row.created_at < self.kept_since {
                self.aged += u64::from(!row.stored);
            } else if !row.stored && !row.parked {
                self.missing.insert(seq, row);
            }
        }
    }

    /// Reports what came late and what is missing, and counts what is beyond this check.
    async fn judge(mut self) -> Result<(), anyhow::Error> {
        // Rows are in the stream up to the newest that was found, and up to what the relay knows to be there.
        let settled = self.newest.max(self.relay.outbox_seq);
        while self.end < settled && self.next_chunk().await? {}
        self.put_by();
        for message in std::mem::take(&mut self.unknown) {
            match self.row_of(&message).await? {
                Some(row) => {
                    if let Some(why) = differs(&row, &message) {
                        self.foreign(&message, why);
                    }
                }
                None => self.foreign(&message, "the outbox has no such row"),
            }
        }
        for late in std::mem::take(&mut self.late) {
            self.on_late(late).await?;
        }
        // What follows is not published yet.
        let ahead = self.missing.split_off(&(settled + 1));
        self.report.outbox_rows = self.report.outbox_rows.saturating_sub(ahead.len() as u64);
        if self.aged > 0 {
            let what =
                format!("{} rows are from before {}: the stream keeps nothing so old", self.aged, self.kept_since);
            self.report.outside.push(what);
        }
        for row in self.missing.values() {
            let Row { seq, event_id, tenant, aggregate_id, .. } = row;
            let found = json!({"seq": seq, "event": event_id, "tenant": tenant, "aggregate": aggregate_id});
            self.report.lost.add(found);
        }
        if self.explained > 0 {
            let what =
                format!("{} messages whose rows retention has dropped, or that an operator accepted", self.explained);
            self.report.outside.push(what);
        }
        let (parked, service) = (self.relay.parked, self.service);
        if parked > 0 {
            let what =
                format!("{parked} rows are parked and not published (`flotilla outbox parked --service {service}`)");
            self.report.outside.push(what);
        }
        Ok(())
    }

    /// The row that the outbox has at a message's sequence.
    async fn row_of(&mut self, message: &Message) -> Result<Option<Row>, anyhow::Error> {
        let request = GetRowRequest {
            seq: message.seq,
            from: Some(proto::timestamp(message.created_at - SLACK)),
            to: Some(proto::timestamp(message.created_at + SLACK)),
        };
        match self.outbox.get_row(request).await {
            Ok(row) => Ok(Some(row.into_inner().into())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(said(status)),
        }
    }

    /// A message behind newer ones is the row that was missing, too late perhaps; or a second one.
    async fn on_late(&mut self, late: Late) -> Result<(), anyhow::Error> {
        let Late { message, behind } = late;
        let Some(row) = self.missing.remove(&message.seq) else {
            match self.row_of(&message).await? {
                Some(row) if row.event_id == message.event_id => {
                    self.report.duplicated.add(named(&message, "the stream had it before"));
                }
                _ => self.foreign(&message, "the outbox has no such row"),
            }
            return Ok(());
        };
        if let Some(why) = differs(&row, &message) {
            self.foreign(&message, why);
        }
        let request = FindRowRequest {
            after: message.seq,
            to: behind,
            aggregate_id: row.aggregate_id.clone(),
            from: Some(proto::timestamp(row.created_at - SLACK)),
        };
        let newer = self.outbox.find_row(request).await.map_err(said)?.into_inner();
        if let Some(newer) = newer.seq {
            let found = json!({
                "seq": message.seq, "message": message.sequence, "event": row.event_id, "aggregate": row.aggregate_id,
                "behindSeq": newer,
            });
            self.report.out_of_order.add(found);
        }
        Ok(())
    }
}

fn differs(row: &Row, message: &Message) -> Option<&'static str> {
    if row.event_id != message.event_id {
        Some("the outbox has another event there")
    } else if row.digest != message.digest {
        Some("its content is not the outbox's")
    } else if !message.subject.ends_with(&format!(".{}", row.tenant)) {
        Some("it is on the subject of another tenant")
    } else {
        None
    }
}

fn named(message: &Message, why: &str) -> serde_json::Value {
    let Message { sequence, seq, event_id, subject, .. } = message;
    json!({"message": sequence, "seq": seq, "event": event_id, "subject": subject, "why": why})
}
