//! A login in front of a program that has none. The program listens on the loopback of a network namespace of its own, where
//! nothing else on this machine reaches it; outside there is only a proxy, which requires a user and a password with each request.
//!
//! `flotilla login-proxy` has the socket that is bound outside as its standard input, and becomes itself once more inside the
//! namespace (util-linux' `unshare`). There it starts the program and serves. In a pod, whose containers share a namespace, or on a
//! network of containers that only the two are on, it is a container beside the program's ([`beside`]).

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::uri::{Authority, PathAndQuery, Scheme};
use axum::http::{StatusCode, Uri, Version};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use nix::sys::signal::Signal;
use service::Lifecycle;
use service::secret::{ExposeSecret as _, Secret, SecretString};
use service::server::{self, Bounds};
use service::tls::Speaks;
pub use service::tls::Tls;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::process;

/// The user that the proxy admits.
pub const USER: &str = "flotilla";
/// The secret with its passwords, a line each: the fleet uses the first, and the proxy takes all.
pub const PASSWORDS: &str = "opensearch-password";
/// What the program answers, once it does.
pub(crate) const ANSWERS: &str = "/_cluster/health?wait_for_status=yellow&timeout=1s";
/// Where everybody may ask whether it does, without a password, and hears nothing of what.
pub(crate) const HEALTH: &str = "/healthz";

/// How to make a namespace: root needs no user namespace, everyone else does.
const NAMESPACES: [&[&str]; 2] = [&["--net"], &["--user", "--map-root-user", "--net"]];
/// The limits of its connections.
const BOUNDS: Bounds = Bounds { connections: 512, streams: 100, http2_only: false, longest: server::LONGEST };
/// How long the program may take to stop.
const STOPS_WITHIN: Duration = Duration::from_secs(20);

/// How to make a namespace on this machine: `unshare`'s arguments; None where it allows none.
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

/// The arguments of `flotilla login-proxy`.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// The program's port on the namespace's loopback.
    pub port: u16,
    /// The file that holds the passwords, which is read again when it changes.
    pub password: PathBuf,
    /// What the proxy speaks TLS by, if it does.
    pub tls: Tls,
    /// Whether this is the process inside the namespace.
    pub inside: bool,
    /// How the namespace is made.
    pub namespace: Vec<String>,
    /// The program and its arguments.
    pub program: Vec<String>,
}

impl Proxy {
    /// These settings as arguments of `flotilla`.
    #[must_use]
    pub fn args(&self) -> Vec<String> {
        let mut args = vec!["login-proxy".to_owned(), format!("--port={}", self.port)];
        args.push(format!("--password-file={}", self.password.display()));
        args.extend(self.tls.certificate.iter().map(|file| format!("--tls-certificate={}", file.display())));
        args.extend(self.tls.key.iter().map(|file| format!("--tls-key={}", file.display())));
        args.extend(self.namespace.iter().map(|word| format!("--namespace={word}")));
        if self.inside {
            args.push("--inside".to_owned());
        }
        args.push("--".to_owned());
        args.extend(self.program.iter().cloned());
        args
    }

    /// Makes the namespace and continues inside: returns only when that fails, or at the end inside.
    ///
    /// # Errors
    /// The namespace or the program cannot be started.
    pub async fn run(self) -> Result<ExitCode, anyhow::Error> {
        if self.inside {
            return self.serve().await;
        }
        let mut inside = std::process::Command::new("unshare");
        // A change of user in a namespace clears the parent-death signal: set it again.
        inside.args(&self.namespace).args(["--", "setpriv", "--pdeathsig", "TERM", "--"]);
        inside.arg(std::env::current_exe()?).args(Self { inside: true, ..self }.args());
        Err(inside.exec()).context("going into a network namespace with `unshare`")
    }

