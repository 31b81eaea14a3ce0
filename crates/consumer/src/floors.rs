//! How far the effects of an in-order consumer go: as this process knows it, and as the database has it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

use crate::inbox::{Floor, Lead, Written};

/// Both, for the futures of one lead.
pub struct Floors(Mutex<State>);

struct State {
    /// The stream, by when it was created, and the sequence up to which all is settled; none before that is known.
    events: Option<(DateTime<Utc>, u64)>,
    /// Up to where replays are settled, once they are pulled.
    replays: Option<u64>,
    /// What the database has of all that.
    written: Written,
}

impl Floors {
    /// What the database has at the beginning of a lead; nothing is settled yet.
    pub fn of(lead: &Lead) -> Self {
        let written = Written {
            floor: lead.floor,
            replays_floor: lead.replays_floor,
            trimmed_unread: lead.trimmed_unread.max(0).cast_unsigned(),
        };
        Self(Mutex::new(State { events: None, replays: None, written }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every event up to this one is settled.
    pub fn settled_up_to(&self, stream_created_at: DateTime<Utc>, sequence: u64) {
        self.state().events = Some((stream_created_at, sequence));
    }

    /// The stream, by when it was created, and the sequence up to which all is settled.
    pub fn events(&self) -> Option<(DateTime<Utc>, u64)> {
        self.state().events
    }

    /// Every replay up to this one is settled.
    pub fn replays_settled_up_to(&self, sequence: u64) {
        self.state().replays = Some(sequence);
    }

    /// Whether replays are pulled.
    pub fn has_replays(&self) -> bool {
        self.state().replays.is_some()
    }

    /// What the database has, and what is to be written down instead.
    pub fn to_write(&self, trimmed_unread: u64) -> (Written, Option<Floor>) {
        let state = self.state();
        let trimmed_unread = Some(trimmed_unread).filter(|trimmed| *trimmed > state.written.trimmed_unread);
        let floor = state.events.map(|(stream_created_at, sequence)| Floor {
            stream_created_at,
            sequence,
            replays: state.replays,
            trimmed_unread,
        });
        (state.written, floor)
    }

    /// This is written down now.
    pub fn wrote(&self, floor: Floor) {
        let written = &mut self.state().written;
        *written = Written {
            floor: Some(floor.sequence.cast_signed()),
            replays_floor: floor.replays.map(u64::cast_signed).or(written.replays_floor),
            trimmed_unread: floor.trimmed_unread.unwrap_or(written.trimmed_unread),
        };
    }
}
