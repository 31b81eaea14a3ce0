//! Keeps programs running: starts them, waits until they are ready, restarts what dies after a growing pause, and keeps
//! the status of all, in memory and in a file that `flotilla status` reads.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::process::{self, Program, READY_WITHIN, STOP_WITHIN, tail};

/// How often the liveness of a program that is not ready is checked before it is stopped: one answer may be late.
const ASKED_TO_LIVE: u32 = 3;
/// A program that ran this long had not failed at start: the next pause is the shortest again.
const SETTLED: Duration = Duration::from_secs(30);
const PAUSES: [Duration; 6] = [
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// Infra is the backing services; services are the fleet's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// PostgreSQL, NATS, OpenSearch, the issuer. `part` in what an older release wrote.
    #[serde(alias = "part")]
    Infra,
    /// One of the fleet's services.
    Service,
}

/// The state of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Running, and not ready yet.
    Starting,
    /// Ready.
    Ready,
    /// It died, and is started again after a pause.
    Restarting,
    /// It was stopped.
    Stopped,
}

/// One line of `flotilla status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// Infra or a service.
    pub kind: Kind,
    /// The process, while there is one.
    pub pid: Option<u32>,
    /// host:port of its server.
    pub address: String,
    /// Its state.
    pub state: State,
    /// Since when it has this state.
    pub since: DateTime<Utc>,
    /// How often it died and was started again.
    pub restarts: u32,
    /// Its log.
    pub log: PathBuf,
    /// host:port of its operations server, for services.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ops: Option<String>,
    /// The folder of its data, for infra.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub data_dir: Option<PathBuf>,
    /// Its address as a URL without secrets, for infra.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub url: Option<String>,
    /// The login, for infra that requires one: for NATS a credentials file, else a JSON file with `url`, `user` and `password`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub creds_file: Option<PathBuf>,
}

impl Unit {
    /// Its address as a URL, with its login if it requires one.
    ///
    /// # Errors
    /// It has none, or its credentials cannot be read.
    pub fn login_url(&self) -> Result<String, anyhow::Error> {
        let Some(file) = &self.creds_file else {
            return self.url.clone().with_context(|| format!("{} has no URL", self.name));
        };
        let json = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        let credentials: serde_json::Value = serde_json::from_slice(&json)?;
        credentials["url"].as_str().map(ToOwned::to_owned).with_context(|| format!("{} names no url", file.display()))
    }
}

/// What `run/state.json` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StackStatus {
    /// The supervising process.
    pub supervisor: u32,
    /// Whether all units were ready once.
    pub up: bool,
    /// Every unit.
    pub units: Vec<Unit>,
}

impl StackStatus {
    /// A unit by its name.
    ///
    /// # Errors
    /// There is none yet.
    pub fn unit(&self, name: &str) -> Result<&Unit, anyhow::Error> {
        self.units.iter().find(|unit| unit.name == name).with_context(|| format!("{name} is not up yet"))
    }
}

/// The state of every unit, in memory and in a file. Clones share both.
#[derive(Clone)]
pub struct StatusFile {
    file: PathBuf,
    content: Arc<Mutex<StackStatus>>,
    changed: watch::Sender<u64>,
}

impl StatusFile {
    /// No units yet; each change is written to `file`.
    #[must_use]
    pub fn new(file: PathBuf) -> Self {
        let content = StackStatus { supervisor: std::process::id(), up: false, units: Vec::new() };
        Self { file, content: Arc::new(Mutex::new(content)), changed: watch::Sender::new(0) }
    }

