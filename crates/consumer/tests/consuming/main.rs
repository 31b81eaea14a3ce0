//! The consumer on a real nats-server and a real Postgres: effects once, in order, and nothing lost.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod access;
mod claims;
mod fixture;
mod poison;
mod records;
mod releases;
mod went_back;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, stream};
use consumer::{Config, Consumer, Event, Failure, Verdict};
use futures::{FutureExt as _, StreamExt as _};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use testkit::until;
use tokio::sync::Notify;

use crate::fixture::{Fixture, STREAM, failing, gated, within};

#[tokio::test]
async fn an_effect_happens_once_however_often_its_event_is_delivered() {
    let fixture = Fixture::new().await;
    fixture.in_order(5, |_| None).await;
    for version in 1..=20 {
        for aggregate in ["a", "b", "c"] {
            fixture.publish(aggregate, version).await;
        }
    }
    fixture.drain().await;
    // All of it again, from the first.
    fixture.js.get_stream(STREAM).await.unwrap().reset_consumer("ledger", Some(1)).await.unwrap();
    fixture.publish("a", 21).await;
    until("the last is handled", || async { fixture.effects().await["a"].len() == 21 }).await;
    fixture.drain().await;
    let effects = fixture.effects().await;
    assert_eq!(effects["a"], (1..=21).collect::<Vec<_>>());
    assert_eq!(effects["b"], (1..=20).collect::<Vec<_>>());
    assert_eq!(effects["c"], (1..=20).collect::<Vec<_>>());
    fixture.stop().await;
}

#[tokio::test]
async fn a_failing_event_holds_up_its_aggregate_and_no_other() {
    let fixture = Fixture::new().await;
    fixture.in_order(10, failing(3, "shop.paid.v2-a-2")).await;
    for version in 1..=5 {
        for aggregate in ["a", "b"] {
            fixture.publish(aggregate, version).await;
        }
    }
    fixture.drain().await;
    let effects = fixture.effects().await;
    assert_eq!(effects["a"], [1, 2, 3, 4, 5]);
    assert_eq!(effects["b"], [1, 2, 3, 4, 5]);
    assert!(fixture.letters().await.is_empty());
    fixture.stop().await;
}

#[tokio::test]
async fn a_rejected_event_is_a_dead_letter_at_once_and_later_ones_of_its_aggregate_wait_behind_it() {
    let fixture = Fixture::new().await;
    fixture
        .in_order(10, |event| {
            (event.attribute("id") == "shop.paid.v2-a-2").then(|| Failure::Reject("no such account".to_owned()))
        })
        .await;
    for version in 1..=4 {
        for aggregate in ["a", "b"] {
            fixture.publish(aggregate, version).await;
        }
    }
    fixture.until_letters(3).await;
    fixture.drain().await;
    let effects = fixture.effects().await;
    assert_eq!((&effects["a"], &effects["b"]), (&vec![1], &vec![1, 2, 3, 4]));
    let letters = fixture.letters().await;
    assert_eq!(letters[0], ("shop.paid.v2-a-2".to_owned(), "no such account".to_owned(), "1".to_owned()));
    for (letter, id) in letters[1..].iter().zip(["shop.paid.v2-a-3", "shop.paid.v2-a-4"]) {
        assert_eq!(letter.0, id);
        assert!(letter.1.ends_with("is a dead letter: shop.paid.v2-a-2"), "{letter:?}");
    }
    // Delivered again, from the first: no second letter, and none for what had taken effect.
    fixture.js.get_stream(STREAM).await.unwrap().reset_consumer("ledger", Some(1)).await.unwrap();
    fixture.publish("b", 5).await;
    until("the last is handled", || async { fixture.effects().await["b"].len() == 5 }).await;
    fixture.drain().await;
    assert_eq!(fixture.letters().await.len(), 3);
    let mut db = PgConnection::connect(&fixture.database.superuser).await.unwrap();
    assert!(consumer::unpark(&mut db, "ledger", "a").await.unwrap());
    fixture.publish("a", 5).await;
    until("later events pass again", || async { fixture.effects().await["a"] == [1, 5] }).await;
    fixture.stop().await;
}

