//! The shared PostgreSQL and OpenSearch.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, OnceLock};

use devstack::postgres::Roles;
use serde::Deserialize;

/// The addresses of the shared backing services, and the logins of the services' roles there.
#[derive(Clone, Deserialize)]
pub struct Backing {
    /// The superuser's login.
    pub postgres: String,
    /// The passwords of each service's roles.
    pub roles: BTreeMap<String, Roles>,
    /// OpenSearch's address.
    pub opensearch: String,
}

/// The backing services, and the connection that keeps them: it is closed when the test process ends, however it ends.
/// A failed start is kept as well: the first test reports it and the others do not wait.
static BACKING: OnceLock<Result<(Backing, Mutex<UnixStream>), String>> = OnceLock::new();

/// The folder of the workspace's programs.
///
/// # Panics
/// The test binary is not where cargo puts it.
#[must_use]
pub fn programs() -> PathBuf {
    // <target>/debug/deps/<test binary>
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().to_owned()
}

/// The folder that holds what tests share, beside the programs.
#[must_use]
pub fn home() -> PathBuf {
    programs().join("test-parts")
}

impl Backing {
    /// The shared backing services; the first test of a run starts them.
    ///
    /// # Panics
    /// They cannot be started: the message says why.
    pub fn shared() -> &'static Self {
        &connected().0
    }

    /// Has a database (`database NAME`) or an index (`index NAME`) removed when this test process ends.
    ///
    /// # Panics
    /// The shared backing services have stopped.
    pub fn remove_at_the_end(what: &str) {
        let (_, connection) = connected();
        writeln!(connection.lock().unwrap(), "{what}").unwrap();
    }
}

fn connected() -> &'static (Backing, Mutex<UnixStream>) {
    match BACKING.get_or_init(connect) {
        Ok(connected) => connected,
        Err(why) => panic!("{why}"),
    }
}

fn connect() -> Result<(Backing, Mutex<UnixStream>), String> {
    std::fs::create_dir_all(home()).unwrap();
    // One test starts the backing services, the others wait for it.
    let lock = File::create(home().join("start.lock")).unwrap();
    lock.lock().unwrap();
    let (backing, connection) = match guest() {
        Some(guest) => guest,
        None => start()?,
    };
    Ok((backing, Mutex::new(connection)))
}

fn guest() -> Option<(Backing, UnixStream)> {
    let stream = UnixStream::connect(home().join("run/test-parts.sock")).ok()?;
    let mut line = String::new();
    BufReader::new(stream.try_clone().ok()?).read_line(&mut line).ok()?;
    Some((serde_json::from_str(&line).ok()?, stream))
}

#[expect(clippy::zombie_processes, reason = "it outlives the test process that starts it")]
fn start() -> Result<(Backing, UnixStream), String> {
    let program = programs().join("flotilla");
    assert!(program.exists(), "{} is missing: run `cargo build --workspace` first", program.display());
    let log = home().join("test-parts.log");
    let file = File::create(&log).unwrap();
    let mut command = std::process::Command::new(program);
    command.arg("--home").arg(home()).arg("test-parts");
    command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).process_group(0);
    let mut holder = command.spawn().unwrap();
    // The first fetch of the backing services on a machine takes long.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(600);
    loop {
        if let Some(guest) = guest() {
            return Ok(guest);
        }
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        if let Some(status) = holder.try_wait().unwrap() {
            // A supervisor that is stopping still holds the stack: try again when it has gone.
            if !said().contains("another process runs a stack") {
                return Err(format!("the backing services ended with {status}:\n{}", said()));
            }
            std::thread::park_timeout(std::time::Duration::from_millis(500));
            return start();
        }
        if std::time::Instant::now() > deadline {
            return Err(format!("the backing services did not start:\n{}", said()));
        }
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    }
}
