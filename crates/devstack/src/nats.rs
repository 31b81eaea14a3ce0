//! nats-server with JetStream, in operator mode: an account for each owner of streams and for each reader, written out from
//! the fleet's table.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use fleet::Login;
use nix::sys::signal::Signal;

use crate::certificates::Certificates;
use crate::process::{Program, Ready};
use crate::stack_dir::StackDir;

mod accounts;
mod administration;
mod carry;
mod claims;
mod drift;
mod keys;

pub mod team;
pub mod teams;

pub use accounts::{Accounts, administration, make as make_accounts, renew};
pub use administration::{Wanted, announce, connect, provision, push, reload};
pub use carry::streams;
pub use drift::{Change, Configurations, changes, configurations};
pub use keys::{credentials_file, has_keys, revoke};

/// A server.
#[derive(Debug, Clone)]
pub struct Nats {
    /// Its port on loopback.
    pub port: u16,
    /// The port of its monitoring pages.
    pub monitor: u16,
    /// Where JetStream keeps its streams.
    pub store: PathBuf,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    /// Its position in a cluster: its number, its port for the others, and theirs.
    cluster: Option<(usize, u16, Vec<u16>)>,
    accounts: Layout,
    /// The folder of its certificate, if it speaks TLS.
    tls: Option<PathBuf>,
}

/// Who may log in.
#[derive(Debug, Clone)]
pub enum Layout {
    /// The logins of the fleet's table, and these beside them, each in its account.
    Fleet(Vec<Login>),
    /// The logins of the table with all their permissions, in one account: the control for the layout.
    OneAccount,
    /// One account, and one user `admin` who may do everything: for tests without a fleet.
    Alone,
    /// Who this part of a configuration says.
    Text(String),
}

impl Nats {
    /// Writes the server's configuration. What an earlier layout has stored is carried over.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn prepare(
        home: &StackDir,
        program: &Path,
        ports: (u16, u16),
        accounts: Layout,
    ) -> Result<Self, anyhow::Error> {
        crate::stack_dir::no_half_restore(&Self::store(home))?;
        Self::prepare_at(home, program, ports, accounts, Self::store(home))
    }

    /// The same over TLS alone.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn over_tls(self, home: &StackDir, certificates: &Certificates) -> Result<Self, anyhow::Error> {
        Self { tls: Some(certificates.folder.clone()), ..self }.written(home)
    }

    /// Where the streams of a stack are.
    #[must_use]
    pub fn store(home: &StackDir) -> PathBuf {
        home.path("data/nats")
    }

    /// The same, with its streams elsewhere.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn prepare_at(
        home: &StackDir,
        program: &Path,
        (port, monitor): (u16, u16),
        accounts: Layout,
        store: PathBuf,
    ) -> Result<Self, anyhow::Error> {
        let server = Self {
            port,
            monitor,
            store,
            program: program.to_owned(),
            config: home.path("conf/nats.conf"),
            log: home.log("nats"),
            cluster: None,
            accounts,
            tls: None,
        };
        server.written(home)
    }

    /// Writes the configurations of a cluster, whose servers share the accounts of the home.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn prepare_cluster(
        home: &StackDir,
        program: &Path,
        ports: &[(u16, u16, u16)],
        accounts: &Layout,
    ) -> Result<Vec<Self>, anyhow::Error> {
        let routes: Vec<u16> = ports.iter().map(|(_, _, route)| *route).collect();
        let server = |(number, &(port, monitor, route)): (usize, &(u16, u16, u16))| {
            let server = Self {
                port,
                monitor,
                store: home.path(&format!("data/nats-{number}")),
                program: program.to_owned(),
                config: home.path(&format!("conf/nats-{number}.conf")),
                log: home.log(&format!("nats-{number}")),
                cluster: Some((number, route, routes.clone())),
                accounts: accounts.clone(),
                tls: None,
            };
            server.written(home)
        };
        ports.iter().enumerate().map(server).collect()
    }

    fn written(self, home: &StackDir) -> Result<Self, anyhow::Error> {
        std::fs::create_dir_all(&self.store)?;
        crate::stack_dir::write_secret(&self.config, self.configuration(home)?.as_bytes())
            .context("writing the configuration of nats-server")?;
        Ok(self)
    }

    fn configuration(&self, home: &StackDir) -> Result<String, anyhow::Error> {
        let (name, cluster) = match &self.cluster {
            None => ("flotilla".to_owned(), String::new()),
            Some((number, port, routes)) => {
                let routes: Vec<String> = routes.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
                let routes = routes.join(", ");
                let cluster = format!("cluster {{ name: flotilla, listen: 127.0.0.1:{port}, routes: [{routes}] }}\n");
                (format!("flotilla-{number}"), cluster)
            }
        };
        let logins = match &self.accounts {
            Layout::Fleet(more) => self.operator_mode(home, accounts::make(home, more)?)?,
            Layout::OneAccount => self.operator_mode(home, accounts::make_in_one(home)?)?,
            Layout::Alone => {
                let password = home.secret("nats-admin-password")?;
                format!("authorization {{ user: admin, password: \"{password}\" }}\n")
            }
            Layout::Text(logins) => format!("{logins}\n"),
        };
        let tls = self.tls.as_ref().map(|folder| {
            let file = |name| folder.join(name).display().to_string();
            format!("tls {{ cert_file: \"{}\", key_file: \"{}\" }}\n", file("tls.crt"), file("tls.key"))
        });
        let tls = tls.unwrap_or_default();
        Ok(format!(
            "host: 127.0.0.1\nport: {}\nhttp: \"127.0.0.1:{}\"\nserver_name: {name}\n{cluster}\
             jetstream {{ store_dir: \"{}\", max_file_store: {}, max_memory_store: 1073741824, strict: true }}\n{tls}{logins}",
            self.port,
            self.monitor,
            self.store.display(),
            accounts::max_file()
        ))
    }

    fn operator_mode(&self, home: &StackDir, accounts: accounts::Accounts) -> Result<String, anyhow::Error> {
        carry::over(home, &self.store, self.cluster.is_some())?;
        // Beside the streams, so that accounts outlive them.
        let resolver = self.store.with_extension("accounts");
        accounts.write(&resolver)?;
        Ok(accounts.operator_mode(&resolver))
    }

    /// The same, as clients see it through a proxy at this port.
    #[must_use]
    pub fn through(&self, port: u16) -> Self {
        Self { port, ..self.clone() }
    }

    /// The program to run.
    #[must_use]
    pub fn program(&self) -> Program {
        Program {
            name: "nats".to_owned(),
            path: self.program.clone(),
            args: vec!["-c".to_owned(), self.config.display().to_string()],
            env: Vec::new(),
            log: self.log.clone(),
            user: None,
            stop: Signal::SIGTERM,
            ready: Ready::Http(format!("http://127.0.0.1:{}/healthz", self.monitor)),
            socket: None,
            alive: None,
        }
    }

    /// Whether it has one account, and one user.
    #[must_use]
    pub const fn is_alone(&self) -> bool {
        matches!(self.accounts, Layout::Alone)
    }

    /// The address for clients.
    #[must_use]
    pub fn address(&self) -> String {
        let scheme = if self.tls.is_some() { "tls" } else { "nats" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }
}
