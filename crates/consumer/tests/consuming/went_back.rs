//! A consumer's database that is older than the broker thinks: restored from a backup, or a standby that was promoted
//! without its last commits. Its effects are gone, and come again.

use serde_json::json;
use sqlx::PgPool;
use testkit::until;
use tokio::sync::watch;

use consumer::{Event, Failure, RecordStreams, ReplayRequest, Replayer, Status};

use crate::fixture::{Fixture, STREAM, failing, within};

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
    let mut fixture = Fixture::new().await;
    fixture.in_order(5, |_| None).await;
    for version in 1..=7 {
        fixture.publish("a", version).await;
    }
    fixture.drain().await;
    fixture.anew().await;
    backup(&fixture.db).await;
    fixture.in_order(5, |_| None).await;
    for version in 8..=10 {
        fixture.publish("a", version).await;
    }
    fixture.drain().await;
    fixture.anew().await;
    assert_eq!(fixture.effects().await["a"], (1..=10).collect::<Vec<_>>());
    restore(&fixture.db).await;
    assert_eq!(fixture.effects().await["a"], (1..=7).collect::<Vec<_>>());
    fixture.in_order(5, |_| None).await;
    until("they take effect again", || async { fixture.effects().await["a"].len() == 10 }).await;
    fixture.publish("a", 11).await;
    fixture.drain().await;
    assert_eq!(fixture.effects().await["a"], (1..=11).collect::<Vec<_>>());
    fixture.stop().await;
}

#[tokio::test]
async fn effects_that_a_restore_takes_under_the_running_consumer_come_again() {
    let fixture = Fixture::new().await;
    fixture.in_order(5, |_| None).await;
    let written = |floor: i64| {
        let db = fixture.db.clone();
        async move {
            until("the floor is written down", || async {
                let is: Option<i64> = sqlx::query_scalar("select floor from inbox_lease").fetch_one(&db).await.unwrap();
                is == Some(floor)
            })
            .await;
        }
    };
    for version in 1..=7 {
        fixture.publish("a", version).await;
    }
    fixture.drain().await;
    written(7).await;
    backup(&fixture.db).await;
    for version in 8..=10 {
        fixture.publish("a", version).await;
    }
    fixture.drain().await;
    written(10).await;
    restore(&fixture.db).await;
    until("they take effect again", || async { fixture.effects().await["a"].len() == 10 }).await;
    fixture.publish("a", 11).await;
    fixture.drain().await;
    assert_eq!(fixture.effects().await["a"], (1..=11).collect::<Vec<_>>());
    fixture.stop().await;
}

/// Rejects the event, unless it is replayed.
fn dies(event: &Event) -> Option<Failure> {
    let dies = event.replay.is_none() && event.attribute("id").ends_with("-a-3");
    dies.then(|| Failure::Reject("no such account".to_owned()))
}

/// Has the letters of `a` at 3 and 4 replayed, and waits until the broker thinks that this is done for good.
async fn replay_the_letters(fixture: &Fixture, others: u64) {
    let replayer = Replayer::new(fixture.nats.client("admin").await, RecordStreams::default());
    for (sequence, id) in [(3, "1.1.1"), (4, "1.2.1")] {
        let found = replayer.find(STREAM, sequence + others).await.unwrap().unwrap();
        replayer.send(&ReplayRequest { consumer: "ledger".to_owned(), id: id.to_owned(), ..found }).await.unwrap();
    }
    until("both have taken effect", || async { fixture.effects().await["a"] == [1, 2, 3, 4] }).await;
    let replays = fixture.js.get_stream("REPLAY").await.unwrap();
    until("both are acknowledged", || async {
        replays.consumer_info("ledger").await.unwrap().ack_floor.stream_sequence >= 2
    })
    .await;
}

#[tokio::test]
async fn replays_that_a_restore_took_come_again() {
    let mut fixture = Fixture::new().await;
    fixture.in_order(5, dies).await;
    for version in 1..=4 {
        fixture.publish("a", version).await;
    }
    fixture.until_letters(2).await;
    fixture.drain().await;
    fixture.anew().await;
    backup(&fixture.db).await;
    fixture.in_order(5, dies).await;
    replay_the_letters(&fixture, 0).await;
    fixture.anew().await;
    restore(&fixture.db).await;
    assert_eq!(fixture.effects().await["a"], [1, 2]);
    fixture.in_order(5, dies).await;
    until("they take effect again", || async { fixture.effects().await["a"] == [1, 2, 3, 4] }).await;
    fixture.publish("a", 5).await;
    until("the aggregate goes on", || async { fixture.effects().await["a"] == [1, 2, 3, 4, 5] }).await;
    fixture.stop().await;
}

