//! The configuration of services, in groups that a service takes as it needs them. `arguments` parses them.

use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use authz::{JwksSource, OPERATORS_AUDIENCE, Operators, SigningKeys, Verifier};
use clap::Args;

use crate::addresses::Addresses;
use crate::arguments::{ConfigErrors, Settings};
use crate::limits::{Allowance, Allowances};
use crate::secret::Secret;
use crate::tls::{Authorities, Tls};
use crate::{login, nats};

/// The configuration of every process.
#[derive(Debug, Clone, Args)]
pub struct Base {
    /// Address of the operations port: /metrics, /healthz, /readyz.
    #[arg(long, env = "FLOTILLA_OPS_LISTEN")]
    pub ops_listen: SocketAddr,
    /// Which release or commit this is, for log lines, metrics, /healthz and the story of a dead letter.
    #[arg(long, env = "FLOTILLA_RELEASE", default_value = env!("CARGO_PKG_VERSION"), value_parser = release)]
    pub release: String,
    /// Where to export spans to (OTLP over gRPC), for example http://127.0.0.1:4317; absent: nowhere.
    #[arg(long, env = "FLOTILLA_OTLP_ENDPOINT", value_parser = plain_http)]
    pub otlp_endpoint: Option<String>,
    /// Of which share of all traces, 0 to 1, the spans are exported and the lines are logged that tell of what went well.
    #[arg(long, env = "FLOTILLA_SAMPLE", default_value = "1", value_parser = share)]
    pub sample: f64,
    /// What to log: a level, or several as target=level, with commas.
    #[arg(long, env = "FLOTILLA_LOG", default_value = "info", value_parser = targets)]
    pub log: String,
    /// The certificate that it shows.
    #[command(flatten)]
    pub tls: Tls,
    /// Whose certificates it trusts.
    #[command(flatten)]
    pub authorities: Authorities,
}

fn release(text: &str) -> Result<String, &'static str> {
    let plain = |c: char| c.is_ascii_graphic() && c != ',';
    if text.is_empty() || text.len() > 100 || !text.chars().all(plain) {
        return Err("must be 1 to 100 visible ASCII characters without a comma");
    }
    Ok(text.to_owned())
}

fn plain_http(text: &str) -> Result<String, &'static str> {
    if text.starts_with("http://") { Ok(text.to_owned()) } else { Err("must start with http://") }
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("{text:?} is not a share from 0 to 1, such as 0.05"))
}

fn targets(text: &str) -> Result<String, tracing_subscriber::filter::ParseError> {
    text.parse::<tracing_subscriber::filter::Targets>().map(|_| text.to_owned())
}

/// The hosts of the development issuer and provider.
const DEVELOPMENT: &str = "flotilla.localhost";

/// Whose tokens are trusted.
#[derive(Debug, Clone, Args)]
pub struct Issuer {
    /// The issuer's key set: an http(s):// or file:// address.
    #[arg(long, env = "FLOTILLA_JWKS")]
    pub jwks: JwksSource,
    /// The issuer that tokens must name.
    #[arg(long = "issuer", env = "FLOTILLA_ISSUER")]
    pub name: String,
    /// The audience that operators' tokens must name, at the operations port.
    #[arg(long, env = "FLOTILLA_OPERATORS_AUDIENCE", default_value = OPERATORS_AUDIENCE)]
    pub operators_audience: String,
    /// Whether this is a developer's machine. Elsewhere the development issuer and provider, whose keys lie in a folder, are refused.
    #[arg(long, env = "FLOTILLA_LOCAL", default_value = "false", action = clap::ArgAction::Set)]
    pub local: bool,
}

impl Issuer {
    /// What verifies its tokens for this audience, without its keys yet.
    ///
    /// # Errors
    /// It is the development issuer, and this is no developer's machine; the client for the keys cannot be made.
    pub(crate) fn verifier(&self, audience: &str) -> Result<Verifier, anyhow::Error> {
        refuse_development(&self.name, self.local)?;
        Ok(Verifier::new(self.jwks.clone(), &self.name, audience)?)
    }

