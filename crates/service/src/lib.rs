//! The life of a service process, the same for every service of the fleet: configuration, telemetry, the operations
//! port, start and shutdown, the database with its tenants, the gRPC server, errors and idempotency.
//!
//! Reading order: `program` (one `main` for all), `lifecycle` (what runs and how it ends), `database` and `idempotency` (the base of a
//! command), `failure` (what a caller sees), then the rest.

pub mod program;

pub mod process;

pub mod readiness;

pub mod lifecycle;

pub mod call;

pub mod database;

mod connections;

mod login;

pub mod migrations;

pub mod outbox;

pub mod handlers;

pub mod store;

pub mod tenants;

pub mod tenants_events;

pub mod members;

pub mod revocations;

pub mod tail;

pub mod live;

pub mod consistency;

pub mod deadline;

pub mod filter;

pub mod filter_parser;

pub mod list;

mod shipped;

pub mod due;

pub mod idempotency;

pub mod idempotency_sweep;

pub mod failure;

pub mod grpc;

pub mod policy;

pub mod limits;

pub mod shared_rates;

mod shedding;

pub mod server;

mod server_work;

mod streams;

pub mod tls;

pub mod reread;

mod reserve;

pub mod secret;

pub mod client;

mod carrier;

pub mod tokens;

pub mod addresses;

pub mod upstreams;

mod replica;

mod breaker;

pub mod arguments;

pub mod config;

pub mod telemetry;

pub mod trace;

pub mod lines;

pub mod notes;

pub mod ops;

pub mod operators;

mod operators_router;

pub mod operators_outbox;

pub mod operators_aggregates;

pub mod operators_data;

pub mod nats;

pub mod if_match;

pub mod page;

pub mod wire;

pub mod clock;

pub mod retry;

/// The allocator of the services' programs: cheaper than the system's under many small and short-lived requests
/// (docs/adr/0001-dependencies.md).
pub use mimalloc::MiMalloc as Allocator;

/// The header, and the metadata, of answers that name the release (FLOTILLA_RELEASE_HEADER).
pub const RELEASE: &str = "flotilla-release";

/// The header of an HTTP answer, and the trailer of a gRPC one, that was made without one of its sources: it names the missing part, such
/// as `search-index`.
pub const DEGRADED: &str = "flotilla-degraded";

pub use call::Call;
pub use database::{Db, OperatorTx, TenantTx};
pub use due::Work;
pub use failure::{Code, Failure};
pub use if_match::IfMatch;
pub use lifecycle::Lifecycle;
pub use outbox::Outbox;
pub use process::Process;
pub use program::{Service, main};
pub use store::StoreError;
