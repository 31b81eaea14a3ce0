#![doc = include_str!("../README.md")]

#[cfg_attr(not(feature = "backstop"), path = "no_backstop.rs")]
mod backstop;
mod batch;
mod config;
mod consumer;
mod dead_letter;
mod durable;
mod event;
mod failures;
mod handler;
mod lines;
mod origin;
mod pull;
mod records;
mod settle;
#[cfg_attr(not(feature = "trace"), path = "no_spans.rs")]
mod spans;
mod status;
mod time;

#[cfg(feature = "inbox")]
mod anchored;
#[cfg(feature = "inbox")]
mod claim;
#[cfg(feature = "inbox")]
mod floors;
#[cfg(feature = "inbox")]
mod inbox;
#[cfg(feature = "inbox")]
mod lanes;
#[cfg(feature = "inbox")]
mod migrations;
#[cfg(feature = "inbox")]
mod ordered;
#[cfg(feature = "inbox")]
mod sweep;

#[cfg(feature = "replay")]
mod anchor;
#[cfg(feature = "replay")]
mod replay;
#[cfg(feature = "replay")]
mod rewind;

#[cfg(feature = "operate")]
pub mod administer;
#[cfg(feature = "operate")]
mod dead_letter_reader;
#[cfg(feature = "operate")]
mod replayer;

pub use config::{Config, Mode};
pub use consumer::Consumer;
pub use event::{Event, MalformedEvent, Replay};
pub use handler::Failure;
pub use lines::trace_id;
pub use records::RecordStreams;
pub use settle::Verdict;
pub use status::Status;

#[cfg(feature = "inbox")]
pub use claim::{Claim, NotClaimed};
#[cfg(feature = "inbox")]
pub use inbox::{Inbox, unpark};
#[cfg(feature = "inbox")]
pub use migrations::migrations;

#[cfg(feature = "replay")]
pub use anchor::Anchor;
#[cfg(feature = "replay")]
pub use rewind::{Acknowledged, Rewinder};

#[cfg(feature = "operate")]
pub use dead_letter_reader::{Batch, DeadLetter, DeadLetterReader, DlqPosition, DlqRecord};
#[cfg(feature = "operate")]
pub use replayer::{ReplayRequest, ReplayStatus, Replayer};
