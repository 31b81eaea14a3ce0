//! What is made of secrets and certificates, and made again when they change: the one reader of what a process is given to keep.

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;
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
            Self::Command(command) => printed(command).context(COMMAND),
        }
    }

    /// Names it in errors and log lines, and nothing of what it holds: a word of a command may be a secret too.
    fn name(&self) -> String {
        match self {
            Self::Text(_) => "a variable".to_owned(),
            Self::File(path) => path.display().to_string(),
            Self::Command(_) => COMMAND.to_owned(),
        }
    }
}

const COMMAND: &str = "what a command prints";

fn bounded(from: impl std::io::Read) -> Result<Vec<u8>, anyhow::Error> {
    let mut bytes = Vec::new();
    from.take(MOST + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= MOST, "it is larger than {MOST} bytes");
    Ok(bytes)
}

/// What a command prints. What it says on its standard error is the process's. It, and what it has started, ends with its time.
fn printed(command: &str) -> Result<Vec<u8>, anyhow::Error> {
    // Everybody on the machine reads arguments; a variable, only who runs it.
    let mut child = Command::new("sh")
        .args(["-c", r#"eval "$FLOTILLA_COMMAND""#])
        .env("FLOTILLA_COMMAND", command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("starting `sh`, which runs it")?;
    let output = child.stdout.take().context("it has no output")?;
    let (sender, read) = mpsc::channel();
    std::thread::spawn(move || sender.send(bounded(output)).ok());
    // The output ends with the last process that has it, and a process need not end with its output.
    let (ends, mut ended) = (Instant::now() + PRINTS_WITHIN, None);
    let read = read.recv_timeout(PRINTS_WITHIN).ok();
    while read.is_some() && ended.is_none() && Instant::now() < ends {
        ended = child.try_wait()?;
        std::thread::park_timeout(Duration::from_millis(5));
    }
    killpg(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGKILL).ok();
    child.wait()?;
    let (Some(output), Some(status)) = (read, ended) else {
        bail!("it has not ended within {} s", PRINTS_WITHIN.as_secs())
    };
    ensure!(status.success(), "it failed ({status})");
    output
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
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            // A process that stops waits for no command.
            stop.run_until_cancelled(self.look_again(RUNS_EVERY)).await;
        }
    }

    /// Looks at the files, and makes it again if they have changed.
    pub fn look(&self) {
        // Whoever runs a command holds the lock meanwhile.
        if self.0.sources.iter().any(|source| matches!(source, Source::File(_))) {
            self.0.look(None);
        }
    }

    /// The same, and runs the commands, unless they were run just now: what they printed before was refused.
    pub async fn look_now(&self) {
        self.look_again(RUNS_AGAIN).await;
    }

    #[cfg(test)]
    pub(crate) async fn look_as_if_later(&self) {
        self.look_again(Duration::ZERO).await;
    }

    async fn look_again(&self, runs_after: Duration) {
        if self.0.runs_commands() {
            let (inner, (done, looked)) = (Arc::clone(&self.0), oneshot::channel());
            // The end of the runtime would wait for a thread of its own.
            let looks = std::thread::Builder::new().spawn(move || {
                inner.look(Some(runs_after));
                done.send(()).ok();
            });
            if looks.is_ok() {
                looked.await.ok();
            }
        } else {
            self.look();
        }
    }
}

impl<T> Inner<T> {
    fn runs_commands(&self) -> bool {
        self.sources.iter().any(|source| matches!(source, Source::Command(_)))
    }

    fn look(&self, runs_after: Option<Duration>) {
        // Nobody waits for a command that another has begun to run.
        let mut looked = match self.looked.try_lock() {
            Ok(looked) => looked,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) if runs_after.is_some() => return,
            Err(TryLockError::WouldBlock) => self.looked.lock().unwrap_or_else(PoisonError::into_inner),
        };
        let runs = runs_after.is_some_and(|after| looked.ran.elapsed() >= after);
        let read = |(source, seen): (&Source, &Vec<u8>)| match source {
            Source::File(_) => source.read(),
            Source::Command(_) if runs => source.read(),
            Source::Command(_) | Source::Text(_) => Ok(seen.clone()),
        };
        let made = self.sources.iter().zip(&looked.seen).map(read).collect::<Result<Vec<_>, _>>().and_then(|seen| {
            let made = if seen == looked.seen { None } else { Some((self.make)(&seen)?) };
            Ok((seen, made))
        });
        if runs {
            looked.ran = Instant::now();
        }
        match made {
            Ok((seen, made)) => {
                looked.seen = seen;
                // A command that has failed, and was not run again, has not succeeded.
                if runs || !self.runs_commands() {
                    looked.fails = None;
                }
                if let Some(made) = made {
                    *self.made.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(made);
                    tracing::info!(sources = names(&self.sources), "what has changed there is used");
                }
            }
            Err(error) => {
                let (since, is_said) = looked.fails.get_or_insert((Instant::now(), false));
                // A command is not between two steps.
                if !*is_said && (runs || since.elapsed() >= SETTLES_WITHIN) {
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
