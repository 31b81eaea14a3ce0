//! The harbour service: vessels, and the logbook of each.
//!
//! A request comes in at `grpc`, becomes domain types in `wire`, and runs one function of `commands`: one visible transaction that
//! checks `permissions`, loads from the store, decides in `vessel` or `logbook` (pure), saves, and appends the events of `outgoing` to the
//! outbox. An event comes in at `events`, and runs a command as well.

pub mod grpc;

mod wire;

pub mod commands;

pub mod permissions;

pub mod lists;

pub mod logbook;

pub mod vessel;

pub mod texts;

mod outgoing;

mod store_data;
pub mod store_logbook;
mod store_states;
pub mod store_vessel;

mod events;

mod operators;
mod schema;

use std::net::SocketAddr;

use clap::Args;
use proto::harbour::harbour_service_server::HarbourServiceServer;
use service::arguments::{ConfigErrors, Settings};
use service::migrations::Migrations;
use service::{Outbox, Process, Service, config, nats};

pub use schema::MIGRATIONS;

/// The program.
pub struct Program;

/// The configuration of the service.
#[derive(Debug, Clone, Args)]
pub struct Config {
    #[command(flatten)]
    pub common: config::Common,
    #[command(flatten)]
    pub database: config::Database,
    #[command(flatten)]
    pub outbox: config::Outbox,
    #[command(flatten)]
    pub nats: nats::Login,
    #[command(flatten)]
    pub handlers: config::Handlers,
    #[command(flatten)]
    pub pages: config::Pages,
}

impl Settings for Config {
    fn check(&self, problems: &mut ConfigErrors) {
        self.outbox.check(problems);
    }
}

/// The running service.
pub struct App {
    /// The address of its gRPC server.
    pub address: SocketAddr,
    /// Its relay.
    pub relay: outbox::Handle,
}

impl Service for Program {
    const NAME: &'static str = contracts::events::harbour::SERVICE;
    const ABOUT: &'static str = "Vessels and logbooks of all tenants: writes them, and publishes what happened to them";
    const MIGRATIONS: Option<Migrations> = Some(MIGRATIONS);
    type Config = Config;
    type App = App;

    async fn start(config: &Config, process: &Process) -> Result<App, anyhow::Error> {
        let db = process.database(&config.database, &config.common, &MIGRATIONS)?;
        let nats = process.nats(&config.nats).await?;
        let stream = fleet::stream(Self::NAME, config.outbox.stream_max_age(), config.outbox.stream_replicas);
        let outbox = Outbox::start(process, &config.outbox, stream, nats.clone())?;
        let (relay, app) = (outbox.relay(), commands::App { db, outbox });
        operators::serve(config, process, &app, nats)?;
        let revocations = events::handle(config, process, &app).await?;
        let service = HarbourServiceServer::new(grpc::Harbour { app, pages: process.page_tokens(&config.pages) });
        let address = service::grpc::serve(process, &config.common, proto::DESCRIBED, (service, revocations)).await?;
        Ok(App { address, relay })
    }
}
