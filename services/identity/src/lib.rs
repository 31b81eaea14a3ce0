//! The identity service: tenants, their members, groups, invitations, keys of programs, and the fleet's own short-lived tokens.
//! A request comes in at `grpc`, becomes domain types in `wire`, and runs one function of the `commands`; `tokens` signs.

pub mod api_key;
pub mod commands;
pub mod commands_adoption;
pub mod commands_exchange;
pub mod commands_groups;
pub mod commands_invitations;
pub mod commands_operators;
pub mod commands_programs;
pub mod commands_tenant;
pub mod group;
pub mod grpc;
pub mod invitation;
pub mod member;
mod operators;
mod operators_tenants;
mod outgoing;
pub mod people;
pub mod permissions;
mod schema;
pub mod service_account;
pub mod store_api_key;
pub mod store_audit;
mod store_data;
pub mod store_group;
pub mod store_invitation;
pub mod store_member;
pub mod store_person;
pub mod store_service_account;
mod store_states;
pub mod store_tenant;
pub mod tenant;
pub mod texts;
pub mod tokens;
mod wire;
mod wire_answers;

use clap::Args;
use proto::identity::identity_service_server::IdentityServiceServer;
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
    pub pages: config::Pages,
    #[command(flatten)]
    pub people: people::People,
    #[command(flatten)]
    pub signing: tokens::Signing,
}

impl Settings for Config {
    fn check(&self, problems: &mut ConfigErrors) {
        self.outbox.check(problems);
    }
}

/// The running service: the address of its gRPC server, and its relay.
pub struct App {
    pub address: std::net::SocketAddr,
    pub relay: outbox::Handle,
}

impl Service for Program {
    const NAME: &'static str = contracts::events::identity::SERVICE;
    const ABOUT: &'static str = "Tenants, members, groups and keys; exchanges credentials for the fleet's tokens";
    const MIGRATIONS: Option<Migrations> = Some(MIGRATIONS);
    type Config = Config;
    type App = App;

    async fn start(config: &Config, process: &Process) -> Result<App, anyhow::Error> {
        let db = process.database(&config.database, &config.common, &MIGRATIONS)?;
        let nats = process.nats(&config.nats).await?;
        let stream = fleet::stream(Self::NAME, config.outbox.stream_max_age(), config.outbox.stream_replicas);
        let outbox = Outbox::start(process, &config.outbox, stream, nats.clone())?;
        let (relay, app) = (outbox.relay(), commands::App { db, outbox });
        operators::serve(config, process, &app, nats.clone())?;
        let server = IdentityServiceServer::new(grpc::Identity::of(config, process, app)?);
        let served = (server, service::revocations::Revocations::follow(process, nats));
        Ok(App { address: service::grpc::serve(process, &config.common, proto::DESCRIBED, served).await?, relay })
    }
}
