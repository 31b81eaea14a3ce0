//! NATS is no open door: with each login everything is tried that it must not do, in every way that is known, and nothing
//! changes and nothing is heard. The same tries break one account with the same permissions: that is the control.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod administration;
mod attacks;
mod programs;
mod world;
