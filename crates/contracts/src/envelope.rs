//! The envelope of every event: CloudEvents 1.0 in structured JSON
//! (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md>).

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::event_type::{self, Aggregate as _, EventType};
use crate::{Actor, ActorKind, EventId, TenantId, UserId, actor};

/// The `content-type` header of an event on NATS.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";

/// The largest event, in bytes: what every CloudEvents intermediary must forward.
pub const MAX_BYTES: usize = 64 * 1024;

/// Where the JSON Schema of an event type is named; the schema's `$id`.
#[must_use]
pub fn schema_id(event_type: &str) -> String {
    format!("https://flotilla.example/schemas/{event_type}.json")
}

/// One event and what it is about. `D` is the data of its `type`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Envelope<D> {
    /// Always `1.0`.
    #[schemars(regex(pattern = r"^1\.0$"))]
    pub specversion: String,
    /// The event's id; a resend keeps it. `source` and `id` together are unique.
    pub id: EventId,
    /// Who says so: `/flotilla/todo`.
    pub source: String,
    /// What happened, and in which version: `todo.completed.v2`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The aggregate's id.
    pub subject: String,
    /// When it happened.
    pub time: DateTime<Utc>,
    /// Always `application/json`.
    pub datacontenttype: String,
    /// The `$id` of the JSON Schema of this type.
    pub dataschema: String,
    /// The aggregate's version after the change, 20 digits: orders the events of one aggregate, also as text.
    #[schemars(regex(pattern = r"^[0-9]{20}$"))]
    pub sequence: String,
    /// The aggregate's id: events of one aggregate are to be handled in order.
    pub partitionkey: String,
    /// Whose event it is.
    pub tenant: TenantId,
    /// Who acted, and for whom: `user:ann`, `service:todo`, `agent:planner user:ann`. Absent in events from before it was written.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "actor::known")]
    pub actor: Option<Actor>,
    /// The id of the event that caused this one; absent where a request did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causationid: Option<EventId>,
    /// The same for all that follows from one request: its trace id, or an id of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlationid: Option<String>,
    /// Of an event that is published in two versions: the id of the other form. Whoever has handled one has handled both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub twinof: Option<EventId>,
    /// Of the older form: the type of the newer one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supersededby: Option<String>,
    /// Of the newer form: the type of the older one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supersedes: Option<String>,
    /// The W3C trace context of the command that caused the event; no hop changes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The vendor part of the trace context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<String>,
    /// The state of the aggregate after the change, and who made it.
    pub data: D,
}

/// The text form of an aggregate version: 20 digits.
#[must_use]
pub fn sequence(version: i32) -> String {
    format!("{version:020}")
}

impl<D: EventType> Envelope<D> {
    /// The envelope of an event: what it is about, in which version and since when, is in its data. Who acted and why is for the
    /// caller to add.
    #[must_use]
    pub fn new(id: EventId, tenant: TenantId, data: D) -> Self {
        const { assert!(event_type::is_name(D::TYPE), "an event type is named <service>.<event>.v<N>") }
        let about = data.about();
        let (aggregate, version, time) = (about.id(), about.version(), about.changed());
        Self {
            specversion: "1.0".to_owned(),
            id,
            source: D::SOURCE.to_owned(),
            event_type: D::TYPE.to_owned(),
            subject: aggregate.clone(),
            time,
            datacontenttype: "application/json".to_owned(),
            dataschema: schema_id(D::TYPE),
            sequence: sequence(version),
            partitionkey: aggregate,
            tenant,
            actor: None,
            causationid: None,
            correlationid: None,
            twinof: None,
            supersededby: None,
            supersedes: None,
            traceparent: None,
            tracestate: None,
            data,
        }
    }
}

impl<D> Envelope<D> {
    /// The aggregate's version, where `sequence` is well formed.
    #[must_use]
    pub fn version(&self) -> Option<i32> {
        self.sequence.parse().ok()
    }
}

/// An event as a consumer gets it, for a sample: ann of the tenant acme did it.
pub(crate) fn sample<D: EventType>(data: impl FnOnce(event_type::Actor) -> D) -> serde_json::Value {
    let actor = Actor::new(ActorKind::User, UserId::example());
    let id = EventId::new(Uuid::new_v5(&Uuid::NAMESPACE_URL, schema_id(D::TYPE).as_bytes()));
    let envelope = Envelope::new(id, TenantId::example(), data((&actor).into()));
    let envelope = Envelope { actor: Some(actor), ..envelope };
    serde_json::to_value(envelope).unwrap_or_default()
}
