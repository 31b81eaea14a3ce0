//! The configuration of a relay.

use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);

/// The stream that the relay publishes to, as [`crate::administer::stream`] makes it.
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
    /// The prefix under which what is stored is published once more, for those who watch; none where nobody does.
    pub live: Option<String>,
}

impl StreamSpec {
    /// A stream on one server that keeps a message for seven days.
    #[must_use]
    pub fn new(name: impl Into<String>, subjects: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let subjects = subjects.into_iter().map(Into::into).collect();
        Self { name: name.into(), subjects, max_age: 7 * DAY, replicas: 1, live: None }
    }
}

/// The configuration of a relay: [`RelayConfig::new`], or from a [`StreamSpec`]; every other field has a default.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// Where to publish.
    pub stream: StreamSpec,
    /// The content type of every payload. Default: `application/cloudevents+json`.
    pub content_type: String,
    /// A core-NATS subject on which writers in other processes hint that there is something to publish. Default:
    /// `hint.outbox.<stream>`.
    pub hint_subject: String,
    /// How long the lead lasts without a renewal. Default: 4 s.
    pub lease: Duration,
    /// How often to poll for rows without a hint. Default: 500 ms.
    pub poll: Duration,
    /// How many messages may be in flight. Default: 2,000.
    pub window: usize,
    /// For how many days the outbox keeps its rows, at least as long as the stream its messages; `None` for ever. Default: a day more
    /// than the stream.
    pub retention_days: Option<i32>,
    /// The largest payload, in bytes; a larger one parks its aggregate. Default: 64 KiB.
    pub max_bytes: usize,
}

impl RelayConfig {
    /// A relay that publishes to this stream of these subjects.
    #[must_use]
    pub fn new(stream: impl Into<String>, subjects: impl IntoIterator<Item = impl Into<String>>) -> Self {
        StreamSpec::new(stream, subjects).into()
    }
}

impl From<StreamSpec> for RelayConfig {
    fn from(stream: StreamSpec) -> Self {
        let days = stream.max_age.as_secs().div_ceil(DAY.as_secs()) + 1;
        // A stream without an age limit keeps everything, and so does its outbox.
        let retention_days = Some(days).filter(|_| !stream.max_age.is_zero()).and_then(|days| days.try_into().ok());
        Self {
            content_type: "application/cloudevents+json".to_owned(),
            hint_subject: format!("hint.outbox.{}", stream.name),
            lease: Duration::from_secs(4),
            poll: Duration::from_millis(500),
            window: 2_000,
            retention_days,
            max_bytes: 64 * 1024,
            stream,
        }
    }
}
