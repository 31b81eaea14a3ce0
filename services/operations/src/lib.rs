//! The operations service: keeps dead letters beside the broker, and replays them as jobs.
//!
//! `events` stores what consumers report, `replay` runs jobs at the pace that `pace` (pure) gives, `letters` (pure)
//! reads what a letter says of itself. `operators` answers `flotilla dlq`.

pub mod letters;

pub mod pace;

pub mod store;

pub mod store_letters;

pub mod store_audit;

pub mod store_kept;

pub mod store_jobs;

pub mod store_range;

mod store_work;

mod events;

mod unsettled;

mod replay;

mod publish;

mod operators;

use clap::Args;
use consumer::{DeadLetterReader, RecordStreams, Replayer};
use service::arguments::Settings;
use service::migrations::Migrations;
use service::nats::Record;
use service::{Process, Service, clock, config, nats};

use crate::store::Store;

/// The program.
pub struct Program;

const MIGRATIONS: Migrations = Migrations::own(&store::MIGRATIONS);
/// The size of the operators' connection pool.
const OPERATORS: u32 = 4;

/// What the service is configured by.
#[derive(Debug, Clone, Args)]
pub struct Config {
    #[command(flatten)]
    pub database: config::Database,
    #[command(flatten)]
    pub nats: nats::Login,
    #[command(flatten)]
    pub issuer: config::Issuer,
}

impl Settings for Config {}

impl Service for Program {
    const NAME: &'static str = "operations";
    const ABOUT: &'static str = "Keeps dead letters beside the broker, and replays them as jobs";
    const MIGRATIONS: Option<Migrations> = Some(MIGRATIONS);
    type Config = Config;
    type App = ();

    async fn start(config: &Config, process: &Process) -> Result<(), anyhow::Error> {
        let Config { database, nats, issuer } = config;
        let store = Store(process.pool(&database.url, Self::NAME, database.connections)?);
        let nats = process.nats(nats).await?;
        let (kept, reader) = (store.clone(), DeadLetterReader::new(nats.clone(), RecordStreams::default(), Self::NAME));
        process.lifecycle.run("letters", |stop| async move {
            events::keep(&kept, &reader, clock::new_id(), &stop).await;
        });
        let (audited, record) = (store.clone(), Record::new(nats.clone(), publish::STREAM));
        process.lifecycle.run("audit", |stop| async move { publish::audit(&audited, &record, &stop).await });
        let runner = replay::Runner {
            store: store.clone(),
            replayer: Replayer::new(nats, RecordStreams::default()),
            holder: clock::new_id(),
        };
        process.lifecycle.run("jobs", |stop| async move { runner.run(&stop).await });
        let counted = store.clone();
        process.lifecycle.run("count of letters", |stop| async move { unsettled::count(&counted, &stop).await });
        let operated = Store(process.operators_pool(&database.url, OPERATORS)?);
        process.operate(issuer, operators::services(&operated))?;
        process.schema(database, &MIGRATIONS);
        process.watch("database", move || {
            let store = store.clone();
            async move { store.ping().await }
        });
        Ok(())
    }
}
