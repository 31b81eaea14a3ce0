//! The todo service as it starts in production, on a real Postgres and a real nats-server of its own.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod harness;

mod hostile;

mod watching;
mod writes;

mod idempotency;

mod suspended;

mod revoked;

mod tenancy;

mod timers;

mod permissions;

mod process;

mod migrating;

mod lists;
mod lists_read;

mod operators;

mod data;

mod relay;

mod snapshots;

mod recurring;

mod sizes;
