//! The search projector as it starts in production, on a real nats-server of its own and a real OpenSearch.

mod harness;

mod projecting;

mod searching;
