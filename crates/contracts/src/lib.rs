//! What the services of the fleet must agree on: ids, the event envelope, the events, and their subjects.
//!
//! Pure data: no I/O, no clock, no randomness. The Rust types here are the source; `schemas/` is generated from them
//! (`tests/schemas.rs`), and every released sample must decode for ever (`tests/samples.rs`).

#[macro_use]
pub mod ids;

pub mod actor;

pub mod role;

pub mod event_type;

pub mod envelope;

pub mod subject;

pub mod events;

pub mod text;

pub use actor::{Actor, ActorKind};
pub use envelope::Envelope;
pub use events::todo::{SeriesId, TodoId};
pub use ids::{EventId, TenantId, UserId};
pub use role::Role;
