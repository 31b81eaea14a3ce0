//! What is made of secrets and certificates, and made again when they change: the one reader of what a process is given to keep.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tokio_util::sync::CancellationToken;

/// How often files are looked at.
const LOOKS_EVERY: Duration = Duration::from_secs(5);
/// How often a command is run again, which may ask a server far away.
const RUNS_EVERY: Duration = Duration::from_secs(60);
/// How soon it may run again where what it printed before was refused.
const RUNS_AGAIN: Duration = Duration::from_secs(5);
/// How long it may take.
const PRINTS_WITHIN: Duration = Duration::from_secs(30);
/// How long whoever changes files may take.
const SETTLES_WITHIN: Duration = Duration::from_secs(1);
/// The most that a file or a command may hold: no secret, and no chain of certificates, is longer.
const MOST: u64 = 1 << 20;

/// Where a secret or a certificate is.
#[derive(Clone)]
pub enum Source {
    /// Here, for as long as the process lives.
    Text(Vec<u8>),
    /// In a file, which is read again when it changes.
    File(PathBuf),
    /// On the standard output of a command of `sh`, which is run again every minute.
    Command(String),
}

impl Source {
    fn read(&self) -> Result<Vec<u8>, anyhow::Error> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(path) => {
                let file = std::fs::File::open(path).with_context(|| format!("reading {}", path.display()))?;
                bounded(file).with_context(|| format!("reading {}", path.display()))
            }
            Self::Command(command) => printed(command).with_context(|| self.name()),
        }
    }

    /// Names it in errors and log lines, and nothing of what it holds: the arguments of a command may be a secret too.
    fn name(&self) -> String {
        match self {
            Self::Text(_) => "a variable".to_owned(),
            Self::File(path) => path.display().to_string(),
            Self::Command(command) => format!("the command `{} …`", command.split(' ').next().unwrap_or_default()),
        }
    }
}

fn bounded(from: impl std::io::Read) -> Result<Vec<u8>, anyhow::Error> {
    let mut bytes = Vec::new();
    from.take(MOST + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= MOST, "it is larger than {MOST} bytes");
    Ok(bytes)
}

/// What a command prints. What it says on its standard error is the process's.
fn printed(command: &str) -> Result<Vec<u8>, anyhow::Error> {
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting `sh`, which runs it")?;
    let output = child.stdout.take().context("it has no output")?;
    let reads = std::thread::spawn(move || bounded(output));
    let began = Instant::now();
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            // What it has started itself may go on, and keeps the output open: nobody waits for that.
            None if began.elapsed() > PRINTS_WITHIN => {
                child.kill()?;
                child.wait()?;
                bail!("it has not ended within {} s", PRINTS_WITHIN.as_secs());
            }
            None => std::thread::park_timeout(Duration::from_millis(10)),
        }
    };
    ensure!(status.success(), "it failed ({status})");
    reads.join().map_err(|_| anyhow::anyhow!("its output cannot be read"))?
}

type Make<T> = dyn Fn(&[Vec<u8>]) -> Result<T, anyhow::Error> + Send + Sync;

/// What is made of sources, and made again when they change. What cannot be read or used is logged once it has been so for a second, and
/// what was made before stays. Clones are the same.
pub struct Reread<T>(Arc<Inner<T>>);

struct Inner<T> {
    sources: Vec<Source>,
    make: Box<Make<T>>,
    made: RwLock<Arc<T>>,
    /// Held by whoever looks: nobody puts what it read earlier in place of what another has read later.
    looked: Mutex<Looked>,
}

struct Looked {
    /// What the sources held of which it was made.
    seen: Vec<Vec<u8>>,
    /// When the commands were run last.
    ran: Instant,
    /// Since when nothing can be made of them, and whether that was logged. Whoever changes them may be between two steps.
    fails: Option<(Instant, bool)>,
}

impl<T> Clone for Reread<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> std::fmt::Debug for Reread<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Reread").field(&names(&self.0.sources)).finish()
    }
}

