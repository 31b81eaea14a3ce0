//! The todo service, the exemplar: every pattern of the fleet appears here first.
//!
//! A request enters at `grpc`, becomes domain types in `wire`, and runs one function of `commands`: one visible transaction. It asks
//! `permissions`, loads from `store`, decides in `todo` (pure), saves, and appends the events of `outgoing` to the outbox.

pub mod commands;
mod events;
pub mod grpc;
pub mod lists;
mod operators;
mod outgoing;
pub mod permissions;
pub mod recurrence;
mod schedule;
mod schema;
pub mod store;
mod store_data;
mod store_states;
pub mod texts;
pub mod todo;
mod wire;

use std::net::SocketAddr;

use clap::Args;
use proto::todo::todo_service_server::TodoServiceServer;
use service::arguments::{ConfigErrors, Settings};
use service::live::Live;
use service::members::Directory;
use service::migrations::Migrations;
use service::{Outbox, Process, Service, config, nats};

pub use schema::MIGRATIONS;

/// The service's program.
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
    #[command(flatten)]
    pub calls: config::Calls,
    /// After how many days what a deleted todo held is removed; not before the stream has forgotten its events.
    #[arg(long, env = "FLOTILLA_DELETED_DAYS", default_value = "31", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub deleted_days: u32,
}

impl Settings for Config {
    fn check(&self, problems: &mut ConfigErrors) {
        self.outbox.check(problems);
        self.calls.check(problems);
        self.outbox.outlives_the_stream("FLOTILLA_DELETED_DAYS", self.deleted_days, problems);
    }
}

/// The running service.
pub struct App {
    /// The address of its gRPC server.
    pub address: SocketAddr,
    /// Its relay.
    pub relay: outbox::Handle,
    /// What its callers watch.
    pub live: Live<todo::Change>,
}

impl Service for Program {
    const NAME: &'static str = contracts::events::todo::SERVICE;
    const ABOUT: &'static str = "Todos of all tenants: writes them, and publishes what happened to them";
    const MIGRATIONS: Option<Migrations> = Some(MIGRATIONS);
    type Config = Config;
    type App = App;

    async fn start(config: &Config, process: &Process) -> Result<App, anyhow::Error> {
        let db = process.database(&config.database, &config.common, &MIGRATIONS)?;
        let nats = process.nats(&config.nats).await?;
        let stream = fleet::stream(Self::NAME, config.outbox.stream_max_age(), config.outbox.stream_replicas);
        let outbox = Outbox::start(process, &config.outbox, stream, nats.clone())?;
        let directory = Directory::of(process, &config.calls, &config.common)?;
        let (relay, app) = (outbox.relay(), commands::App { db, outbox, directory });
        operators::serve(config, process, &app, nats)?;
        let (revocations, live) = events::handle(config, process, &app).await?;
        schedule::run(process, &app, config::days(config.deleted_days))?;
        let pages = process.page_tokens(&config.pages);
        let service = TodoServiceServer::new(grpc::Todos { app, live: live.clone(), pages });
        let address = service::grpc::serve(process, &config.common, proto::DESCRIBED, (service, revocations)).await?;
        Ok(App { address, relay, live })
    }
}
