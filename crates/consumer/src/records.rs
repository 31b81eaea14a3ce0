//! The streams beside those of the events, and their subjects.

/// What JetStream reports of a message that it gave up on.
#[cfg(any(feature = "backstop", feature = "operate"))]
pub const KINDS: [&str; 2] = ["MAX_DELIVERIES", "MSG_TERMINATED"];

/// Where dead letters, replays, and what JetStream itself gave up on are kept. By default the streams are `DLQ`, `REPLAY` and
/// `ADVISORIES`, with the subjects `dlq.<consumer>.<subject>`, `replay.<consumer>.<subject>` and `replayed.<consumer>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordStreams {
    pub(crate) dead_letters: String,
    pub(crate) replays: String,
    pub(crate) advisories: String,
    /// What the subjects begin with: nothing, or a prefix and a dot.
    pub(crate) root: String,
}

impl Default for RecordStreams {
    fn default() -> Self {
        Self {
            dead_letters: "DLQ".to_owned(),
            replays: "REPLAY".to_owned(),
            advisories: "ADVISORIES".to_owned(),
            root: String::new(),
        }
    }
}

impl RecordStreams {
    /// Streams of one's own in an account that several share: with the prefix `shop` they are `shop_DLQ` and `shop_REPLAY`, and their
    /// subjects begin with `shop.`. What JetStream gave up on stays in one stream, `ADVISORIES`: it reports that once for an
    /// account. A prefix is one token of a subject: letters, digits, `-` and `_`.
    #[must_use]
    pub fn prefixed(prefix: &str) -> Self {
        Self {
            dead_letters: format!("{prefix}_DLQ"),
            replays: format!("{prefix}_REPLAY"),
            root: format!("{prefix}."),
            ..Self::default()
        }
    }

    /// The name of the stream of dead letters.
    #[must_use]
    pub fn dead_letters(&self) -> &str {
        &self.dead_letters
    }

    /// The name of the stream of replays and of their outcomes.
    #[must_use]
    pub fn replays(&self) -> &str {
        &self.replays
    }

    /// The name of the stream that keeps JetStream's advisories.
    #[must_use]
    pub fn advisories(&self) -> &str {
        &self.advisories
    }

    /// The durable consumer by which the advisories about another one are read.
    #[must_use]
    pub fn backstop(stream: &str, durable: &str) -> String {
        format!("backstop-{stream}-{durable}")
    }

    /// The subject of a dead letter.
    pub(crate) fn dead_letter(&self, consumer: &str, subject: &str) -> String {
        format!("{}dlq.{consumer}.{subject}", self.root)
    }

    /// The subject of a replay.
    #[cfg(feature = "operate")]
    pub(crate) fn replay(&self, consumer: &str, subject: &str) -> String {
        format!("{}replay.{consumer}.{subject}", self.root)
    }

    /// The subject of a replay's outcome.
    #[cfg(feature = "replay")]
    pub(crate) fn replayed(&self, consumer: &str) -> String {
        format!("{}replayed.{consumer}", self.root)
    }

    /// The consumer that a letter or a replay is of, by its subject.
    #[cfg(feature = "operate")]
    pub(crate) fn consumer<'a>(&self, subject: &'a str) -> Option<&'a str> {
        subject.strip_prefix(&self.root)?.split('.').nth(1)
    }

    /// The subject of the event that a replay is of, by its own.
    #[cfg(feature = "replay")]
    pub(crate) fn event_subject<'a>(&self, subject: &'a str) -> Option<&'a str> {
        subject.strip_prefix(&self.root)?.splitn(3, '.').nth(2)
    }
}
