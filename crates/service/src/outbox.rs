//! The end of every command: its events, its answer and its change are one commit; only then does anything leave the process.

use ::outbox::{Handle, NewEvent, Relay, RelayConfig, StreamSpec};
use contracts::events::EventType;
use contracts::{Envelope, EventId, envelope, subject};
use prost::Message as _;

use crate::call::{Call, Once};
use crate::idempotency::StoredResponse;
use crate::{Failure, Process, TenantTx, clock, config, notes, trace};

/// Where commands leave their events.
#[derive(Debug, Clone)]
pub struct Outbox {
    relay: Handle,
}

impl Outbox {
    /// Starts the relay of a service, which publishes to this stream, and takes events for it.
    ///
    /// # Errors
    /// The address of the database cannot be read.
    pub fn start(
        process: &Process,
        config: &config::Outbox,
        stream: StreamSpec,
        nats: async_nats::Client,
    ) -> Result<Self, anyhow::Error> {
        // Its session, its lease, and its parked events.
        let db = process.pool(&config.relay_database_url, &format!("{}-relay", process.name), 3)?;
        let relay = Relay::new(
            db,
            nats,
            RelayConfig {
                content_type: envelope::CONTENT_TYPE.to_owned(),
                hint_subject: format!("hint.outbox.{}", process.name),
                max_bytes: envelope::MAX_BYTES,
                retention_days: Some(i32::try_from(config.outbox_days)?),
                ..RelayConfig::from(stream)
            },
        );
        let handle = relay.handle();
        process.lifecycle.run("relay", |stop| relay.run(stop));
        Ok(Self::new(handle))
    }

    /// The outbox of a relay that already runs.
    #[must_use]
    pub const fn new(relay: Handle) -> Self {
        Self { relay }
    }

    /// Its relay, for observation.
    #[must_use]
    pub fn relay(&self) -> Handle {
        self.relay.clone()
    }

    /// Ends a command: appends the events in their order, stores the answer with the idempotency key, commits, and hands the events to the
    /// relay. Lock an aggregate's row before.
    ///
    /// # Errors
    /// Nothing was committed, or the outcome is not known; a repeat with the same key shows it.
    pub async fn commit<A: StoredResponse>(
        &self,
        mut tx: TenantTx,
        events: Vec<NewEvent>,
        answer: &A,
    ) -> Result<(), Failure> {
        if let Once::Key(attempt) = tx.once.clone() {
            attempt.store(&mut tx, answer.to_message().encode_to_vec()).await?;
        }
        let written: Vec<_> = events.iter().map(|event| event.id).collect();
        let mark = if events.is_empty() && notes::is_call() { tx.mark().await? } else { None };
        let last = self.relay.commit(tx, events, TenantTx::commit).await?;
        notes::wrote(written.into_iter());
        if let Some(place) = last.or(mark) {
            notes::stands_at(place);
        }
        Ok(())
    }
}

impl Call {
    /// An event that this call causes.
    pub fn envelope<D: EventType>(&self, data: D) -> Envelope<D> {
        let id = EventId::new(clock::new_id());
        Envelope {
            actor: Some(self.caller.actor.clone()),
            causationid: self.causation,
            correlationid: Some(self.correlation.clone()),
            traceparent: trace::traceparent(),
            ..Envelope::new(id, self.caller.tenant.clone(), data)
        }
    }
}

/// An event as the outbox takes it.
///
/// # Errors
/// It cannot be serialized.
pub fn new_event<D: serde::Serialize>(envelope: &Envelope<D>) -> Result<NewEvent, Failure> {
    Ok(NewEvent {
        id: envelope.id.uuid(),
        tenant: envelope.tenant.to_string(),
        aggregate_id: envelope.partitionkey.clone(),
        subject: subject::of(&envelope.event_type, &envelope.tenant),
        traceparent: envelope.traceparent.clone(),
        payload: serde_json::to_vec(envelope).map_err(Failure::internal)?,
    })
}

/// One event in two versions, while the older one is deprecated: each names the other, so that consumers count them as one.
///
/// # Errors
/// They cannot be serialized.
pub fn twins<Old: EventType, New: EventType>(
    mut old: Envelope<Old>,
    mut new: Envelope<New>,
) -> Result<Vec<NewEvent>, Failure> {
    (old.twinof, old.supersededby) = (Some(new.id), Some(New::TYPE.to_owned()));
    (new.twinof, new.supersedes) = (Some(old.id), Some(Old::TYPE.to_owned()));
    Ok(vec![new_event(&old)?, new_event(&new)?])
}
