//! The service under test, and the client that tests use.

use std::net::SocketAddr;

use contracts::Envelope;
use contracts::events::harbour::Event;
use harbour::{App, Config, Program};
use proto::harbour::harbour_service_client::HarbourServiceClient;
use proto::harbour::{
    CreateVesselRequest, DeleteVesselRequest, GetLogbookRequest, GetVesselRequest, ListLogbooksRequest,
    ListLogbooksResponse, ListVesselsRequest, ListVesselsResponse, Logbook, UpdateLogbookRequest, UpdateVesselRequest,
    Vessel,
};
use prost_types::FieldMask;
use serde_json::value::RawValue;
use service::config::{Common, Database, Admission, Handlers, Outbox, Pages};
use service::secret::Secret;
use service::{Lifecycle, Process, Service as _};
use testkit::{TestDatabase, TestIssuer, TestNats, unique, until};
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_types::StatusExt as _;

/// The service and its backing services, dropped in this order: the service first.
pub struct Harness {
    pub app: App,
    lifecycle: Lifecycle,
    pub nats: TestNats,
    pub database: TestDatabase,
    pub issuer: TestIssuer,
    channel: Channel,
    /// The operations port.
    pub ops: SocketAddr,
}

/// A message of the stream.
pub struct Stored {
    pub envelope: Envelope<Box<RawValue>>,
    pub event: Event,
    /// As it is in the stream.
    pub text: String,
}

impl Harness {
    pub async fn start() -> Self {
        let (database, nats, issuer) = (database().await, TestNats::start().await, TestIssuer::new());
        let process = Process::new(Program::NAME, "test");
        let ops = service::ops::serve(&process, ([127, 0, 0, 1], 0).into(), None).await.unwrap();
        let app = Program::start(&config(&database, &nats, &issuer), &process).await.unwrap();
        let channel = Channel::from_shared(format!("http://{}", app.address)).unwrap().connect().await.unwrap();
        Self { app, lifecycle: process.lifecycle, nats, database, issuer, channel, ops }
    }

    /// A second process of the same service: the same database, the same stream.
    pub async fn second(&self) -> Lifecycle {
        let process = Process::new(Program::NAME, "test");
        Program::start(&config(&self.database, &self.nats, &self.issuer), &process).await.unwrap();
        process.lifecycle
    }

    /// An owner of the tenant.
    pub fn client(&self, tenant: &str, user: &str) -> Client {
        self.client_with(Some(self.issuer.bearer(tenant, user)))
    }

    /// A client whose token has these claims: `role`, `scope`, `kind`, `act`.
    pub fn client_as(&self, tenant: &str, user: &str, claims: &serde_json::Value) -> Client {
        self.client_with(Some(self.issuer.bearer_with(tenant, user, claims)))
    }

    pub fn client_with(&self, bearer: Option<String>) -> Client {
        Client { inner: HarbourServiceClient::new(self.channel.clone()), bearer, key: None }
    }

    /// A request to the operations port.
    pub fn operator<T>(&self, message: T) -> Request<T> {
        with(&self.issuer.operator("olga"), message)
    }

    /// Waits until everything committed by now is published and handled, with its consequences.
    pub async fn settled(&self) {
        let stream = self.nats.jetstream_of("harbour").await.get_stream("EVENTS_HARBOUR").await.unwrap();
        until("all is settled", || async {
            let before = self.count("outbox").await;
            // In this order: published, then handled, and nothing has followed.
            if self.stored().await.len() as i64 != before {
                return false;
            }
            let info = stream.consumer_info("harbour-logbooks").await.unwrap();
            info.num_pending == 0 && info.num_ack_pending == 0 && self.count("outbox").await == before
        })
        .await;
    }

    /// Settles, and reads everything that the stream holds.
    pub async fn events(&self) -> Vec<Stored> {
        self.settled().await;
        self.stored().await
    }

    async fn stored(&self) -> Vec<Stored> {
        let stream = self.nats.jetstream_of("harbour").await.get_stream("EVENTS_HARBOUR").await.unwrap();
        let state = stream.get_info().await.unwrap().state;
        let mut events = Vec::new();
        // An empty stream begins at 0, where there is no message.
        for sequence in state.first_sequence.max(1)..=state.last_sequence {
            let message = stream.get_raw_message(sequence).await.unwrap();
            let envelope: Envelope<Box<RawValue>> = serde_json::from_slice(&message.payload).unwrap();
            let event = Event::decode(&envelope.event_type, envelope.data.get()).unwrap().unwrap();
            let text = String::from_utf8(message.payload.to_vec()).unwrap();
            events.push(Stored { envelope, event, text });
        }
        events
    }

    /// Stops the service; nothing more may happen.
    pub async fn stop(&self) {
        assert_eq!(self.lifecycle.shut_down().await, None);
    }

    /// How many rows a table holds, of all tenants.
    pub async fn count(&self, table: &str) -> i64 {
        let mut admin = self.database.admin().await;
        let sql = format!("select count(*) from {table}");
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut admin).await.unwrap()
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.lifecycle.stopping().cancel();
        // Whatever else a test is about: an event that cannot be published is a bug.
        testkit::assert_caught_up("harbour", &self.database, &self.nats);
    }
}

