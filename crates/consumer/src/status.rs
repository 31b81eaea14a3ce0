//! The state of a consumer, and what makes it differ from what was asked for.

use std::time::Duration;

use async_nats::jetstream::consumer;
use tokio::sync::watch;
use tracing::error;

use crate::config::Config;

/// The state of a consumer, beyond its metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// It pulls.
    pub pulling: bool,
    /// For how long nothing was acknowledged although something waits; zero while it goes on or is paused.
    pub stalled_for: Duration,
    /// How many events the stream dropped before this consumer had them, at most: what it makes of them is incomplete
    /// until it is rebuilt. With a filter, dropped events of others may be among them.
    pub trimmed_unread: u64,
    /// Its in-order effects are of events that the stream does not hold: a restore has undone them, or the stream is being
    /// refilled. False for as long as another process leads.
    pub diverged: bool,
    /// Whether an operator has paused it.
    pub paused: bool,
    /// It does not pull: the durable consumer was not made for this release, or for a newer one with another filter.
    pub refused: bool,
    /// The durable consumer is not as this release asks for it.
    pub differs: bool,
}

/// Compares a durable consumer with what was asked for; what differs is in the status, the metrics and, once, the log.
pub fn compare(config: &Config, is: &consumer::Config, status: &watch::Sender<Status>) {
    let ours = config.ours(is);
    let (refused, differs) = (!config.fits(is), *is != ours);
    let changed = status.send_if_modified(|status| {
        let was = (status.refused, status.differs);
        (status.refused, status.differs) = (refused, differs);
        was != (refused, differs)
    });
    let gauge = |name: &'static str, value| {
        metrics::gauge!(name, "consumer" => config.durable.clone()).set(f64::from(u8::from(value)));
    };
    gauge("consumer_refused", refused);
    gauge("consumer_config_drift", differs);
    if changed && differs {
        error!(consumer = config.durable, ?is, ?ours, "the durable consumer is not as it was asked for");
    }
}

/// Alarms when the stream begins behind what this consumer has acknowledged although something waits: events may have
/// been trimmed unread, and what is made of them is incomplete until it is rebuilt.
pub fn note_trimmed(config: &Config, status: &watch::Sender<Status>, first: u64, floor: u64) {
    let trimmed = first.saturating_sub(floor + 1);
    let worse = status.send_if_modified(|status| {
        let worse = trimmed > status.trimmed_unread;
        status.trimmed_unread = status.trimmed_unread.max(trimmed);
        worse
    });
    let durable = &config.durable;
    metrics::gauge!("consumer_trimmed_unread", "consumer" => durable.clone())
        .set(status.borrow().trimmed_unread as f64);
    if worse {
        error!(
            consumer = durable,
            from = floor + 1,
            to = first - 1,
            "events of this range were trimmed before this consumer had them: rebuild what it makes of them"
        );
    }
}
