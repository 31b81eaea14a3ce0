//! Configuration: flags and environment, secrets also from files, checked as a whole before any port is bound.

use std::fmt::Display;
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use authz::JwksSource;
use clap::Args;
use http::HeaderValue;
use secrecy::SecretString;

use crate::limits::{Allowance, Allowances};
use crate::nats::{self, Login};

/// Everything that is wrong with a configuration, a line each.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError(Vec<String>);

impl Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} wrong value(s) in the configuration:", self.0.len())?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigError {}

/// Collects what is wrong, so that all of it is told at once.
#[derive(Debug, Default)]
pub struct Problems(Vec<String>);

impl Problems {
    /// Parses a value, or notes what is wrong with it.
    pub fn parse<T: FromStr<Err: Display>>(&mut self, name: &str, value: Option<&str>) -> Option<T> {
        let Some(value) = value else {
            self.0.push(format!("{name}: is missing"));
            return None;
        };
        value.parse().map_err(|error| self.0.push(format!("{name}: {error}"))).ok()
    }

    /// A secret from its variable or from the file that `<name>_FILE` names; one of the two, not both.
    pub fn secret(&mut self, name: &str, value: Option<&str>, file: Option<&Path>) -> Option<SecretString> {
        match (value, file) {
            (Some(value), None) => Some(value.to_owned().into()),
            (None, Some(path)) => match std::fs::read_to_string(path) {
                Ok(text) => Some(text.trim_end().to_owned().into()),
                Err(error) => {
                    self.0.push(format!("{name}_FILE: {}: {error}", path.display()));
                    None
                }
            },
            (Some(_), Some(_)) => {
                self.0.push(format!("{name}: is set, and {name}_FILE too: set one of them"));
                None
            }
            (None, None) => {
                self.0.push(format!("{name}: is missing: set it, or {name}_FILE to the file that holds it"));
                None
            }
        }
    }

    /// Where NATS is, and the credentials file; both must be set, and the file be there.
    pub fn nats(&mut self, url: Option<&str>, credentials: Option<&Path>) -> Option<Login> {
        match url.map(nats::addresses) {
            None => self.0.push("FLOTILLA_NATS_URL: is missing: set it to nats://host:port".to_owned()),
            Some(Err(error)) => self.0.push(format!("FLOTILLA_NATS_URL: {error:#}")),
            Some(Ok(_)) => {}
        }
        let credentials = self.file("FLOTILLA_NATS_CREDS", credentials);
        Some(Login { url: url?.to_owned(), credentials: credentials? })
    }

    /// A file that is there.
    pub fn file(&mut self, name: &str, path: Option<&Path>) -> Option<PathBuf> {
        let Some(path) = path else {
            self.0.push(format!("{name}: is missing: set it to the path of a file"));
            return None;
        };
        match std::fs::metadata(path) {
            Ok(_) => Some(path.to_owned()),
            Err(error) => {
                self.0.push(format!("{name}: {}: {error}", path.display()));
                None
            }
        }
    }

    /// Notes a problem.
    pub fn add(&mut self, problem: String) {
        self.0.push(problem);
    }

    /// The configuration, if nothing was wrong with it.
    ///
    /// # Errors
    /// Tells everything that was wrong.
    pub fn finish<T>(self, config: Option<T>) -> Result<T, ConfigError> {
        match config {
            Some(config) if self.0.is_empty() => Ok(config),
            _ => Err(ConfigError(self.0)),
        }
    }
}

/// What a process logs and exports, and as which release.
#[derive(Debug, Clone, Args)]
pub struct TelemetryArgs {
    /// Which release or commit this is, for log lines, metrics, /healthz and the story of a dead letter.
    #[arg(long, env = "FLOTILLA_RELEASE", default_value = env!("CARGO_PKG_VERSION"))]
    pub release: String,
    /// Where to export spans to (OTLP over gRPC), for example http://127.0.0.1:4317; absent: nowhere.
    #[arg(long, env = "FLOTILLA_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// Of which share of all traces, 0 to 1, the spans are exported and the lines are logged that tell of what went well.
    #[arg(long, env = "FLOTILLA_SAMPLE", default_value = "1")]
    pub sample: String,
    /// What to log: a level, or several as target=level, with commas.
    #[arg(long, env = "FLOTILLA_LOG", default_value = "info")]
    pub log: String,
}