fn config(database: &TestDatabase, nats: &TestNats, issuer: &TestIssuer) -> Config {
    let mut common = Common::on_loopback(issuer.jwks(), devstack::issuer::ISSUER, devstack::issuer::AUDIENCE);
    common.admission = Admission::wide();
    Config {
        common,
        database: Database { url: database.app.clone().into(), connections: 8 },
        outbox: Outbox {
            relay_database_url: database.relay.clone().into(),
            stream_max_age_days: u32::try_from(fleet::STREAM_DAYS).unwrap(),
            stream_replicas: 1,
            outbox_days: 1,
        },
        nats: service::nats::Login { url: nats.address(), credentials: Secret::in_file(nats.credentials("harbour")).unwrap() },
        handlers: Handlers { consumer_nats_creds: Secret::in_file(nats.credentials("harbour-consumer")).unwrap() },
        pages: Pages { page_token_key: "a key for page tokens".into() },
    }
}

/// A database of the service.
pub async fn database() -> TestDatabase {
    let migrate = async |owner: String| harbour::MIGRATIONS.run("harbour", &owner.into()).await.unwrap();
    TestDatabase::of("harbour", &harbour::MIGRATIONS.fingerprint("harbour"), migrate).await
}

/// A caller.
#[derive(Clone)]
pub struct Client {
    inner: HarbourServiceClient<Channel>,
    bearer: Option<String>,
    key: Option<String>,
}

pub fn with<T>(bearer: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", bearer.parse().unwrap());
    request
}

impl Client {
    /// The next calls carry this idempotency key; otherwise each has a new one.
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self.clone() }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.bearer.as_ref().map_or_else(|| Request::new(()), |bearer| with(bearer, ()));
        let key = self.key.clone().unwrap_or_else(|| unique("key-"));
        if !key.is_empty() {
            request.metadata_mut().insert("idempotency-key", key.parse().unwrap());
        }
        request.map(|()| message)
    }

    pub async fn create_vessel(&self, vessel: Vessel) -> Result<Vessel, Status> {
        let request = self.request(CreateVesselRequest { vessel: Some(vessel) });
        Ok(self.inner.clone().create_vessel(request).await?.into_inner())
    }

    /// A vessel with this name.
    pub async fn named(&self, name: &str) -> Vessel {
        self.create_vessel(Vessel { name: name.to_owned(), ..Vessel::default() }).await.unwrap()
    }

    pub async fn get_vessel(&self, id: &str) -> Result<Vessel, Status> {
        Ok(self.inner.clone().get_vessel(self.request(GetVesselRequest { id: id.to_owned() })).await?.into_inner())
    }

    pub async fn list_vessels(&self, list: ListVesselsRequest) -> Result<ListVesselsResponse, Status> {
        Ok(self.inner.clone().list_vessels(self.request(list)).await?.into_inner())
    }

    pub async fn update_vessel(&self, id: &str, vessel: Vessel, mask: &[&str]) -> Result<Vessel, Status> {
        let (id, vessel, update_mask) = (id.to_owned(), Some(vessel), field_mask(mask));
        let request = self.request(UpdateVesselRequest { id, vessel, update_mask });
        Ok(self.inner.clone().update_vessel(request).await?.into_inner())
    }

    pub async fn delete_vessel(&self, id: &str, etag: &str) -> Result<(), Status> {
        let request = self.request(DeleteVesselRequest { id: id.to_owned(), etag: etag.to_owned() });
        self.inner.clone().delete_vessel(request).await?;
        Ok(())
    }

    pub async fn get_logbook(&self, id: &str) -> Result<Logbook, Status> {
        Ok(self.inner.clone().get_logbook(self.request(GetLogbookRequest { id: id.to_owned() })).await?.into_inner())
    }

    pub async fn list_logbooks(&self, list: ListLogbooksRequest) -> Result<ListLogbooksResponse, Status> {
        Ok(self.inner.clone().list_logbooks(self.request(list)).await?.into_inner())
    }

    pub async fn update_logbook(&self, id: &str, logbook: Logbook, mask: &[&str]) -> Result<Logbook, Status> {
        let (id, logbook, update_mask) = (id.to_owned(), Some(logbook), field_mask(mask));
        let request = self.request(UpdateLogbookRequest { id, logbook, update_mask });
        Ok(self.inner.clone().update_logbook(request).await?.into_inner())
    }

    /// The logbook of a vessel, once it exists.
    pub async fn logbook_of(&self, vessel: &Vessel) -> Logbook {
        let list = || ListLogbooksRequest { vessel_id: vessel.id.clone(), ..ListLogbooksRequest::default() };
        let found = || async { self.list_logbooks(list()).await.unwrap().logbooks.pop() };
        until("the logbook is there", || async { found().await.is_some() }).await;
        found().await.unwrap()
    }
}

fn field_mask(mask: &[&str]) -> Option<FieldMask> {
    let paths = mask.iter().map(|&path| path.to_owned()).collect();
    (!mask.is_empty()).then_some(FieldMask { paths })
}

/// The stable reason of a failed call.
pub fn reason<T: std::fmt::Debug>(result: Result<T, Status>) -> String {
    let status = result.unwrap_err();
    status.get_details_error_info().map_or_else(|| format!("none: {status}"), |info| info.reason)
}
