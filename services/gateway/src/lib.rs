//! The gateway: HTTP/JSON, gRPC and gRPC-Web at the edge, gRPC inside. A new RPC with its options
//! `google.api.http` and `flotilla.edge.v1.policy` needs no code here.
//!
//! `edge` lets calls in and sends them. `exchange` makes of a caller's credential a token of the fleet's. `http` takes a request through `routes` (RPC), `request` and `form` (body, headers), `transcode` and `fields` (JSON to message and back), `upstream` (call), `events` (streams)
//! and `problem` (what went wrong, RFC 9457). `frames` passes a call of gRPC on as it is. `browsers` says who may read and keep an answer, `rates` what is left of a caller's rates. `template` is the path-template language of google/api/http.proto.

pub mod browsers;

pub mod http;

mod edge;

mod exchange;

mod request;

mod fields;

mod form;

mod frames;

mod health;

mod json;

mod events;

mod described;

pub mod openapi;

mod pages;

pub mod routes;

pub mod template;

pub mod transcode;

pub mod upstream;

pub mod problem;

mod promises;

mod rates;

use std::net::SocketAddr;

use browsers::Origins;
use clap::Args;
use routes::Routes;
use service::addresses::Addresses;
use service::arguments::Settings;
use service::secret::Secret;
use service::upstreams::Upstreams;
use service::{Process, Service, config};

/// The program.
pub struct Program;

/// What the gateway is configured by.
#[derive(Debug, Clone, Args)]
pub struct Config {
    #[command(flatten)]
    pub common: config::Common,
    /// Where each gRPC service is: flotilla.todo.v1.TodoService=http://host:port (or https://), with commas between. A service that is named several
    /// times has so many replicas; so has one whose host is a name with several addresses.
    #[arg(long, env = "FLOTILLA_UPSTREAMS", value_parser = upstream::addresses)]
    pub upstreams: Addresses,
    /// The people's OpenID provider, as its tokens name it: they are exchanged for the fleet's.
    #[arg(long, env = "FLOTILLA_PROVIDER")]
    pub provider: String,
    /// How many proxies stand in front, each of which adds the address of its client to X-Forwarded-For. Without any, the header is ignored.
    #[arg(long, env = "FLOTILLA_PROXIES", default_value = "0")]
    pub proxies: u8,
    /// The Redis that shares callers' rates among all gateways, as rediss://user:password@host:port. Without it each gateway has its own.
    #[arg(long, env = "FLOTILLA_REDIS_URL", hide_env_values = true)]
    pub redis_url: Option<Secret>,
    /// The origins whose pages may call, with commas between, as in `https://app.example.com`. `*` is any.
    #[arg(long, env = "FLOTILLA_CORS_ORIGINS", default_value = "")]
    pub cors_origins: Origins,
}

impl Settings for Config {}

impl Service for Program {
    const NAME: &'static str = "gateway";
    const ABOUT: &'static str =
        "The fleet's edge: HTTP/JSON and gRPC in, gRPC to the services, driven by the proto annotations";
    type Config = Config;
    /// Where its HTTP server is.
    type App = SocketAddr;

    async fn start(config: &Config, process: &Process) -> Result<SocketAddr, anyhow::Error> {
        let upstreams = Upstreams::new(process, &config.upstreams)?;
        http::serve(process, config, Routes::fleet(), upstreams).await
    }
}
