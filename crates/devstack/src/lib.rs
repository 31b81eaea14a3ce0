//! The real parts of the fleet as child processes: find or fetch the program, choose ports, start, wait until ready,
//! restart what died, stop in order. Used by the `flotilla` command, by the tests' shared parts and by `e2e`.
//!
//! `stack` puts a whole fleet together, `supervisor` keeps it running, `process` is one child; the rest is a module
//! per part. Neither knows what the services do: they are programs with an environment and a readiness address.

pub mod stack;

pub mod supervisor;

pub mod process;

pub mod install;

pub mod postgres;

pub mod nats;

pub mod opensearch;

pub mod login;

pub mod issuer;

pub mod home;

pub mod ports;

pub mod faults;

pub use home::Home;
pub use stack::{Options, Stack};
pub use supervisor::{Board, Kind, State, Unit};

/// Tells the person at the terminal what is being done.
pub type Say = std::sync::Arc<dyn Fn(&str) + Send + Sync>;