#[tokio::test]
async fn replays_come_again_behind_the_earlier_events_of_their_aggregate() {
    let mut fixture = Fixture::new().await;
    fixture.in_order(5, dies).await;
    fixture.publish("a", 1).await;
    fixture.drain().await;
    fixture.anew().await;
    backup(&fixture.db).await;
    fixture.in_order(5, dies).await;
    // Events of others are before its own: a replay that did not wait would be first.
    for version in 1..=200 {
        fixture.publish("b", version).await;
    }
    for version in 2..=4 {
        fixture.publish("a", version).await;
    }
    fixture.until_letters(2).await;
    replay_the_letters(&fixture, 200).await;
    fixture.anew().await;
    restore(&fixture.db).await;
    fixture.in_order(5, dies).await;
    until("all take effect again", || async { fixture.effects().await["a"].len() == 4 }).await;
    assert_eq!(fixture.effects().await["a"], [1, 2, 3, 4]);
    fixture.stop().await;
}

#[tokio::test]
async fn a_database_that_is_new_has_everything_again_that_the_stream_holds() {
    let mut fixture = Fixture::new().await;
    fixture.in_order(5, |_| None).await;
    for version in 1..=5 {
        fixture.publish("a", version).await;
    }
    fixture.drain().await;
    fixture.anew().await;
    for table in ["effect", "inbox", "inbox_dead", "inbox_lease"] {
        let sql = format!("delete from {table}");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&fixture.db).await.unwrap();
    }
    fixture.in_order(5, |_| None).await;
    until("all take effect again", || async { fixture.effects().await.get("a").is_some_and(|a| a.len() == 5) }).await;
    fixture.stop().await;
}

#[tokio::test]
async fn what_a_restore_took_and_the_stream_has_dropped_is_said() {
    let mut fixture = Fixture::new().await;
    fixture.in_order(5, |_| None).await;
    fixture.publish("a", 1).await;
    fixture.drain().await;
    fixture.anew().await;
    backup(&fixture.db).await;
    fixture.in_order(5, |_| None).await;
    for version in 2..=6 {
        fixture.publish("a", version).await;
    }
    fixture.drain().await;
    fixture.anew().await;
    restore(&fixture.db).await;
    fixture.js.get_stream(STREAM).await.unwrap().purge().sequence(5).await.unwrap();
    let mut status = fixture.in_order(5, |_| None).await;
    let trimmed = status.wait_for(|status| status.trimmed_unread == 3);
    tokio::time::timeout(testkit::PATIENCE, trimmed).await.expect("2, 3 and 4 are nowhere").unwrap();
    until("the others take effect", || async { fixture.effects().await["a"] == [1, 5, 6] }).await;
    fixture.stop().await;
}

#[tokio::test]
async fn what_jetstream_gave_up_on_holds_up_the_later_events_of_its_aggregate() {
    let fixture = Fixture::new().await;
    fixture.in_order(1_000, failing(u32::MAX, "shop.paid.v2-a-1")).await;
    until("advisories are kept", || async { fixture.js.get_stream("ADVISORIES").await.is_ok() }).await;
    fixture.publish("a", 1).await;
    until("it is in hand", || async {
        fixture.durable().await.is_some_and(|durable| durable.cached_info().num_ack_pending == 1)
    })
    .await;
    // Somebody else terminates it.
    let ack = format!("$JS.ACK.{STREAM}.ledger.1.1.1.0.0");
    let client = fixture.nats.client("admin").await;
    client.publish(ack, "+TERM".into()).await.unwrap();
    client.flush().await.unwrap();
    fixture.until_letters(1).await;
    fixture.publish("a", 2).await;
    fixture.publish_as("shop.paid.v2", "b", 1, json!({})).await;
    fixture.until_letters(2).await;
    fixture.drain().await;
    let letters = fixture.letters().await;
    assert!(letters[0].1.contains("it was terminated"), "{letters:?}");
    assert_eq!(letters[1].0, "shop.paid.v2-a-2");
    assert_eq!(fixture.effects().await.get("a"), None);
    assert_eq!(fixture.effects().await["b"], [1]);
    fixture.stop().await;
}

