//! The gateway: HTTP/JSON at the edge, gRPC inside. A new RPC with its options
//! `google.api.http` and `flotilla.edge.v1.policy` needs no code here.
//!
//! `http` takes a request through `routes` (which RPC), `request` (its body and headers), `transcode` (JSON to message and back), `upstream` (the call)
//! and `problem` (what went wrong, RFC 9457). `template` is the path-template language of google/api/http.proto.

pub mod http;

mod request;

mod json;

pub mod routes;

pub mod template;

pub mod transcode;

pub mod upstream;

pub mod problem;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use authz::Verifier;
use clap::Args;
use service::config::{Common, CommonArgs, ConfigError, Problems};
use service::ops::{self, Readiness};
use service::telemetry::Telemetry;
use service::{Lifecycle, retry};

/// The service's name.
pub const NAME: &str = "gateway";

/// How the gateway is told what it needs.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// What every service is told.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Where each gRPC service is: flotilla.todo.v1.TodoService=http://host:port, with commas between. A service that is named several
    /// times has so many replicas; so has one whose host is a name with several addresses.
    #[arg(long, env = "FLOTILLA_UPSTREAMS", value_delimiter = ',')]
    upstreams: Vec<String>,
}

/// [`ConfigArgs`], checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// What every service is told.
    pub common: Common,
    /// The addresses of each gRPC service, by its full name.
    pub upstreams: BTreeMap<String, Vec<String>>,
}

impl Config {
    /// Checks everything, before any port is bound.
    ///
    /// # Errors
    /// Tells every wrong value.
    pub fn check(args: &ConfigArgs) -> Result<Self, ConfigError> {
        let mut problems = Problems::default();
        let config = Self::parse(args, &mut problems);
        problems.finish(config)
    }

    fn parse(args: &ConfigArgs, problems: &mut Problems) -> Option<Self> {
        let common = args.common.check(problems);
        let mut upstreams: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for upstream in &args.upstreams {
            match upstream.split_once('=') {
                Some((name, address)) if proto::POOL.get_service_by_name(name).is_none() => {
                    problems.add(format!("FLOTILLA_UPSTREAMS: there is no service {name} (for {address})"));
                }
                Some((name, address)) if address.starts_with("http://") => {
                    upstreams.entry(name.to_owned()).or_default().push(address.to_owned());
                }
                _ => problems.add(format!("FLOTILLA_UPSTREAMS: {upstream} is not <service>=http://<host>:<port>")),
            }
        }
        for route in routes::all() {
            if !upstreams.contains_key(route.service()) {
                problems.add(format!("FLOTILLA_UPSTREAMS: names no address for {}", route.service()));
                upstreams.insert(route.service().to_owned(), Vec::new());
            }
        }
        Some(Self { common: common?, upstreams })
    }
}

/// Runs the gateway to its end.
///
/// # Errors
/// Fails when it cannot start.
pub async fn serve(config: Config, args: &CommonArgs) -> Result<ExitCode, anyhow::Error> {
    let telemetry = Telemetry::init(NAME, &args.telemetry)?;
    let lifecycle = Lifecycle::default();
    let readiness = Readiness::default();
    let (release, metrics) = (&config.common.release, Some(telemetry.metrics()));
    ops::serve(&lifecycle, config.common.ops_listen, readiness.clone(), release, metrics).await?;
    let address = build(&config, &lifecycle, &readiness).await?;
    tracing::info!(%address, "serving");
    let code = lifecycle.run_to_end().await;
    telemetry.flush().await;
    Ok(code)
}

/// Starts everything and tells where the door is; the tests start exactly this.
///
/// # Errors
/// Fails when a port cannot be bound or an address cannot be read. An upstream that is down is waited for.
pub async fn build(config: &Config, lifecycle: &Lifecycle, readiness: &Readiness) -> Result<SocketAddr, anyhow::Error> {
    let verifier = Arc::new(Verifier::new(config.common.jwks.clone(), &config.common.issuer, &config.common.audience)?);
    let upstreams = upstream::Upstreams::new(lifecycle, &config.upstreams)?;
    readiness.set("keys", false);
    let (stop, ready, keys) = (lifecycle.stopping(), readiness.clone(), Arc::clone(&verifier));
    lifecycle.spawn("keys", async move {
        let keys = retry::until_it_works("the issuer's keys", || keys.refresh());
        if stop.run_until_cancelled(keys).await.is_some() {
            ready.set("keys", true);
        }
        stop.cancelled().await;
        Ok::<_, anyhow::Error>(())
    });
    http::serve(lifecycle, &config.common, readiness.clone(), verifier, upstreams).await
}
