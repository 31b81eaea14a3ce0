#![doc = include_str!("../README.md")]

mod event;

mod pull;

mod batch;
mod floors;
mod guard;
mod ordered;

mod backstop;
mod dead_letter;
mod inbox;
mod settle;

mod keep;
mod replay;

pub mod administer;

pub use event::{Event, MalformedEvent, Replay};
pub use inbox::{Inbox, unpark};
pub use keep::{Batch, DeadLetter, Keeper, Kept, Told};
pub use ordered::Failure;
pub use pull::{Acknowledged, Config, Consumer, Rewinder, Status};
pub use replay::{Replayer, Sending, Way};
pub use settle::Verdict;
