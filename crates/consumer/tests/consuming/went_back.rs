//! A consumer's database that is older than the broker thinks: restored from a backup, or a standby that was promoted
//! without its last commits. Its effects are gone, and come again.

use serde_json::json;
use sqlx::PgPool;
use testkit::until;
use tokio::sync::watch;

use consumer::{Event, Failure, RecordStreams, ReplayRequest, Replayer, Status};

use crate::world::{STREAM, World, failing, within};

/// Everything that the database holds, to come back to.
async fn backup(db: &PgPool) {
    for table in ["effect", "inbox", "inbox_dead", "inbox_lease"] {
        let sql = format!("create table backup_{table} as table {table}");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(db).await.unwrap();
    }
}

async fn restore(db: &PgPool) {
    let mut tx = db.begin().await.unwrap();
    for table in ["effect", "inbox", "inbox_dead", "inbox_lease"] {
        let override_number = if table == "inbox_dead" { "overriding system value" } else { "" };
        for sql in [
            format!("delete from {table}"),
            format!("insert into {table} {override_number} select * from backup_{table}"),
        ] {
            sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut *tx).await.unwrap();
        }
    }
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn effects_that_a_restore_took_come_again() {
    let mut world = World::new().await;
    world.in_order(5, |_| None).await;
    for version in 1..=7 {
        world.publish("a", version).await;
    }
    world.drain().await;
    world.anew().await;
    backup(&world.db).await;
    world.in_order(5, |_| None).await;
    for version in 8..=10 {
        world.publish("a", version).await;
    }
    world.drain().await;
    world.anew().await;
    assert_eq!(world.effects().await["a"], (1..=10).collect::<Vec<_>>());
    restore(&world.db).await;
    assert_eq!(world.effects().await["a"], (1..=7).collect::<Vec<_>>());
    world.in_order(5, |_| None).await;
    until("they take effect again", || async { world.effects().await["a"].len() == 10 }).await;
    world.publish("a", 11).await;
    world.drain().await;
    assert_eq!(world.effects().await["a"], (1..=11).collect::<Vec<_>>());
    world.stop().await;
}

#[tokio::test]
async fn effects_that_a_restore_takes_under_the_running_consumer_come_again() {
    let world = World::new().await;
    world.in_order(5, |_| None).await;
    let written = |floor: i64| {
        let db = world.db.clone();
        async move {
            until("the floor is written down", || async {
                let is: Option<i64> = sqlx::query_scalar("select floor from inbox_lease").fetch_one(&db).await.unwrap();
                is == Some(floor)
            })
            .await;
        }
    };
    for version in 1..=7 {
        world.publish("a", version).await;
    }
    world.drain().await;
    written(7).await;
    backup(&world.db).await;
    for version in 8..=10 {
        world.publish("a", version).await;
    }
    world.drain().await;
    written(10).await;
    restore(&world.db).await;
    until("they take effect again", || async { world.effects().await["a"].len() == 10 }).await;
    world.publish("a", 11).await;
    world.drain().await;
    assert_eq!(world.effects().await["a"], (1..=11).collect::<Vec<_>>());
    world.stop().await;
}

/// Rejects the event, unless it is replayed.
fn dies(event: &Event) -> Option<Failure> {
    let dies = event.replay.is_none() && event.attribute("id").ends_with("-a-3");
    dies.then(|| Failure::Reject("no such account".to_owned()))
}

/// Has the letters of `a` at 3 and 4 replayed, and waits until the broker thinks that this is done for good.
async fn replay_the_letters(world: &World, others: u64) {
    let replayer = Replayer::new(world.nats.client("admin").await, RecordStreams::default());
    for (sequence, id) in [(3, "1.1.1"), (4, "1.2.1")] {
        let found = replayer.find(STREAM, sequence + others).await.unwrap().unwrap();
        replayer.send(&ReplayRequest { consumer: "ledger".to_owned(), id: id.to_owned(), ..found }).await.unwrap();
    }
    until("both have taken effect", || async { world.effects().await["a"] == [1, 2, 3, 4] }).await;
    let replays = world.js.get_stream("REPLAY").await.unwrap();
    until("both are acknowledged", || async {
        replays.consumer_info("ledger").await.unwrap().ack_floor.stream_sequence >= 2
    })
    .await;
}