    /// Its contents.
    #[must_use]
    pub fn read(&self) -> StackStatus {
        self.content.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Adds a unit.
    pub fn add(&self, unit: Unit) {
        self.change(|status| status.units.push(unit));
    }

    /// Records that all units are ready.
    pub fn is_up(&self) {
        self.change(|status| status.up = true);
    }

    fn set(&self, name: &str, state: State, pid: Option<u32>, restarts: u32) {
        self.change(|status| {
            if let Some(unit) = status.units.iter_mut().find(|unit| unit.name == name) {
                unit.since = now();
                unit.state = state;
                unit.pid = pid;
                unit.restarts = restarts;
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut StackStatus)) {
        let mut content = self.content.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut content);
        // A reader sees the old file or the new one, never half of one.
        let part = self.file.with_extension("part");
        let json = serde_json::to_vec_pretty(&*content).unwrap_or_default();
        if std::fs::write(&part, json).and_then(|()| std::fs::rename(&part, &self.file)).is_err() {
            eprintln!("the status file {} cannot be written", self.file.display());
        }
        self.changed.send_modify(|version| *version += 1);
    }

    /// Waits until a unit is in this state.
    pub async fn until(&self, name: &str, state: State) {
        let mut changes = self.changed.subscribe();
        loop {
            changes.borrow_and_update();
            if self.read().units.iter().any(|unit| unit.name == name && unit.state == state) {
                return;
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Reads the status file of another process.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn read_status(file: &Path) -> Result<StackStatus, anyhow::Error> {
    let json = std::fs::read(file)?;
    serde_json::from_slice(&json).with_context(|| format!("reading {}", file.display()))
}

/// Runs programs and keeps them running.
pub struct Supervisor {
    status_file: StatusFile,
    http: reqwest::Client,
    ready_within: Duration,
    running: Mutex<Vec<(CancellationToken, TaskTracker)>>,
}

impl Supervisor {
    /// A supervisor that writes to `status_file`.
    ///
    /// # Errors
    /// The HTTP client for readiness probes cannot be made.
    pub fn new(status_file: StatusFile) -> Result<Self, anyhow::Error> {
        let http = process::prober()?;
        Ok(Self { status_file, http, ready_within: READY_WITHIN, running: Mutex::new(Vec::new()) })
    }

    /// Starts a program and waits until it is ready; from then on it is restarted when it dies.
    ///
    /// # Errors
    /// It died or did not become ready: the error names the log, with its last lines. None of its processes is left running.
    pub async fn start(&self, program: Program, unit: Unit) -> Result<(), anyhow::Error> {
        self.status_file.add(unit);
        let mut child = program.spawn()?;
        self.status_file.set(&program.name, State::Starting, child.id(), 0);
        let became_ready = tokio::select! {
            ready = tokio::time::timeout(self.ready_within, program.until_ready(&self.http)) => ready.is_ok(),
            status = child.wait() => {
                self.status_file.set(&program.name, State::Stopped, None, 0);
                let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                bail!("{} died at start ({status}). Its log {} ends with:\n{}", program.name, program.log.display(), tail(&program.log, 12));
            }
        };
        if !became_ready {
            program.stop(&mut child, STOP_WITHIN).await;
            self.status_file.set(&program.name, State::Stopped, None, 0);
            bail!(
                "{} was not ready after {:?}. Its log {} ends with:\n{}",
                program.name,
                self.ready_within,
                program.log.display(),
                tail(&program.log, 12)
            );
        }
        self.status_file.set(&program.name, State::Ready, child.id(), 0);
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        let supervised = Supervised {
            program,
            status_file: self.status_file.clone(),
            http: self.http.clone(),
            ready_within: self.ready_within,
            stop: stop.clone(),
        };
        tracker.spawn(supervised.run(child));
        tracker.close();
        self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((stop, tracker));
        Ok(())
    }

    /// Stops everything, the last started first.
    pub async fn stop_all(&self) {
        let mut running = std::mem::take(&mut *self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        while let Some((stop, tracker)) = running.pop() {
            stop.cancel();
            tracker.wait().await;
        }
    }
}

/// A program that is restarted whenever it dies.
struct Supervised {
    program: Program,
    status_file: StatusFile,
    http: reqwest::Client,
    ready_within: Duration,
    stop: CancellationToken,
}

impl Supervised {
    /// Restarts it whenever it dies, until it is to stop.
    async fn run(self, mut child: tokio::process::Child) {
        let Self { program, stop, .. } = &self;
        let mut restarts = 0;
        let mut failures = 0;
        loop {
            let started = Instant::now();
            let died = tokio::select! {
                died = stop.run_until_cancelled(child.wait()) => died.is_some(),
                () = self.hangs(restarts) => {
                    program.stop(&mut child, STOP_WITHIN).await;
                    true
                }
            };
            if !died {
                program.stop(&mut child, STOP_WITHIN).await;
                self.set(State::Stopped, None, restarts);
                return;
            }
            failures = if started.elapsed() > SETTLED { 0 } else { failures + 1 };
            restarts += 1;
            loop {
                self.set(State::Restarting, None, restarts);
                let pause = PAUSES[PAUSES.len().min(failures.max(1)) - 1];
                if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                    self.set(State::Stopped, None, restarts);
                    return;
                }
                match program.spawn() {
                    Ok(new) => {
                        child = new;
                        self.set(State::Starting, child.id(), restarts);
                        break;
                    }
                    Err(error) => {
                        eprintln!("{error:#}");
                        failures += 1;
                    }
                }
            }
        }
    }

    /// Waits for a program that was started again; ends when it is neither ready nor alive in time. One that lives and is
    /// not ready waits for an unavailable backing service, however long.
    async fn hangs(&self, restarts: u32) {
        if restarts > 0 {
            let ready = || tokio::time::timeout(self.ready_within, self.program.until_ready(&self.http));
            while ready().await.is_err() {
                let mut alive = false;
                for _ in 0..ASKED_TO_LIVE {
                    alive = alive || self.program.is_alive(&self.http).await;
                }
                if !alive {
                    return;
                }
            }
            let units = self.status_file.read().units;
            let pid = units.iter().find(|unit| unit.name == self.program.name).and_then(|unit| unit.pid);
            self.set(State::Ready, pid, restarts);
        }
        std::future::pending().await
    }

    fn set(&self, state: State, pid: Option<u32>, restarts: u32) {
        self.status_file.set(&self.program.name, state, pid, restarts);
    }
}

/// Now, for `since`.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "shown to people; nothing is decided by it")]
pub fn now() -> DateTime<Utc> {
    Utc::now()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::get;
    use nix::sys::signal::Signal;

    use super::*;
    use crate::process::{Ready, signal};

    /// What a program reports of itself.
    #[derive(Default)]
    struct Says {
        ready: AtomicBool,
        hangs: AtomicBool,
        asked: AtomicU32,
    }

    fn status(well: bool) -> StatusCode {
        if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
    }

    async fn until(holds: impl Fn() -> bool) {
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        while !holds() {
            tick.tick().await;
        }
    }

    #[tokio::test]
    async fn a_service_that_waits_for_a_backing_service_is_left_alone_and_one_that_hangs_is_not() {
        let says = Arc::new(Says { ready: true.into(), ..Says::default() });
        let (ready, alive) = (Arc::clone(&says), Arc::clone(&says));
        let router = Router::new()
            .route("/readyz", get(move || async move { status(ready.ready.load(Ordering::SeqCst)) }))
            .route(
                "/healthz",
                get(move || async move {
                    alive.asked.fetch_add(1, Ordering::SeqCst);
                    status(!alive.hangs.load(Ordering::SeqCst))
                }),
            );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = TaskTracker::new();
        let stop = CancellationToken::new();
        server.spawn(stop.clone().run_until_cancelled_owned(axum::serve(listener, router).into_future()));
        let folder = std::env::temp_dir().join(format!("flotilla-supervisor-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let status_file = StatusFile::new(folder.join("state.json"));
        let mut supervisor = Supervisor::new(status_file.clone()).unwrap();
        supervisor.ready_within = Duration::from_millis(50);
        let program = Program {
            name: "waits".to_owned(),
            path: "sleep".into(),
            args: vec!["600".to_owned()],
            env: Vec::new(),
            log: folder.join("log"),
            user: None,
            stop: Signal::SIGTERM,
            ready: Ready::Http(format!("http://{address}/readyz")),
            socket: None,
            alive: Some(format!("http://{address}/healthz")),
        };
        let unit = Unit {
            name: program.name.clone(),
            kind: Kind::Service,
            pid: None,
            address: String::new(),
            state: State::Starting,
            since: now(),
            restarts: 0,
            log: program.log.clone(),
            ops: None,
            data_dir: None,
            url: None,
            creds_file: None,
        };
        supervisor.start(program, unit).await.unwrap();
        let unit = || status_file.read().units.remove(0);

        says.ready.store(false, Ordering::SeqCst);
        signal(unit().pid.unwrap(), Signal::SIGKILL).unwrap();
        until(|| says.asked.load(Ordering::SeqCst) >= 4).await;
        assert_eq!(
            (unit().state, unit().restarts),
            (State::Starting, 1),
            "it was asked whether it lives, and left alone"
        );

        says.hangs.store(true, Ordering::SeqCst);
        until(|| unit().restarts >= 2).await;
        says.hangs.store(false, Ordering::SeqCst);
        says.ready.store(true, Ordering::SeqCst);
        status_file.until("waits", State::Ready).await;
        supervisor.stop_all().await;
        stop.cancel();
        server.close();
        server.wait().await;
        std::fs::remove_dir_all(folder).unwrap();
    }
}
