//! A stream, a database, and consumers of it, for the tests beside this.

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, stream};
use consumer::{Config, Consumer, Event, Failure, Inbox, Mode, Status, Verdict, administer};
use futures::FutureExt as _;
use serde_json::json;
use sqlx::{PgConnection, PgPool};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use testkit::{PATIENCE, TestDatabase, TestNats, until, until_within};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The changes, by aggregate and version, that reached a handler of batches, of whichever release.
pub type Seen = Arc<Mutex<BTreeSet<(String, i32)>>>;

pub const STREAM: &str = "EVENTS_SHOP";
pub const EFFECTS: &str = "create table effect (number serial primary key, aggregate text, version int)";

/// A stream, a database, and consumers of it.
pub struct Fixture {
    pub consumers: TaskTracker,
    pub stop: CancellationToken,
    pub db: PgPool,
    pub nats: TestNats,
    pub database: TestDatabase,
    pub js: jetstream::Context,
}

impl Fixture {
    pub async fn new() -> Self {
        let nats = TestNats::alone().await;
        let js = nats.jetstream().await;
        Self::on(nats, js).await
    }

    /// On this server, by the administration's login.
    pub async fn on(nats: TestNats, js: jetstream::Context) -> Self {
        let database = TestDatabase::with(&[include_str!("../../schema/inbox.sql"), EFFECTS]).await;
        js.create_stream(Self::stream()).await.unwrap();
        let db = PgPool::connect(&database.superuser).await.unwrap();
        Self { consumers: TaskTracker::new(), stop: CancellationToken::new(), db, nats, database, js }
    }

    fn stream() -> stream::Config {
        stream::Config { name: STREAM.into(), subjects: vec!["evt.shop.>".into()], ..Default::default() }
    }

    /// Loses the stream, and makes an empty one.
    pub async fn make_stream_anew(&self) {
        self.js.delete_stream(STREAM).await.unwrap();
        self.js.create_stream(Self::stream()).await.unwrap();
    }

    /// The broker forgets what was acknowledged: the next consumer has everything again.
    pub async fn forget_acknowledgements(&self) {
        self.js.get_stream(STREAM).await.unwrap().delete_consumer("ledger").await.unwrap();
    }

    /// A consumer, after the administration has made what its release asks for.
    pub async fn deployed(&self, config: Config) -> Consumer {
        self.administer(&config).await;
        Consumer::new(self.nats.client("admin").await, config)
    }

    /// Makes what this release asks for.
    pub async fn administer(&self, config: &Config) {
        administer::streams(&self.js, &config.records, 1).await.unwrap();
        administer::durables(&self.js, &self.js, config, None).await.unwrap();
    }

    /// In order, so many at once.
    pub fn ordered(at_once: usize, max_attempts: i64) -> Config {
        Config {
            mode: Mode::Ordered { at_once },
            max_attempts,
            handle_within: None,
            version: "test".to_owned(),
            ..Config::ordered(STREAM, "ledger", "evt.shop.>", ["shop.paid.v1", "shop.paid.v2"])
        }
    }

    /// The same in batches of so many.
    pub fn batched(size: usize, max_attempts: i64) -> Config {
        let mode = Mode::Batches { size, linger: Duration::from_millis(5), in_flight: 2 };
        Config { mode, ..Self::ordered(size, max_attempts) }
    }

    /// One release of the consumer, that knows these types; stops with its token.
    pub async fn release(&self, types: &[&str], batches: Option<Seen>) -> CancellationToken {
        let types = types.iter().map(|&known| known.to_owned()).collect();
        let config = if batches.is_some() { Self::batched(8, 3) } else { Self::ordered(8, 3) };
        let config = Config { types, ..config };
        let consumer = self.deployed(config).await;
        let (stop, inbox) = (self.stop.child_token(), self.inbox());
        let stopped = stop.clone();
        self.consumers.spawn(async move {
            match batches {
                None => {
                    consumer.run_in_order(stop, inbox, |tx, event| handled(tx, event, None).boxed()).await;
                }
                Some(seen) => {
                    let note = |event: &Event| {
                        seen.lock().unwrap().insert((event.aggregate().to_owned(), version(event)));
                        Verdict::Done
                    };
                    consumer.run_batches(stop, |events| std::future::ready(events.iter().map(note).collect())).await;
                }
            }
        });
        stopped
    }

