//! Ports on loopback: the wished one, or any free one.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};

use anyhow::bail;

/// Chooses ports, no port twice.
#[derive(Debug, Default)]
pub struct Ports(BTreeSet<u16>);

fn free(port: u16) -> Option<u16> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|listener| listener.local_addr()).ok().map(|a| a.port())
}

impl Ports {
    /// `wished` if it is free, else any free port; 0 wishes for any.
    ///
    /// # Errors
    /// No port is free.
    pub fn pick(&mut self, wished: u16) -> Result<u16, anyhow::Error> {
        for _ in 0..100 {
            let port = free(wished).or_else(|| free(0));
            if let Some(port) = port.filter(|port| self.0.insert(*port)) {
                return Ok(port);
            }
        }
        bail!("no port is free on 127.0.0.1")
    }

    /// `wished` and no other.
    ///
    /// # Errors
    /// It is taken: says so, and what to do.
    pub fn exactly(&mut self, wished: u16) -> Result<u16, anyhow::Error> {
        match free(wished).filter(|port| self.0.insert(*port)) {
            Some(port) => Ok(port),
            None => bail!(
                "port {wished} on 127.0.0.1 is taken by another program: stop that, or choose another port for the \
                 gateway with FLOTILLA_GATEWAY_PORT"
            ),
        }
    }

    /// A free port of a range.
    ///
    /// # Errors
    /// All of them are taken.
    pub fn within(&mut self, range: std::ops::RangeInclusive<u16>) -> Result<u16, anyhow::Error> {
        let text = format!("{range:?}");
        // Spread by process, so that two stacks that start at once rarely want the same one.
        let start = std::process::id() as usize % range.len();
        let ports: Vec<u16> = range.collect();
        let mut turned = ports[start..].iter().chain(&ports[..start]);
        match turned.find(|port| free(**port).is_some() && self.0.insert(**port)) {
            Some(port) => Ok(*port),
            None => bail!("no port of {text} is free on 127.0.0.1"),
        }
    }
}
