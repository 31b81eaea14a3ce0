//! A shop whose consumers fail, and the service that stores and replays their dead letters.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::message::PublishMessage;
use consumer::{Config, Consumer, Event, Failure, Inbox, Mode, Verdict, administer};
use devstack::nats::Wanted;
use futures::FutureExt as _;
use operations::pace::Pace;
use operations::store::{Act, Refused, Selection};
use operations::store_jobs::{self, Job, Order, Planned};
use operations::store_letters::{self, Stats};
use serde_json::{Value, json};
use service::config::Database;
use service::secret::Secret;
use service::{Lifecycle, Process, Service as _};
use sqlx::{Executor as _, PgConnection, PgPool};
use testkit::{TestDatabase, TestIssuer, TestNats, until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

const STREAM: &str = "EVENTS_TODO";
/// The logins of the consumers, each with the durable consumer of its name.
const READERS: [&str; 3] = ["printer", "bystander", "ledger"];
const EFFECTS: &str = "create table effect (number serial primary key, aggregate text, version int)";
pub const ACT: Act<'_> = Act { actor: "olga", reason: "a test" };
pub const PACE: Pace = Pace { canary: 1, rate: 1_000.0, max_failures: 0.1 };

/// The letters of a plan, by number.
pub fn ids(planned: &[Planned]) -> Vec<i64> {
    planned.iter().map(|letter| letter.id).collect()
}

/// What a consumer has handled: aggregate and version, in order.
pub type Handled = Arc<Mutex<Vec<(String, i32)>>>;

fn readers() -> Vec<fleet::Login> {
    READERS.map(|name| fleet::reader(name, &[(STREAM, name)])).to_vec()
}

pub struct Harness {
    /// One server, or a cluster.
    pub nats: Vec<TestNats>,
    /// The server that is down.
    pub down: Option<usize>,
    /// The account of the events, and that of the letters.
    pub js: jetstream::Context,
    pub records: jetstream::Context,
    pub database: TestDatabase,
    pub issuer: TestIssuer,
    /// Whether the consumers reject their events.
    pub broken: Arc<AtomicBool>,
    consumers: TaskTracker,
    stop: CancellationToken,
}

/// Of a consumer that rejects nothing by itself.
pub fn never(_: &Event) -> bool {
    false
}

impl Harness {
    /// A broker and a database; the service is not started yet.
    pub async fn new() -> Self {
        Box::pin(Self::on(async { vec![TestNats::with(readers()).await] })).await
    }

    /// The same on three servers.
    pub async fn on_a_cluster() -> Self {
        Box::pin(Self::on(TestNats::cluster_with(readers()))).await
    }

    async fn on(nats: impl Future<Output = Vec<TestNats>>) -> Self {
        let migrations = operations::Program::MIGRATIONS.unwrap();
        let migrate = async |owner: String| migrations.run("operations", &owner.into()).await.unwrap();
        let fingerprint = migrations.fingerprint("operations");
        let database = TestDatabase::of("operations", &fingerprint, migrate);
        let (nats, database) = tokio::join!(nats, database);
        // The tables of the shop's consumers.
        let mut admin = database.admin().await;
        for script in [include_str!("../../../../crates/consumer/schema/inbox.sql"), EFFECTS] {
            admin.execute(script).await.unwrap();
        }
        let (js, records) = (nats[0].jetstream().await, nats[0].records().await);
        let harness = Self {
            nats,
            down: None,
            js,
            records,
            database,
            issuer: TestIssuer::new(),
            broken: Arc::new(AtomicBool::new(true)),
            consumers: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        harness.provision().await;
        harness
    }

    /// Makes what the administration makes.
    pub async fn provision(&self) {
        self.server().provision(Wanted::default()).await;
        for name in READERS {
            administer::durables(&self.js, &self.records, &Self::ordered_config(name), None).await.unwrap();
        }
    }

    /// A running server.
    pub fn server(&self) -> &TestNats {
        let up = self.nats.iter().enumerate().find(|(number, _)| Some(*number) != self.down);
        up.unwrap().1
    }

    /// Starts the service.
    pub async fn operations(&self) -> Lifecycle {
        self.with_port().await.0
    }

    /// Starts the service; returns its operations port too.
    pub async fn with_port(&self) -> (Lifecycle, SocketAddr) {
        let process = Process::new(operations::Program::NAME, "test");
        let ops = service::ops::serve(&process, ([127, 0, 0, 1], 0).into(), None).await.unwrap();
        let config = operations::Config {
            database: Database { url: self.database.app.clone().into(), connections: 8 },
            nats: self.login("operations"),
            issuer: service::config::Issuer {
                local: true,
                jwks: self.issuer.jwks(),
                name: devstack::issuer::ISSUER.to_owned(),
                operators_audience: devstack::issuer::OPERATORS.to_owned(),
            },
        };
        operations::Program::start(&config, &process).await.unwrap();
        (process.lifecycle, ops)
    }

    fn login(&self, name: &str) -> service::nats::Login {
        let addresses: Vec<String> = self.nats.iter().map(TestNats::address).collect();
        service::nats::Login {
            url: addresses.join(","),
            credentials: Secret::in_file(self.nats[0].credentials(name)).unwrap(),
        }
    }

    fn ordered_config(durable: &str) -> Config {
        Config {
            mode: Mode::Ordered { at_once: 16 },
            max_attempts: 2,
            handle_within: Some(Duration::from_secs(5)),
            version: format!("{durable} 7"),
            ..Config::ordered(STREAM, durable, "evt.todo.>", ["todo.created.v1"])
        }
    }

    /// The same events, in batches.
    fn batched(durable: &str) -> Config {
        let mode = Mode::Batches { size: 16, linger: Duration::ZERO, in_flight: 1 };
        Config { mode, ..Self::ordered_config(durable) }
    }

    /// A consumer with a state of its own: it rejects everything while `broken` is set, and always what `never` says.
    pub async fn consumer(&self, durable: &str, never: fn(&Event) -> bool) -> Handled {
        let handled = Handled::default();
        let consumer = Consumer::new(self.server().client(durable).await, Self::batched(durable));
        let (stop, seen, broken) = (self.stop.clone(), Arc::clone(&handled), Arc::clone(&self.broken));
        self.consumers.spawn(async move {
            let verdict = |event: &Event| {
                if never(event) || broken.load(Ordering::SeqCst) {
                    return Verdict::Reject(format!("no room for {}", event.attribute("id")));
                }
                seen.lock().unwrap().push((event.aggregate().to_owned(), version(event)));
                Verdict::Done
            };
            consumer.run_batches(stop, |events| std::future::ready(events.iter().map(verdict).collect())).await;
        });
        handled
    }

    /// A consumer with an inbox, whose effects are in the database. It rejects version 2 while `broken` is set.
    pub async fn ordered(&self, durable: &str) {
        let consumer = Consumer::new(self.server().client(durable).await, Self::ordered_config(durable));
        let db = PgPool::connect(&self.database.superuser).await.unwrap();
        let inbox = Inbox::new(db);
        let (stop, broken) = (self.stop.clone(), Arc::clone(&self.broken));
        self.consumers.spawn(async move {
            consumer
                .run_in_order(stop, inbox, move |tx, event| record(tx, event, broken.load(Ordering::SeqCst)).boxed())
                .await;
        });
    }

    /// The versions of each aggregate, in the order in which they took effect in the database.
    pub async fn effects(&self) -> BTreeMap<String, Vec<i32>> {
        let sql = "select aggregate, version from effect order by number";
        let rows: Vec<(String, i32)> = sqlx::query_as(sql).fetch_all(&mut self.db().await).await.unwrap();
        let mut effects: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        rows.into_iter().for_each(|(aggregate, version)| effects.entry(aggregate).or_default().push(version));
        effects
    }

    pub async fn db(&self) -> PgConnection {
        self.database.admin().await
    }

    pub async fn publish(&self, aggregate: &str, version: i32) {
        assert!(self.publish_bytes(Self::event(aggregate, version).to_string()).await, "it is stored");
    }

    pub fn event(aggregate: &str, version: i32) -> Value {
        let mut event: Value =
            serde_json::from_str(include_str!("../../../../schemas/samples/todo.created.v1.json")).unwrap();
        event["id"] = json!(Uuid::now_v7());
        event["tenant"] = json!("acme");
        event["partitionkey"] = json!(aggregate);
        event["sequence"] = json!(format!("{version:020}"));
        event
    }

    /// Whether it was stored. The same is stored once.
    pub async fn publish_bytes(&self, payload: String) -> bool {
        let message = PublishMessage::build()
            .header("content-type", "application/cloudevents+json")
            .message_id(Uuid::new_v5(&Uuid::NAMESPACE_OID, payload.as_bytes()).to_string())
            .payload(payload.into());
        match self.js.send_publish("evt.todo.created.v1.acme", message).await {
            Ok(sent) => sent.await.is_ok(),
            Err(_) => false,
        }
    }

    pub async fn stats(&self) -> Stats {
        let stats = store_letters::stats(&mut self.db().await).await.unwrap();
        assert_eq!(stats.open + stats.failed_again + stats.handled + stats.discarded, stats.letters, "{stats:?}");
        stats
    }

    pub async fn until_letters(&self, letters: i64) {
        until(&format!("{letters} letters"), || async { self.stats().await.letters == letters }).await;
    }

    /// Asks for a replay of a selection.
    pub async fn replay(&self, selection: &Selection, pace: Pace) -> i64 {
        let order = Order { kind: "replay", selection, pace };
        self.job_of(order).await.unwrap().0
    }

    /// Makes a job of what the order gives now; what it holds.
    pub async fn job_of(&self, order: Order<'_>) -> Result<(i64, Vec<Planned>), Refused> {
        let mut db = self.db().await;
        let planned = store_jobs::plan(&mut db, order.kind, order.selection).await?;
        Ok((store_jobs::create(&mut db, order, &ids(&planned), ACT).await?, planned))
    }

    pub async fn job(&self, id: i64) -> Job {
        store_jobs::job(&mut self.db().await, id).await.unwrap()
    }

    pub async fn until_ended(&self, id: i64) -> Job {
        until("the job has ended", || async {
            let job = self.job(id).await;
            job.has_ended() && job.sent == 0
        })
        .await;
        let job = self.job(id).await;
        let counted = "select count(*) filter (where state = 'handled'), count(*) filter (where state = 'failed'), \
            count(*) filter (where state = 'skipped'), count(*) from job_item where job = $1";
        let counted: (i64, i64, i64, i64) =
            sqlx::query_as(counted).bind(id).fetch_one(&mut self.db().await).await.unwrap();
        assert_eq!((job.handled, job.failed, job.skipped, job.total), counted, "what is kept is what is there");
        job
    }

    pub fn break_again(&self) {
        self.broken.store(true, Ordering::SeqCst);
    }

    pub fn mend(&self) {
        self.broken.store(false, Ordering::SeqCst);
    }

    /// Reports the outcome of a replay, as a consumer does.
    pub async fn tell(&self, durable: &str, id: &str, outcome: &str) {
        let message = PublishMessage::build().header("Replay-Id", id).header("Replay-Outcome", outcome);
        self.records.send_publish(format!("replayed.{durable}"), message).await.unwrap().await.unwrap();
    }

    /// A letter of `printer`, which no longer runs.
    pub async fn one_letter_and_nobody(&self) {
        self.consumer("printer", never).await;
        self.publish("a", 1).await;
        self.until_letters(1).await;
        self.stop_consumers().await;
    }

    pub async fn stop_consumers(&self) {
        self.stop.cancel();
        self.consumers.close();
        self.consumers.wait().await;
    }

    pub async fn stop(&self, service: Lifecycle) {
        self.stop_consumers().await;
        assert_eq!(service.shut_down().await, None);
    }
}

pub fn version(event: &Event) -> i32 {
    event.attribute("sequence").parse().unwrap()
}

pub fn aggregate(name: &str) -> Selection {
    Selection { aggregate: Some(name.to_owned()), ..Selection::default() }
}

pub fn consumer_of(name: &str) -> Selection {
    Selection { consumer: Some(name.to_owned()), ..Selection::default() }
}

async fn record(tx: &mut PgConnection, event: &Event, broken: bool) -> Result<(), Failure> {
    sqlx::query("insert into effect (aggregate, version) values ($1, $2)")
        .bind(event.aggregate())
        .bind(version(event))
        .execute(tx)
        .await?;
    if broken && version(event) == 2 { Err(Failure::Reject("no such account".to_owned())) } else { Ok(()) }
}
