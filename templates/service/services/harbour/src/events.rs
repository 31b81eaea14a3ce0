//! Handlers of events: each runs a command, as the service itself.

use anyhow::Context as _;
use consumer::Failure as Unhandled;
use contracts::events::harbour::{Event, VesselCreatedV1, VesselDeletedV1};
use service::handlers::{self, Source};
use service::revocations::Revocations;
use service::{Call, Failure, Process, tenants_events};

use crate::Config;
use crate::commands::{self, App, Error};

/// The durable consumer of the handlers; its row is in the fleet's table.
const DURABLE: &str = "harbour-logbooks";
/// That by which it learns which tenants are suspended.
const TENANTS: &str = "harbour-tenants";

/// Runs the handlers until the service stops, and by the same login follows what identity takes away.
///
/// # Errors
/// An address or the credentials cannot be read, or the table lacks a durable consumer.
pub(crate) async fn handle(config: &Config, process: &Process, app: &App) -> Result<Revocations, anyhow::Error> {
    tenants_events::follow(process, source(config, process, TENANTS)?, app.db.clone()).await?;
    handlers::run(process, source(config, process, DURABLE)?, app.clone(), Event::decode, on_event).await?;
    let login = config.nats.with(&config.handlers.consumer_nats_creds);
    Ok(Revocations::follow(process, process.nats_as(&fleet::consumer_login(process.name), &login).await?))
}

/// Where the events of a durable consumer come from.
fn source<'a>(config: &'a Config, process: &Process, durable: &str) -> Result<Source<'a>, anyhow::Error> {
    let durable = fleet::durable(durable).context("the fleet's table lacks the durable consumer")?;
    Ok(Source {
        name: fleet::consumer_login(process.name),
        login: config.nats.with(&config.handlers.consumer_nats_creds),
        durable: durable.config(process.version()),
        database: &config.database,
        keep_days: config.outbox.outbox_days,
    })
}

/// Handles an event of the durable consumer.
///
/// # Errors
/// Says whether the event is redelivered or becomes a dead letter.
async fn on_event(app: App, call: Call, event: Event) -> Result<(), Unhandled> {
    match event {
        Event::VesselCreated(created) => on_created(&app, &call, created).await,
        Event::VesselDeleted(deleted) => on_deleted(&app, &call, deleted).await,
        // Nothing follows from it.
        Event::VesselUpdated(_) | Event::LogbookCreated(_) | Event::LogbookUpdated(_) | Event::LogbookDeleted(_) => Ok(()),
    }
}

/// A created vessel gets one logbook, however often the event comes.
async fn on_created(app: &App, call: &Call, created: VesselCreatedV1) -> Result<(), Unhandled> {
    match commands::create_logbook(app, call, created.vessel.id).await {
        // It has one already, or is gone by now.
        Ok(_) | Err(Error::LogbookExists | Error::NoVessel(_)) => Ok(()),
        Err(error) => Err(Failure::from(error).into()),
    }
}

/// A deleted vessel loses its logbook.
async fn on_deleted(app: &App, call: &Call, deleted: VesselDeletedV1) -> Result<(), Unhandled> {
    Ok(commands::delete_logbook(app, call, deleted.vessel.id).await.map_err(Failure::from)?)
}
