//! Writes from many clients while every backing service and service is killed, paused, cut off and wiped, in an order that
//! a seed gives. Afterwards the test checks the promise: every acknowledged write is in the database, the stream and the index; none
//! twice, none out of order.
//!
//! `make test` runs two minutes of it; `make faults` as long as FLOTILLA_FAULTS_SECONDS says, from the seed that
//! FLOTILLA_FAULTS_SEED gives.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod faults;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use e2e::Fleet;
use e2e::clients::{Client, Wishes};
use e2e::random::Random;
use faults::Faults;
use futures::StreamExt as _;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

const TENANTS: [&str; 3] = ["acme", "globex", "initech"];

/// Which run.
struct Plan {
    seed: u64,
    length: Duration,
    clients: usize,
    /// The shortest wait of a client between two writes.
    pace: Duration,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_two_minutes_of_faults() {
    run(Plan { seed: 20_261_121, length: Duration::from_secs(75), clients: 8, pace: Duration::from_millis(40) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "as long as it is asked for: make faults"]
async fn what_was_acknowledged_survives_as_long_as_is_asked_for() {
    #[expect(clippy::disallowed_methods, reason = "how long, and from which seed: the settings of `make faults`")]
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("FLOTILLA_FAULTS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let length = Duration::from_secs(number("FLOTILLA_FAULTS_SECONDS").unwrap_or(1_800));
    run(Plan { seed, length, clients: 16, pace: Duration::from_millis(250) }).await;
}

async fn run(plan: Plan) {
    println!("seed {}, {} clients, {:?}", plan.seed, plan.clients, plan.length);
    let fleet = Arc::new(Fleet::start_with(None, &["--fault-proxy"]).await);
    let mut random = Random::new(plan.seed);
    let (wish, wishes) = watch::channel(Wishes::Write);
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for number in 0..plan.clients {
        let caller = fleet.caller(TENANTS[number % TENANTS.len()], &format!("user-{number}")).await;
        let client = Client::new(number, caller, Random::new(random.next()));
        clients.spawn(client.run(wishes.clone(), plan.pace));
    }
    let faults = Faults::new(&fleet, Random::new(random.next())).await;
    let report = faults.until(started + plan.length).await;
    wish.send(Wishes::Stop).unwrap();
    let written = tokio::time::timeout(Duration::from_secs(180), clients.join_all()).await.expect("the clients end");
    report.print(&written);

    let todos: usize = written.iter().map(|client| client.todos.len()).sum::<usize>() + report.probes;
    let operations: usize = written.iter().map(|client| client.acknowledged).sum();
    assert!(operations > 100, "only {operations} writes were acknowledged: this run shows nothing");
    // The one command with which anyone can check it.
    let verified = fleet.run(&["verify", "--json", "--patience", "180"]).await;
    let found: Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert!(verified.status.success(), "seed {}: {found:#}\n{}", plan.seed, String::from_utf8_lossy(&verified.stderr));
    assert_eq!(found["todos"].as_u64().unwrap(), todos as u64, "seed {}: every create happened once", plan.seed);
    for client in &written {
        // A long run outlives a token.
        let caller = fleet.caller(TENANTS[client.number % TENANTS.len()], &format!("user-{}", client.number)).await;
        client.finds_its_writes(&caller).await;
    }
    versions_follow_each_other(&fleet, plan.seed).await;
    let stats = fleet.json(&["dlq", "stats"]).await;
    assert_eq!(stats["letters"], 0, "seed {}: an outage makes no dead letters", plan.seed);
    Arc::into_inner(fleet).unwrap().stop().await;
}

/// The versions of every aggregate in the stream: 1, 2, 3 and so on; a twin has the same version.
async fn versions_follow_each_other(fleet: &Fleet, seed: u64) {
    let js = fleet.jetstream().await;
    let stream = js.get_stream("EVENTS_TODO").await.unwrap();
    let config = pull::OrderedConfig { deliver_policy: DeliverPolicy::All, ..Default::default() };
    let consumer = stream.create_consumer(config).await.unwrap();
    let mut left = consumer.cached_info().num_pending;
    let mut messages = consumer.messages().await.unwrap();
    let mut newest: BTreeMap<String, i64> = BTreeMap::new();
    while left > 0 {
        let message = messages.next().await.unwrap().unwrap();
        left = message.info().unwrap().pending;
        let event: Value = serde_json::from_slice(&message.payload).unwrap();
        let version: i64 = event["sequence"].as_str().unwrap().parse().unwrap();
        let before = newest.insert(event["subject"].as_str().unwrap().to_owned(), version).unwrap_or(0);
        let twin = event["type"] == "todo.completed.v2" && version == before;
        assert!(twin || version == before + 1, "seed {seed}: {before}, then {event}");
    }
}