    /// One change, published in two versions: the older one first.
    pub async fn publish_twins(&self, aggregate: &str, version: i32) {
        let id = |event_type: &str| format!("{event_type}-{aggregate}-{version}");
        let old = json!({"twinof": id("shop.paid.v2"), "supersededby": "shop.paid.v2"});
        let new = json!({"twinof": id("shop.paid.v1"), "supersedes": "shop.paid.v1"});
        self.publish_as("shop.paid.v1", aggregate, version, old).await;
        self.publish_as("shop.paid.v2", aggregate, version, new).await;
    }

    pub fn inbox(&self) -> Inbox {
        Inbox { tenant_setting: Some("app.tenant"), ..Inbox::new(self.db.clone()) }
    }

    /// Runs one in order, with a handler that first asks `fault` what to do.
    pub async fn in_order(
        &self,
        max_attempts: i64,
        fault: impl Fn(&Event) -> Option<Failure> + Send + Sync + 'static,
    ) -> watch::Receiver<Status> {
        let consumer = self.deployed(Self::ordered(8, max_attempts)).await;
        let status = consumer.status();
        let (stop, inbox) = (self.stop.clone(), self.inbox());
        self.consumers.spawn(async move {
            consumer.run_in_order(stop, inbox, move |tx, event| handled(tx, event, fault(event)).boxed()).await;
        });
        status
    }

    /// Runs one in order that reaches NATS by this port.
    pub async fn in_order_through(&self, port: u16) {
        self.deployed(Self::ordered(8, 5)).await;
        let password = self.nats.home().secret("nats-admin-password").unwrap();
        let options = async_nats::ConnectOptions::with_user_and_password("admin".to_owned(), password);
        let nats = options.connect(format!("nats://127.0.0.1:{port}")).await.unwrap();
        let (consumer, stop, inbox) = (Consumer::new(nats, Self::ordered(8, 5)), self.stop.clone(), self.inbox());
        self.consumers.spawn(async move {
            consumer.run_in_order(stop, inbox, |tx, event| handled(tx, event, None).boxed()).await;
        });
    }

    pub async fn batches(
        &self,
        batch: usize,
        max_attempts: i64,
        verdict: impl Fn(&Event) -> Verdict + Send + Sync + 'static,
    ) -> watch::Receiver<Status> {
        let consumer = self.deployed(Self::batched(batch, max_attempts)).await;
        let status = consumer.status();
        let stop = self.stop.clone();
        self.consumers.spawn(async move {
            consumer.run_batches(stop, |events| std::future::ready(events.iter().map(&verdict).collect())).await;
        });
        status
    }

    pub async fn publish(&self, aggregate: &str, version: i32) {
        self.publish_as("shop.paid.v2", aggregate, version, json!({})).await;
    }

    /// As from a row of an outbox.
    pub async fn publish_row(&self, row: i32, aggregate: &str, version: i32) {
        self.send("shop.paid.v2", aggregate, version, json!({}), Some(row)).await;
    }

    pub async fn publish_as(&self, event_type: &str, aggregate: &str, version: i32, more: serde_json::Value) {
        self.send(event_type, aggregate, version, more, None).await;
    }

    async fn send(&self, event_type: &str, aggregate: &str, version: i32, more: serde_json::Value, row: Option<i32>) {
        let mut event = json!({
            "specversion": "1.0", "id": format!("{event_type}-{aggregate}-{version}"), "source": "/shop",
            "type": event_type, "subject": aggregate, "sequence": format!("{version:020}"), "tenant": "acme",
            "partitionkey": aggregate, "data": {"version": version},
        });
        event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let message = PublishMessage::build()
            .header("content-type", "application/cloudevents+json")
            .payload(event.to_string().into());
        let message = match row {
            Some(row) => message.header("Outbox-Seq", row.to_string().as_str()),
            None => message,
        };
        self.js.send_publish(format!("evt.{event_type}.acme"), message).await.unwrap().await.unwrap();
    }

