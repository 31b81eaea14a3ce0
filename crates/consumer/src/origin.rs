//! Where a message comes from: its stream, or a replay of it.

use async_nats::jetstream;
use async_nats::jetstream::message::Info;
use chrono::{DateTime, Utc};

use crate::event::Replay;
use crate::failures::Place;
use crate::records::RecordStreams;

#[cfg(feature = "replay")]
pub const ID: &str = "Replay-Id";
#[cfg(feature = "replay")]
pub const ACT: &str = "Replay-Act";
#[cfg(feature = "replay")]
pub const STREAM_SEQUENCE: &str = "Replay-Stream-Sequence";
#[cfg(feature = "replay")]
pub const STORED_AT: &str = "Replay-Stored-At";

/// Where a message comes from: for a replayed one, what it was when its stream gave it.
pub struct Origin {
    pub subject: String,
    pub stream_sequence: u64,
    pub stored_at: DateTime<Utc>,
    pub replay: Option<Replay>,
}

impl Origin {
    /// The origin of a message.
    pub fn of(message: &jetstream::Message, info: &Info<'_>, records: &RecordStreams) -> Self {
        #[cfg(feature = "replay")]
        if info.stream == records.replays {
            return replayed(message, info, records);
        }
        let _ = records;
        Self {
            subject: message.subject.to_string(),
            stream_sequence: info.stream_sequence,
            stored_at: info.published,
            replay: None,
        }
    }
}

#[cfg(feature = "replay")]
fn replayed(message: &jetstream::Message, info: &Info<'_>, records: &RecordStreams) -> Origin {
    let header = |name: &'static str| message.headers.as_ref()?.get(name).map(|value| value.as_str());
    let subject = records.event_subject(&message.subject).unwrap_or_default();
    Origin {
        subject: subject.to_owned(),
        stream_sequence: header(STREAM_SEQUENCE).and_then(|text| text.parse().ok()).unwrap_or(info.stream_sequence),
        stored_at: header(STORED_AT).and_then(|text| text.parse().ok()).unwrap_or(info.published),
        replay: Some(Replay {
            id: header(ID).unwrap_or_default().to_owned(),
            discarded: header(ACT) == Some("discard"),
        }),
    }
}

/// The place of a message.
pub fn place(message: &jetstream::Message, records: &RecordStreams) -> Place {
    message.info().map_or((false, 0), |info| (info.stream == records.replays, info.stream_sequence))
}
