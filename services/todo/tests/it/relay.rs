//! The outbox and its relay, by the names of what must hold (DESIGN, section 4).

use std::collections::BTreeMap;

use async_nats::jetstream::message::PublishMessage;
use outbox::Role;
use sqlx::{Connection as _, Executor as _, PgConnection};
use testkit::until;

use crate::harness::{Fleet, Stored};

/// The ids of the outbox's rows in their order.
pub async fn rows(fleet: &Fleet) -> Vec<String> {
    let mut admin = fleet.database.admin().await;
    sqlx::query_scalar("select event_id::text from outbox order by seq").fetch_all(&mut admin).await.unwrap()
}

pub fn ids(events: &[Stored]) -> Vec<String> {
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
async fn open_writer(fleet: &Fleet) -> PgConnection {
    let mut writer = PgConnection::connect(&fleet.database.app).await.unwrap();
    writer.execute("set app.tenant = 'acme'; begin").await.unwrap();
    writer.execute(INSERT).await.unwrap();
    writer
}

/// Waits until the relay waits for writers: its connection's last statement looks at their locks.
async fn until_relay_waits(fleet: &Fleet) {
    until("the relay waits for an open writer", || async {
        let mut admin = fleet.database.admin().await;
        let waits: bool = sqlx::query_scalar(
            "select exists (select from pg_stat_activity where datname = current_database() \
             and application_name = 'todo-relay' and query like '%pg_locks%')",
        )
        .fetch_one(&mut admin)
        .await
        .unwrap();
        waits
    })
    .await;
}

/// Waits until the relay has stopped for a person; why.
pub async fn until_halted(fleet: &Fleet) -> String {
    let mut status = fleet.app.relay.status();
    let halted = status.wait_for(|status| matches!(status.role, Role::Halted { .. }));
    let status = tokio::time::timeout(testkit::PATIENCE, halted).await.expect("the relay stops").unwrap().clone();
    let Role::Halted { reason } = status.role else { unreachable!() };
    reason
}

#[tokio::test]
async fn o1_an_event_exists_if_and_only_if_its_transaction_committed() {
    let fleet = Fleet::start().await;
    let ann = fleet.client("acme", "ann");
    ann.titled("before").await;
    let mut writer = open_writer(&fleet).await;
    writer.execute("rollback").await.unwrap();
    ann.titled("after").await;
    let events = fleet.events().await;
    assert_eq!(ids(&events), rows(&fleet).await);
    assert_eq!(events.len(), 2);
}

#[tokio::test]
async fn o2_every_committed_event_reaches_the_stream_through_an_outage() {
    let mut fleet = Fleet::start().await;
    let ann = fleet.client("acme", "ann");
    for n in 0..10 {
        ann.titled(&format!("before {n}")).await;
    }
    fleet.drain().await;
    fleet.nats.kill().await;
    let id = ann.titled("while it is away").await.id;
    ann.complete(&id, "").await.unwrap();
    fleet.nats.restart().await;
    ann.titled("after").await;
    let events = fleet.events().await;
    assert_eq!(ids(&events), rows(&fleet).await, "all, once, in order");
}

#[tokio::test]
async fn o2_a_service_that_dies_with_events_unpublished_publishes_them_when_it_is_back() {
    let mut fleet = Fleet::start().await;
    fleet.drain().await;
    fleet.nats.kill().await;
    for n in 0..20 {
        fleet.client("acme", "ann").titled(&n.to_string()).await;
    }
    fleet.stop().await;
    fleet.nats.restart().await;
    let (second, lifecycle) = fleet.second().await;
    fleet.app = second;
    let events = fleet.events().await;
    assert_eq!(ids(&events), rows(&fleet).await);
    assert_eq!(lifecycle.shut_down().await, None);
}

#[tokio::test]
async fn o3_two_relays_keep_the_order_and_repeat_nothing() {
    let fleet = Fleet::start().await;
    let (_second, lifecycle) = fleet.second().await;
    let ann = fleet.client("acme", "ann");
    let id = ann.titled("x").await.id;
    for n in 0..10 {
        ann.complete(&id, "").await.unwrap();
        ann.reopen(&id).await.unwrap();
        if n == 4 {
            // The lease runs out from under whoever holds it; the other may take it.
            let mut admin = fleet.database.admin().await;
            admin.execute("update outbox_relay set expires_at = '-infinity', epoch = epoch + 1").await.unwrap();
        }
    }
    let newest = rows(&fleet).await.len();
    let stream = fleet.stream().await;
    until("both relays together publish everything", || async {
        stream.get_info().await.unwrap().state.messages >= newest as u64
    })
    .await;
    assert_eq!(lifecycle.shut_down().await, None);
    let events = fleet.events().await;
    assert_eq!(ids(&events), rows(&fleet).await);
    assert_in_order(&events);
}

#[tokio::test]
async fn o4_no_event_is_skipped_because_a_lower_number_commits_later() {
    let fleet = Fleet::start().await;
    let ann = fleet.client("acme", "ann");
    ann.titled("before").await;
    fleet.drain().await;
    let mut writer = open_writer(&fleet).await;
    ann.titled("after").await;
    until_relay_waits(&fleet).await;
    let stored = fleet.stream().await.get_info().await.unwrap().state.messages;
    assert_eq!(stored, 1, "what lies behind an open writer waits");
    writer.execute("commit").await.unwrap();
    fleet.drain().await;
    let stream = fleet.stream().await;
    let mut published = Vec::new();
    for sequence in 1..=3 {
        let message = stream.get_raw_message(sequence).await.unwrap();
        published.push(message.headers.get("Outbox-Event-Id").unwrap().to_string());
    }
    assert_eq!(published, rows(&fleet).await);
}

#[tokio::test]
async fn o5_an_unrelated_long_transaction_stalls_nothing() {
    let fleet = Fleet::start().await;
    let mut long = PgConnection::connect(&fleet.database.app).await.unwrap();
    long.execute("set app.tenant = 'globex'; begin; select pg_current_xact_id(); update todo set title = title")
        .await
        .unwrap();
    // A gap, so that the relay has to ask who is writing.
    let mut writer = open_writer(&fleet).await;
    writer.execute("rollback").await.unwrap();
    fleet.client("acme", "ann").titled("x").await;
    assert_eq!(fleet.events().await.len(), 1);
    long.execute("commit").await.unwrap();
}

#[tokio::test]
async fn o6_a_look_reads_what_is_new_however_much_lies_behind_it() {
    let fleet = Fleet::start().await;
    let mut admin = fleet.database.admin().await;
    let backlog = 5_000;
    sqlx::query(
        "insert into outbox (event_id, tenant, aggregate_id, subject, payload) select gen_random_uuid(), 'acme', \
         'a-' || g, 'evt.todo.created.v1.acme', '{}' from generate_series(1, $1) g",
    )
    .bind(backlog)
    .execute(&mut admin)
    .await
    .unwrap();
    fleet.drain().await;
    let mut long = fleet.database.admin().await;
    long.execute("begin isolation level repeatable read; select pg_current_xact_id()").await.unwrap();

    // What Postgres counts for the outbox's partitions: rows read through an index, and without one.
    let counted = async || -> (i64, i64) {
        let mut admin = fleet.database.admin().await;
        sqlx::query_as(
            "select sum(idx_tup_fetch)::bigint, sum(seq_tup_read)::bigint \
             from pg_stat_user_tables where relid in (select inhrelid from pg_inherits where inhparent = 'outbox'::regclass)",
        )
        .fetch_one(&mut admin)
        .await
        .unwrap()
    };
    let mut status = fleet.app.relay.status();
    let done = status.borrow().done;
    for n in 1..=20 {
        // As a writer of another process, whose rows have to be looked for.
        admin.execute(INSERT).await.unwrap();
        fleet.app.relay.wake();
        let passed = status.wait_for(|status| status.done >= done + n);
        tokio::time::timeout(testkit::PATIENCE, passed).await.expect("the relay goes on").unwrap();
    }
    until("the looks are counted", || async { counted().await.0 >= i64::from(backlog) + 20 }).await;
    let (through_an_index, without) = counted().await;
    // Each row of the backlog once when it was published, and a few more.
    let most = 2 * i64::from(backlog);
    assert!(through_an_index < most && without < most, "{through_an_index} and {without} rows for 20 events");
    long.execute("rollback").await.unwrap();
}

#[tokio::test]
async fn o7_a_wiped_broker_is_refilled_in_order() {
    let mut fleet = Fleet::start().await;
    let ann = fleet.client("acme", "ann");
    for n in 0..5 {
        let id = ann.titled(&n.to_string()).await.id;
        ann.complete(&id, "").await.unwrap();
    }
    let before = ids(&fleet.events().await);
    fleet.nats.kill().await;
    fleet.nats.wipe();
    fleet.nats.restart().await;
    let stream = async || fleet.nats.jetstream().await.get_stream("EVENTS_TODO").await;
    until("the stream is refilled", || async {
        match stream().await {
            Ok(stream) => stream.get_info().await.is_ok_and(|info| info.state.messages == before.len() as u64),
            Err(_) => false,
        }
    })
    .await;
    ann.titled("after").await;
    let after = ids(&fleet.events().await);
    assert_eq!(after[..before.len()], before);
    assert_eq!(after, rows(&fleet).await);
}

#[tokio::test]
async fn o7_a_stream_that_holds_a_foreign_message_stops_the_relay_loudly() {
    let fleet = Fleet::start().await;
    fleet.client("acme", "ann").titled("x").await;
    fleet.drain().await;
    let message = PublishMessage::build().payload("{}".into());
    let js = fleet.nats.jetstream().await;
    js.send_publish("evt.todo.created.v1.acme", message).await.unwrap().await.unwrap();
    let halted = until_halted(&fleet).await;
    assert!(halted.contains("not from this outbox") && halted.contains("flotilla outbox accept"), "{halted}");
}

#[tokio::test]
async fn only_the_service_may_publish_its_events() {
    let fleet = Fleet::start().await;
    fleet.client("acme", "ann").titled("x").await;
    fleet.drain().await;
    for user in ["search-projector", "operations"] {
        let client = fleet.nats.client(user).await;
        client.publish("evt.todo.created.v1.acme", "{}".into()).await.unwrap();
        client.flush().await.unwrap();
    }
    assert_eq!(fleet.events().await.len(), 1);
}