    /// What verifies operators' tokens, without its keys yet.
    ///
    /// # Errors
    /// As [`Issuer::verifier`].
    pub(crate) fn operators(&self) -> Result<Operators, anyhow::Error> {
        refuse_development(&self.name, self.local)?;
        Ok(Operators::new(self.jwks.clone(), &self.name, &self.operators_audience)?)
    }
}

/// Refuses an issuer of a developer's machine elsewhere: whoever has the folder with its keys is anybody.
///
/// # Errors
/// It is one, and this is no developer's machine.
pub fn refuse_development(issuer: &str, local: bool) -> Result<(), anyhow::Error> {
    let authority = issuer.split_once("://").map_or(issuer, |(_, rest)| rest);
    let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default().split(':').next().unwrap_or_default();
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    anyhow::ensure!(
        local || !(host == DEVELOPMENT || host.ends_with(&format!(".{DEVELOPMENT}"))),
        "{issuer} is trusted on a developer's machine alone: name the fleet's own, or say FLOTILLA_LOCAL=true"
    );
    Ok(())
}

/// The configuration of every service that callers of the fleet connect to.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Address that callers come to, for example 127.0.0.1:7101; port 0 picks a free one.
    #[arg(long, env = "FLOTILLA_LISTEN")]
    pub listen: SocketAddr,
    /// Whose tokens are trusted.
    #[command(flatten)]
    pub issuer: Issuer,
    /// The audience that access tokens must name.
    #[arg(long, env = "FLOTILLA_AUDIENCE", default_value = "flotilla")]
    pub audience: String,
    /// Whether answers name the release, in the header flotilla-release.
    #[arg(long, env = "FLOTILLA_RELEASE_HEADER", default_value = "false", action = clap::ArgAction::Set)]
    pub release_header: bool,
    /// What is let in there.
    #[command(flatten)]
    pub admission: Admission,
}

/// The highest rate: a rate finer than a microsecond is no limit.
const MAX_RATE: NonZeroU32 = match NonZeroU32::new(1_000_000) {
    Some(rate) => rate,
    None => NonZeroU32::MIN,
};

fn rate(text: &str) -> Result<NonZeroU32, String> {
    let rate = text.parse::<NonZeroU32>().ok().filter(|rate| *rate <= MAX_RATE);
    rate.ok_or_else(|| format!("must be 1 to {MAX_RATE}"))
}

/// The admission limits of a service's own server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub struct Admission {
    /// How many units of cost all calls of one tenant may spend in a second, in this process (flotilla.edge.v1.policy).
    #[arg(long, env = "FLOTILLA_TENANT_RATE", default_value = "2500", value_parser = rate)]
    pub tenant_rate: NonZeroU32,
    /// How many calls of one tenant may be at work at once, in this process; where it has a database, fewer than its connections.
    #[arg(long, env = "FLOTILLA_TENANT_AT_WORK", default_value = "8")]
    pub tenant_at_work: NonZeroU16,
    /// The same as FLOTILLA_TENANT_RATE, of one principal.
    #[arg(long, env = "FLOTILLA_PRINCIPAL_RATE", default_value = "2000", value_parser = rate)]
    pub principal_rate: NonZeroU32,
    /// The same as FLOTILLA_TENANT_AT_WORK, of one principal.
    #[arg(long, env = "FLOTILLA_PRINCIPAL_AT_WORK", default_value = "6")]
    pub principal_at_work: NonZeroU16,
    /// How many calls of all callers may be at work at once, in this process; half as many wait. Beyond, whoever has more than its share is
    /// refused with 503.
    #[arg(long, env = "FLOTILLA_AT_WORK", default_value = "128")]
    pub at_work: NonZeroU16,
    /// How many streams may be open at once, in this process: what callers watch. Fewer than connections, since each may have one of its own.
    #[arg(long, env = "FLOTILLA_STREAMS", default_value = "1000")]
    pub streams: NonZeroU16,
    /// The same of one tenant.
    #[arg(long, env = "FLOTILLA_TENANT_STREAMS", default_value = "500")]
    pub tenant_streams: NonZeroU16,
    /// The same of one principal.
    #[arg(long, env = "FLOTILLA_PRINCIPAL_STREAMS", default_value = "100")]
    pub principal_streams: NonZeroU16,
    /// How many connections callers may have open; when more wait, those at rest are closed.
    #[arg(long, env = "FLOTILLA_CONNECTIONS", default_value = "2000")]
    pub connections: NonZeroU16,
    /// Whether gRPC reflection is served, to anybody: by a service of what it serves, by the gateway of all that the fleet does.
    #[arg(long, env = "FLOTILLA_REFLECTION", default_value = "false", action = clap::ArgAction::Set)]
    pub reflection: bool,
}

