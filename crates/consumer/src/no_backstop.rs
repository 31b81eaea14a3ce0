//! Without the feature `backstop` nothing is watched but whether the durable consumer is still this release's.

use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[cfg(feature = "inbox")]
use crate::inbox::Inbox;
use crate::settle::Acker;
use crate::status::{Status, compare};

const CHECK_EVERY: Duration = Duration::from_secs(5);

/// Compares one consumer with what was asked for.
pub struct Backstop<'a> {
    acker: &'a Acker,
    status: &'a watch::Sender<Status>,
}

impl<'a> Backstop<'a> {
    pub const fn new(acker: &'a Acker, status: &'a watch::Sender<Status>) -> Self {
        Self { acker, status }
    }

    /// The same, for a consumer with an inbox.
    #[cfg(feature = "inbox")]
    pub const fn with(self, _: &'a Inbox) -> Self {
        self
    }

    /// Runs until `stop`.
    pub async fn run(&self, stop: &CancellationToken) {
        let Acker { js, config, .. } = self.acker;
        let mut tick = tokio::time::interval(CHECK_EVERY);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            let opened = js.get_consumer_from_stream(&config.durable, &config.stream);
            let Some(Ok(consumer)) = stop.run_until_cancelled(opened).await else { continue };
            let consumer: PullConsumer = consumer;
            compare(config, &consumer.cached_info().config, self.status);
        }
    }
}