#[tokio::test]
async fn replays_that_a_restore_took_come_again() {
    let mut world = World::new().await;
    world.in_order(5, dies).await;
    for version in 1..=4 {
        world.publish("a", version).await;
    }
    world.until_letters(2).await;
    world.drain().await;
    world.anew().await;
    backup(&world.db).await;
    world.in_order(5, dies).await;
    replay_the_letters(&world, 0).await;
    world.anew().await;
    restore(&world.db).await;
    assert_eq!(world.effects().await["a"], [1, 2]);
    world.in_order(5, dies).await;
    until("they take effect again", || async { world.effects().await["a"] == [1, 2, 3, 4] }).await;
    world.publish("a", 5).await;
    until("the aggregate goes on", || async { world.effects().await["a"] == [1, 2, 3, 4, 5] }).await;
    world.stop().await;
}

#[tokio::test]
async fn replays_come_again_behind_the_earlier_events_of_their_aggregate() {
    let mut world = World::new().await;
    world.in_order(5, dies).await;
    world.publish("a", 1).await;
    world.drain().await;
    world.anew().await;
    backup(&world.db).await;
    world.in_order(5, dies).await;
    // Events of others are before its own: a replay that did not wait would be first.
    for version in 1..=200 {
        world.publish("b", version).await;
    }
    for version in 2..=4 {
        world.publish("a", version).await;
    }
    world.until_letters(2).await;
    replay_the_letters(&world, 200).await;
    world.anew().await;
    restore(&world.db).await;
    world.in_order(5, dies).await;
    until("all take effect again", || async { world.effects().await["a"].len() == 4 }).await;
    assert_eq!(world.effects().await["a"], [1, 2, 3, 4]);
    world.stop().await;
}

#[tokio::test]
async fn a_database_that_is_new_has_everything_again_that_the_stream_holds() {
    let mut world = World::new().await;
    world.in_order(5, |_| None).await;
    for version in 1..=5 {
        world.publish("a", version).await;
    }
    world.drain().await;
    world.anew().await;
    for table in ["effect", "inbox", "inbox_dead", "inbox_lease"] {
        let sql = format!("delete from {table}");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&world.db).await.unwrap();
    }
    world.in_order(5, |_| None).await;
    until("all take effect again", || async { world.effects().await.get("a").is_some_and(|a| a.len() == 5) }).await;
    world.stop().await;
}

#[tokio::test]
async fn what_a_restore_took_and_the_stream_has_dropped_is_said() {
    let mut world = World::new().await;
    world.in_order(5, |_| None).await;
    world.publish("a", 1).await;
    world.drain().await;
    world.anew().await;
    backup(&world.db).await;
    world.in_order(5, |_| None).await;
    for version in 2..=6 {
        world.publish("a", version).await;
    }
    world.drain().await;
    world.anew().await;
    restore(&world.db).await;
    world.js.get_stream(STREAM).await.unwrap().purge().sequence(5).await.unwrap();
    let mut status = world.in_order(5, |_| None).await;
    let trimmed = status.wait_for(|status| status.trimmed_unread == 3);
    tokio::time::timeout(testkit::PATIENCE, trimmed).await.expect("2, 3 and 4 are nowhere").unwrap();
    until("the others take effect", || async { world.effects().await["a"] == [1, 5, 6] }).await;
    world.stop().await;
}

#[tokio::test]
async fn what_jetstream_gave_up_on_holds_up_the_later_events_of_its_aggregate() {
    let world = World::new().await;
    world.in_order(1_000, failing(u32::MAX, "shop.paid.v2-a-1")).await;
    until("advisories are kept", || async { world.js.get_stream("ADVISORIES").await.is_ok() }).await;
    world.publish("a", 1).await;
    until("it is in hand", || async {
        world.durable().await.is_some_and(|durable| durable.cached_info().num_ack_pending == 1)
    })
    .await;
    // Somebody else terminates it.
    let ack = format!("$JS.ACK.{STREAM}.ledger.1.1.1.0.0");
    let client = world.nats.client("admin").await;
    client.publish(ack, "+TERM".into()).await.unwrap();
    client.flush().await.unwrap();
    world.until_letters(1).await;
    world.publish("a", 2).await;
    world.publish_as("shop.paid.v2", "b", 1, json!({})).await;
    world.until_letters(2).await;
    world.drain().await;
    let letters = world.letters().await;
    assert!(letters[0].1.contains("it was terminated"), "{letters:?}");
    assert_eq!(letters[1].0, "shop.paid.v2-a-2");
    assert_eq!(world.effects().await.get("a"), None);
    assert_eq!(world.effects().await["b"], [1]);
    world.stop().await;
}