impl Admission {
    /// Limits for tests: they admit every test's load.
    #[must_use]
    pub const fn wide() -> Self {
        let (rate, most) = (MAX_RATE, NonZeroU16::MAX);
        Self {
            tenant_rate: rate,
            tenant_at_work: most,
            principal_rate: rate,
            principal_at_work: most,
            at_work: most,
            streams: most,
            tenant_streams: most,
            principal_streams: most,
            connections: most,
            reflection: true,
        }
    }

    /// The limits of each caller.
    #[must_use]
    pub fn allowances(&self) -> Allowances {
        let allowance = |rate, at_work: NonZeroU16, streams: NonZeroU16| Allowance {
            rate,
            at_work: usize::from(at_work.get()),
            streams: usize::from(streams.get()),
        };
        Allowances {
            tenant: allowance(self.tenant_rate, self.tenant_at_work, self.tenant_streams),
            principal: allowance(self.principal_rate, self.principal_at_work, self.principal_streams),
            streams: usize::from(self.streams.get()),
            at_work: usize::from(self.at_work.get()),
        }
    }
}

impl Common {
    /// A configuration for tests: any free port of loopback, with limits that admit every test's load.
    #[must_use]
    pub fn on_loopback(jwks: JwksSource, issuer: &str, audience: &str) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            issuer: Issuer {
                jwks,
                name: issuer.to_owned(),
                operators_audience: OPERATORS_AUDIENCE.to_owned(),
                local: true,
            },
            audience: audience.to_owned(),
            release_header: true,
            admission: Admission::wide(),
        }
    }
}

/// The database of a service.
#[derive(Debug, Clone, Args)]
pub struct Database {
    /// The database, as the role `<service>_app`: postgres://user:password@host:port/name. Of several, a line each, the first is used that the
    /// database takes.
    #[arg(
        id = "database_url",
        long = "database-url",
        value_name = "URL",
        env = "FLOTILLA_DATABASE_URL",
        hide_env_values = true,
        value_parser = login::urls
    )]
    pub url: Secret,
    /// How many connections to the database to use at most.
    #[arg(
        id = "database_connections",
        long = "database-connections",
        value_name = "NUMBER",
        env = "FLOTILLA_DATABASE_CONNECTIONS",
        default_value = "16",
        value_parser = clap::value_parser!(u32).range(1..=1_000)
    )]
    pub connections: u32,
}

/// The outbox of a service, and the stream that its events go to.
#[derive(Debug, Clone, Args)]
pub struct Outbox {
    /// The database, as the role `<service>_relay`.
    #[arg(long, env = "FLOTILLA_RELAY_DATABASE_URL", hide_env_values = true, value_parser = login::urls)]
    pub relay_database_url: Secret,
    /// How long the stream is to keep events, in days; `flotilla provision` makes it so.
    #[arg(long, env = "FLOTILLA_STREAM_MAX_AGE_DAYS", default_value = "30",
        value_parser = clap::value_parser!(u32).range(1..=3_650))]
    pub stream_max_age_days: u32,
    /// On how many servers the stream is to keep each event: 1, 3 or 5.
    #[arg(long, env = "FLOTILLA_STREAM_REPLICAS", default_value = "1", value_parser = replicas)]
    pub stream_replicas: usize,
    /// How long the outbox keeps its rows, in days; at least as long as the stream keeps events.
    #[arg(long, env = "FLOTILLA_OUTBOX_DAYS", default_value = "31", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub outbox_days: u32,
}

