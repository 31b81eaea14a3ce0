//! What is made of files, and made again when they change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

/// How often the files are looked at.
const LOOKS_EVERY: Duration = Duration::from_secs(5);

type Make<T> = dyn Fn(&[Vec<u8>]) -> Result<T, anyhow::Error> + Send + Sync;

/// What is made of files, and made again when they change. What cannot be read or used is logged once, and what was made before stays.
pub struct Reread<T> {
    files: Vec<PathBuf>,
    make: Box<Make<T>>,
    now: RwLock<Now<T>>,
}

struct Now<T> {
    made: Arc<T>,
    /// What the files held, whether it could be used or not.
    seen: Vec<Vec<u8>>,
    /// How often in a row they could not be read.
    missed: u32,
}

impl<T> std::fmt::Debug for Reread<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reread").field("files", &self.files).finish_non_exhaustive()
    }
}

impl<T> Reread<T> {
    /// Reads the files, and makes it of what they hold.
    ///
    /// # Errors
    /// One cannot be read, or `make` fails: the error names them.
    pub fn open(
        files: Vec<PathBuf>,
        make: impl Fn(&[Vec<u8>]) -> Result<T, anyhow::Error> + Send + Sync + 'static,
    ) -> Result<Self, anyhow::Error> {
        let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
        let seen: Vec<_> = files.iter().map(read).collect::<Result<_, _>>()?;
        let made = make(&seen).with_context(|| format!("in {}", names(&files)))?;
        let now = RwLock::new(Now { made: Arc::new(made), seen, missed: 0 });
        Ok(Self { files, make: Box::new(make), now })
    }

    /// What was made last.
    #[must_use]
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner).made)
    }

    /// Looks at the files every five seconds, until `stop`.
    pub async fn look_until(&self, stop: &CancellationToken) {
        let mut tick = tokio::time::interval(LOOKS_EVERY);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            self.look();
        }
    }

    /// Makes it again if the files have changed.
    pub fn look(&self) {
        // Before it reads: another look must not put what it read earlier in place of this.
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        let read: Result<Vec<_>, _> = self.files.iter().map(std::fs::read).collect();
        let seen = match read {
            Ok(seen) => seen,
            Err(error) => {
                now.missed += 1;
                // Whoever changes them may be between two steps: once is nothing.
                if now.missed == 2 {
                    tracing::warn!(files = names(&self.files), %error, "certificates cannot be read: those before stay");
                }
                return;
            }
        };
        now.missed = 0;
        if now.seen == seen {
            return;
        }
        match (self.make)(&seen) {
            Ok(made) => {
                now.made = Arc::new(made);
                tracing::info!(files = names(&self.files), "new certificates are used");
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(files = names(&self.files), error, "certificates cannot be used: those before stay");
            }
        }
        now.seen = seen;
    }
}

fn names(files: &[impl AsRef<Path>]) -> String {
    files.iter().map(|file| file.as_ref().display().to_string()).collect::<Vec<_>>().join(" and ")
}
