#![doc = include_str!("../README.md")]

mod event;

mod dead_letter;

mod pull;

pub use event::{Event, MalformedEvent};
pub use pull::{Config, Consumer, Verdict};
