//! Event handlers: an event of the stream becomes a call of a command. Only here is the event's tenant compared with its subject, and its
//! envelope typed.

use std::future::Future;

use authz::Caller;
use consumer::{Claim, Consumer, Event, Inbox, Mode};
use contracts::events::DecodeError;
use contracts::text::without_quotations;
use contracts::{Actor, Envelope, EventId, TenantId, UserId};
use futures::FutureExt as _;

use crate::call::{Call, Once};
use crate::{Code, Failure, Process, config, nats};

/// Where the events of a service's handlers come from, and what remembers the handled ones.
#[derive(Debug)]
pub struct Source<'a> {
    /// The name of the connection to NATS.
    pub name: String,
    /// The login of the service's consumer.
    pub login: nats::Login,
    /// The durable consumer.
    pub durable: consumer::Config,
    /// The service's own database, with the inbox.
    pub database: &'a config::Database,
    /// For how many days the inbox remembers a handled event.
    pub keep_days: u32,
}

/// Runs the handlers of a service until it stops: each event of a durable consumer becomes one call of `handler`, which claims it in the
/// inbox. An event whose data `decode` refuses is a dead letter; one of a type that it does not know needs nothing.
///
/// # Errors
/// An address or the credentials cannot be read.
pub async fn run<A, E, F>(
    process: &Process,
    source: Source<'_>,
    app: A,
    decode: fn(event_type: &str, data: &str) -> Result<Option<E>, DecodeError>,
    handler: fn(A, Call, E) -> F,
) -> Result<(), anyhow::Error>
where
    A: Clone + Send + Sync + 'static,
    E: Send + 'static,
    F: Future<Output = Result<(), consumer::Failure>> + Send + 'static,
{
    let Source { name, login, durable, database, keep_days } = source;
    // One connection for the lease, and one for each event that is handled at once.
    let Mode::Ordered { at_once } = durable.mode else {
        anyhow::bail!("the durable consumer {} is not one that handles in order", durable.durable);
    };
    let connections = u32::try_from(at_once + 1)?;
    let db = process.pool(&database.url, &durable.durable, connections)?;
    let inbox = Inbox { keep_days: i32::try_from(keep_days)?, ..Inbox::new(db) };
    let consumer = Consumer::new(process.nats_as(&name, &login).await?, durable);
    let service = process.acts_as()?;
    let handle = move |claim: Claim| {
        let read = Call::of_event(&service, &claim).and_then(|(call, envelope)| {
            let event = decode(&envelope.event_type, envelope.data);
            Ok((call, event.map_err(|error| consumer::Failure::Reject(reason(&error)))?))
        });
        let app = app.clone();
        async move {
            match read? {
                (call, Some(event)) => handler(app, call, event).await,
                (_, None) => Ok(()),
            }
        }
    };
    process.lifecycle.run("handlers", |stop| async move {
        consumer.run_claims(stop, inbox, |claim| handle(claim).boxed()).await;
    });
    Ok(())
}

/// The envelope of a delivered event; its data are unchanged.
///
/// # Errors
/// An attribute is missing or malformed, or names another tenant than the subject of the message: for a dead letter.
pub fn envelope(event: &Event) -> Result<Envelope<&str>, String> {
    fn read<T: std::str::FromStr<Err: std::fmt::Display>>(event: &Event, name: &str) -> Result<T, String> {
        event.attribute(name).parse().map_err(|error| format!("the attribute {name}: {error}"))
    }
    fn optional<T: std::str::FromStr<Err: std::fmt::Display>>(event: &Event, name: &str) -> Result<Option<T>, String> {
        if event.attribute(name).is_empty() { Ok(None) } else { read(event, name).map(Some) }
    }
    let tenant: TenantId = read(event, "tenant")?;
    let text = |name: &str| event.attribute(name).to_owned();
    let envelope = Envelope {
        specversion: text("specversion"),
        id: read(event, "id")?,
        source: text("source"),
        event_type: text("type"),
        subject: text("subject"),
        time: read(event, "time")?,
        datacontenttype: text("datacontenttype"),
        dataschema: text("dataschema"),
        sequence: text("sequence"),
        partitionkey: text("partitionkey"),
        tenant,
        // A spelling that only a newer release uses is no fault of the event.
        actor: event.attribute("actor").parse::<Actor>().ok(),
        causationid: event.attribute("causationid").parse::<EventId>().ok(),
        correlationid: optional(event, "correlationid")?,
        twinof: optional(event, "twinof")?,
        supersededby: optional(event, "supersededby")?,
        supersedes: optional(event, "supersedes")?,
        traceparent: optional(event, "traceparent")?,
        tracestate: optional(event, "tracestate")?,
        data: event.data.as_str(),
    };
    if event.nats_subject != contracts::subject::of(&envelope.event_type, &envelope.tenant) {
        return Err("the type or the tenant is not that of the subject it was published on".to_owned());
    }
    Ok(envelope)
}

/// The text of an error that may quote the input, without the quote.
#[must_use]
pub fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let why = error.source().map_or(String::new(), |source| format!(": {}", without_quotations(&source.to_string())));
    format!("{error}{why}")
}

impl Call {
    /// The call that a handler of this service makes for an event: in the event's tenant, as the service itself.
    ///
    /// # Errors
    /// The event cannot be handled: see [`envelope`].
    fn of_event<'a>(service: &UserId, claim: &'a Claim) -> Result<(Self, Envelope<&'a str>), consumer::Failure> {
        let envelope = envelope(claim.event()).map_err(consumer::Failure::Reject)?;
        let call = Self {
            caller: Caller::service(envelope.tenant.clone(), service.clone()),
            causation: Some(envelope.id),
            correlation: envelope.correlationid.clone().unwrap_or_else(|| envelope.id.to_string()),
            operator: None,
            once: Once::Event(claim.clone()),
        };
        Ok((call, envelope))
    }
}

/// A command that a handler called has failed: retry later, or dead-letter the event.
impl From<Failure> for consumer::Failure {
    fn from(failure: Failure) -> Self {
        let why = failure.source.as_ref().map_or(String::new(), |source| format!(": {source:#}"));
        let reason = format!("{} ({}){why}", failure.message, failure.reason);
        match failure.code {
            Code::Aborted | Code::Unavailable => Self::Away(reason),
            Code::ResourceExhausted | Code::DeadlineExceeded | Code::Internal => Self::Retry(reason),
            Code::InvalidArgument
            | Code::Unauthenticated
            | Code::PermissionDenied
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::Unimplemented => Self::Reject(reason),
        }
    }
}
