//! A durable consumer as its process has it: what it acknowledges by, and how it stands.

use anyhow::Context as _;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::stream;
use futures::stream::StreamExt as _;
use tokio::sync::watch;
use tracing::info;

use crate::pull::{Messages, messages};
#[cfg(feature = "replay")]
use crate::rewind::Rewinder;
use crate::settle::Acker;
use crate::status::{Status, compare, note_trimmed};

/// What both modes work with.
pub struct Durable {
    pub acker: Acker,
    pub status: watch::Sender<Status>,
}

impl Durable {
    /// Takes this consumer back, while it runs.
    #[cfg(feature = "replay")]
    pub fn rewinder(&self) -> Rewinder {
        Rewinder {
            js: self.acker.js.clone(),
            stream: self.acker.config.stream.clone(),
            durable: self.acker.config.durable.clone(),
            records: self.acker.config.records.clone(),
        }
    }

    /// The stream and the durable consumer, as the administration has made them.
    pub async fn open(&self) -> Result<(stream::Stream, PullConsumer), anyhow::Error> {
        let Acker { js, config, .. } = &self.acker;
        let stream = js.get_stream(&config.stream).await.context("opening the stream")?;
        let consumer: PullConsumer =
            stream.get_consumer(&config.durable).await.map_err(|error| anyhow::anyhow!(error)).with_context(|| {
                format!("opening the durable consumer {}: `consumer::administer::durables` makes it", config.durable)
            })?;
        let info = consumer.cached_info();
        // Before anything is pulled: afterwards the floor may have passed the gap.
        if info.num_pending > 0 || info.num_ack_pending > 0 {
            let first = stream.cached_info().state.first_sequence;
            note_trimmed(config, &self.status, first, info.ack_floor.stream_sequence);
        }
        compare(config, &info.config, &self.status);
        anyhow::ensure!(
            config.is_older(&info.config).is_none(),
            "a newer release has the durable consumer take {}: this one (revision {}), which asks for {}, does not pull",
            info.config.filter_subject,
            config.revision,
            config.filter
        );
        anyhow::ensure!(
            config.fits(&info.config),
            "the durable consumer was not made for what this release asks for: `consumer::administer::durables` with this configuration changes it"
        );
        Ok((stream, consumer))
    }

    /// The stream's messages; ends when the durable consumer is not this release's any more.
    pub async fn pull_events(&self, consumer: &PullConsumer) -> Result<Messages<'static>, anyhow::Error> {
        let config = &self.acker.config;
        // Somebody may change the durable consumer meanwhile: then it is opened again, and refused.
        let mut status = self.status.subscribe();
        let refused = async move { status.wait_for(|status| status.refused).await.is_ok() };
        let messages = messages(consumer, config.mode.pulls()).await?.take_until(refused).boxed();
        info!(consumer = config.durable, stream = config.stream, "consuming");
        self.status.send_modify(|status| status.pulling = true);
        Ok(messages)
    }
}
