//! A consumer's life cycle: pulls, and rebuilds the pull when it falls silent. `batch` and `ordered` hand the messages
//! to a handler, `settle` acknowledges, `backstop` handles what JetStream itself gives up on.

#[cfg(feature = "inbox")]
use std::sync::Arc;
use std::time::Duration;

use backoff::backoff::Backoff as _;
#[cfg(feature = "inbox")]
use futures::FutureExt as _;
#[cfg(feature = "inbox")]
use futures::future::BoxFuture;
#[cfg(feature = "inbox")]
use sqlx::PgConnection;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::backstop::Backstop;
use crate::batch::{self, Limits};
#[cfg(feature = "inbox")]
use crate::claim::Claim;
use crate::config::{Config, Mode};
use crate::durable::Durable;
use crate::event::Event;
#[cfg(feature = "inbox")]
use crate::handler::Failure;
#[cfg(feature = "inbox")]
use crate::inbox::Inbox;
#[cfg(feature = "inbox")]
use crate::ordered;
use crate::pull::HEARTBEAT;
#[cfg(feature = "replay")]
use crate::pull::{both, messages, replays};
#[cfg(feature = "replay")]
use crate::replay;
#[cfg(feature = "replay")]
use crate::rewind::Rewinder;
use crate::settle::{Acker, Verdict};
use crate::status::Status;
use crate::time::pauses;

/// How long the last acknowledgements may take to go out.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// A durable consumer.
pub struct Consumer {
    durable: Durable,
}

impl Consumer {
    /// A consumer that acts as the user of `nats`.
    #[must_use]
    pub fn new(nats: async_nats::Client, config: Config) -> Self {
        Self { durable: Durable { acker: Acker::new(nats, config), status: watch::Sender::new(Status::default()) } }
    }

    /// Takes this consumer back to the beginning of its stream, while it runs.
    #[cfg(feature = "replay")]
    #[must_use]
    pub fn rewinder(&self) -> Rewinder {
        self.durable.rewinder()
    }

    /// The consumer's status; the receiver reports changes.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.durable.status.subscribe()
    }

    /// Hands batches to a handler that gives a verdict for each event, until `stop`. For effects that tolerate repetition
    /// and delay, such as a version-guarded write. Waits for what is down.
    ///
    /// # Panics
    /// The configuration is of [`Mode::Ordered`].
    pub async fn run_batches<H, F>(self, stop: CancellationToken, mut handler: H)
    where
        H: FnMut(Vec<Event>) -> F,
        F: Future<Output = Vec<Verdict>>,
    {
        let mode = self.durable.acker.config.mode;
        let Mode::Batches { linger, in_flight, .. } = mode else {
            panic!("{} was made by Config::ordered: it has no batches", self.durable.acker.config.durable);
        };
        let limits = Limits { size: mode.pulls(), linger, in_flight };
        let work = async {
            let mut pauses = pauses();
            while !stop.is_cancelled() {
                let mut handled = false;
                let worked = self.batches(&stop, limits, &mut handler, &mut handled).await;
                self.rest(&stop, worked, handled, &mut pauses).await;
            }
        };
        let backstop = Backstop::new(&self.durable.acker, &self.durable.status);
        Box::pin(async { tokio::join!(work, backstop.run(&stop)) }).await;
    }

    /// Hands events to a handler one by one, those of an aggregate in their order, each in a transaction with its row of
    /// the inbox: its effects in that database happen exactly once. Runs until `stop`; waits for what is down. The handler
    /// is a plain `async fn on_paid(tx: &mut PgConnection, event: &Event) -> Result<(), Failure>`, given as
    /// `|tx, event| on_paid(tx, event).boxed()`.
    ///
    /// # Panics
    /// The configuration is of [`Mode::Batches`].
    #[cfg(feature = "inbox")]
    pub async fn run_in_order<H>(self, stop: CancellationToken, inbox: Inbox, handler: H)
    where
        H: for<'a> Fn(&'a mut PgConnection, &'a Event) -> BoxFuture<'a, Result<(), Failure>> + Send + Sync + 'static,
    {
        let (begins, handler) = (inbox.clone(), Arc::new(handler));
        let claimed = move |claim: Claim| {
            let (inbox, handler) = (begins.clone(), Arc::clone(&handler));
            async move {
                let mut tx = inbox.begin().await?;
                claim.take(&mut tx).await?;
                handler(&mut tx, claim.event()).await?;
                tx.commit().await?;
                claim.committed();
                Ok(())
            }
            .boxed()
        };
        self.run_claims(stop, inbox, claimed).await;
    }

    /// The same, for a handler with its own transactions, such as a command that also answers requests: it begins one in
    /// the database of the inbox, calls [`Claim::take`] first, commits, and reports that by [`Claim::committed`].
    ///
    /// # Panics
    /// As above.
    #[cfg(feature = "inbox")]
    pub async fn run_claims<H>(self, stop: CancellationToken, inbox: Inbox, handler: H)
    where
        H: Fn(Claim) -> BoxFuture<'static, Result<(), Failure>> + Send + Sync,
    {
        let Mode::Ordered { .. } = self.durable.acker.config.mode else {
            panic!("{} was made by Config::batches: it has no order", self.durable.acker.config.durable);
        };
        let work = async {
            let (mut pauses, mut has_failed) = (pauses(), false);
            while !stop.is_cancelled() {
                let mut handled = false;
                let worked =
                    Box::pin(ordered::lead(&self.durable, &stop, &inbox, &handler, has_failed, &mut handled)).await;
                has_failed = worked.is_err();
                self.rest(&stop, worked, handled, &mut pauses).await;
            }
        };
        let backstop = Backstop::new(&self.durable.acker, &self.durable.status).with(&inbox);
        Box::pin(async { tokio::join!(work, backstop.run(&stop)) }).await;
    }

    async fn batches<H, F>(
        &self,
        stop: &CancellationToken,
        limits: Limits,
        handler: &mut H,
        handled: &mut bool,
    ) -> Result<(), anyhow::Error>
    where
        H: FnMut(Vec<Event>) -> F,
        F: Future<Output = Vec<Verdict>>,
    {
        let open = async {
            let (_, consumer) = self.durable.open().await?;
            self.durable.pull_events(&consumer).await
        };
        // An unavailable broker may take its time to say so: a stopping process does not wait for that.
        let Some(events) = stop.run_until_cancelled(open).await else { return Ok(()) };
        let acker = &self.durable.acker;
        #[cfg(feature = "replay")]
        let events = {
            let Acker { js, config, .. } = acker;
            let replays = replays(&config.durable, || async {
                messages(&replay::consumer(js, &config.records, &config.durable).await?, limits.size).await
            });
            events.map(|events| both(events, replays))
        };
        batch::run((acker, limits), stop, &mut events?, handler, handled).await
    }

    /// The pause after a pull has ended, and a word why.
    async fn rest(
        &self,
        stop: &CancellationToken,
        worked: Result<(), anyhow::Error>,
        handled: bool,
        pauses: &mut backoff::ExponentialBackoff,
    ) {
        self.durable.status.send_modify(|status| status.pulling = false);
        // While NATS is unavailable this would wait for it, also when asked to stop.
        tokio::time::timeout(FLUSH_WITHIN, self.durable.acker.nats.flush()).await.ok();
        if handled {
            pauses.reset();
        }
        if let Err(error) = worked {
            let consumer = &self.durable.acker.config.durable;
            warn!(consumer, error = format!("{error:#}"), "not consuming: trying again");
        }
        let pause = pauses.next_backoff().unwrap_or(HEARTBEAT);
        stop.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
}