    async fn serve(self) -> Result<ExitCode, anyhow::Error> {
        let listener = TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        listener.set_nonblocking(true).context("standard input is the socket that was bound outside")?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (router, passwords) = proxy("127.0.0.1", self.port, &self.password)?;
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().await?;
        if !up.success() {
            bail!("the namespace's loopback cannot be set up ({up})");
        }
        let mut term = signal(SignalKind::terminate())?;
        let mut program = Command::new("setpriv");
        program.args(["--pdeathsig", "KILL", "--"]).args(&self.program).stdin(Stdio::null()).kill_on_drop(true);
        let mut program = program.spawn().context("starting the program behind the login")?;

        let stop = CancellationToken::new();
        let mut served = pin!(serve(listener, (router, passwords), &self.tls, stop.clone()));
        let status = tokio::select! {
            served = &mut served => { served?; bail!("the proxy has ended") }
            status = program.wait() => status?,
            _ = term.recv() => {
                stop.cancel();
                served.await?;
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

/// Serves at `listen` in front of a program that another container runs, which nobody else reaches, until SIGTERM.
///
/// # Errors
/// The password or the certificate cannot be read, or the address cannot be bound.
pub async fn beside(
    listen: SocketAddr,
    (host, port): (&str, u16),
    password: &Path,
    tls: Tls,
) -> Result<(), anyhow::Error> {
    let proxy = proxy(host, port, password)?;
    let listener = tokio::net::TcpListener::bind(listen).await.with_context(|| format!("binding {listen}"))?;
    let mut term = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();
    let mut served = pin!(serve(listener, proxy, &tls, stop.clone()));
    tokio::select! {
        served = &mut served => served,
        _ = term.recv() => {
            stop.cancel();
            served.await
        }
    }
}

/// What requires a password of this file, and passes requests on to the port.
fn proxy(host: &str, port: u16, passwords: &Path) -> Result<(axum::Router, Secret), anyhow::Error> {
    let passwords = Secret::in_file(passwords).context("the passwords before OpenSearch")?;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let authority = Authority::try_from(format!("{host}:{port}"))?;
    let (asked, address) = (client.clone(), Uri::try_from(format!("http://{authority}{ANSWERS}"))?);
    let health = axum::routing::get(move || {
        let answer = asked.get(address.clone());
        async move { answer.await.map_or(StatusCode::SERVICE_UNAVAILABLE, |answer| answer.status()) }
    });
    let proxied = Arc::new(Proxied { client, authority, passwords: passwords.clone() });
    Ok((axum::Router::new().fallback(forward).with_state(proxied).route(HEALTH, health), passwords))
}

/// Serves until `stop`, and then until what is at work has ended.
async fn serve(
    listener: tokio::net::TcpListener,
    (router, passwords): (axum::Router, Secret),
    tls: &Tls,
    stop: CancellationToken,
) -> Result<(), anyhow::Error> {
    let certificate = tls.open(&Lifecycle::default())?;
    let tls = certificate.map(|certificate| certificate.acceptor(Speaks::Both)).transpose()?;
    let served = server::serve(listener, router, (BOUNDS, tls), stop.clone());
    tokio::join!(served, passwords.look_until(&stop)).0?;
    Ok(())
}

struct Proxied {
    client: Client<HttpConnector, Body>,
    authority: Authority,
    passwords: Secret,
}

impl Proxied {
    /// Whether one of the passwords makes this header.
    fn lets_in(&self, header: &[u8]) -> bool {
        let basic = |password: &str| format!("Basic {}", STANDARD.encode(format!("{USER}:{password}")));
        let takes = |password: &SecretString| {
            verify_slices_are_equal(header, basic(password.expose_secret()).as_bytes()).is_ok()
        };
        self.passwords.lines().iter().any(takes)
    }
}

async fn forward(State(proxied): State<Arc<Proxied>>, mut request: Request) -> Response {
    let mut logins = request.headers().get_all(AUTHORIZATION).iter();
    let login = logins.next().map(|login| login.as_bytes()).unwrap_or_default();
    if logins.next().is_some() || !proxied.lets_in(login) {
        return (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Basic realm=\"flotilla\"")]).into_response();
    }
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(proxied.authority.clone());
    let path = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let Ok(uri) = uri.path_and_query(path).build() else { return StatusCode::BAD_REQUEST.into_response() };
    *request.uri_mut() = uri;
    // Whatever the caller speaks.
    *request.version_mut() = Version::HTTP_11;
    request.headers_mut().remove(AUTHORIZATION);
    match proxied.client.request(request).await {
        Ok(response) => response.map(Body::new),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}
