//! Ports on loopback: the requested one, or any free one.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

use anyhow::bail;

/// Those that this process has chosen at random. One on which nobody listens yet looks free to all who choose at the same time.
static CHOSEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Chooses ports, no port twice.
#[derive(Debug, Default)]
pub struct Ports(BTreeSet<u16>);

fn free(port: u16) -> Option<u16> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|listener| listener.local_addr()).ok().map(|a| a.port())
}

impl Ports {
    /// `wished` if it is free, otherwise any free port; 0 requests any.
    ///
    /// # Errors
    /// No port is free.
    pub fn pick(&mut self, wished: u16) -> Result<u16, anyhow::Error> {
        if wished != 0 && free(wished).is_some() && self.0.insert(wished) {
            return Ok(wished);
        }
        // Outside the range of ephemeral ports: a port must be free again after a restart.
        for _ in 0..1_000 {
            let mut bytes = [0; 2];
            aws_lc_rs::rand::fill(&mut bytes)?;
            let port = 20_000 + u16::from_be_bytes(bytes) % 12_000;
            let chosen = || CHOSEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port);
            if free(port).is_some() && chosen() && self.0.insert(port) {
                return Ok(port);
            }
        }
        bail!("no port from 20000 to 32000 is free on 127.0.0.1")
    }

    /// `wished` and no other.
    ///
    /// # Errors
    /// It is taken: the error says so, and what to do.
    pub fn exactly(&mut self, wished: u16) -> Result<u16, anyhow::Error> {
        match free(wished).filter(|port| self.0.insert(*port)) {
            Some(port) => Ok(port),
            None => bail!(
                "port {wished} on 127.0.0.1 is taken by another program: stop that, or choose another port for the \
                 gateway with FLOTILLA_GATEWAY_PORT"
            ),
        }
    }

    /// A port of a range, bound: no other process takes it while the socket is kept.
    ///
    /// # Errors
    /// All of them are taken.
    pub fn within(&mut self, range: std::ops::RangeInclusive<u16>) -> Result<TcpListener, anyhow::Error> {
        let text = format!("{range:?}");
        // Spread by process, so that two stacks that start at once rarely choose the same one.
        let start = std::process::id() as usize % range.len();
        let ports: Vec<u16> = range.collect();
        let mut turned = ports[start..].iter().chain(&ports[..start]).filter(|port| !self.0.contains(port));
        let Some(socket) = turned.find_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).ok()) else {
            bail!("no port of {text} is free on 127.0.0.1");
        };
        self.0.insert(socket.local_addr()?.port());
        Ok(socket)
    }
}
