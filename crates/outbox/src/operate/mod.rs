//! Operator actions on an outbox: inspect it, resolve parked rows, and resume behind a stream that is ahead. They run as
//! the owner of the tables. Each is one transaction that writes its line into the journal, and makes the relay take its
//! position again.

mod act;
mod ahead;
mod overview;
mod parked;
mod renumber;

pub use crate::resume::RENUMBER;
pub use crate::store::ACCEPTING;
pub use act::{Act, Refused};
pub use ahead::{Divergence, accept, divergence, is_removed, remove};
pub use overview::{JournalLine, Overview, ParkedRow, journal, last, overview, parked};
pub use parked::{discard, release, requeue};
pub use renumber::{Behind, numbered_behind, renumber};
