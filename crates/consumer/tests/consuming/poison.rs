//! One event, one stream or one process that fails must not stop everything.

use std::collections::HashSet;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::jetstream::stream::{self, DiscardPolicy};
use consumer::{Config, Consumer, Event, Failure, RecordStreams, Verdict, administer};
use futures::{FutureExt as _, StreamExt as _};
use sqlx::{Executor as _, PgConnection};
use testkit::{TestProxy, until, until_within};

use crate::fixture::{Fixture, handled, record, within};

const BAD: &str = "shop.paid.v2-bad-1";

/// One bad event among good ones, all of them in one batch.
async fn publish_some(fixture: &Fixture) {
    for aggregate in ["a", "b", "bad", "c", "d"] {
        fixture.publish(aggregate, 1).await;
    }
}

async fn only_the_bad_one_died(fixture: &Fixture, because: &str) {
    fixture.until_letters(1).await;
    fixture.drain().await;
    let letters = fixture.letters().await;
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(letters[0].0, BAD);
    assert!(letters[0].1.contains(because), "{letters:?}");
}

#[tokio::test]
async fn of_a_batch_whose_handler_panics_only_the_event_that_is_why_dies() {
    let fixture = Fixture::new().await;
    publish_some(&fixture).await;
    let verdict = |event: &Event| {
        assert_ne!(event.attribute("id"), BAD, "no such account");
        Verdict::Done
    };
    fixture.batches(10, 2, verdict).await;
    only_the_bad_one_died(&fixture, "the handler panicked: assertion `left != right` failed: no such account").await;
    fixture.stop().await;
}

#[tokio::test]
async fn a_batch_whose_handler_never_ends_is_taken_apart() {
    let fixture = Fixture::new().await;
    publish_some(&fixture).await;
    let config = Config { handle_within: Some(Duration::from_millis(300)), ..Fixture::batched(10, 2) };
    let (consumer, stop) = (fixture.deployed(config).await, fixture.stop.clone());
    fixture.consumers.spawn(async move {
        let handler = |events: Vec<Event>| async move {
            if events.iter().any(|event| event.attribute("id") == BAD) {
                pending::<()>().await;
            }
            vec![Verdict::Done; events.len()]
        };
        consumer.run_batches(stop, handler).await;
    });
    only_the_bad_one_died(&fixture, "the handler did not end within 300ms").await;
    fixture.stop().await;
}

async fn bad(tx: &mut PgConnection, event: &Event) -> Result<(), Failure> {
    record(tx, event).await?;
    match event.attribute("id") {
        BAD => panic!("no such account"),
        "shop.paid.v2-bad-2" => pending().await,
        _ => Ok(()),
    }
}

#[tokio::test]
async fn in_order_a_handler_that_panics_or_never_ends_parks_its_aggregate_only() {
    let fixture = Fixture::new().await;
    let config = Config { handle_within: Some(Duration::from_millis(300)), ..Fixture::ordered(8, 2) };
    let (consumer, stop, inbox) = (fixture.deployed(config).await, fixture.stop.clone(), fixture.inbox());
    fixture.consumers.spawn(async move {
        consumer.run_in_order(stop, inbox, |tx, event| bad(tx, event).boxed()).await;
    });
    fixture.publish("bad", 2).await;
    publish_some(&fixture).await;
    fixture.until_letters(2).await;
    fixture.drain().await;
    let letters = fixture.letters().await;
    assert!(letters[0].1.contains("did not end within 300ms"), "{letters:?}");
    assert!(letters[1].1.contains("is a dead letter"), "{letters:?}");
    let effects = fixture.effects().await;
    assert_eq!(effects.keys().collect::<Vec<_>>(), ["a", "b", "c", "d"], "what failed was rolled back");
    // The one that panics, by itself.
    let mut db = fixture.database.admin().await;
    assert!(consumer::unpark(&mut db, "ledger", "bad").await.unwrap());
    db.execute("delete from inbox where event_id like '%-bad-%'").await.unwrap();
    fixture.publish("bad", 1).await;
    fixture.until_letters(3).await;
    assert!(fixture.letters().await[2].1.contains("the handler panicked: no such account"));
    fixture.stop().await;
}