impl TelemetryArgs {
    /// [`Self::sample`] as a number; None when it is no share.
    #[must_use]
    pub fn share(&self) -> Option<f64> {
        self.sample.parse().ok().filter(|share| (0.0..=1.0).contains(share))
    }

    /// Checks the values.
    pub fn check(&self, problems: &mut Problems) {
        if let Some(endpoint) = &self.otlp_endpoint
            && !endpoint.starts_with("http://")
        {
            problems.add("FLOTILLA_OTLP_ENDPOINT: must start with http://".to_owned());
        }
        let plain = |c: char| c.is_ascii_graphic() && c != ',';
        if self.release.is_empty() || self.release.len() > 100 || !self.release.chars().all(plain) {
            problems.add("FLOTILLA_RELEASE: must be 1 to 100 visible ASCII characters without a comma".to_owned());
        }
        if self.share().is_none() {
            problems.add(format!("FLOTILLA_SAMPLE: {:?} is not a share from 0 to 1, such as 0.05", self.sample));
        }
        if let Err(error) = self.log.parse::<tracing_subscriber::filter::Targets>() {
            problems.add(format!("FLOTILLA_LOG: {error}"));
        }
    }
}

/// What every service is told.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// See [`TelemetryArgs`].
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
    /// Address of the service's own door, for example 127.0.0.1:7101; port 0 picks a free one.
    #[arg(long, env = "FLOTILLA_LISTEN")]
    pub listen: Option<String>,
    /// Address of the operations port: /metrics, /healthz, /readyz.
    #[arg(long, env = "FLOTILLA_OPS_LISTEN")]
    pub ops_listen: Option<String>,
    /// The issuer's key set: an http(s):// or file:// address.
    #[arg(long, env = "FLOTILLA_JWKS")]
    pub jwks: Option<String>,
    /// The issuer that access tokens must name.
    #[arg(long, env = "FLOTILLA_ISSUER")]
    pub issuer: Option<String>,
    /// The audience that access tokens must name.
    #[arg(long, env = "FLOTILLA_AUDIENCE", default_value = "flotilla")]
    pub audience: String,
    /// How many units of cost all calls of one tenant may spend in a second, in this process (flotilla.edge.v1.policy).
    #[arg(long, env = "FLOTILLA_TENANT_RATE", default_value = "2500")]
    pub tenant_rate: String,
    /// How many calls of one tenant may be at work at once, in this process; where it has a database, fewer than its connections.
    #[arg(long, env = "FLOTILLA_TENANT_AT_WORK", default_value = "8")]
    pub tenant_at_work: String,
    /// The same as FLOTILLA_TENANT_RATE, of one principal.
    #[arg(long, env = "FLOTILLA_PRINCIPAL_RATE", default_value = "2000")]
    pub principal_rate: String,
    /// The same as FLOTILLA_TENANT_AT_WORK, of one principal.
    #[arg(long, env = "FLOTILLA_PRINCIPAL_AT_WORK", default_value = "6")]
    pub principal_at_work: String,
    /// How many connections may be open at the service's own door; when more wait, those at rest are closed.
    #[arg(long, env = "FLOTILLA_CONNECTIONS", default_value = "2000")]
    pub connections: String,
    /// Whether gRPC reflection is served, to anybody; the gateway has none.
    #[arg(long, env = "FLOTILLA_REFLECTION", default_value = "false", action = clap::ArgAction::Set)]
    pub reflection: bool,
    /// Whether answers name the release, in the header flotilla-release.
    #[arg(long, env = "FLOTILLA_RELEASE_HEADER", default_value = "false", action = clap::ArgAction::Set)]
    pub release_header: bool,
}

/// [`CommonArgs`], checked.
#[derive(Debug, Clone)]
pub struct Common {
    /// See [`CommonArgs::listen`].
    pub listen: SocketAddr,
    /// See [`CommonArgs::ops_listen`].
    pub ops_listen: SocketAddr,
    /// See [`CommonArgs::jwks`].
    pub jwks: JwksSource,
    /// See [`CommonArgs::issuer`].
    pub issuer: String,
    /// See [`CommonArgs::audience`].
    pub audience: String,
    /// See [`TelemetryArgs::release`].
    pub release: String,
    /// See [`CommonArgs::release_header`].
    pub release_header: bool,
    /// What is let in at the service's own door.
    pub door: Door,
}

