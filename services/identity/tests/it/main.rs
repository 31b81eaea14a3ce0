//! The identity service as it starts in production, on a real Postgres and a real nats-server of its own.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod harness;

mod walk;

mod adoption;

mod membership;

mod credentials;

mod carried;

mod tenancy;

mod permissions;

mod data;

mod lists;

mod operators;

mod snapshots;

mod step_up;
