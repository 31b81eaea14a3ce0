//! Two releases of one consumer beside each other, as in every rolling deploy: nothing is lost, nothing happens twice.

use std::collections::BTreeSet;

use consumer::{Config, Failure, RecordStreams, ReplayRequest, Replayer, Verdict};
use serde_json::json;
use testkit::until;

use crate::fixture::{Fixture, STREAM, Seen};

const OLD: &[&str] = &["shop.paid.v1"];
const NEW: &[&str] = &["shop.paid.v1", "shop.paid.v2"];

fn all(changes: i32) -> BTreeSet<(String, i32)> {
    (1..=changes).map(|change| (format!("a{change}"), change)).collect()
}

#[tokio::test]
async fn each_change_that_is_published_twice_reaches_one_of_two_releases_that_pull_batches() {
    let fixture = Fixture::new().await;
    let seen = Seen::default();
    fixture.release(OLD, Some(seen.clone())).await;
    fixture.release(NEW, Some(seen.clone())).await;
    for change in 1..=200 {
        fixture.publish_twins(&format!("a{change}"), change).await;
    }
    fixture.drain().await;
    assert_eq!(*seen.lock().unwrap(), all(200));
    assert_eq!(fixture.letters().await, []);
    fixture.stop().await;
}

#[tokio::test]
async fn what_only_the_newer_release_knows_waits_for_it() {
    let fixture = Fixture::new().await;
    let seen = Seen::default();
    fixture.release(OLD, Some(seen.clone())).await;
    fixture.release(NEW, Some(seen.clone())).await;
    until("the newer one has said what it knows", || async {
        fixture.durable().await.is_some_and(|durable| {
            durable.cached_info().config.metadata.get("types").is_some_and(|types| types.contains("v2"))
        })
    })
    .await;
    for change in 1..=60 {
        fixture.publish_as("shop.paid.v2", &format!("a{change}"), change, json!({})).await;
    }
    fixture.drain().await;
    let letters: Vec<_> = fixture.letters().await.into_iter().map(|(id, _, _)| id).collect();
    let seen = seen.lock().unwrap().clone();
    // Whatever the older one got three times in a row is a letter; nothing is passed over.
    assert_eq!(seen.len() + letters.len(), 60, "{letters:?}");
    assert!(letters.len() < 60, "the newer one handles what it gets");
    fixture.stop().await;
}

#[tokio::test]
async fn in_order_a_change_takes_effect_once_whichever_release_had_which_form() {
    let fixture = Fixture::new().await;
    let forward = ["old-new", "new-old"];
    for way in forward {
        let (first, second) = if way == "old-new" { (OLD, NEW) } else { (NEW, OLD) };
        let pair = |form: &str| format!("shop.paid.{form}-{way}-1");
        let old = json!({"twinof": pair("v2"), "supersededby": "shop.paid.v2"});
        let new = json!({"twinof": pair("v1"), "supersedes": "shop.paid.v1"});
        let stop = fixture.release(first, None).await;
        fixture.publish_as("shop.paid.v1", way, 1, old).await;
        fixture.drain().await;
        stop.cancel();
        fixture.publish_as("shop.paid.v2", way, 1, new).await;
        let stop = fixture.release(second, None).await;
        fixture.drain().await;
        assert_eq!(fixture.effects().await[way], [1], "{way}");
        stop.cancel();
    }
    assert_eq!(fixture.letters().await, []);
    fixture.stop().await;
}

#[tokio::test]
async fn in_order_releases_that_take_turns_under_load_lose_nothing_and_do_nothing_twice() {
    let fixture = Fixture::new().await;
    take_turns(&fixture, None).await;
    let wanted: Vec<i32> = (1..=CHANGES).collect();
    let effects = fixture.effects().await;
    assert_eq!((&effects["a"], &effects["b"]), (&wanted, &wanted));
    assert_eq!(fixture.letters().await, []);
    fixture.stop().await;
}

