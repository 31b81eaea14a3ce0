//! The todo service as it starts in production, on a real Postgres and a real nats-server of its own.

mod harness;

mod writes;

mod idempotency;

mod tenancy;

mod lists;

mod relay;
