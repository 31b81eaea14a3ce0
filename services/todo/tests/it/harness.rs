//! The service under test, and the client that tests use.

use std::net::SocketAddr;

use async_nats::jetstream::stream::Stream;
use contracts::Envelope;
use contracts::events::identity::MemberId;
use contracts::events::todo::{self as event, About, Event};
use proto::todo::todo_service_client::TodoServiceClient;
use proto::todo::watch_todos_response::Change;
use proto::todo::{CompleteTodoRequest, CreateTodoRequest, DeleteTodoRequest, GetTodoRequest, ListTodosRequest};
use proto::todo::{
    ListTodosResponse, ReopenTodoRequest, Todo, UpdateTodoRequest, WatchTodosRequest, WatchTodosResponse,
};
use serde_json::value::RawValue;
use service::config::{Admission, Calls, Common, Database, Handlers, Outbox, Pages};
use service::secret::Secret;
use service::{Lifecycle, Process, Service as _};
use testkit::nats::member;
use testkit::{TestDatabase, TestIssuer, TestNats, unique, until};
use todo::{App, Config, Program};
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use tonic_types::StatusExt as _;

/// The service and its backing services. Dropped in this order: the service before what it stands on.
pub struct Harness {
    pub app: App,
    lifecycle: Lifecycle,
    pub nats: TestNats,
    pub database: TestDatabase,
    pub issuer: TestIssuer,
    pub channel: Channel,
    /// The operations port of the service.
    pub ops: SocketAddr,
}

/// A message of the stream.
pub struct Stored {
    pub subject: String,
    pub headers: async_nats::HeaderMap,
    pub envelope: Envelope<Box<RawValue>>,
    pub event: Event,
    /// As it is in the stream.
    pub text: String,
}

impl Stored {
    pub fn todo(&self) -> &event::Todo {
        let About::Todo(todo) = self.event.about();
        todo
    }
}

impl Harness {
    pub async fn start() -> Self {
        Self::behind(Admission::wide()).await
    }

    /// One with this admission.
    pub async fn behind(admission: Admission) -> Self {
        Self::with(database().await, admission).await
    }

    /// One on this database.
    pub async fn on(database: TestDatabase) -> Self {
        Self::with(database, Admission::wide()).await
    }

    async fn with(database: TestDatabase, admission: Admission) -> Self {
        let (nats, issuer) = (TestNats::start().await, TestIssuer::new());
        let mut config = config(&database, &nats, &issuer);
        config.common.admission = admission;
        let process = Process::new(Program::NAME, "test");
        let ops = service::ops::serve(&process, ([127, 0, 0, 1], 0).into(), None).await.unwrap();
        let app = Program::start(&config, &process).await.unwrap();
        until("the service is ready", || async { process.readiness.get().0 }).await;
        let channel = Channel::from_shared(format!("http://{}", app.address)).unwrap().connect().await.unwrap();
        Self { app, lifecycle: process.lifecycle, nats, database, issuer, channel, ops }
    }

    /// A second process of the same service: the same database, the same stream.
    pub async fn second(&self) -> (App, Lifecycle) {
        let process = Process::new(Program::NAME, "test");
        let config = config(&self.database, &self.nats, &self.issuer);
        let app = Program::start(&config, &process).await.unwrap();
        until("the service is ready", || async { process.readiness.get().0 }).await;
        (app, process.lifecycle)
    }

    pub fn client(&self, tenant: &str, user: &str) -> Client {
        let bearer = self.issuer.bearer(tenant, user);
        Client::new(self.channel.clone(), bearer)
    }

    /// A client whose token has these claims: `role`, `scope`, `kind`, `act`.
    pub fn client_as(&self, tenant: &str, user: &str, claims: &serde_json::Value) -> Client {
        self.client_with(Some(self.issuer.bearer_with(tenant, user, claims)))
    }

    pub fn client_with(&self, bearer: Option<String>) -> Client {
        Client { inner: TodoServiceClient::new(self.channel.clone()), bearer, key: None }
    }

    /// A user becomes a member, as identity says it; returns when the service knows.
    pub async fn join(&self, tenant: &str, user: &str) -> MemberId {
        let id = MemberId::new(unique("").parse().unwrap());
        self.nats.add_member(tenant, member(id, user, 0)).await;
        until("the member is known", || self.knows(tenant, user)).await;
        id
    }