fn replicas(text: &str) -> Result<usize, &'static str> {
    text.parse().ok().filter(|replicas| [1, 3, 5].contains(replicas)).ok_or("must be 1, 3 or 5")
}

impl Outbox {
    /// How long the stream is to keep events.
    #[must_use]
    pub fn stream_max_age(&self) -> Duration {
        days(self.stream_max_age_days)
    }

    /// Notes a problem if this is fewer days than the stream keeps events: an older event may still be delivered.
    pub fn outlives_the_stream(&self, variable: &str, days: u32, problems: &mut ConfigErrors) {
        if days < self.stream_max_age_days {
            problems.add(variable, format!("must not be less than the stream's {} days", self.stream_max_age_days));
        }
    }
}

impl Settings for Outbox {
    fn check(&self, problems: &mut ConfigErrors) {
        self.outlives_the_stream("FLOTILLA_OUTBOX_DAYS", self.outbox_days, problems);
    }
}

/// What the handlers of a service that publishes are configured by: it reads events by a login of their own.
#[derive(Debug, Clone, Args)]
pub struct Handlers {
    /// The credentials of the login by which its handlers read events.
    #[arg(long, env = "FLOTILLA_CONSUMER_NATS_CREDS", hide_env_values = true, value_parser = nats::credentials)]
    pub consumer_nats_creds: Secret,
}

/// Days as a duration.
#[must_use]
pub fn days(days: u32) -> Duration {
    Duration::from_secs(u64::from(days) * 86_400)
}

/// How a service calls others on behalf of its own callers.
#[derive(Debug, Clone, Default, Args)]
pub struct Calls {
    /// Where each gRPC service is that it calls, and identity, which it asks for tokens: flotilla.identity.v1.IdentityService=http://host:port
    /// (or https://), with commas between. Without it, it calls none.
    #[arg(long, env = "FLOTILLA_UPSTREAMS")]
    pub upstreams: Option<Addresses>,
    /// The keys by which it says to identity who it is, a line each: the base64 of an Ed25519 key in PKCS #8. The first signs.
    #[arg(long, env = "FLOTILLA_SERVICE_KEY", hide_env_values = true, value_parser = signing_keys)]
    pub service_key: Option<Secret>,
}

impl Settings for Calls {
    fn check(&self, problems: &mut ConfigErrors) {
        if self.upstreams.is_some() != self.service_key.is_some() {
            problems.add("FLOTILLA_SERVICE_KEY", "goes with FLOTILLA_UPSTREAMS: give both, or neither");
        }
    }
}

/// Parses keys that sign, a line each: the base64 of an Ed25519 key in PKCS #8. Later ones that are none do not take their place.
///
/// # Errors
/// There is none, or one cannot be read.
pub fn signing_keys(text: &str) -> Result<Secret, String> {
    Secret::given(text, |text| Ok(SigningKeys::read(text).map(drop)?))
}

/// The key for page tokens.
#[derive(Debug, Clone, Args)]
pub struct Pages {
    /// The key for page tokens, the same for all replicas. Of several, a line each, the first makes tokens, and all of them read.
    #[arg(long, env = "FLOTILLA_PAGE_TOKEN_KEY", hide_env_values = true)]
    pub page_token_key: Secret,
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_issuer_of_a_developers_machine_is_refused_elsewhere_however_it_is_spelled() {
        for name in [
            "https://issuer.flotilla.localhost",
            "http://flotilla.localhost:8080/x",
            "https://people.FLOTILLA.localhost.",
            "https://a:b@issuer.flotilla.localhost",
            "https://issuer.flotilla.localhost?x",
            "issuer.flotilla.localhost#x",
        ] {
            assert!(super::refuse_development(name, false).is_err(), "{name}");
            super::refuse_development(name, true).unwrap();
        }
        for name in
            ["https://issuer.acme.example", "https://flotilla.localhost.acme.example", "https://notflotilla.localhost"]
        {
            super::refuse_development(name, false).unwrap();
        }
    }
}
