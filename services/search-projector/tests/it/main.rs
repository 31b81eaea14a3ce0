//! The search projector as it starts in production, on a real nats-server of its own and a real OpenSearch.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod harness;

mod projecting;

mod searching;

mod permissions;

mod operators;