#[tokio::test]
async fn an_event_that_fails_too_often_is_a_dead_letter_with_its_attempts() {
    let fixture = Fixture::new().await;
    fixture.in_order(3, failing(u32::MAX, "shop.paid.v2-a-1")).await;
    fixture.publish("a", 1).await;
    fixture.until_letters(1).await;
    fixture.drain().await;
    assert_eq!(fixture.letters().await, [("shop.paid.v2-a-1".to_owned(), "not yet".to_owned(), "3".to_owned())]);
    assert!(fixture.effects().await.is_empty(), "its transaction was rolled back each time");
    fixture.stop().await;
}

#[tokio::test]
async fn nothing_is_acknowledged_while_the_dead_letter_stream_takes_nothing() {
    let fixture = Fixture::new().await;
    let refusing = stream::Config {
        name: "DLQ".into(),
        subjects: vec!["dlq.>".into()],
        discard: stream::DiscardPolicy::New,
        max_message_size: 10,
        ..Default::default()
    };
    fixture.js.create_stream(refusing).await.unwrap();
    fixture.in_order(3, |_| Some(Failure::Reject("bad".to_owned()))).await;
    fixture.publish("a", 1).await;
    until("the aggregate is parked, so its letter was refused", || async {
        let parked: i64 = sqlx::query_scalar("select count(*) from inbox_dead").fetch_one(&fixture.db).await.unwrap();
        parked == 1
    })
    .await;
    let info = fixture.durable().await.unwrap().get_info().await.unwrap();
    assert_eq!((info.ack_floor.stream_sequence, info.num_ack_pending), (0, 1));
    let is = fixture.js.get_stream("DLQ").await.unwrap().cached_info().config.clone();
    fixture.js.update_stream(stream::Config { max_message_size: -1, ..is }).await.unwrap();
    fixture.until_letters(1).await;
    fixture.drain().await;
    assert_eq!(fixture.letters().await[0].1, "bad");
    fixture.stop().await;
}

#[tokio::test]
async fn one_process_pulls_and_another_takes_over_in_order() {
    let fixture = Fixture::new().await;
    fixture.in_order(5, |_| None).await;
    fixture.in_order(5, |_| None).await;
    for version in 1..=30 {
        for aggregate in ["a", "b"] {
            fixture.publish(aggregate, version).await;
        }
        if version % 10 == 0 {
            // The pulling process has lost the lease, and does not learn of it.
            sqlx::query("update inbox_lease set epoch = epoch + 1, expires_at = '-infinity'")
                .execute(&fixture.db)
                .await
                .unwrap();
        }
    }
    until("all have taken effect", || async { fixture.effects().await.values().map(Vec::len).sum::<usize>() == 60 })
        .await;
    fixture.drain().await;
    for versions in fixture.effects().await.values() {
        assert_eq!(versions, &(1..=30).collect::<Vec<_>>());
    }
    fixture.stop().await;
}

#[tokio::test]
async fn a_batch_is_settled_event_by_event() {
    let fixture = Fixture::new().await;
    let tries = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&tries);
    fixture
        .batches(10, 5, move |event| match event.aggregate() {
            "bad" => Verdict::Reject("bad".to_owned()),
            "late" if counted.fetch_add(1, Ordering::SeqCst) < 2 => Verdict::Retry("later".to_owned()),
            "never" => Verdict::Retry("never".to_owned()),
            _ => Verdict::Done,
        })
        .await;
    for aggregate in ["good", "bad", "late", "never", "good too"] {
        fixture.publish(aggregate, 1).await;
    }
    fixture.until_letters(2).await;
    fixture.drain().await;
    let letters = fixture.letters().await;
    assert_eq!(letters[0], ("shop.paid.v2-bad-1".to_owned(), "bad".to_owned(), "1".to_owned()));
    assert_eq!(letters[1], ("shop.paid.v2-never-1".to_owned(), "never".to_owned(), "5".to_owned()));
    assert_eq!(tries.load(Ordering::SeqCst), 3);
    fixture.stop().await;
}

