#![doc = include_str!("../README.md")]

pub mod administer;
mod chain;
pub mod inspect;
mod leader_term;
mod migrations;
pub mod operate;
mod poison_tracker;
mod reader;
mod relay;
mod resume;
mod store;
mod stream;

pub use migrations::migrations;
pub use relay::{Handle, Relay, RelayConfig, Role, Status, StreamSpec};
pub use store::{Misnumbered, NewEvent, append};

/// The header of a published message that names its row's `seq`.
pub const SEQ_HEADER: &str = "Outbox-Seq";
/// The header that names its row's `created_at`, in microseconds since 1970.
pub const CREATED_HEADER: &str = "Outbox-Created";
/// The header that names its row's `event_id`.
pub const EVENT_ID_HEADER: &str = "Outbox-Event-Id";
