//! The outbox and its relay on a real Postgres and a real nats-server: nothing lost, nothing out of order, whatever fails.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
#![expect(clippy::disallowed_methods, reason = "tests make ids, and one of them is a process with an environment")]

mod access;
mod connections;
mod handoff;

mod failover;

mod stream_loss;

mod poison;

mod retention;

mod went_back;

mod fixture;

use async_nats::jetstream::message::PublishMessage;
use sqlx::Executor as _;
use testkit::{PATIENCE, until};

use crate::fixture::{Fixture, RELAY, STREAM, SUBJECT, event};

/// Waits until the relay waits for writers: its connection's last statement queries their locks.
async fn until_relay_waits(fixture: &Fixture) {
    until("the relay waits for an open writer", || async {
        let mut admin = fixture.database.admin().await;
        let waits: bool = sqlx::query_scalar(
            "select exists (select from pg_stat_activity where datname = current_database() \
             and application_name = $1 and query like '%pg_locks%')",
        )
        .bind(RELAY)
        .fetch_one(&mut admin)
        .await
        .unwrap();
        waits
    })
    .await;
}

#[tokio::test]
async fn o4_no_event_is_skipped_because_a_lower_number_commits_later() {
    let fixture = Fixture::new().await;
    fixture.write(1).await;
    fixture.drain().await;
    let mut writer = fixture.open_writer().await;
    fixture.write(1).await;
    until_relay_waits(&fixture).await;
    let stored = fixture.stream().await.get_info().await.unwrap().state.messages;
    assert_eq!(stored, 1, "what lies behind an open writer waits");
    writer.execute("commit").await.unwrap();
    let published = fixture.stored().await;
    assert_eq!(published.len(), 3);
    assert_eq!(published, fixture.rows().await);
    fixture.stop().await;
}

#[tokio::test]
async fn o5_an_unrelated_long_transaction_stalls_nothing() {
    let fixture = Fixture::new().await;
    let mut admin = fixture.database.admin().await;
    admin
        .execute(
            "create table orders (customer text); insert into orders values ('ann'); \
             grant select, update on orders to todo_app",
        )
        .await
        .unwrap();
    let mut long = fixture.app().await;
    long.execute("begin; select pg_current_xact_id(); update orders set customer = customer").await.unwrap();
    // A gap, so that the relay has to ask who is writing.
    let mut writer = fixture.open_writer().await;
    writer.execute("rollback").await.unwrap();
    fixture.write(1).await;
    assert_eq!(fixture.stored().await.len(), 1);
    long.execute("commit").await.unwrap();
    fixture.stop().await;
}

#[tokio::test]
async fn o6_a_look_reads_what_is_new_however_much_lies_behind_it() {
    let fixture = Fixture::new().await;
    let mut admin = fixture.database.admin().await;
    let backlog = 5_000;
    sqlx::query(
        "insert into outbox (event_id, tenant, aggregate_id, subject, payload) select gen_random_uuid(), 'acme', \
         'a-' || g, $2, '{}' from generate_series(1, $1) g",
    )
    .bind(backlog)
    .bind(SUBJECT)
    .execute(&mut admin)
    .await
    .unwrap();
    fixture.drain().await;
    let mut long = fixture.database.admin().await;
    long.execute("begin isolation level repeatable read; select pg_current_xact_id()").await.unwrap();

    // What Postgres counts for the outbox's partitions: rows read through an index, and without one.
    let counted = async || -> (i64, i64) {
        let mut admin = fixture.database.admin().await;
        sqlx::query_as(
            "select sum(idx_tup_fetch)::bigint, sum(seq_tup_read)::bigint \
             from pg_stat_user_tables where relid in (select inhrelid from pg_inherits where inhparent = 'outbox'::regclass)",
        )
        .fetch_one(&mut admin)
        .await
        .unwrap()
    };
    let mut status = fixture.relay.status();
    let done = status.borrow().done;
    for n in 1..=20 {
        // As a writer of another process, whose rows the relay must query.
        outbox::append(&mut admin, &event("a")).await.unwrap();
        fixture.relay.wake();
        let passed = status.wait_for(|status| status.done >= done + n);
        tokio::time::timeout(PATIENCE, passed).await.expect("the relay goes on").unwrap();
    }
    until("the looks are counted", || async { counted().await.0 >= i64::from(backlog) + 20 }).await;
    let (through_an_index, without) = counted().await;
    // Each row of the backlog once when it was published, and a few more.
    let most = 2 * i64::from(backlog);
    assert!(through_an_index < most && without < most, "{through_an_index} and {without} rows for 20 events");
    long.execute("rollback").await.unwrap();
    fixture.stop().await;
}

#[tokio::test]
async fn o7_a_wiped_broker_is_refilled_in_order() {
    let mut fixture = Fixture::new().await;
    for n in 0..5 {
        for _ in 0..2 {
            fixture.commit(event(&format!("order {n}"))).await;
        }
    }
    let before = fixture.stored().await;
    fixture.nats.kill().await;
    fixture.nats.wipe();
    fixture.nats.restart().await;
    let stream = async || fixture.nats.jetstream().await.get_stream(STREAM).await;
    until("the stream is refilled", || async {
        match stream().await {
            Ok(stream) => stream.get_info().await.is_ok_and(|info| info.state.messages == before.len() as u64),
            Err(_) => false,
        }
    })
    .await;
    fixture.write(1).await;
    let after = fixture.stored().await;
    assert_eq!(after[..before.len()], before);
    assert_eq!(after, fixture.rows().await);
    fixture.stop().await;
}

#[tokio::test]
async fn o7_a_stream_that_holds_a_foreign_message_stops_the_relay_loudly() {
    let fixture = Fixture::new().await;
    fixture.write(1).await;
    fixture.drain().await;
    let message = PublishMessage::build().payload("{}".into());
    let js = fixture.nats.jetstream().await;
    js.send_publish(SUBJECT, message).await.unwrap().await.unwrap();
    let halted = fixture.until_halted().await;
    assert!(halted.contains("not from this outbox") && halted.contains("operate::accept"), "{halted}");
    fixture.stop().await;
}
