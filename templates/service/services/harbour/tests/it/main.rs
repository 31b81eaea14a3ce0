//! The harbour service as it starts in production, on a real Postgres and a real nats-server of its own.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod harness;

mod data;

mod following;

mod idempotency;

mod lists;

mod permissions;

mod snapshots;

mod suspended;

mod tenancy;

mod writes;
