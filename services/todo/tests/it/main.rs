//! The todo service as it starts in production, on a real Postgres and a real nats-server of its own.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod harness;

mod handed;

mod hostile;

mod writes;

mod idempotency;

mod tenancy;

mod timers;

mod permissions;

mod process;

mod migrating;

mod went_back;

mod lists;

mod poison;

mod relay;

mod recurring;

mod retention;

mod sizes;

mod leading;

mod losses;
