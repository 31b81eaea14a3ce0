#![doc = include_str!("../README.md")]

mod event;

mod anchor;
mod pull;
mod rewind;

mod batch;
mod claim;
mod floors;
mod handler;
mod ordered;

mod backstop;
mod dead_letter;
mod inbox;
mod lines;
mod migrations;
mod settle;
mod sweep;

mod dead_letter_reader;
mod replay;

pub mod administer;

pub use anchor::Anchor;
pub use claim::{Claim, NotClaimed};
pub use dead_letter_reader::{Batch, DeadLetter, DeadLetterReader, DlqRecord, Kept};
pub use event::{Event, MalformedEvent, Replay};
pub use handler::Failure;
pub use inbox::{Inbox, unpark};
pub use lines::trace_id;
pub use migrations::migrations;
pub use pull::{Config, Consumer, Status};
pub use replay::{ReplayRequest, ReplayStatus, Replayer};
pub use rewind::{Acknowledged, Rewinder};
pub use settle::Verdict;