#[tokio::test]
async fn events_are_handled_while_the_streams_of_letters_and_replays_are_away() {
    let fixture = Fixture::new().await;
    fixture.deployed(Fixture::ordered(8, 1)).await;
    for gone in ["DLQ", "REPLAY", "ADVISORIES"] {
        fixture.js.delete_stream(gone).await.unwrap();
    }
    // One that starts without them, and goes on; in order, and by batches.
    for ordered in [true, false] {
        let config = if ordered { Fixture::ordered(8, 1) } else { Fixture::batched(8, 1) };
        let consumer = Consumer::new(fixture.nats.client("admin").await, config);
        let (mut status, stop, inbox) = (consumer.status(), fixture.stop.child_token(), fixture.inbox());
        let stopped = stop.clone();
        fixture.consumers.spawn(async move {
            if ordered {
                consumer.run_in_order(stop, inbox, |tx, event| bad(tx, event).boxed()).await;
            } else {
                let verdict = |event: &Event| match event.attribute("id") {
                    BAD => Verdict::Reject("bad".to_owned()),
                    _ => Verdict::Done,
                };
                let handler = |events: Vec<Event>| std::future::ready(events.iter().map(verdict).collect());
                consumer.run_batches(stop, handler).await;
            }
        });
        drop(within(status.wait_for(|status| status.pulling)).await);
        fixture.publish(if ordered { "a" } else { "b" }, 1).await;
        fixture.drain().await;
        if !ordered {
            // What cannot become a letter is not acknowledged; it is one as soon as there are letters again.
            fixture.publish("bad", 1).await;
            let durable = fixture.durable().await.unwrap();
            until("it is in hand", || async { durable.get_info().await.unwrap().num_ack_pending == 1 }).await;
            administer::streams(&fixture.js, &RecordStreams::default(), 1).await.unwrap();
            only_the_bad_one_died(&fixture, "bad").await;
        }
        stopped.cancel();
    }
    fixture.stop().await;
}

#[tokio::test]
async fn a_full_stream_of_letters_holds_up_what_dies_and_nothing_else() {
    let fixture = Fixture::new().await;
    fixture.deployed(Fixture::ordered(10, 1)).await;
    let letters = fixture.js.get_stream("DLQ").await.unwrap().cached_info().config.clone();
    assert!(letters.max_bytes > 0 && letters.discard == DiscardPolicy::New, "{letters:?}");
    fixture.js.update_stream(stream::Config { max_bytes: 500, ..letters.clone() }).await.unwrap();
    let verdict = |event: &Event| match event.attribute("id") {
        BAD => Verdict::Reject("bad".to_owned()),
        _ => Verdict::Done,
    };
    fixture.batches(10, 1, verdict).await;
    publish_some(&fixture).await;
    let durable = fixture.durable().await.unwrap();
    until("only the bad one waits", || async {
        let info = durable.get_info().await.unwrap();
        info.num_pending == 0 && info.num_ack_pending == 1
    })
    .await;
    assert_eq!(fixture.letters().await, []);
    // What an operator has set stays.
    let more = stream::Config { max_bytes: 10_000_000, ..letters };
    fixture.js.update_stream(more).await.unwrap();
    administer::streams(&fixture.js, &RecordStreams::default(), 1).await.unwrap();
    assert_eq!(fixture.js.get_stream("DLQ").await.unwrap().cached_info().config.max_bytes, 10_000_000);
    only_the_bad_one_died(&fixture, "bad").await;
    fixture.stop().await;
}

