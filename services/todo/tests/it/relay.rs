//! What the service's calls commit is what its stream holds. The relay by itself is tested in `crates/outbox/tests/relaying`.

use std::collections::BTreeMap;

use sqlx::{Connection as _, Executor as _, PgConnection};
use testkit::until;

use crate::harness::{Harness, Stored};

/// The ids of the outbox's rows in their order.
async fn rows(harness: &Harness) -> Vec<String> {
    let mut admin = harness.database.admin().await;
    sqlx::query_scalar("select event_id::text from outbox order by seq").fetch_all(&mut admin).await.unwrap()
}

fn ids(events: &[Stored]) -> Vec<String> {
    events.iter().map(|stored| stored.envelope.id.to_string()).collect()
}

/// Versions never fall back within an aggregate.
fn assert_in_order(events: &[Stored]) {
    let mut newest = BTreeMap::new();
    for stored in events {
        let version = stored.envelope.version().unwrap();
        let before = newest.insert(stored.envelope.subject.clone(), version).unwrap_or(0);
        assert!(version >= before, "version {version} after {before} of {}", stored.envelope.subject);
    }
}

const INSERT: &str = "insert into outbox (event_id, tenant, aggregate_id, subject, payload) \
    values (gen_random_uuid(), 'acme', 'a', 'evt.todo.created.v1.acme', '{}')";

/// A transaction of the service's role that has inserted an event and not ended.
async fn open_writer(harness: &Harness) -> PgConnection {
    let mut writer = PgConnection::connect(&harness.database.app).await.unwrap();
    writer.execute("set app.tenant = 'acme'; begin").await.unwrap();
    writer.execute(INSERT).await.unwrap();
    writer
}

#[tokio::test]
async fn o1_an_event_exists_if_and_only_if_its_transaction_committed() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    ann.titled("before").await;
    let mut writer = open_writer(&harness).await;
    writer.execute("rollback").await.unwrap();
    ann.titled("after").await;
    let events = harness.events().await;
    assert_eq!(ids(&events), rows(&harness).await);
    assert_eq!(events.len(), 2);
}

#[tokio::test]
async fn o2_every_committed_event_reaches_the_stream_through_an_outage() {
    let mut harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    for n in 0..10 {
        ann.titled(&format!("before {n}")).await;
    }
    harness.drain().await;
    harness.nats.kill().await;
    let id = ann.titled("while it is away").await.id;
    ann.complete(&id, "").await.unwrap();
    harness.nats.restart().await;
    ann.titled("after").await;
    let events = harness.events().await;
    assert_eq!(ids(&events), rows(&harness).await, "all, once, in order");
}

#[tokio::test]
async fn o2_a_service_that_dies_with_events_unpublished_publishes_them_when_it_is_back() {
    let mut harness = Harness::start().await;
    harness.drain().await;
    harness.nats.kill().await;
    for n in 0..20 {
        harness.client("acme", "ann").titled(&n.to_string()).await;
    }
    harness.stop().await;
    harness.nats.restart().await;
    let (second, lifecycle) = harness.second().await;
    harness.app = second;
    let events = harness.events().await;
    assert_eq!(ids(&events), rows(&harness).await);
    assert_eq!(lifecycle.shut_down().await, None);
}

#[tokio::test]
async fn o3_two_relays_keep_the_order_and_repeat_nothing() {
    let harness = Harness::start().await;
    let (_second, lifecycle) = harness.second().await;
    let ann = harness.client("acme", "ann");
    let id = ann.titled("x").await.id;
    for n in 0..10 {
        ann.complete(&id, "").await.unwrap();
        ann.reopen(&id).await.unwrap();
        if n == 4 {
            // The lease expires under its holder; the other may take it.
            let mut admin = harness.database.admin().await;
            admin.execute("update outbox_relay set expires_at = '-infinity', epoch = epoch + 1").await.unwrap();
        }
    }
    let newest = rows(&harness).await.len();
    let stream = harness.stream().await;
    until("both relays together publish everything", || async {
        stream.get_info().await.unwrap().state.messages >= newest as u64
    })
    .await;
    assert_eq!(lifecycle.shut_down().await, None);
    let events = harness.events().await;
    assert_eq!(ids(&events), rows(&harness).await);
    assert_in_order(&events);
}

#[tokio::test]
async fn only_the_service_may_publish_its_events() {
    let harness = Harness::start().await;
    harness.client("acme", "ann").titled("x").await;
    harness.drain().await;
    for user in ["search-projector", "operations"] {
        let client = harness.nats.client(user).await;
        client.publish("evt.todo.created.v1.acme", "{}".into()).await.unwrap();
        client.flush().await.unwrap();
    }
    assert_eq!(harness.events().await.len(), 1);
}

/// The harness checks every other test so.
#[tokio::test]
async fn a_harness_that_is_dropped_says_what_its_relay_could_not_publish() {
    let harness = Harness::start().await;
    harness.client("acme", "ann").titled("Tar the hull").await;
    harness.drain().await;
    // The relay halts at a message that is not from this outbox.
    let js = harness.nats.jetstream_of("todo").await;
    js.publish("evt.todo.created.v1.acme", "{}".into()).await.unwrap().await.unwrap();
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(harness)));
    let said = dropped.unwrap_err().downcast::<String>().unwrap();
    assert!(said.contains("the relay of todo") && said.contains("not from this outbox"), "{said}");
}