#[tokio::test]
async fn of_twins_one_takes_effect_and_what_nobody_knows_is_passed_over() {
    let fixture = Fixture::new().await;
    fixture.in_order(5, |_| None).await;
    fixture.publish_twins("a", 1).await;
    // A pair from before twins named each other.
    fixture.publish_as("shop.paid.v1", "b", 1, json!({"supersededby": "shop.paid.v2"})).await;
    fixture.publish("b", 1).await;
    fixture.publish_as("shop.moved.v1", "a", 2, json!({})).await;
    fixture.publish("a", 3).await;
    fixture.drain().await;
    let effects = fixture.effects().await;
    assert_eq!((&effects["a"], &effects["b"]), (&vec![1, 3], &vec![1]));
    assert!(fixture.letters().await.is_empty());
    fixture.stop().await;
}

#[tokio::test]
async fn what_jetstream_itself_gave_up_on_becomes_a_dead_letter() {
    let fixture = Fixture::new().await;
    let mut status = fixture.batches(10, 100, |_| Verdict::Retry("not yet".to_owned())).await;
    status.wait_for(|status| status.pulling).await.unwrap();
    // Somebody sets a limit to deliveries under the running consumer: it is said until the administration takes it back.
    let is = fixture.durable().await.unwrap().cached_info().config.clone();
    let limited = jetstream::consumer::Config { max_deliver: 2, ..is };
    fixture.js.get_stream(STREAM).await.unwrap().update_consumer(limited).await.unwrap();
    fixture.publish("a", 1).await;
    fixture.until_letters(1).await;
    drop(within(status.wait_for(|status| status.differs && !status.refused)).await);
    fixture.deployed(Fixture::batched(10, 100)).await;
    drop(within(status.wait_for(|status| !status.differs)).await);
    assert_eq!(fixture.durable().await.unwrap().cached_info().config.max_deliver, -1);
    let letters = fixture.letters().await;
    assert_eq!(letters[0].0, "shop.paid.v2-a-1");
    assert!(letters[0].1.contains("JetStream gave up on it: its deliveries ran out"), "{letters:?}");
    fixture.stop().await;
}

#[tokio::test]
async fn nothing_is_pulled_by_a_durable_consumer_that_gives_something_else() {
    let fixture = Fixture::new().await;
    let mut status = fixture.batches(10, 1, |_| Verdict::Done).await;
    drop(within(status.wait_for(|status| status.pulling)).await);
    // Without their bodies all events would become dead letters.
    let stream = fixture.js.get_stream(STREAM).await.unwrap();
    let is = fixture.durable().await.unwrap().cached_info().config.clone();
    let bare = jetstream::consumer::Config { headers_only: true, ..is };
    stream.update_consumer(bare).await.unwrap();
    drop(within(status.wait_for(|status| status.refused && !status.pulling)).await);
    fixture.publish("a", 1).await;
    fixture.deployed(Fixture::batched(10, 1)).await;
    drop(within(status.wait_for(|status| !status.refused && status.pulling)).await);
    fixture.drain().await;
    assert_eq!(fixture.letters().await, []);
    fixture.stop().await;
}

#[tokio::test]
async fn a_release_that_the_administration_has_not_provided_for_does_not_pull() {
    let fixture = Fixture::new().await;
    fixture.deployed(Config { types: vec!["shop.paid.v1".to_owned()], ..Fixture::batched(8, 3) }).await;
    // It knows one type more: the other release would pass over that one.
    let consumer = Consumer::new(fixture.nats.client("admin").await, Fixture::batched(8, 3));
    let mut status = consumer.status();
    let stop = fixture.stop.clone();
    let done = |events: Vec<Event>| std::future::ready(vec![Verdict::Done; events.len()]);
    fixture.consumers.spawn(consumer.run_batches(stop, done));
    drop(within(status.wait_for(|status| status.refused && !status.pulling)).await);
    fixture.deployed(Fixture::batched(8, 3)).await;
    drop(within(status.wait_for(|status| !status.refused && status.pulling)).await);
    fixture.stop().await;
}