#[tokio::test]
async fn deaths_wait_together_for_a_stream_of_letters_that_does_not_answer() {
    const DEAD: usize = 20;
    let fixture = Fixture::new().await;
    let (consumer, stop) = (fixture.deployed(Fixture::batched(DEAD, 1)).await, fixture.stop.clone());
    // As a stream without a leader: somebody is there, and nobody answers.
    fixture.js.delete_stream("DLQ").await.unwrap();
    let mute = fixture.nats.client("admin").await.subscribe("dlq.>").await.unwrap();
    for n in 0..DEAD {
        fixture.publish(&format!("bad{n}"), 1).await;
    }
    let handled = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&handled);
    fixture.consumers.spawn(async move {
        let handler = |events: Vec<Event>| {
            counted.fetch_add(events.len(), Ordering::SeqCst);
            std::future::ready(vec![Verdict::Reject("bad".to_owned()); events.len()])
        };
        consumer.run_batches(stop, handler).await;
    });
    // Each is sent once before any is given up for this time, and comes again.
    let sent: Vec<_> = within(async { Ok(mute.take(DEAD).collect().await) }).await;
    assert_eq!(handled.load(Ordering::SeqCst), DEAD);
    let sequence =
        |letter: &async_nats::Message| letter.headers.as_ref().unwrap().get("Dlq-Stream-Sequence").unwrap().to_string();
    let distinct: HashSet<String> = sent.iter().map(sequence).collect();
    assert_eq!(distinct.len(), DEAD);
    administer::streams(&fixture.js, &RecordStreams::default(), 1).await.unwrap();
    fixture.until_letters(DEAD).await;
    fixture.drain().await;
    assert_eq!((fixture.letters().await.len(), handled.load(Ordering::SeqCst)), (DEAD, 2 * DEAD));
    fixture.stop().await;
}

#[tokio::test]
async fn in_order_a_process_that_is_cut_off_from_nats_alone_leaves_the_events_to_another() {
    let fixture = Fixture::new().await;
    let proxy = TestProxy::to(fixture.nats.port()).await;
    fixture.in_order_through(proxy.port).await;
    fixture.publish("a", 1).await;
    fixture.drain().await;
    let holder = || async {
        let sql = "select holder from inbox_lease where expires_at > clock_timestamp()";
        sqlx::query_scalar::<_, uuid::Uuid>(sql).fetch_optional(&fixture.db).await.unwrap()
    };
    let cut_off = holder().await;
    assert!(cut_off.is_some());
    fixture.in_order(5, |_| None).await;
    proxy.cut().await;
    fixture.publish("a", 2).await;
    // A pull that falls silent is noticed by its missed heartbeats.
    let other = || async { holder().await.is_some_and(|holder| Some(holder) != cut_off) };
    until_within(Duration::from_secs(60), "another leads", other).await;
    until("what came meanwhile is handled", || async { fixture.effects().await["a"].len() == 2 }).await;
    proxy.mend().await;
    fixture.publish("a", 3).await;
    fixture.drain().await;
    assert_eq!(fixture.effects().await["a"], [1, 2, 3]);
    fixture.stop().await;
}

#[tokio::test]
async fn whoever_stops_does_not_wait_for_a_nats_that_is_away() {
    let mut fixture = Fixture::new().await;
    fixture.in_order(5, |_| None).await;
    fixture.publish("a", 1).await;
    fixture.drain().await;
    fixture.nats.kill().await;
    tokio::time::timeout(Duration::from_secs(10), fixture.stop())
        .await
        .expect("within the time that a supervisor gives");
}

#[tokio::test]
async fn whoever_stops_while_it_opens_its_stream_does_not_wait_for_an_answer() {
    let mut fixture = Fixture::new().await;
    let (consumer, stop, inbox) =
        (fixture.deployed(Fixture::ordered(8, 5)).await, fixture.stop.clone(), fixture.inbox());
    fixture.nats.kill().await;
    fixture.consumers.spawn(async move {
        consumer.run_in_order(stop, inbox, |tx, event| handled(tx, event, None).boxed()).await;
    });
    testkit::until("it leads", || async {
        sqlx::query_scalar("select exists (select from inbox_lease)").fetch_one(&fixture.db).await.unwrap()
    })
    .await;
    // JetStream's answers are waited for, for ten.
    tokio::time::timeout(Duration::from_secs(5), fixture.stop()).await.expect("at once");
}
