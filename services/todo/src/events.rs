//! Event handlers: each runs a command, as the service itself.

use anyhow::Context as _;
use consumer::Failure as Unhandled;
use contracts::Envelope;
use contracts::events::todo::{self as event, CompletedV2, Event};
use serde_json::value::RawValue;
use service::handlers::{self, Source};
use service::live::Live;
use service::revocations::Revocations;
use service::{Call, Failure, Process, tenants_events};

use crate::Config;
use crate::commands::{self, App, Error};
use crate::recurrence::{Basis, Occurrence, Pattern, Recurrence};
use crate::texts::{Labels, Notes, Title};
use crate::todo::{Change, State, Todo};

/// The durable consumer of the handlers; its row is in the fleet's table.
const DURABLE: &str = "todo-recurrence";
/// That by which it learns which tenants are suspended.
const TENANTS: &str = "todo-tenants";

/// Runs the handlers until the service stops. By the same login it follows what identity takes away, and what callers watch.
///
/// # Errors
/// An address or the credentials cannot be read, or the table lacks a durable consumer.
pub(crate) async fn handle(
    config: &Config,
    process: &Process,
    app: &App,
) -> Result<(Revocations, Live<Change>), anyhow::Error> {
    tenants_events::follow(process, source(config, process, TENANTS)?, app.db.clone()).await?;
    handlers::run(process, source(config, process, DURABLE)?, app.clone(), Event::decode, on_event).await?;
    let login = config.nats.with(&config.handlers.consumer_nats_creds);
    let reader = process.nats_as(&fleet::consumer_login(process.name), &login).await?;
    let live = Live::follow(process, reader.clone(), process.name, change).await?;
    Ok((Revocations::follow(process, reader), live))
}

/// The change that an event is. Of twins the newer one counts, where this release knows it.
fn change(envelope: &Envelope<&RawValue>) -> Result<Option<Change>, anyhow::Error> {
    if envelope.supersededby.as_deref().is_some_and(|newer| event::TYPES.contains(&newer)) {
        return Ok(None);
    }
    // Its text without its source, which may quote a user's words.
    let event = Event::decode(&envelope.event_type, envelope.data.get());
    let Some(event) = event.map_err(|error| anyhow::anyhow!("{error}"))? else { return Ok(None) };
    let event::About::Todo(about) = event.about();
    if matches!(event, Event::Deleted(_)) {
        return Ok(Some(Change::Deleted(about.id, about.version)));
    }
    let todo = todo(about.clone()).map_err(|_| anyhow::anyhow!("its todo is none of this release"))?;
    Ok(Some(Change::Todo(Box::new(todo))))
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

/// Handles an event of the durable consumer `todo-recurrence`.
///
/// # Errors
/// Whether the event is delivered again or becomes a dead letter.
async fn on_event(app: App, call: Call, event: Event) -> Result<(), Unhandled> {
    match event {
        Event::Completed(completed) => on_completed(&app, &call, completed).await,
        // No command follows from it.
        Event::Created(_) | Event::Updated(_) | Event::Reopened(_) | Event::BecameDue(_) | Event::Deleted(_) => Ok(()),
    }
}

/// Creates the next occurrence of a completed recurring todo: once, however often the event is delivered.
async fn on_completed(app: &App, call: &Call, completed: CompletedV2) -> Result<(), Unhandled> {
    if completed.todo.recurrence.is_none() {
        return Ok(());
    }
    // The error text may quote a user's words.
    let todo = todo(completed.todo).map_err(|_| Unhandled::Reject("its todo is none that recurs here".to_owned()))?;
    let Some(next) = todo.next_of_series() else { return Ok(()) };
    match commands::create(app, call, next).await {
        Ok(_) | Err(Error::OccurrenceExists | Error::PredecessorErased) => Ok(()),
        Err(error) => Err(Failure::from(error).into()),
    }
}

/// The todo as an event carries it.
fn todo(todo: event::Todo) -> Result<Todo, anyhow::Error> {
    let event::Todo {
        id,
        title,
        notes,
        status,
        due_time,
        labels,
        assignee,
        recurrence,
        occurrence,
        create_time,
        update_time,
        complete_time,
        created_by,
        version,
    } = todo;
    let state = match (status, complete_time) {
        (event::Status::Open, None) => State::Open,
        (event::Status::Completed, Some(at)) => State::Completed { at },
        (status, at) => anyhow::bail!("its todo is {status:?}, completed at {at:?}"),
    };
    let read = |event::Recurrence { rule, time_zone: zone, basis, wall_time }| {
        let basis = match basis {
            event::Basis::DueTime => Basis::DueTime,
            event::Basis::Completion => Basis::Completion,
        };
        Ok::<_, anyhow::Error>(Recurrence { pattern: Pattern::parse(&rule, &zone, basis)?, wall_time })
    };
    Ok(Todo {
        id,
        title: Title::parse(&title)?,
        notes: Notes::parse(&notes)?,
        state,
        due_time,
        labels: Labels::parse(&labels)?,
        assignee,
        recurrence: recurrence.map(read).transpose()?,
        occurrence: occurrence.map(|event::Occurrence { series_id, number }| Occurrence { series: series_id, number }),
        create_time,
        update_time,
        created_by,
        version,
    })
}

#[cfg(test)]
mod tests {
    use contracts::events::Aggregate as _;
    use serde_json::{Value, json};

    use super::*;

    fn changed(event: &Value) -> Result<Option<Change>, anyhow::Error> {
        let text = event.to_string();
        change(&serde_json::from_str(&text).unwrap())
    }

    fn sample(event_type: &str) -> Value {
        let mut event = contracts::events::named("todo.deleted.v1").unwrap().sample.unwrap()();
        event["type"] = event_type.into();
        event
    }

    #[test]
    fn those_who_watch_hear_of_each_event_once_or_are_reset() {
        let (id, version) = (event::Todo::example().id, event::Todo::example().version);
        assert_eq!(changed(&sample("todo.deleted.v1")).unwrap(), Some(Change::Deleted(id, version)));
        assert!(matches!(changed(&sample("todo.updated.v1")), Ok(Some(Change::Todo(todo))) if todo.id == id));
        // Of a newer release.
        assert_eq!(changed(&sample("todo.archived.v1")).unwrap(), None);
        let mut twin = sample("todo.updated.v1");
        twin["supersededby"] = "todo.completed.v2".into();
        assert_eq!(changed(&twin).unwrap(), None, "its twin is heard");
        twin["supersededby"] = "todo.updated.v9".into();
        assert!(changed(&twin).unwrap().is_some(), "its twin is not known here");
        for (field, wrong) in [("version", json!("three")), ("title", json!("")), ("status", json!("mislaid"))] {
            let mut event = sample("todo.updated.v1");
            event["data"]["todo"][field] = wrong;
            let error = format!("{:#}", changed(&event).unwrap_err());
            assert!(!error.contains("mislaid") && !error.contains("three"), "it quotes nothing: {error}");
        }
    }
}
