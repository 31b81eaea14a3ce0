//! The real backing services of the fleet as child processes: find or fetch the program, choose ports, start, wait until ready,
//! restart what died, stop in order. Used by the `flotilla` command, by the supervisor of the test services and by `e2e`.
//!
//! `stack` puts a whole fleet together, `supervisor` keeps it running, `process` is one child; the rest is a module
//! per backing service. None knows what the services do: they are programs with an environment and a readiness address.

pub mod stack;

pub mod backup;

pub mod supervisor;

pub mod process;

pub mod install;

pub mod postgres;

pub mod rotation;

pub mod redaction;

pub mod nats;

pub mod opensearch;

pub mod redis;

pub mod login;

pub mod observe;

pub mod issuer;

pub mod provider;

pub mod sign_in;

pub mod certificates;

pub mod stack_dir;

pub mod ports;

pub mod faults;

pub use stack::{Options, Stack};
pub use stack_dir::StackDir;
pub use supervisor::{Kind, State, StatusFile, Unit};

/// Prints each step to the terminal.
pub type Reporter = std::sync::Arc<dyn Fn(&str) + Send + Sync>;