    pub async fn durable(&self) -> Option<PullConsumer> {
        self.js.get_stream(STREAM).await.unwrap().get_consumer("ledger").await.ok()
    }

    /// Waits until everything is acknowledged.
    pub async fn drain(&self) {
        // What was on its way to a process that has ended comes again when its time to be acknowledged has passed: 30 seconds.
        until_within(3 * PATIENCE, "everything is acknowledged", || async {
            let Some(durable) = self.durable().await else { return false };
            let info = durable.get_info().await.unwrap();
            info.num_pending == 0 && info.num_ack_pending == 0
        })
        .await;
    }

    /// The versions of each aggregate in the order in which they took effect.
    pub async fn effects(&self) -> BTreeMap<String, Vec<i32>> {
        let rows: Vec<(String, i32)> =
            sqlx::query_as("select aggregate, version from effect order by number").fetch_all(&self.db).await.unwrap();
        let mut effects: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        rows.into_iter().for_each(|(aggregate, version)| effects.entry(aggregate).or_default().push(version));
        effects
    }

    /// The dead letters: the event's id, the reason, and the attempts.
    pub async fn letters(&self) -> Vec<(String, String, String)> {
        let Ok(stream) = self.js.get_stream("DLQ").await else { return Vec::new() };
        let mut letters = Vec::new();
        for sequence in 1..=stream.get_info().await.unwrap().state.last_sequence {
            let letter = stream.get_raw_message(sequence).await.unwrap();
            let event: serde_json::Value = serde_json::from_slice(&letter.payload).unwrap();
            let header = |name| letter.headers.get(name).unwrap().to_string();
            letters.push((event["id"].as_str().unwrap().to_owned(), header("Dlq-Reason"), header("Dlq-Delivered")));
        }
        letters
    }

    pub async fn until_letters(&self, count: usize) {
        until(&format!("{count} dead letters"), || async { self.letters().await.len() >= count }).await;
    }

    /// Stops the consumers; what is started now is a new process.
    pub async fn anew(&mut self) {
        self.stop().await;
        (self.consumers, self.stop) = (TaskTracker::new(), CancellationToken::new());
    }

    pub async fn stop(&self) {
        self.stop.cancel();
        self.consumers.close();
        tokio::time::timeout(testkit::PATIENCE, self.consumers.wait()).await.expect("the consumers end");
    }
}

pub fn version(event: &Event) -> i32 {
    event.attribute("sequence").parse().unwrap()
}

pub async fn record(tx: &mut PgConnection, event: &Event) -> Result<(), sqlx::Error> {
    let tenant: String = sqlx::query_scalar("select current_setting('app.tenant')").fetch_one(&mut *tx).await?;
    assert_eq!(tenant, "acme", "the tenant of the event is the transaction's");
    sqlx::query("insert into effect (aggregate, version) values ($1, $2)")
        .bind(event.aggregate())
        .bind(version(event))
        .execute(tx)
        .await
        .map(drop)
}

pub async fn handled(tx: &mut PgConnection, event: &Event, fault: Option<Failure>) -> Result<(), Failure> {
    record(tx, event).await?;
    fault.map_or(Ok(()), Err)
}

/// Reports that it has begun, and waits for leave to go on.
pub async fn gated(
    tx: &mut PgConnection,
    event: &Event,
    inside: Arc<Notify>,
    opened: Arc<Notify>,
) -> Result<(), Failure> {
    inside.notify_one();
    opened.notified().await;
    handled(tx, event, None).await
}

/// Fails the first attempts of one event.
pub fn failing(times: u32, id: &'static str) -> impl Fn(&Event) -> Option<Failure> {
    let left = Arc::new(AtomicU32::new(times));
    move |event| {
        let fails = event.attribute("id") == id
            && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        fails.then(|| Failure::Retry("not yet".to_owned()))
    }
}

/// The outcome of a wait that must not take for ever.
pub async fn within<T>(wait: impl Future<Output = Result<T, watch::error::RecvError>>) -> T {
    tokio::time::timeout(testkit::PATIENCE, wait).await.expect("it comes about").unwrap()
}
