//! What runs in a service process, and how it ends: SIGTERM and Ctrl-C drain it, and a second signal ends it at once. A task that ends
//! early ends the process too, non-zero.

use std::convert::Infallible;
use std::future::Future;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info};

use crate::lines;

/// How long a drain may take before it is cut off.
const GRACE: Duration = Duration::from_secs(20);

/// Signals within this time come from one sender.
const TWINS: Duration = Duration::from_millis(500);

/// The signals that end a process.
struct Signals(Signal, Signal);

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.0.recv() => "SIGTERM",
            _ = self.1.recv() => "SIGINT",
        }
    }
}

/// The background tasks of a process. Clones are the same lifecycle.
#[derive(Clone, Default)]
pub struct Lifecycle {
    stop: CancellationToken,
    tasks: TaskTracker,
    dead: Arc<Mutex<Option<String>>>,
}

impl Lifecycle {
    /// Cancelled when the process is to end: accept nothing new, finish the current work.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Runs a task until the process stops. If it ends before that, the process ends.
    pub fn run<F>(&self, name: &'static str, task: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let task = task(self.stopping());
        self.spawn(name, async move {
            task.await;
            Ok::<_, Infallible>(())
        });
    }

    /// Starts a task that ends by itself, such as the rest of a call. The drain waits for it.
    pub fn finish<F>(&self, task: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(task(self.stopping()));
    }

    /// As [`Self::run`], for a task that may fail.
    pub fn spawn<E: Into<anyhow::Error>>(
        &self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let lifecycle = self.clone();
        self.tasks.spawn(async move {
            // In a task of its own, so that a panic is seen here.
            let outcome = lifecycle.tasks.spawn(async move { task.await.map_err(Into::into) }).await;
            let problem = match outcome {
                Ok(Ok(())) if lifecycle.stop.is_cancelled() => return,
                Ok(Ok(())) => "it ended by itself".to_owned(),
                Ok(Err(error)) => format!("{error:#}"),
                Err(panic) => panic.to_string(),
            };
            error!(task = name, problem, "a background task has died: stopping the process");
            if let Ok(mut dead) = lifecycle.dead.lock() {
                dead.get_or_insert(format!("{name}: {problem}"));
            }
            lifecycle.stop.cancel();
        });
    }

    /// Waits for a signal or a task that ends early, then for the drain. A signal during another drain ends the process.
    pub async fn run_to_end(self) -> ExitCode {
        let mut signals = match Signals::new() {
            Ok(signals) => signals,
            Err(error) => {
                error!(%error, "signals cannot be received: stopping");
                return ExitCode::FAILURE;
            }
        };
        let asked = tokio::select! {
            name = signals.next() => {
                info!("{name}: draining");
                true
            }
            () = self.stop.cancelled() => false,
        };
        let hurry = async {
            if !asked {
                let name = signals.next().await;
                info!("{name}: draining already");
            }
            // A sender that signals a process and its group sends two.
            let one_asks = Instant::now() + TWINS;
            loop {
                let name = signals.next().await;
                if Instant::now() > one_asks {
                    return name;
                }
            }
        };
        tokio::select! {
            trouble = self.shut_down() => trouble.map_or(ExitCode::SUCCESS, |_| ExitCode::FAILURE),
            name = hurry => {
                error!("{name} while draining: leaving before the drain has ended");
                lines::write_waiting();
                // Running tasks are not waited for.
                std::process::exit(1)
            }
        }
    }

    /// Stops all tasks and waits for them; returns the task that ended early, if any.
    pub async fn shut_down(&self) -> Option<String> {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(GRACE, self.tasks.wait()).await.is_err() {
            error!(grace = ?GRACE, "the drain took too long: leaving");
            return Some("drain".to_owned());
        }
        self.dead.lock().ok().and_then(|dead| dead.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_task_stops_the_process() {
        let lifecycle = Lifecycle::default();
        let stop = lifecycle.stopping();
        lifecycle.spawn("waits", async move {
            stop.cancelled().await;
            Ok::<_, anyhow::Error>(())
        });
        lifecycle.spawn("dies", async { Err(anyhow::anyhow!("of a cold")) });
        lifecycle.stopping().cancelled().await;
        assert_eq!(lifecycle.shut_down().await.as_deref(), Some("dies: of a cold"));
    }

    #[tokio::test]
    async fn a_panic_and_an_early_end_are_deaths_too() {
        let lifecycle = Lifecycle::default();
        lifecycle.spawn("ends", async { Ok::<_, anyhow::Error>(()) });
        lifecycle.stopping().cancelled().await;
        assert_eq!(lifecycle.shut_down().await.as_deref(), Some("ends: it ended by itself"));

        let lifecycle = Lifecycle::default();
        lifecycle.spawn("panics", async {
            assert!(std::hint::black_box(false), "oh");
            Ok::<_, anyhow::Error>(())
        });
        lifecycle.stopping().cancelled().await;
        assert!(lifecycle.shut_down().await.is_some_and(|dead| dead.contains("panic")));
    }
}
