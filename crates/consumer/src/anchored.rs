//! The anchor of an in-order consumer's effects: noted beside them, and compared with the stream again and again.

use std::time::Duration;

use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::anchor::Anchor;
use crate::floors::Floors;
use crate::inbox::Inbox;
use crate::rewind::Rewinder;
use crate::status::Status;

const CHECK_EVERY: Duration = Duration::from_secs(5);

/// The effects of an in-order consumer, for as long as this process leads.
pub struct Anchored<'a> {
    pub rewinder: Rewinder,
    pub inbox: &'a Inbox,
    pub epoch: i64,
    pub floors: &'a Floors,
    pub status: &'a watch::Sender<Status>,
}

impl Anchored<'_> {
    /// Checks whether the stream holds the anchor, and notes a newer one when it does; again and again.
    pub async fn keep(&self) -> Result<(), anyhow::Error> {
        let (mut tick, mut said) = (tokio::time::interval(CHECK_EVERY), false);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            // Nothing is noted before the stream is open, nor while NATS or the database is unavailable.
            let looked = self.look().await;
            let failed = looked.is_err();
            if let Err(error) = looked
                && !said
            {
                let consumer = &self.rewinder.durable;
                warn!(consumer, error = format!("{error:#}"), "what was handled cannot be compared with the stream");
            }
            said = failed;
        }
    }

    async fn look(&self) -> Result<(), anyhow::Error> {
        let Some((created, floor)) = self.floors.events() else { return Ok(()) };
        let consumer = &self.rewinder.durable;
        // From the database each time: an operator takes it out there once the effects have been mended.
        let noted = self.inbox.anchor(consumer).await?.and_then(|anchor| serde_json::from_str::<Anchor>(&anchor).ok());
        let holds = match &noted {
            Some(anchor) => self.rewinder.holds(anchor).await?,
            None => true,
        };
        let changed = self.status.send_if_modified(|status| std::mem::replace(&mut status.diverged, !holds) == holds);
        if changed && holds {
            info!(consumer, "the stream holds what was handled");
        } else if changed {
            error!(consumer, anchor = ?noted, "what was handled is of events that the stream does not hold");
        }
        // The old one is the evidence for as long as the stream lacks it.
        if holds
            && noted.is_none_or(|noted| noted.sequence != floor)
            && let Some(newer) = self.rewinder.anchor(created, floor).await?
        {
            self.inbox.note_anchor(consumer, self.epoch, &serde_json::to_string(&newer)?).await?;
        }
        Ok(())
    }
}
