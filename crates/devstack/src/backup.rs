//! Backups of a stack and their restore: PostgreSQL's files and its log by pgBackRest, JetStream's streams as the server gives
//! them out. The read models are made from events again, and secrets are named, never copied.
//!
//! A repository is a folder: `postgres` is pgBackRest's, `streams` has a folder for each set, `restores.jsonl` a line for each
//! restore. All that tenants wrote is encrypted in it; the key is the secret [`KEY`], which the owner keeps elsewhere too.

mod age;
mod database;
mod repository;
mod restore;
mod sets;
mod streams;

pub use age::{KEY, Key};
pub use database::{Archive, Kind, Paths};
pub use repository::{Repository, installed, secrets};
pub use restore::{Moment, Plan, Restored, Streams};
pub use sets::{Base, PastRestore, Saved, Sets, StreamSet};