impl<T: Send + Sync + 'static> Reread<T> {
    /// Reads the sources, and makes it of what they hold.
    ///
    /// # Errors
    /// One cannot be read, or `make` fails: the error names them.
    pub fn open(
        sources: Vec<Source>,
        make: impl Fn(&[Vec<u8>]) -> Result<T, anyhow::Error> + Send + Sync + 'static,
    ) -> Result<Self, anyhow::Error> {
        let seen = sources.iter().map(Source::read).collect::<Result<Vec<_>, _>>()?;
        let made = RwLock::new(Arc::new(make(&seen).with_context(|| format!("in {}", names(&sources)))?));
        let looked = Mutex::new(Looked { seen, ran: Instant::now(), fails: None });
        Ok(Self(Arc::new(Inner { sources, make: Box::new(make), made, looked })))
    }

    /// What never changes.
    #[must_use]
    pub fn fixed(made: T) -> Self {
        let looked = Mutex::new(Looked { seen: Vec::new(), ran: Instant::now(), fails: None });
        let make = Box::new(|_: &[Vec<u8>]| bail!("there is nothing to make it of"));
        Self(Arc::new(Inner { sources: Vec::new(), make, made: RwLock::new(Arc::new(made)), looked }))
    }

    /// What was made last.
    #[must_use]
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.made.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where it is read.
    #[must_use]
    pub fn sources(&self) -> &[Source] {
        &self.0.sources
    }

    /// Looks at the files every five seconds, and runs the commands every minute, until `stop`.
    pub async fn look_until(&self, stop: &CancellationToken) {
        let mut tick = tokio::time::interval(LOOKS_EVERY);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            self.look_again(RUNS_EVERY).await;
        }
    }

    /// Looks at the files, and makes it again if they have changed.
    pub fn look(&self) {
        self.0.look(None);
    }

    /// The same, and runs the commands: what they printed before was refused.
    pub async fn look_now(&self) {
        self.look_again(RUNS_AGAIN).await;
    }

    async fn look_again(&self, runs_after: Duration) {
        if self.0.sources.iter().any(|source| matches!(source, Source::Command(_))) {
            let inner = Arc::clone(&self.0);
            tokio::task::spawn_blocking(move || inner.look(Some(runs_after))).await.ok();
        } else {
            self.look();
        }
    }
}

impl<T> Inner<T> {
    fn look(&self, runs_after: Option<Duration>) {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = runs_after.is_some_and(|after| looked.ran.elapsed() >= after);
        if runs {
            looked.ran = Instant::now();
        }
        let read = |(source, seen): (&Source, &Vec<u8>)| match source {
            Source::File(_) => source.read(),
            Source::Command(_) if runs => source.read(),
            Source::Command(_) | Source::Text(_) => Ok(seen.clone()),
        };
        let made = self.sources.iter().zip(&looked.seen).map(read).collect::<Result<Vec<_>, _>>().and_then(|seen| {
            let made = if seen == looked.seen { None } else { Some((self.make)(&seen)?) };
            Ok((seen, made))
        });
        match made {
            Ok((seen, made)) => {
                (looked.seen, looked.fails) = (seen, None);
                if let Some(made) = made {
                    *self.made.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(made);
                    tracing::info!(sources = names(&self.sources), "what has changed there is used");
                }
            }
            Err(error) => {
                let (since, is_said) = looked.fails.get_or_insert((Instant::now(), false));
                if !*is_said && since.elapsed() >= SETTLES_WITHIN {
                    *is_said = true;
                    let error = format!("{error:#}");
                    tracing::warn!(
                        sources = names(&self.sources),
                        error,
                        "it cannot be used: what was there before stays"
                    );
                }
            }
        }
    }
}

fn names(sources: &[Source]) -> String {
    sources.iter().map(Source::name).collect::<Vec<_>>().join(" and ")
}
