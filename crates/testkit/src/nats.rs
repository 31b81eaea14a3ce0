//! A nats-server for one test, with the users and permissions of the local stack.

use std::path::PathBuf;

use devstack::Home;
use devstack::nats::Nats;
use devstack::ports::Ports;
use devstack::process::{Program, signal};
use nix::sys::signal::Signal;
use tokio::process::Child;

use crate::{unique, until};

/// A running server; stopped and removed with this.
pub struct TestNats {
    folder: PathBuf,
    home: Home,
    nats: Nats,
    program: Program,
    child: Child,
}

impl TestNats {
    /// Starts one on free ports.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start() -> Self {
        let (folder, home, server) = prepare();
        let mut ports = Ports::default();
        let nats = Nats::prepare(&home, &server, ports.pick(0).unwrap(), ports.pick(0).unwrap()).unwrap();
        let test = Self::of(folder, home, nats);
        test.until_ready().await;
        test
    }

    /// Starts a cluster of three; the first of them owns the folder.
    ///
    /// # Panics
    /// It does not start.
    pub async fn cluster() -> Vec<Self> {
        let (folder, home, server) = prepare();
        let mut ports = Ports::default();
        let mut pick = || ports.pick(0).unwrap();
        let numbers: Vec<_> = (0..3).map(|_| (pick(), pick(), pick())).collect();
        let servers = Nats::prepare_cluster(&home, &server, &numbers).unwrap();
        let tests: Vec<Self> =
            servers.into_iter().map(|nats| Self::of(folder.clone(), Home::open(&folder).unwrap(), nats)).collect();
        for test in &tests {
            test.until_ready().await;
        }
        tests
    }

    fn of(folder: PathBuf, home: Home, nats: Nats) -> Self {
        let program = nats.program();
        let child = program.spawn().unwrap();
        Self { folder, home, nats, program, child }
    }

    /// The port that clients connect to.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.nats.port
    }

    /// Where JetStream keeps its streams.
    #[must_use]
    pub fn store(&self) -> &std::path::Path {
        &self.nats.store
    }

    async fn until_ready(&self) {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        until("nats-server is ready", || self.program.is_ready(&http)).await;
    }

    /// The login of a user.
    ///
    /// # Panics
    /// There is no such user.
    #[must_use]
    pub fn url(&self, user: &str) -> String {
        self.nats.url(&self.home, user).unwrap()
    }

    /// A client with the rights of a user.
    ///
    /// # Panics
    /// It cannot connect.
    pub async fn client(&self, user: &str) -> async_nats::Client {
        let url = self.url(user);
        let (_, login) = url.split_once("//").unwrap();
        let (login, host) = login.split_once('@').unwrap();
        let (name, password) = login.split_once(':').unwrap();
        let mut options = async_nats::ConnectOptions::new().user_and_password(name.to_owned(), password.to_owned());
        if !matches!(user, "admin" | "observer") {
            options = options.custom_inbox_prefix(format!("_INBOX_{user}"));
        }
        options.connect(host).await.unwrap()
    }

    /// JetStream as the operator.
    ///
    /// # Panics
    /// It cannot connect.
    pub async fn jetstream(&self) -> async_nats::jetstream::Context {
        async_nats::jetstream::new(self.client("admin").await)
    }

    /// SIGKILL, and a wait until it is gone.
    ///
    /// # Panics
    /// It cannot be killed.
    pub async fn kill(&mut self) {
        signal(self.child.id().unwrap(), Signal::SIGKILL).unwrap();
        self.child.wait().await.unwrap();
    }

    /// Starts it again, on the same ports, with what its store holds.
    ///
    /// # Panics
    /// It does not start.
    pub async fn restart(&mut self) {
        self.child = self.program.spawn().unwrap();
        self.until_ready().await;
    }

    /// Removes everything that JetStream has stored; only while it is not running.
    ///
    /// # Panics
    /// It cannot be removed.
    pub fn wipe(&self) {
        std::fs::remove_dir_all(&self.nats.store).unwrap();
    }
}

fn prepare() -> (PathBuf, Home, PathBuf) {
    // The program is there already: the shared parts were fetched together with it.
    crate::Parts::shared();
    let folder = std::env::temp_dir().join(unique("flotilla-nats-"));
    let home = Home::open(&folder).unwrap();
    let pinned = devstack::install::version("NATS_SERVER").unwrap();
    let server = devstack::home::cache().unwrap().join("nats-server").join(pinned).join("bin/nats-server");
    (folder, home, server)
}

impl Drop for TestNats {
    fn drop(&mut self) {
        self.child.start_kill().ok();
        // The server may still be writing: what it writes after this is in nobody's way.
        while self.child.try_wait().is_ok_and(|status| status.is_none()) {
            std::thread::yield_now();
        }
        std::fs::remove_dir_all(&self.folder).ok();
    }
}
