//! The search projector: events in, a full-text read model out, and the search over it.
//!
//! `events` turns events into documents, `store` accesses the index, `grpc` answers searches, which may wait for a change (`freshness`). The index is a copy: what
//! it holds follows from the events alone, and each document carries the version of the todo it shows.

pub mod events;

mod upkeep;

pub mod store;

mod store_mapping;

pub mod store_bulk;

pub mod store_rebuild;

mod store_documents;

mod operators;

mod freshness;

pub mod grpc;

pub mod permissions;

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use proto::search::search_service_server::SearchServiceServer;
use service::arguments::Settings;
use service::revocations::Revocations;
use service::secret::Secret;
use service::{Process, Service, config, nats};

/// The program.
pub struct Program;

/// The durable consumer that fills an index during a rebuild.
pub const REBUILDER: &str = fleet::REBUILDER;

/// The alias of an index during its rebuild, beside the one behind `alias` that is searched.
#[must_use]
pub fn rebuilt(alias: &str) -> String {
    format!("{alias}-rebuild")
}

/// What the service is configured by.
#[derive(Debug, Clone, Args)]
pub struct Config {
    #[command(flatten)]
    pub common: config::Common,
    #[command(flatten)]
    pub nats: nats::Login,
    #[command(flatten)]
    pub pages: config::Pages,
    /// OpenSearch, with the login that it wants: http://user:password@host:port.
    #[arg(long, env = "FLOTILLA_OPENSEARCH_URL", hide_env_values = true, value_parser = store::address)]
    pub opensearch_url: Secret,
    /// The alias of the index of todos; a test run has its own.
    #[arg(long, env = "FLOTILLA_TODO_INDEX", default_value = "todos")]
    pub todo_index: String,
    /// How often the index shows what was written, in milliseconds.
    #[arg(long, env = "FLOTILLA_REFRESH_MILLIS", default_value = "500")]
    pub refresh_millis: u64,
}

impl Settings for Config {}

impl Service for Program {
    /// Its durable consumer's name, too.
    const NAME: &'static str = fleet::PROJECTOR;
    const ABOUT: &'static str = "Keeps the search index true to the events, and answers searches";
    type Config = Config;
    /// Where its gRPC server is.
    type App = SocketAddr;

    async fn start(config: &Config, process: &Process) -> Result<SocketAddr, anyhow::Error> {
        let refresh = Duration::from_millis(config.refresh_millis);
        let index = store::Index::new(process, &config.opensearch_url, &config.todo_index, refresh)?;
        let nats = process.nats(&config.nats).await?;
        process.operate(&config.common.issuer, operators::services(&index))?;
        let revocations = Revocations::follow(process, nats.clone());
        let (is_whole, rewinder) = events::project(process, nats, &index);
        let freshness = freshness::Freshness::follow(process, rewinder, index.clone());
        let search = grpc::Search { index, is_whole, freshness, pages: process.page_tokens(&config.pages) };
        let service = SearchServiceServer::new(search);
        service::grpc::serve(process, &config.common, proto::DESCRIBED, (service, revocations)).await
    }
}
