//! A database, a nats-server, and relays between them, for the tests beside this.

use std::path::PathBuf;

use async_nats::jetstream::stream::Stream;
use devstack::nats::Wanted;
use outbox::connections::{LIMITS, nats_options, pool_options};
use outbox::operate::{self, Act};
use outbox::{Handle, NewEvent, Relay, RelayConfig, Role, StreamSpec};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, PgPool, Transaction};
use testkit::{PATIENCE, TestDatabase, TestNats, until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// The login at NATS, which may publish the events of its service and no others. The database's roles are of the same service:
/// the tests stand in for one of the fleet's table, with its rights.
pub const SERVICE: &str = "todo";
pub const STREAM: &str = "EVENTS_TODO";
pub const SUBJECT: &str = "evt.todo.created.v1.acme";
/// The name of the relay's connections to Postgres.
pub const RELAY: &str = "todo-relay";
pub const ACT: Act<'static> = Act { actor: "ann", reason: "a test" };

/// What a relay connects to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Setup {
    /// The database, by the relay's role.
    pub database: String,
    pub nats: String,
    pub credentials: PathBuf,
    /// On how many servers the stream is.
    pub replicas: usize,
}

impl Setup {
    pub fn of(database: &TestDatabase, nats: &TestNats, replicas: usize) -> Self {
        Self {
            database: database.relay.clone(),
            nats: nats.address(),
            credentials: nats.credentials(SERVICE),
            replicas,
        }
    }
}