#[tokio::test]
async fn a_floor_that_stands_still_shows_and_so_does_a_pause() {
    let fixture = Fixture::new().await;
    let gate = Arc::new(Notify::new());
    let consumer = fixture.deployed(Fixture::batched(1, 5)).await;
    let mut status = consumer.status();
    let (stop, opened) = (fixture.stop.clone(), Arc::clone(&gate));
    fixture.consumers.spawn(async move {
        let handler = |events: Vec<Event>| {
            let opened = Arc::clone(&opened);
            async move {
                opened.notified().await;
                vec![Verdict::Done; events.len()]
            }
        };
        consumer.run_batches(stop, handler).await;
    });
    fixture.publish("a", 1).await;
    fixture.publish("a", 2).await;
    let stalled = status.wait_for(|status| !status.stalled_for.is_zero());
    tokio::time::timeout(testkit::PATIENCE, stalled).await.expect("it is seen to stand still").unwrap();
    gate.notify_one();
    let stream = fixture.js.get_stream(STREAM).await.unwrap();
    let until = chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now()) + chrono::TimeDelta::hours(1);
    stream.pause_consumer("ledger", until).await.unwrap();
    let paused = status.wait_for(|status| status.paused && status.stalled_for.is_zero());
    tokio::time::timeout(testkit::PATIENCE, paused).await.expect("it is seen to be paused").unwrap();
    stream.resume_consumer("ledger").await.unwrap();
    gate.notify_one();
    fixture.drain().await;
    fixture.stop().await;
}

#[tokio::test]
async fn events_that_were_trimmed_unread_are_noticed() {
    let mut fixture = Fixture::new().await;
    let stream = fixture.js.get_stream(STREAM).await.unwrap();
    let config =
        pull::Config { durable_name: Some("ledger".to_owned()), ack_policy: AckPolicy::Explicit, ..Default::default() };
    stream.create_consumer(config).await.unwrap();
    for version in 1..=7 {
        fixture.publish("a", version).await;
    }
    // They age out while nobody reads.
    let aging =
        stream::Config { max_age: std::time::Duration::from_millis(200), ..stream.get_info().await.unwrap().config };
    fixture.js.update_stream(stream::Config { duplicate_window: aging.max_age, ..aging.clone() }).await.unwrap();
    until("they have aged out", || async { stream.get_info().await.unwrap().state.messages == 0 }).await;
    fixture.js.update_stream(stream::Config { max_age: std::time::Duration::ZERO, ..aging }).await.unwrap();
    fixture.publish("a", 8).await;
    let mut status = fixture.in_order(5, |_| None).await;
    let trimmed = status.wait_for(|status| status.trimmed_unread == 7);
    tokio::time::timeout(testkit::PATIENCE, trimmed).await.expect("seven are missing").unwrap();
    fixture.drain().await;
    assert_eq!(fixture.effects().await["a"], [8]);
    fixture.anew().await;
    // A new process knows it too, although the floor has passed the gap.
    let mut status = fixture.in_order(5, |_| None).await;
    let trimmed = status.wait_for(|status| status.trimmed_unread == 7);
    tokio::time::timeout(testkit::PATIENCE, trimmed).await.expect("seven are still missing").unwrap();
    fixture.stop().await;
}

