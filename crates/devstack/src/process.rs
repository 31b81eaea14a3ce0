//! One child process: started with its log, probed for readiness, stopped. It dies with its parent.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, User};
use tokio::process::{Child, Command};

/// How long a program may take to become ready, or after a restart to report that it lives.
pub(crate) const READY_WITHIN: Duration = Duration::from_secs(90);
/// How long it may take to stop.
pub(crate) const STOP_WITHIN: Duration = Duration::from_secs(25);

/// How to check that a program is ready.
#[derive(Debug, Clone)]
pub enum Ready {
    /// This address answers with a success.
    Http(String),
    /// PostgreSQL takes this login.
    Postgres(String),
    /// Something takes connections at this port of loopback.
    Listening(u16),
}

/// A program to run.
#[derive(Debug, Clone)]
pub struct Program {
    /// The name in logs and status.
    pub name: String,
    /// The executable.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment, beyond PATH and HOME.
    pub env: Vec<(String, String)>,
    /// Its log.
    pub log: PathBuf,
    /// The user that it runs as, if not the caller.
    pub user: Option<User>,
    /// The signal that asks it to stop.
    pub stop: Signal,
    /// How to check that it is ready.
    pub ready: Ready,
    /// A bound socket that is its standard input. It stays bound while the program is started again.
    pub socket: Option<Arc<TcpListener>>,
    /// An address that answers with a success while the program lives, ready or not; None where only readiness can be checked.
    pub alive: Option<String>,
}

impl Program {
    /// Starts it. Its output is appended to its log.
    ///
    /// # Errors
    /// The log or the program cannot be opened.
    pub fn spawn(&self) -> Result<Child, anyhow::Error> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("opening the log {}", self.log.display()))?;
        // setpriv (util-linux) makes the kernel stop the child when its parent dies, however it dies, and sets
        // its user: both would need unsafe code here.
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig").arg(self.stop.as_str().trim_start_matches("SIG"));
        if let Some(user) = &self.user {
            command.arg("--reuid").arg(user.uid.to_string());
            command.arg("--regid").arg(user.gid.to_string());
            command.arg("--clear-groups");
        }
        command.arg("--").arg(&self.path).args(&self.args).env_clear();
        for name in ["PATH", "HOME", "LANG", "TZ"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        // A folder that every user may enter.
        command.current_dir("/").process_group(0).kill_on_drop(true);
        command.stdin(match &self.socket {
            Some(socket) => Stdio::from(OwnedFd::from(socket.try_clone()?)),
            None => Stdio::null(),
        });
        command.stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("starting {} ({})", self.name, self.path.display()))
    }

    /// Starts it for as long as the work takes, and stops it.
    ///
    /// # Errors
    /// It is not ready in time, it ends before the work does, or the work fails.
    pub async fn run_for<T>(&self, work: impl Future<Output = Result<T, anyhow::Error>>) -> Result<T, anyhow::Error> {
        let http = prober()?;
        let mut child = self.spawn()?;
        let work = async {
            let ready = tokio::time::timeout(READY_WITHIN, self.until_ready(&http)).await;
            ready.map_err(|_| self.failed("is not ready"))?;
            work.await
        };
        let done = tokio::select! {
            done = work => done,
            ended = child.wait() => Err(self.failed(&format!("has ended ({})", ended?))),
        };
        self.stop(&mut child, STOP_WITHIN).await;
        done
    }

    fn failed(&self, how: &str) -> anyhow::Error {
        anyhow!("{} {how}. Its log {} ends with:\n{}", self.name, self.log.display(), tail(&self.log, 8))
    }

    /// Whether it is ready now.
    pub async fn is_ready(&self, http: &reqwest::Client) -> bool {
        match &self.ready {
            Ready::Http(url) => succeeds(http, url).await,
            Ready::Postgres(url) => {
                use sqlx::Connection as _;
                match tokio::time::timeout(Duration::from_secs(2), sqlx::PgConnection::connect(url)).await {
                    Ok(Ok(connection)) => connection.close().await.is_ok(),
                    _ => false,
                }
            }
            Ready::Listening(port) => {
                let connect = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, *port));
                matches!(tokio::time::timeout(Duration::from_secs(2), connect).await, Ok(Ok(_)))
            }
        }
    }

    /// Waits until it is ready.
    pub async fn until_ready(&self, http: &reqwest::Client) {
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        loop {
            tick.tick().await;
            if self.is_ready(http).await {
                return;
            }
        }
    }

    /// Whether it reports that it lives: then it waits for something else, and a restart would not help.
    pub async fn is_alive(&self, http: &reqwest::Client) -> bool {
        match &self.alive {
            Some(url) => succeeds(http, url).await,
            None => false,
        }
    }

    /// Asks a child to stop, and kills it after `grace`.
    pub async fn stop(&self, child: &mut Child, grace: Duration) -> Option<ExitStatus> {
        if let Some(pid) = child.id() {
            signal(pid, self.stop).ok();
            // A paused child takes no other signal.
            signal(pid, Signal::SIGCONT).ok();
        }
        match tokio::time::timeout(grace, child.wait()).await {
            Ok(status) => status.ok(),
            Err(_) => {
                child.kill().await.ok();
                child.wait().await.ok()
            }
        }
    }
}

/// The client that asks programs of this machine whether they are ready. It says nothing to them, and trusts any certificate.
pub(crate) fn prober() -> Result<reqwest::Client, reqwest::Error> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(2)).no_proxy();
    client.tls_danger_accept_invalid_certs(true).build()
}

async fn succeeds(http: &reqwest::Client, url: &str) -> bool {
    http.get(url).send().await.is_ok_and(|answer| answer.status().is_success())
}

/// Sends a signal to a process.
///
/// # Errors
/// It does not exist, or is not ours.
pub fn signal(pid: u32, signal: Signal) -> Result<(), anyhow::Error> {
    kill(Pid::from_raw(i32::try_from(pid)?), signal).with_context(|| format!("sending {signal} to process {pid}"))
}

/// Sends a signal to a program that [`Program::spawn`] started, and to its children.
///
/// # Errors
/// It does not exist, or is not ours.
pub fn signal_all(pid: u32, signal: Signal) -> Result<(), anyhow::Error> {
    killpg(Pid::from_raw(i32::try_from(pid)?), signal).with_context(|| format!("sending {signal} to the group {pid}"))
}

/// Whether a process exists.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    i32::try_from(pid).is_ok_and(|pid| kill(Pid::from_raw(pid), None).is_ok())
}

/// The last lines of a log, for error messages.
#[must_use]
pub fn tail(log: &Path, lines: usize) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(8 * 1024)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| format!("    {line}\n")).collect()
}
