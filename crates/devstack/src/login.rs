//! A login before a program that has none. The program listens on the loopback of a network namespace of its own, where
//! nothing else of this machine comes; outside there is only a proxy, which wants a user and a password of each request.
//!
//! `flotilla login-proxy` binds the port outside and becomes itself once more inside the namespace (util-linux'
//! `unshare`), with the bound socket as its standard input. There it starts the program and serves.

use std::net::TcpListener;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::uri::{Authority, PathAndQuery, Scheme};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::serve::ListenerExt as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use nix::sys::signal::Signal;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::process;

/// The user whom the proxy lets in.
pub const USER: &str = "flotilla";

/// How a namespace is made: root needs none of users, everybody else does.
const NAMESPACES: [&[&str]; 2] = [&["--net"], &["--user", "--map-root-user", "--net"]];
/// How long the program may take to stop.
const STOPS_WITHIN: Duration = Duration::from_secs(20);

/// How to make a namespace on this machine: `unshare`'s arguments; None where it lets us have none.
pub async fn namespace() -> Option<&'static [&'static str]> {
    for namespace in NAMESPACES {
        let mut command = Command::new("unshare");
        command.args(namespace).args(["--", "ip", "link", "set", "lo", "up"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if command.status().await.is_ok_and(|status| status.success()) {
            return Some(namespace);
        }
    }
    None
}

/// What `flotilla login-proxy` is given.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// The port on loopback: of the proxy outside, of the program inside.
    pub port: u16,
    /// The file that holds the password.
    pub password: PathBuf,
    /// Whether this is the process inside the namespace.
    pub inside: bool,
    /// How the namespace is made.
    pub namespace: Vec<String>,
    /// The program and its arguments.
    pub program: Vec<String>,
}

impl Proxy {
    /// The arguments of `flotilla` that say this.
    #[must_use]
    pub fn args(&self) -> Vec<String> {
        let mut args = vec!["login-proxy".to_owned(), format!("--port={}", self.port)];
        args.push(format!("--password-file={}", self.password.display()));
        args.extend(self.namespace.iter().map(|word| format!("--namespace={word}")));
        if self.inside {
            args.push("--inside".to_owned());
        }
        args.push("--".to_owned());
        args.extend(self.program.iter().cloned());
        args
    }

    /// Binds the port, makes the namespace and goes on inside: returns only when that fails, or at the end inside.
    ///
    /// # Errors
    /// The port is taken, there is no namespace to be had, or the program cannot be started.
    pub async fn run(self) -> Result<ExitCode, anyhow::Error> {
        if self.inside {
            return self.serve().await;
        }
        let port = self.port;
        let listener = TcpListener::bind(("127.0.0.1", port)).with_context(|| format!("taking port {port}"))?;
        let mut inside = std::process::Command::new("unshare");
        // To become another user, of a namespace, ends the wish to die with the parent: it is said again.
        inside.args(&self.namespace).args(["--", "setpriv", "--pdeathsig", "TERM", "--"]);
        inside.arg(std::env::current_exe()?).args(Self { inside: true, ..self }.args());
        inside.stdin(std::os::fd::OwnedFd::from(listener));
        Err(inside.exec()).context("going into a network namespace with `unshare`")
    }

    async fn serve(self) -> Result<ExitCode, anyhow::Error> {
        let listener = TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        listener.set_nonblocking(true).context("standard input is the socket that was bound outside")?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let password = std::fs::read_to_string(&self.password)
            .with_context(|| format!("reading the password in {}", self.password.display()))?;
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().await?;
        if !up.success() {
            bail!("the namespace's loopback cannot be set up ({up})");
        }
        let mut term = signal(SignalKind::terminate())?;
        let mut program = Command::new("setpriv");
        program.args(["--pdeathsig", "KILL", "--"]).args(&self.program).stdin(Stdio::null()).kill_on_drop(true);
        let mut program = program.spawn().context("starting the program behind the login")?;

        let proxied = Arc::new(Proxied {
            client: Client::builder(TokioExecutor::new()).build_http(),
            authority: Authority::try_from(format!("127.0.0.1:{}", self.port))?,
            login: format!("Basic {}", STANDARD.encode(format!("{USER}:{password}"))),
        });
        let served = axum::Router::new().fallback(forward).with_state(proxied);
        let listener = listener.tap_io(|connection| drop(connection.set_nodelay(true)));
        let status = tokio::select! {
            served = axum::serve(listener, served) => { served?; bail!("the proxy has ended") }
            status = program.wait() => status?,
            _ = term.recv() => {
                if let Some(pid) = program.id() {
                    process::signal(pid, Signal::SIGTERM)?;
                }
                tokio::time::timeout(STOPS_WITHIN, program.wait()).await.context("the program does not stop")??;
                return Ok(ExitCode::SUCCESS);
            }
        };
        bail!("the program behind the login has ended ({status})")
    }
}

struct Proxied {
    client: Client<HttpConnector, Body>,
    authority: Authority,
    login: String,
}

async fn forward(State(proxied): State<Arc<Proxied>>, mut request: Request) -> Response {
    let mut logins = request.headers().get_all(AUTHORIZATION).iter();
    let login = logins.next().map(|login| login.as_bytes()).unwrap_or_default();
    if verify_slices_are_equal(login, proxied.login.as_bytes()).is_err() || logins.next().is_some() {
        return (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Basic realm=\"flotilla\"")]).into_response();
    }
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(proxied.authority.clone());
    let path = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let Ok(uri) = uri.path_and_query(path).build() else { return StatusCode::BAD_REQUEST.into_response() };
    *request.uri_mut() = uri;
    request.headers_mut().remove(AUTHORIZATION);
    match proxied.client.request(request).await {
        Ok(response) => response.map(Body::new),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}
