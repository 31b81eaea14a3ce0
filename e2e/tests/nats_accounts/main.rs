//! NATS is not open: each login tries everything that it must not do, in every known way, and nothing
//! changes and nothing is heard. The same attacks break one account with the same permissions: that is the control.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod administration;
mod attacks;
mod fixture;
mod programs;