/// A database with the outbox's tables alone, for three roles: the owner, a service that appends, and its relay.
pub async fn database() -> TestDatabase {
    let migrator = outbox::migrations("todo_app", "todo_relay");
    let bytes = migrator.iter().flat_map(|migration| migration.checksum.iter()).copied();
    let print = bytes.fold(0, |print: u64, byte| print.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let migrate = async move |owner: String| {
        let mut owner = PgConnection::connect(&owner).await.unwrap();
        migrator.run(&mut owner).await.unwrap();
        owner.close().await.unwrap();
    };
    TestDatabase::of(SERVICE, &format!("outbox_{print:x}"), migrate).await
}

/// A relay as a service starts it.
pub async fn relay(setup: &Setup) -> Relay {
    let stream = StreamSpec {
        max_age: Wanted::default().max_age,
        replicas: setup.replicas,
        ..StreamSpec::new(STREAM, ["evt.todo.>"])
    };
    let config = RelayConfig { hint_subject: "hint.outbox.todo".to_owned(), retention_days: Some(1), ..stream.into() };
    Relay::new(pool(&setup.database), connect(setup).await, config)
}

pub fn pool(url: &str) -> PgPool {
    let options: PgConnectOptions = url.parse().unwrap();
    pool_options(3).connect_lazy_with(options.application_name(RELAY).options(LIMITS))
}

async fn connect(setup: &Setup) -> async_nats::Client {
    let login = async_nats::ConnectOptions::new().credentials_file(&setup.credentials).await.unwrap();
    let options = login.name(SERVICE).custom_inbox_prefix(format!("_INBOX_{SERVICE}"));
    nats_options(options).connect(setup.nats.as_str()).await.unwrap()
}

/// A new event of an aggregate.
pub fn event(aggregate: &str) -> NewEvent {
    NewEvent {
        id: Uuid::now_v7(),
        tenant: "acme".to_owned(),
        aggregate_id: aggregate.to_owned(),
        subject: SUBJECT.to_owned(),
        traceparent: None,
        payload: b"{}".to_vec(),
    }
}

/// A connection of the role that appends, for the tenant acme.
pub async fn app(database: &TestDatabase) -> PgConnection {
    let mut app = PgConnection::connect(&database.app).await.unwrap();
    app.execute("set app.tenant = 'acme'").await.unwrap();
    app
}

/// The ids of the outbox's rows in their order.
pub async fn rows(database: &TestDatabase) -> Vec<String> {
    let mut admin = database.admin().await;
    sqlx::query_scalar("select event_id::text from outbox order by seq").fetch_all(&mut admin).await.unwrap()
}

/// The event ids that a stream holds, in order.
pub async fn ids(stream: &Stream) -> Vec<String> {
    let state = stream.get_info().await.unwrap().state;
    let mut ids = Vec::new();
    for sequence in state.first_sequence.max(1)..=state.last_sequence {
        // What was purged or deleted has left a hole.
        if let Ok(message) = stream.get_raw_message(sequence).await {
            ids.push(message.headers.get(outbox::EVENT_ID_HEADER).unwrap().to_string());
        }
    }
    ids
}

/// A database, a nats-server, and a relay in this process, to which writers hand what they commit.
pub struct Fixture {
    pub relay: Handle,
    relays: TaskTracker,
    stop: CancellationToken,
    pub nats: TestNats,
    pub database: TestDatabase,
}

impl Fixture {
    pub async fn new() -> Self {
        let (database, nats) = tokio::join!(database(), TestNats::start());
        let (relay, relays, stop) = Self::start(&Setup::of(&database, &nats, 1)).await;
        Self { relay, relays, stop, nats, database }
    }

    async fn start(setup: &Setup) -> (Handle, TaskTracker, CancellationToken) {
        let (relay, relays, stop) = (relay(setup).await, TaskTracker::new(), CancellationToken::new());
        let handle = relay.handle();
        relays.spawn(relay.run(stop.clone()));
        (handle, relays, stop)
    }

    /// Stops the relay, and starts another one: what a new process of the service has.
    pub async fn anew(&mut self) {
        self.stop().await;
        (self.relay, self.relays, self.stop) = Self::start(&Setup::of(&self.database, &self.nats, 1)).await;
    }

    pub async fn stop(&self) {
        self.stop.cancel();
        self.relays.close();
        tokio::time::timeout(PATIENCE, self.relays.wait()).await.expect("the relay ends");
    }

    /// A connection of the role that appends, for the tenant acme.
    pub async fn app(&self) -> PgConnection {
        app(&self.database).await
    }

    /// Writes an event as a service does, in a transaction of its own, and hands it to the relay; its id.
    pub async fn commit(&self, event: NewEvent) -> String {
        let (mut app, id) = (self.app().await, event.id.to_string());
        let tx = app.begin().await.unwrap();
        self.relay.commit(tx, vec![event], Transaction::commit).await.unwrap();
        id
    }

    /// Writes so many events, each of an aggregate of its own, in a transaction of its own, and hands them to the relay; their ids.
    pub async fn write(&self, count: usize) -> Vec<String> {
        let (mut app, mut ids) = (self.app().await, Vec::new());
        for _ in 0..count {
            let event = event(&Uuid::now_v7().to_string());
            ids.push(event.id.to_string());
            let tx = app.begin().await.unwrap();
            self.relay.commit(tx, vec![event], Transaction::commit).await.unwrap();
        }
        ids
    }

    /// Writes an event as another process does: the relay has to find it.
    pub async fn append(&self, event: NewEvent) {
        outbox::append(&mut self.app().await, &event).await.unwrap();
    }

    /// A transaction of the role that appends, which has inserted an event and not ended.
    pub async fn open_writer(&self) -> PgConnection {
        let mut writer = self.app().await;
        writer.execute("begin").await.unwrap();
        outbox::append(&mut writer, &event("a")).await.unwrap();
        writer
    }

    /// The ids of the outbox's rows in their order.
    pub async fn rows(&self) -> Vec<String> {
        rows(&self.database).await
    }

    pub async fn stream(&self) -> Stream {
        self.nats.jetstream().await.get_stream(STREAM).await.unwrap()
    }

    /// Waits until the relay has seen everything that is committed now.
    pub async fn drain(&self) {
        let mut admin = self.database.admin().await;
        let newest: i64 =
            sqlx::query_scalar("select coalesce(max(seq), 0) from outbox").fetch_one(&mut admin).await.unwrap();
        self.until_done(newest).await;
    }

    /// Waits until the relay has passed this row.
    pub async fn until_done(&self, seq: i64) {
        let mut status = self.relay.status();
        let done = status.wait_for(|status| status.done >= seq);
        tokio::time::timeout(PATIENCE, done).await.expect("the relay drains").unwrap();
    }

    /// Drains; the event ids that the stream holds, in order.
    pub async fn stored(&self) -> Vec<String> {
        self.drain().await;
        ids(&self.stream().await).await
    }

    /// Waits until the relay has written down how far it has come.
    pub async fn until_checkpointed(&self) {
        self.drain().await;
        until("the checkpoint is at the newest row", || async {
            let mut admin = self.database.admin().await;
            let at: bool = sqlx::query_scalar("select outbox_seq = (select max(seq) from outbox) from outbox_relay")
                .fetch_one(&mut admin)
                .await
                .unwrap();
            at
        })
        .await;
    }

    pub async fn until_whole(&self) {
        self.until_holds(self.rows().await.len()).await;
    }

    /// Waits until the stream is there and holds so many messages.
    pub async fn until_holds(&self, messages: usize) {
        until(&format!("the stream holds {messages} messages"), || async {
            let Ok(stream) = self.nats.jetstream().await.get_stream(STREAM).await else { return false };
            stream.get_info().await.is_ok_and(|info| info.state.messages >= messages as u64)
        })
        .await;
    }

    /// Waits until the relay has stopped for a person; why.
    pub async fn until_halted(&self) -> String {
        let mut status = self.relay.status();
        let halted = status.wait_for(|status| matches!(status.role, Role::Halted { .. }));
        let status = tokio::time::timeout(PATIENCE, halted).await.expect("the relay stops").unwrap().clone();
        let Role::Halted { reason } = status.role else { unreachable!() };
        reason
    }

    /// What the journal says of these kinds, oldest first, with the rows.
    pub async fn journal(&self, kinds: &[&str]) -> Vec<(String, Option<i64>, Option<i64>, String)> {
        let mut lines = operate::journal(&mut self.database.admin().await, 100).await.unwrap();
        lines.reverse();
        lines.retain(|line| kinds.contains(&line.kind.as_str()));
        lines.into_iter().map(|line| (line.kind, line.from_seq, line.to_seq, line.detail)).collect()
    }

    /// Takes Postgres back to where it was after so many rows, as a restore from a backup does.
    pub async fn restore_postgres(&self, rows: i64) {
        let mut admin = self.database.admin().await;
        for sql in [
            format!("delete from outbox where seq > {rows}"),
            format!("select setval('outbox_seq', {rows})"),
            format!(
                "update outbox_relay set outbox_seq = {rows}, stream_seq = {rows}, \
                 outbox_created_at = (select created_at from outbox where seq = {rows})"
            ),
            "delete from outbox_journal".to_owned(),
        ] {
            admin.execute(AssertSqlSafe(sql)).await.unwrap();
        }
    }
}