#[tokio::test]
async fn releases_that_pull_batches_and_take_turns_under_load_lose_nothing() {
    let fixture = Fixture::new().await;
    let seen = Seen::default();
    take_turns(&fixture, Some(seen.clone())).await;
    let wanted: BTreeSet<(String, i32)> =
        ["a", "b"].into_iter().flat_map(|name| (1..=CHANGES).map(move |version| (name.to_owned(), version))).collect();
    assert_eq!(*seen.lock().unwrap(), wanted);
    assert_eq!(fixture.letters().await, []);
    fixture.stop().await;
}

const CHANGES: i32 = 150;

/// The consumer's releases take turns, forward and back, each beside the next one for a while; and so does the producer's, of
/// which the older one publishes a change in one form and the newer one in two.
async fn take_turns(fixture: &Fixture, batches: Option<Seen>) {
    let publishing = async {
        for version in 1..=CHANGES {
            for aggregate in ["a", "b"] {
                if (version / 20) % 2 == 0 {
                    fixture.publish_twins(aggregate, version).await;
                } else {
                    fixture.publish_as("shop.paid.v1", aggregate, version, json!({})).await;
                }
            }
        }
    };
    let done = || async {
        match &batches {
            Some(seen) => seen.lock().unwrap().len(),
            None => fixture.effects().await.values().map(Vec::len).sum(),
        }
    };
    let deploying = async {
        let mut running = fixture.release(OLD, batches.clone()).await;
        for types in [NEW, OLD, NEW, OLD, NEW] {
            let next = fixture.release(types, batches.clone()).await;
            let so_far = done().await;
            until("some more are done, or all", || async {
                let now = done().await;
                now > so_far + 5 || now == 2 * CHANGES as usize
            })
            .await;
            running.cancel();
            running = next;
        }
    };
    tokio::join!(publishing, deploying);
    fixture.drain().await;
}

#[tokio::test]
async fn after_a_rollback_what_the_older_release_does_not_know_is_a_letter_and_not_passed_over() {
    let fixture = Fixture::new().await;
    let seen = Seen::default();
    let newer = fixture.release(NEW, Some(seen.clone())).await;
    fixture.publish_as("shop.paid.v2", "a", 1, json!({})).await;
    fixture.drain().await;
    newer.cancel();
    fixture.release(OLD, Some(seen.clone())).await;
    fixture.publish_as("shop.paid.v2", "b", 1, json!({})).await;
    // Its older form was handled: nothing to say.
    fixture.publish_twins("c", 1).await;
    fixture.until_letters(1).await;
    fixture.drain().await;
    let letters = fixture.letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].0, "shop.paid.v2-b-1");
    assert!(letters[0].1.contains("another release of this consumer knows the type shop.paid.v2"), "{letters:?}");
    let seen: Vec<_> = seen.lock().unwrap().iter().map(|(aggregate, _)| aggregate.clone()).collect();
    assert_eq!(seen, ["a", "c"]);
    fixture.stop().await;
}

#[tokio::test]
async fn the_twin_of_a_dead_event_shares_its_letter_and_its_replay() {
    let fixture = Fixture::new().await;
    fixture
        .in_order(3, |event| {
            let dies = event.replay.is_none() && event.attribute("id").ends_with("-a-1");
            dies.then(|| Failure::Reject("no such account".to_owned()))
        })
        .await;
    fixture.publish_twins("a", 1).await;
    fixture.publish_twins("a", 2).await;
    fixture.until_letters(2).await;
    fixture.drain().await;
    let ids: Vec<_> = fixture.letters().await.into_iter().map(|(id, _, _)| id).collect();
    assert_eq!(ids, ["shop.paid.v1-a-1", "shop.paid.v1-a-2"], "one letter for a change");
    let replayer = Replayer::new(fixture.nats.client("admin").await, RecordStreams::default());
    for (sequence, id) in [(1, "1.1.1"), (3, "1.2.1")] {
        let found = replayer.find(STREAM, sequence).await.unwrap().unwrap();
        let sending = ReplayRequest { consumer: "ledger".to_owned(), id: id.to_owned(), ..found };
        replayer.send(&sending).await.unwrap();
    }
    until("both have taken effect", || async { fixture.effects().await.get("a").is_some_and(|a| a.len() == 2) }).await;
    fixture.publish_twins("a", 3).await;
    until("the aggregate goes on", || async { fixture.effects().await["a"] == [1, 2, 3] }).await;
    fixture.drain().await;
    assert_eq!(fixture.effects().await["a"], [1, 2, 3]);
    fixture.stop().await;
}

