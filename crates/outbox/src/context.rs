//! What a relay works with, and why a lead ends.

use std::sync::Arc;

use sqlx::PgPool;
use tokio::sync::watch;
use uuid::Uuid;

use crate::chain::PublishError;
use crate::config::RelayConfig;
use crate::handle::{HandOff, Status};

/// A relay's connections, configuration and shared state.
pub struct Context {
    pub db: PgPool,
    pub nats: async_nats::Client,
    pub config: RelayConfig,
    /// The owner of the lease: new for each relay.
    pub holder: Uuid,
    pub hand_off: Arc<HandOff>,
    pub status: watch::Sender<Status>,
}

/// Why a lead has ended.
pub enum LeadError {
    PublishError(PublishError),
    Lost(&'static str),
    Down(anyhow::Error),
    Halted(String),
    /// Row after row is refused: the next one is parked later, if none passes.
    NonePasses(String),
    Stop,
}

impl<E: Into<anyhow::Error>> From<E> for LeadError {
    fn from(error: E) -> Self {
        match error.into().downcast::<PublishError>() {
            Ok(fault) => Self::PublishError(fault),
            Err(other) => Self::Down(other),
        }
    }
}
