//! What a consumer is configured by, and how a durable consumer says so in its metadata.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::consumer;

use crate::records::RecordStreams;
use crate::time::ACK_WAIT;

/// The metadata key for the revision of [`Config`] that a durable consumer was configured by.
const REVISION: &str = "revision";
/// The metadata key for the sequence behind which a durable consumer began: what the stream had dropped by then was never its.
#[cfg(any(feature = "inbox", feature = "operate"))]
pub const BEGINS_BEHIND: &str = "begins-behind";
/// The metadata key for the types that a durable consumer's releases know.
pub const TYPES: &str = "types";

/// The types that some release of a durable consumer knows.
pub fn types(metadata: &HashMap<String, String>) -> impl Iterator<Item = &str> {
    metadata.get(TYPES).map_or("", String::as_str).split_whitespace()
}

/// How many times as many events are in hand as are handled at once in order.
#[cfg(any(feature = "inbox", feature = "operate"))]
pub const IN_HAND: usize = 4;

/// How events are handed to the handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One by one, those of an aggregate in their order, with an inbox.
    Ordered {
        /// How many aggregates are handled at once; at most one fewer than the inbox's pool has connections.
        at_once: usize,
    },
    /// Together, for effects that bear to be repeated and to be late.
    Batches {
        /// The most events in one batch.
        size: usize,
        /// How long the first event of a batch waits for others, unless the batch is full before.
        linger: Duration,
        /// How many batches are handled at once. With more than one, an older event may be handled after a newer one of its
        /// aggregate: effects must be guarded by version.
        in_flight: usize,
    },
}

impl Mode {
    /// How many events are asked for in one pull, at least one.
    pub(crate) fn pulls(self) -> usize {
        let (Self::Ordered { at_once: events } | Self::Batches { size: events, .. }) = self;
        events.max(1)
    }
}

/// What to consume, and how: [`Config::ordered`] or [`Config::batches`]; the fields that those do not take have a default.
#[derive(Debug, Clone)]
pub struct Config {
    /// The stream.
    pub stream: String,
    /// The durable consumer's name.
    pub durable: String,
    /// Which of the stream's subjects.
    pub filter: String,
    /// The event types that the handler knows. They are written into the durable consumer's metadata, beside those of
    /// other releases: what one of them knows, another does not pass over.
    pub types: Vec<String>,
    /// How events are handed over. Default: [`Mode::Ordered`] with 4 at once; [`Mode::Batches`] of 100 events, without linger, one at a time.
    pub mode: Mode,
    /// Rises with each change of `filter`. A release whose revision is lower than the durable consumer's, and whose filter
    /// is another, does not pull: it would take back what a newer one has asked for. Default: 1.
    pub revision: u32,
    /// How often an event is tried before it becomes a dead letter. Default: 12, some minutes.
    pub max_attempts: i64,
    /// How long a handler may take, of a batch or of an event; then the attempt has failed. None for a handler that itself waits
    /// for what is down. Default: 30 s.
    pub handle_within: Option<Duration>,
    /// Which code this is, for the failure history of a dead letter: a release, a commit. Default: empty.
    pub version: String,
    /// Where letters and replays are. Default: `DLQ`, `REPLAY`, `ADVISORIES`.
    pub records: RecordStreams,
}

impl Config {
    /// A consumer that handles events one by one, in the order of their aggregates ([`crate::Consumer::run_in_order`]).
    #[must_use]
    pub fn ordered(
        stream: impl Into<String>,
        durable: impl Into<String>,
        filter: impl Into<String>,
        types: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        Self {
            stream: stream.into(),
            durable: durable.into(),
            filter: filter.into(),
            types: types.into_iter().map(Into::into).collect(),
            mode: Mode::Ordered { at_once: 4 },
            revision: 1,
            max_attempts: 12,
            handle_within: Some(Duration::from_secs(30)),
            version: String::new(),
            records: RecordStreams::default(),
        }
    }

    /// A consumer that handles events in batches ([`crate::Consumer::run_batches`]).
    #[must_use]
    pub fn batches(
        stream: impl Into<String>,
        durable: impl Into<String>,
        filter: impl Into<String>,
        types: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        let mode = Mode::Batches { size: 100, linger: Duration::ZERO, in_flight: 1 };
        Self { mode, ..Self::ordered(stream, durable, filter, types) }
    }

    /// How many events may be unacknowledged: some batches, or in order some events for each that is handled.
    #[cfg(feature = "operate")]
    pub(crate) fn most_in_hand(&self) -> i64 {
        let most = match self.mode {
            Mode::Ordered { .. } => self.mode.pulls() * IN_HAND,
            Mode::Batches { in_flight, .. } => self.mode.pulls() * (in_flight + 2).max(IN_HAND),
        };
        i64::try_from(most).unwrap_or(i64::MAX)
    }

    /// A durable consumer's configuration as this release asks for it, but for how many may be unacknowledged.
    pub(crate) fn ours(&self, is: &consumer::Config) -> consumer::Config {
        consumer::Config {
            filter_subject: self.filter.clone(),
            filter_subjects: Vec::new(),
            headers_only: false,
            backoff: Vec::new(),
            ack_wait: ACK_WAIT,
            // The attempts are counted here; the server must never give up on its own.
            max_deliver: -1,
            metadata: self.merged(&is.metadata),
            ..is.clone()
        }
    }

    /// Whether a newer release has asked for another filter.
    pub(crate) fn is_older(&self, is: &consumer::Config) -> Option<u32> {
        let revision = is.metadata.get(REVISION).and_then(|text| text.parse::<u32>().ok()).unwrap_or_default();
        (is.filter_subject != self.filter && revision > self.revision).then_some(revision)
    }

    /// Whether a durable consumer gives what this release asks for. If not, it must not pull: it would not have all events,
    /// or another release would pass over what only this one knows.
    pub(crate) fn fits(&self, is: &consumer::Config) -> bool {
        let ours = self.ours(is);
        (&is.filter_subject, &is.filter_subjects, is.headers_only, &is.metadata)
            == (&ours.filter_subject, &ours.filter_subjects, ours.headers_only, &ours.metadata)
    }

    /// A durable consumer's metadata with what this release has to say in them.
    pub(crate) fn merged(&self, metadata: &HashMap<String, String>) -> HashMap<String, String> {
        let mut types: Vec<&str> = types(metadata).chain(self.types.iter().map(String::as_str)).collect();
        types.sort_unstable();
        types.dedup();
        let was = metadata.get(REVISION).and_then(|text| text.parse().ok()).unwrap_or_default();
        let mut merged = metadata.clone();
        merged.insert(TYPES.to_owned(), types.join(" "));
        merged.insert(REVISION.to_owned(), self.revision.max(was).to_string());
        merged
    }
}
