#![doc = include_str!("../README.md")]

mod chain;
mod config;
pub mod connections;
mod context;
mod handle;
mod leader_term;
mod migrations;
mod poison_tracker;
mod position;
mod reader;
mod relay;
mod resume;
#[cfg_attr(not(feature = "trace"), path = "no_spans.rs")]
mod spans;
mod store;
mod stream;

#[cfg(feature = "operate")]
pub mod administer;
#[cfg(feature = "operate")]
pub mod inspect;
#[cfg(feature = "operate")]
pub mod operate;

pub use chain::{CREATED_HEADER, EVENT_ID_HEADER, SEQ_HEADER};
pub use config::{RelayConfig, StreamSpec};
pub use handle::{Handle, Role, Status};
pub use migrations::migrations;
pub use relay::Relay;
pub use store::{Misnumbered, NewEvent, append};