    /// Whether the service takes a user for a member.
    pub async fn knows(&self, tenant: &str, user: &str) -> bool {
        let mut admin = self.database.admin().await;
        let found = "select exists (select from known_member where tenant = $1 and user_id = $2)";
        sqlx::query_scalar(found).bind(tenant).bind(user).fetch_one(&mut admin).await.unwrap()
    }

    /// Waits until the relay has seen everything that is committed now.
    pub async fn drain(&self) {
        let mut admin = self.database.admin().await;
        let newest: i64 =
            sqlx::query_scalar("select coalesce(max(seq), 0) from outbox").fetch_one(&mut admin).await.unwrap();
        let mut status = self.app.relay.status();
        let done = status.wait_for(|status| status.done >= newest);
        tokio::time::timeout(testkit::PATIENCE, done).await.expect("the relay drains").unwrap();
    }

    pub async fn stream(&self) -> Stream {
        self.nats.jetstream().await.get_stream("EVENTS_TODO").await.unwrap()
    }

    /// Drains, and reads everything that the stream holds.
    pub async fn events(&self) -> Vec<Stored> {
        self.drain().await;
        self.stored().await
    }

    /// Reads everything that the stream holds.
    pub async fn stored(&self) -> Vec<Stored> {
        let stream = self.stream().await;
        let state = stream.get_info().await.unwrap().state;
        let mut events = Vec::new();
        // An empty stream begins at 0, where there is none.
        for sequence in state.first_sequence.max(1)..=state.last_sequence {
            let message = stream.get_raw_message(sequence).await.unwrap();
            let envelope: Envelope<Box<RawValue>> = serde_json::from_slice(&message.payload).unwrap();
            let event = Event::decode(&envelope.event_type, envelope.data.get()).unwrap().unwrap();
            let (subject, headers) = (message.subject.to_string(), message.headers);
            let text = String::from_utf8(message.payload.to_vec()).unwrap();
            events.push(Stored { subject, headers, envelope, event, text });
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
        testkit::assert_caught_up("todo", &self.database, &self.nats);
    }
}

fn config(database: &TestDatabase, nats: &TestNats, issuer: &TestIssuer) -> Config {
    Config {
        common: Common::on_loopback(issuer.jwks(), devstack::issuer::ISSUER, devstack::issuer::AUDIENCE),
        database: Database { url: database.app.clone().into(), connections: 8 },
        outbox: Outbox {
            relay_database_url: database.relay.clone().into(),
            stream_max_age_days: u32::try_from(fleet::STREAM_DAYS).unwrap(),
            stream_replicas: 1,
            outbox_days: 1,
        },
        nats: service::nats::Login {
            url: nats.address(),
            credentials: Secret::in_file(nats.credentials("todo")).unwrap(),
        },
        handlers: Handlers { consumer_nats_creds: Secret::in_file(nats.credentials("todo-consumer")).unwrap() },
        pages: Pages { page_token_key: "a key for page tokens".into() },
        calls: Calls::default(),
        deleted_days: 31,
    }
}

/// A database of the service.
pub async fn database() -> TestDatabase {
    let migrate = async |owner: String| todo::MIGRATIONS.run("todo", &owner.into()).await.unwrap();
    TestDatabase::of("todo", &todo::MIGRATIONS.fingerprint("todo"), migrate).await
}

/// The configuration of a process of the service, on any free ports.
pub fn environment(database: &TestDatabase, nats: &TestNats, issuer: &TestIssuer) -> [(&'static str, String); 11] {
    let authz::JwksSource::File(keys) = issuer.jwks() else { unreachable!() };
    [
        ("FLOTILLA_LISTEN", "127.0.0.1:0".to_owned()),
        ("FLOTILLA_OPS_LISTEN", "127.0.0.1:0".to_owned()),
        ("FLOTILLA_JWKS", format!("file://{}", keys.display())),
        ("FLOTILLA_ISSUER", devstack::issuer::ISSUER.to_owned()),
        ("FLOTILLA_LOCAL", "true".to_owned()),
        ("FLOTILLA_DATABASE_URL", database.app.clone()),
        ("FLOTILLA_RELAY_DATABASE_URL", database.relay.clone()),
        ("FLOTILLA_NATS_URL", nats.address()),
        ("FLOTILLA_NATS_CREDS_FILE", nats.credentials("todo").display().to_string()),
        ("FLOTILLA_CONSUMER_NATS_CREDS_FILE", nats.credentials("todo-consumer").display().to_string()),
        ("FLOTILLA_PAGE_TOKEN_KEY", "a key for page tokens".to_owned()),
    ]
}

/// A caller.
#[derive(Clone)]
pub struct Client {
    inner: TodoServiceClient<Channel>,
    bearer: Option<String>,
    key: Option<String>,
}

impl Client {
    pub fn new(channel: Channel, bearer: String) -> Self {
        Self { inner: TodoServiceClient::new(channel), bearer: Some(bearer), key: None }
    }

    /// The next calls carry this idempotency key; else each has a new one.
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self.clone() }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(bearer) = &self.bearer {
            request.metadata_mut().insert("authorization", bearer.parse().unwrap());
        }
        let key = self.key.clone().unwrap_or_else(|| unique("key-"));
        if !key.is_empty() {
            request.metadata_mut().insert("idempotency-key", key.parse().unwrap());
        }
        request
    }