#[tokio::test]
async fn a_replay_that_this_release_does_not_know_has_failed_and_one_that_none_knows_is_said_to_be_skipped() {
    let seen = Seen::default();
    what_is_replayed_is_unknown(Some(seen.clone())).await;
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn in_order_too_a_replay_that_this_release_does_not_know_has_failed() {
    what_is_replayed_is_unknown(None).await;
}

async fn what_is_replayed_is_unknown(batches: Option<Seen>) {
    let fixture = Fixture::new().await;
    fixture.publish_as("shop.paid.v2", "a", 1, json!({})).await;
    fixture.publish_as("shop.moved.v1", "a", 2, json!({})).await;
    let newer = fixture.release(NEW, batches.clone()).await;
    fixture.drain().await;
    newer.cancel();
    fixture.release(OLD, batches).await;
    let replayer = Replayer::new(fixture.nats.client("admin").await, RecordStreams::default());
    for (sequence, id) in [(1, "7.1.1"), (2, "7.2.1")] {
        let found = replayer.find(STREAM, sequence).await.unwrap().unwrap();
        replayer.send(&ReplayRequest { consumer: "ledger".to_owned(), id: id.to_owned(), ..found }).await.unwrap();
    }
    fixture.until_letters(1).await;
    let letters = fixture.letters().await;
    assert!(letters[0].1.starts_with("another release of this consumer knows the type shop.paid.v2"), "{letters:?}");
    let replays = fixture.js.get_stream("REPLAY").await.unwrap();
    until("the other is reported", || async {
        let reported = replays.get_last_raw_message_by_subject("replayed.ledger").await;
        reported.is_ok_and(|reported| {
            let header = |name| reported.headers.get(name).map(|value| value.as_str().to_owned());
            (header("Replay-Id"), header("Replay-Outcome")) == (Some("7.2.1".to_owned()), Some("skipped".to_owned()))
        })
    })
    .await;
    let taken: i64 = sqlx::query_scalar("select count(*) from inbox").fetch_one(&fixture.db).await.unwrap();
    assert!(taken <= 1, "nothing is taken for handled that no handler has seen");
    fixture.stop().await;
}

#[tokio::test]
async fn an_older_release_does_not_take_back_the_filter_of_a_newer_one() {
    let fixture = Fixture::new().await;
    let with = |revision, filter: &str| {
        fixture.deployed(Config { revision, filter: filter.to_owned(), ..Fixture::batched(8, 3) })
    };
    // The administration of the older release comes last, as after a rollback.
    let (newer, older) = (with(2, "evt.shop.>").await, with(1, "evt.shop.paid.v1.>").await);
    let mut first = true;
    for consumer in [newer, older] {
        let mut status = consumer.status();
        let stop = fixture.stop.clone();
        let newer = std::mem::take(&mut first);
        fixture
            .consumers
            .spawn(consumer.run_batches(stop, |events| std::future::ready(vec![Verdict::Done; events.len()])));
        if newer {
            tokio::time::timeout(testkit::PATIENCE, status.wait_for(|status| status.pulling)).await.unwrap().unwrap();
        } else {
            let refused = status.wait_for(|status| status.refused);
            tokio::time::timeout(testkit::PATIENCE, refused).await.expect("it says so").unwrap();
            assert!(!status.borrow().pulling);
        }
    }
    let config = fixture.durable().await.unwrap().cached_info().config.clone();
    assert_eq!(config.filter_subject, "evt.shop.>");
    fixture.stop().await;
}