/// The highest rate: what is finer than a microsecond is no limit.
const MAX_RATE: NonZeroU32 = match NonZeroU32::new(1_000_000) {
    Some(rate) => rate,
    None => NonZeroU32::MIN,
};

/// What is let in at a service's own door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Door {
    /// What each caller may have.
    pub allowances: Allowances,
    /// How many connections may be open.
    pub connections: usize,
    /// Whether gRPC reflection is served.
    pub reflection: bool,
}

impl Door {
    /// One that lets in what any test asks for.
    #[must_use]
    pub const fn wide() -> Self {
        let all = Allowance { rate: MAX_RATE, at_work: 1_000 };
        Self { allowances: Allowances { tenant: all, principal: all }, connections: 1_000, reflection: true }
    }
}

impl Common {
    /// One for tests: on any free port of loopback, with a door that lets in what any test asks for.
    #[must_use]
    pub fn on_loopback(jwks: JwksSource, issuer: &str, audience: &str) -> Self {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            listen: any_port,
            ops_listen: any_port,
            jwks,
            issuer: issuer.to_owned(),
            audience: audience.to_owned(),
            release: "test".to_owned(),
            release_header: true,
            door: Door::wide(),
        }
    }

    /// The release as a header of an answer, where answers are to name it.
    #[must_use]
    pub fn release_header(&self) -> Option<HeaderValue> {
        self.release_header.then(|| HeaderValue::try_from(self.release.as_str()).ok()).flatten()
    }
}

impl CommonArgs {
    /// Checks the values every service has.
    pub fn check(&self, problems: &mut Problems) -> Option<Common> {
        let listen = problems.parse("FLOTILLA_LISTEN", self.listen.as_deref());
        let ops_listen = problems.parse("FLOTILLA_OPS_LISTEN", self.ops_listen.as_deref());
        let jwks = problems.parse("FLOTILLA_JWKS", self.jwks.as_deref());
        let issuer = problems.parse::<String>("FLOTILLA_ISSUER", self.issuer.as_deref());
        let door = self.door(problems);
        self.telemetry.check(problems);
        Some(Common {
            listen: listen?,
            ops_listen: ops_listen?,
            jwks: jwks?,
            issuer: issuer?,
            audience: self.audience.clone(),
            release: self.telemetry.release.clone(),
            release_header: self.release_header,
            door: door?,
        })
    }

    fn door(&self, problems: &mut Problems) -> Option<Door> {
        let mut allowance = |scope: &str, rate: &str, at_work: &str| {
            let rate = problems.parse::<NonZeroU32>(&format!("FLOTILLA_{scope}_RATE"), Some(rate));
            if rate.is_some_and(|rate| rate > MAX_RATE) {
                problems.add(format!("FLOTILLA_{scope}_RATE: must be 1 to {MAX_RATE}"));
            }
            let at_work = problems.parse::<NonZeroU16>(&format!("FLOTILLA_{scope}_AT_WORK"), Some(at_work));
            Some(Allowance { rate: rate?, at_work: usize::from(at_work?.get()) })
        };
        let tenant = allowance("TENANT", &self.tenant_rate, &self.tenant_at_work);
        let principal = allowance("PRINCIPAL", &self.principal_rate, &self.principal_at_work);
        let connections = problems.parse::<NonZeroU16>("FLOTILLA_CONNECTIONS", Some(&self.connections));
        Some(Door {
            allowances: Allowances { tenant: tenant?, principal: principal? },
            connections: usize::from(connections?.get()),
            reflection: self.reflection,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_value_is_told_at_once() {
        let mut problems = Problems::default();
        let port = problems.parse::<u16>("PORT", Some("many"));
        let host = problems.parse::<SocketAddr>("HOST", None);
        problems.secret("PASSWORD", None, Some(Path::new("/does/not/exist")));
        problems.secret("KEY", Some("a"), Some(Path::new("b")));
        let error = problems.finish(port.zip(host)).unwrap_err().to_string();
        for part in ["4 wrong", "PORT: ", "HOST: is missing", "PASSWORD_FILE: /does/not/exist", "KEY: is set, and"] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        let secret = Problems::default().secret("KEY", Some("hunter2"), None);
        assert!(!format!("{secret:?}").contains("hunter2"));
    }
}