#[tokio::test]
async fn what_is_in_hand_is_finished_when_asked_to_stop() {
    let fixture = Fixture::new().await;
    let (entered, gate) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (consumer, stop, inbox) =
        (fixture.deployed(Fixture::ordered(8, 5)).await, fixture.stop.clone(), fixture.inbox());
    let (inside, opened) = (Arc::clone(&entered), Arc::clone(&gate));
    fixture.consumers.spawn(async move {
        consumer
            .run_in_order(stop, inbox, move |tx, event| gated(tx, event, inside.clone(), opened.clone()).boxed())
            .await;
    });
    fixture.publish("a", 1).await;
    fixture.publish("a", 2).await;
    entered.notified().await;
    fixture.stop.cancel();
    gate.notify_one();
    fixture.stop().await;
    assert_eq!(fixture.effects().await["a"], [1], "the one in hand is finished, the next is not begun");
    let info = fixture.durable().await.unwrap().get_info().await.unwrap();
    assert_eq!(info.ack_floor.stream_sequence, 1);
}

#[tokio::test]
async fn a_broker_that_dies_and_comes_back_is_waited_for() {
    let mut fixture = Fixture::new().await;
    fixture.in_order(5, |_| None).await;
    for version in 1..=10 {
        fixture.publish("a", version).await;
    }
    until("some have taken effect", || async { fixture.effects().await.get("a").is_some_and(|a| a.len() > 2) }).await;
    fixture.nats.kill().await;
    fixture.nats.restart().await;
    fixture.js = fixture.nats.jetstream().await;
    for version in 11..=20 {
        fixture.publish("a", version).await;
    }
    until("all have taken effect", || async { fixture.effects().await["a"].len() == 20 }).await;
    assert_eq!(fixture.effects().await["a"], (1..=20).collect::<Vec<_>>());
    fixture.stop().await;
}

#[tokio::test]
async fn deliveries_that_nobody_worked_on_are_no_attempts_and_an_older_configuration_is_changed() {
    let fixture = Fixture::new().await;
    fixture.publish("a", 1).await;
    // A durable of an earlier configuration, whose reader had the event in hand three times and did nothing with it.
    let older = pull::Config {
        durable_name: Some("ledger".to_owned()),
        filter_subject: "evt.shop.paid.v2.>".to_owned(),
        ack_policy: AckPolicy::Explicit,
        max_ack_pending: 1,
        ..Default::default()
    };
    let durable = fixture.js.get_stream(STREAM).await.unwrap().create_consumer(older).await.unwrap();
    for _ in 0..3 {
        let message = durable.messages().await.unwrap().next().await.unwrap().unwrap();
        message.ack_with(jetstream::AckKind::Nak(None)).await.unwrap();
    }
    // It fails once, and may fail twice.
    let failed = AtomicU32::new(0);
    let verdict = move |_: &Event| match failed.fetch_add(1, Ordering::SeqCst) {
        0 => Verdict::Retry("not yet".to_owned()),
        _ => Verdict::Done,
    };
    fixture.batches(4, 2, verdict).await;
    fixture.drain().await;
    assert_eq!(fixture.letters().await, []);
    let config = fixture.durable().await.unwrap().cached_info().config.clone();
    assert_eq!(config.filter_subject, "evt.shop.>");
    assert!(config.max_ack_pending > 1);
    fixture.stop().await;
}

#[tokio::test]
async fn a_letter_too_large_for_a_message_says_where_its_payload_is() {
    let fixture = Fixture::new().await;
    let most = fixture.nats.client("admin").await.server_info().max_payload;
    // It fits into a message, but not together with its failure history.
    fixture.publish_as("shop.paid.v2", "a", 1, json!({"data": "x".repeat(most - 1_000)})).await;
    fixture.batches(4, 2, |_| Verdict::Reject("never".to_owned())).await;
    fixture.drain().await;
    let letter = fixture.js.get_stream("DLQ").await.unwrap().get_raw_message(1).await.unwrap();
    assert!(letter.payload.is_empty());
    let header = |name| letter.headers.get(name).unwrap().to_string();
    let original = fixture.js.get_stream(STREAM).await.unwrap().get_raw_message(1).await.unwrap();
    assert_eq!(header("Dlq-Stream-Sequence"), "1");
    assert_eq!(header("Dlq-Payload-Left"), format!("{} bytes", original.payload.len()));
    assert_eq!(header("Dlq-Reason"), "never");
    fixture.stop().await;
}