    pub async fn create(&self, todo: Todo) -> Result<Todo, Status> {
        let request = self.request(CreateTodoRequest { todo: Some(todo) });
        Ok(self.inner.clone().create_todo(request).await?.into_inner())
    }

    /// A todo with this title.
    pub async fn titled(&self, title: &str) -> Todo {
        self.create(Todo { title: title.to_owned(), ..Todo::default() }).await.unwrap()
    }

    /// The title of a todo becomes this one.
    pub async fn rename(&self, id: &str, title: &str) -> Result<Todo, Status> {
        self.update(id, Todo { title: title.to_owned(), ..Todo::default() }, &["title"]).await
    }

    pub async fn get(&self, id: &str) -> Result<Todo, Status> {
        Ok(self.inner.clone().get_todo(self.request(GetTodoRequest { id: id.to_owned() })).await?.into_inner())
    }

    pub async fn list(&self, list: ListTodosRequest) -> Result<ListTodosResponse, Status> {
        Ok(self.inner.clone().list_todos(self.request(list)).await?.into_inner())
    }

    /// Watches behind this id; returns once its stream has begun.
    pub async fn watch(&self, last_event_id: &str) -> Result<Watching, Status> {
        let request = self.request(WatchTodosRequest { last_event_id: last_event_id.to_owned() });
        Ok(Watching(self.inner.clone().watch_todos(request).await?.into_inner()))
    }

    pub async fn update(&self, id: &str, todo: Todo, mask: &[&str]) -> Result<Todo, Status> {
        let paths = mask.iter().map(|&path| path.to_owned()).collect();
        let update_mask = (!mask.is_empty()).then_some(prost_types::FieldMask { paths });
        let request = self.request(UpdateTodoRequest { id: id.to_owned(), todo: Some(todo), update_mask });
        Ok(self.inner.clone().update_todo(request).await?.into_inner())
    }

    pub async fn delete(&self, id: &str, etag: &str) -> Result<(), Status> {
        let request = self.request(DeleteTodoRequest { id: id.to_owned(), etag: etag.to_owned() });
        self.inner.clone().delete_todo(request).await?;
        Ok(())
    }

    pub async fn complete(&self, id: &str, etag: &str) -> Result<Todo, Status> {
        let request = self.request(CompleteTodoRequest { id: id.to_owned(), etag: etag.to_owned() });
        Ok(self.inner.clone().complete_todo(request).await?.into_inner())
    }

    pub async fn reopen(&self, id: &str) -> Result<Todo, Status> {
        let request = self.request(ReopenTodoRequest { id: id.to_owned(), etag: String::new() });
        Ok(self.inner.clone().reopen_todo(request).await?.into_inner())
    }
}

/// A stream of changes.
pub struct Watching(Streaming<WatchTodosResponse>);

impl Watching {
    /// The next message; none at its end.
    pub async fn message(&mut self) -> Result<Option<WatchTodosResponse>, Status> {
        tokio::time::timeout(testkit::PATIENCE, self.0.message()).await.expect("a stream says that it lives")
    }

    /// The next that happens, with its id.
    pub async fn next(&mut self) -> (String, Change) {
        loop {
            let WatchTodosResponse { id, change } = self.message().await.unwrap().expect("it goes on");
            match change.expect("a message says what has happened") {
                Change::Heartbeat(_) => {}
                change => return (id, change),
            }
        }
    }

    /// The next todo that changes.
    pub async fn todo(&mut self) -> Todo {
        match self.next().await.1 {
            Change::Todo(todo) => todo,
            other => panic!("{other:?} is no changed todo"),
        }
    }
}

/// The stable reason of a failed call.
pub fn reason<T: std::fmt::Debug>(result: Result<T, Status>) -> String {
    let status = result.unwrap_err();
    status.get_details_error_info().map_or_else(|| format!("none: {status}"), |info| info.reason)
}