async fn anchored_at(fixture: &Fixture) -> Option<String> {
    let sql = "select anchor ->> 'event' from inbox_lease";
    sqlx::query_scalar::<_, Option<String>>(sql).fetch_optional(&fixture.db).await.unwrap().flatten()
}

async fn until_anchored_at(fixture: &Fixture, event: &str) {
    until("it is noted which event was the last", || async { anchored_at(fixture).await.as_deref() == Some(event) })
        .await;
}

async fn until_diverged(status: &mut watch::Receiver<Status>, diverged: bool) {
    within(status.wait_for(|status| status.diverged == diverged)).await;
}

/// The newest event is taken out, as `outbox accept` does when its row was undone by a restore, and others follow.
#[tokio::test]
async fn effects_of_events_that_the_stream_does_not_hold_are_said_until_they_are_mended() {
    let mut fixture = Fixture::new().await;
    fixture.in_order(5, |_| None).await;
    for version in 1..=3 {
        fixture.publish_row(version, "a", version).await;
    }
    until_anchored_at(&fixture, "shop.paid.v2-a-3").await;
    fixture.anew().await;
    fixture.js.get_stream(STREAM).await.unwrap().delete_message(3).await.unwrap();
    let mut status = fixture.in_order(5, |_| None).await;
    until_diverged(&mut status, true).await;
    fixture.publish_row(3, "b", 1).await;
    until("what follows is handled", || async { fixture.effects().await.get("b").is_some_and(|b| *b == [1]) }).await;
    fixture.anew().await;
    let mut status = fixture.in_order(5, |_| None).await;
    until_diverged(&mut status, true).await;
    assert_eq!(anchored_at(&fixture).await.as_deref(), Some("shop.paid.v2-a-3"), "the evidence stays");
    sqlx::query("update inbox_lease set anchor = null").execute(&fixture.db).await.unwrap();
    until_diverged(&mut status, false).await;
    until_anchored_at(&fixture, "shop.paid.v2-b-1").await;
    assert!(!status.borrow().diverged);
    fixture.stop().await;
}

/// A stream that was lost and is filled again by its producer, row by row: as they were, and as a restore has left them.
#[tokio::test]
async fn a_stream_that_is_filled_anew_is_compared_by_its_producers_rows() {
    let mut fixture = Fixture::new().await;
    for row in 1..=5 {
        fixture.publish_row(row, "a", row).await;
    }
    fixture.in_order(5, |_| None).await;
    until_anchored_at(&fixture, "shop.paid.v2-a-5").await;
    fixture.anew().await;

    // It begins with a later row, and lacks some that were taken out.
    fixture.make_stream_anew().await;
    for row in 2..=4 {
        fixture.publish_row(row, "a", row).await;
    }
    let stream = fixture.js.get_stream(STREAM).await.unwrap();
    stream.delete_message(2).await.unwrap();
    let mut status = fixture.in_order(5, |_| None).await;
    until_diverged(&mut status, true).await;
    for row in 5..=7 {
        fixture.publish_row(row, "a", row).await;
    }
    until_diverged(&mut status, false).await;
    until_anchored_at(&fixture, "shop.paid.v2-a-7").await;
    fixture.anew().await;

    fixture.make_stream_anew().await;
    for row in 1..=5 {
        fixture.publish_row(row, "a", row).await;
    }
    for row in 6..=9 {
        fixture.publish_row(row, "b", row).await;
    }
    let mut status = fixture.in_order(5, |_| None).await;
    until_diverged(&mut status, true).await;
    fixture.drain().await;
    assert_eq!(fixture.effects().await["a"], (1..=7).collect::<Vec<_>>(), "nothing is taken back");
    assert_eq!(anchored_at(&fixture).await.as_deref(), Some("shop.paid.v2-a-7"));
    fixture.stop().await;
}

#[tokio::test]
async fn what_the_stream_had_dropped_before_a_consumer_was_made_was_never_its() {
    let fixture = Fixture::new().await;
    for version in 1..=4 {
        fixture.publish("a", version).await;
    }
    fixture.js.get_stream(STREAM).await.unwrap().purge().sequence(3).await.unwrap();
    let status = fixture.in_order(5, |_| None).await;
    fixture.drain().await;
    assert_eq!(fixture.effects().await["a"], [3, 4]);
    fixture.stop().await;
    assert_eq!(status.borrow().trimmed_unread, 0);
    let noted: i64 = sqlx::query_scalar("select trimmed_unread from inbox_lease").fetch_one(&fixture.db).await.unwrap();
    assert_eq!(noted, 0);
}
