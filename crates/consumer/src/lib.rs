#![doc = include_str!("../README.md")]

mod event;

mod pull;

mod batch;
mod ordered;

mod backstop;
mod dead_letter;
mod inbox;
mod settle;

pub use event::{Event, MalformedEvent};
pub use inbox::{Inbox, unpark};
pub use ordered::Failure;
pub use pull::{Config, Consumer, Status};
pub use settle::Verdict;