async fn anchored_at(world: &World) -> Option<String> {
    let sql = "select anchor ->> 'event' from inbox_lease";
    sqlx::query_scalar::<_, Option<String>>(sql).fetch_optional(&world.db).await.unwrap().flatten()
}

async fn until_anchored_at(world: &World, event: &str) {
    until("it is noted which event was the last", || async { anchored_at(world).await.as_deref() == Some(event) })
        .await;
}

async fn until_diverged(status: &mut watch::Receiver<Status>, diverged: bool) {
    within(status.wait_for(|status| status.diverged == diverged)).await;
}

/// The newest event is taken out, as `outbox accept` does when its row was undone by a restore, and others follow.
#[tokio::test]
async fn effects_of_events_that_the_stream_does_not_hold_are_said_until_they_are_mended() {
    let mut world = World::new().await;
    world.in_order(5, |_| None).await;
    for version in 1..=3 {
        world.publish_row(version, "a", version).await;
    }
    until_anchored_at(&world, "shop.paid.v2-a-3").await;
    world.anew().await;
    world.js.get_stream(STREAM).await.unwrap().delete_message(3).await.unwrap();
    let mut status = world.in_order(5, |_| None).await;
    until_diverged(&mut status, true).await;
    world.publish_row(3, "b", 1).await;
    until("what follows is handled", || async { world.effects().await.get("b").is_some_and(|b| *b == [1]) }).await;
    world.anew().await;
    let mut status = world.in_order(5, |_| None).await;
    until_diverged(&mut status, true).await;
    assert_eq!(anchored_at(&world).await.as_deref(), Some("shop.paid.v2-a-3"), "the evidence stays");
    sqlx::query("update inbox_lease set anchor = null").execute(&world.db).await.unwrap();
    until_diverged(&mut status, false).await;
    until_anchored_at(&world, "shop.paid.v2-b-1").await;
    assert!(!status.borrow().diverged);
    world.stop().await;
}

/// A stream that was lost and is filled again by its producer, row by row: as they were, and as a restore has left them.
#[tokio::test]
async fn a_stream_that_is_filled_anew_is_compared_by_its_producers_rows() {
    let mut world = World::new().await;
    for row in 1..=5 {
        world.publish_row(row, "a", row).await;
    }
    world.in_order(5, |_| None).await;
    until_anchored_at(&world, "shop.paid.v2-a-5").await;
    world.anew().await;

    // It begins with a later row, and lacks some that were taken out.
    world.make_stream_anew().await;
    for row in 2..=4 {
        world.publish_row(row, "a", row).await;
    }
    let stream = world.js.get_stream(STREAM).await.unwrap();
    stream.delete_message(2).await.unwrap();
    let mut status = world.in_order(5, |_| None).await;
    until_diverged(&mut status, true).await;
    for row in 5..=7 {
        world.publish_row(row, "a", row).await;
    }
    until_diverged(&mut status, false).await;
    until_anchored_at(&world, "shop.paid.v2-a-7").await;
    world.anew().await;

    world.make_stream_anew().await;
    for row in 1..=5 {
        world.publish_row(row, "a", row).await;
    }
    for row in 6..=9 {
        world.publish_row(row, "b", row).await;
    }
    let mut status = world.in_order(5, |_| None).await;
    until_diverged(&mut status, true).await;
    world.drain().await;
    assert_eq!(world.effects().await["a"], (1..=7).collect::<Vec<_>>(), "nothing is taken back");
    assert_eq!(anchored_at(&world).await.as_deref(), Some("shop.paid.v2-a-7"));
    world.stop().await;
}

#[tokio::test]
async fn what_the_stream_had_dropped_before_a_consumer_was_made_was_never_its() {
    let world = World::new().await;
    for version in 1..=4 {
        world.publish("a", version).await;
    }
    world.js.get_stream(STREAM).await.unwrap().purge().sequence(3).await.unwrap();
    let status = world.in_order(5, |_| None).await;
    world.drain().await;
    assert_eq!(world.effects().await["a"], [3, 4]);
    world.stop().await;
    assert_eq!(status.borrow().trimmed_unread, 0);
    let noted: i64 = sqlx::query_scalar("select trimmed_unread from inbox_lease").fetch_one(&world.db).await.unwrap();
    assert_eq!(noted, 0);
}
