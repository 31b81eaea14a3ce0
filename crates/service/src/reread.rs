//! What is made of files, and made again when they change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

/// How often the files are looked at.
const LOOKS_EVERY: Duration = Duration::from_secs(5);
/// How long whoever changes them may take.
const SETTLES_WITHIN: Duration = Duration::from_secs(1);

type Make<T> = dyn Fn(&[Vec<u8>]) -> Result<T, anyhow::Error> + Send + Sync;

/// What is made of files, and made again when they change. What cannot be read or used is logged once it has been so for a second, and what
/// was made before stays.
pub struct Reread<T> {
    files: Vec<PathBuf>,
    make: Box<Make<T>>,
    made: RwLock<Arc<T>>,
    /// Held by whoever looks: nobody puts what it read earlier in place of what another has read later.
    looked: Mutex<Looked>,
}

struct Looked {
    /// What the files held of which it was made.
    seen: Vec<Vec<u8>>,
    /// Since when nothing can be made of them, and whether that was logged. Whoever changes them may be between two steps.
    fails: Option<(Instant, bool)>,
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
        let seen = read(&files)?;
        let made = make(&seen).with_context(|| format!("in {}", names(&files)))?;
        let looked = Mutex::new(Looked { seen, fails: None });
        Ok(Self { files, make: Box::new(make), made: RwLock::new(Arc::new(made)), looked })
    }

    /// What was made last.
    #[must_use]
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.made.read().unwrap_or_else(PoisonError::into_inner))
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
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let made = read(&self.files).and_then(|seen| {
            let made = if seen == looked.seen { None } else { Some((self.make)(&seen)?) };
            Ok((seen, made))
        });
        match made {
            Ok((seen, made)) => {
                *looked = Looked { seen, fails: None };
                if let Some(made) = made {
                    *self.made.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(made);
                    tracing::info!(files = names(&self.files), "new certificates are used");
                }
            }
            Err(error) => {
                let (since, is_said) = looked.fails.get_or_insert((Instant::now(), false));
                if !*is_said && since.elapsed() >= SETTLES_WITHIN {
                    *is_said = true;
                    let error = format!("{error:#}");
                    tracing::warn!(files = names(&self.files), error, "certificates cannot be used: those before stay");
                }
            }
        }
    }
}

fn read(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, anyhow::Error> {
    let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
    files.iter().map(read).collect()
}

fn names(files: &[impl AsRef<Path>]) -> String {
    files.iter().map(|file| file.as_ref().display().to_string()).collect::<Vec<_>>().join(" and ")
}
