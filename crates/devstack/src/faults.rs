//! A fault proxy (toxiproxy) between the services and what they call, for tests of failures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::ports::Ports;
use crate::process::{Program, Ready};
use crate::stack_dir::StackDir;

/// The proxies of a stack, by their upstream.
#[derive(Debug, Clone)]
pub struct Proxies {
    /// The port of its own API.
    pub api: u16,
    listeners: BTreeMap<&'static str, u16>,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
}

impl Proxies {
    /// Writes the configuration: a proxy for each of these ports.
    ///
    /// # Errors
    /// No port is free, or a file cannot be written.
    pub fn prepare(
        home: &StackDir,
        program: &Path,
        ports: &mut Ports,
        behind: &[(&'static str, u16)],
    ) -> Result<Self, anyhow::Error> {
        let api = ports.pick(0)?;
        let mut listeners = BTreeMap::new();
        let mut proxies = Vec::new();
        for (name, upstream) in behind {
            let port = ports.pick(0)?;
            let (listen, upstream) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{upstream}"));
            proxies.push(json!({"name": name, "listen": listen, "upstream": upstream, "enabled": true}));
            listeners.insert(*name, port);
        }
        let config = home.path("conf/toxiproxy.json");
        std::fs::write(&config, serde_json::to_vec_pretty(&proxies)?)?;
        Ok(Self { api, listeners, program: program.to_owned(), config, log: home.log("toxiproxy") })
    }

    /// The port to connect to for this upstream: its proxy's, or `port` where it has none.
    #[must_use]
    pub fn port_of(&self, name: &str, port: u16) -> u16 {
        self.listeners.get(name).copied().unwrap_or(port)
    }

    /// The program to run.
    #[must_use]
    pub fn program(&self) -> Program {
        Program {
            name: "toxiproxy".to_owned(),
            path: self.program.clone(),
            args: vec![
                "-host".to_owned(),
                "127.0.0.1".to_owned(),
                "-port".to_owned(),
                self.api.to_string(),
                "-config".to_owned(),
                self.config.display().to_string(),
            ],
            env: Vec::new(),
            log: self.log.clone(),
            user: None,
            stop: Signal::SIGTERM,
            ready: Ready::Http(format!("http://127.0.0.1:{}/version", self.api)),
            socket: None,
            alive: None,
        }
    }
}
