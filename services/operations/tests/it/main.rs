//! Dead letters, stored and replayed, on a real PostgreSQL and nats-server, with consumers of the `consumer` crate.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
#![expect(clippy::disallowed_methods, reason = "tests make ids like the edge of a process")]

mod operators;

mod cluster;
mod harness;
mod ranges;

use async_nats::jetstream::stream::Stream;
use harness::{ACT, Harness, PACE, aggregate, consumer_of, ids, never};
use operations::letters::NotTheEvent;
use operations::pace::Pace;
use operations::store::{Refused, Selection};
use operations::store_jobs::{self, Order, Steer};
use operations::store_letters;
use serde_json::json;
use sqlx::Executor as _;
use testkit::until;

async fn stream(harness: &Harness, name: &str) -> Stream {
    let js = if name.starts_with("EVENTS_") { &harness.js } else { &harness.records };
    js.get_stream(name).await.unwrap()
}

#[tokio::test]
async fn letters_are_replayed_to_the_consumer_that_failed_in_the_order_of_their_aggregate() {
    let harness = Harness::new().await;
    let service = harness.operations().await;
    let handled = harness.consumer("printer", never).await;
    for version in 1..=5 {
        for name in ["a", "b"] {
            harness.publish(name, version).await;
        }
    }
    harness.until_letters(10).await;
    harness.mend();
    let bystander = harness.consumer("bystander", never).await;
    until("the bystander has had its own", || async { bystander.lock().unwrap().len() == 10 }).await;
    let job = harness.until_ended(harness.replay(&consumer_of("printer"), PACE).await).await;
    assert_eq!((job.state.as_str(), job.handled, job.failed), ("done", 10, 0), "{job:?}");
    for name in ["a", "b"] {
        let versions: Vec<i32> = handled.lock().unwrap().iter().filter(|one| one.0 == name).map(|one| one.1).collect();
        assert_eq!(versions, [1, 2, 3, 4, 5], "{name}");
    }
    assert_eq!(bystander.lock().unwrap().len(), 10, "nobody else is replayed to");
    let stats = harness.stats().await;
    assert_eq!((stats.handled, stats.deaths), (10, 10));
    let audit = operations::store_audit::lines(&mut harness.db().await, 10, None).await.unwrap();
    let lines: Vec<_> =
        audit.iter().rev().map(|line| (line.actor.as_str(), line.action.as_str(), line.count)).collect();
    assert_eq!(lines, [("olga", "replay", 10), ("operations", "done", 10)]);
    // The same as messages.
    until("the audit is published", || async {
        let Ok(stream) = harness.records.get_stream("AUDIT").await else { return false };
        stream.get_info().await.unwrap().state.messages == 2
    })
    .await;
    let published = stream(&harness, "AUDIT").await.get_raw_message(1).await.unwrap();
    let line: serde_json::Value = serde_json::from_slice(&published.payload).unwrap();
    assert_eq!(
        (published.subject.as_str(), &line["actor"], &line["count"]),
        ("audit.replay", &json!("olga"), &json!(10))
    );
    harness.stop(service).await;
}

#[tokio::test]
async fn a_canary_that_fails_ends_the_job_and_both_stories_are_kept() {
    let harness = Harness::new().await;
    let service = harness.operations().await;
    harness.consumer("printer", never).await;
    for name in ["a", "b", "c"] {
        harness.publish(name, 1).await;
    }
    harness.until_letters(3).await;
    let job = harness.until_ended(harness.replay(&consumer_of("printer"), PACE).await).await;
    assert_eq!((job.state.as_str(), job.failed, job.skipped), ("aborted", 1, 2), "{job:?}");
    let stats = harness.stats().await;
    assert_eq!((stats.open, stats.failed_again, stats.deaths), (2, 1, 4));
    let again = Selection { states: Some(vec!["failed_again".to_owned()]), ..Selection::default() };
    let letter = store_letters::list(&mut harness.db().await, &again, 10).await.unwrap().remove(0);
    let (_, failures) = store_letters::whole(&mut harness.db().await, letter.id).await.unwrap();
    assert_eq!(failures.len(), 2);
    assert!(
        failures.iter().all(|death| death.version == "printer 7" && death.reason.starts_with("no room")),
        "{failures:?}"
    );
    let replays: Vec<_> = failures.iter().map(|death| death.replay.clone().unwrap_or_default()).collect();
    assert!(replays[0].is_empty() && replays[1].starts_with("1.1.1."), "{replays:?}");
    // What was left out can be replayed again at once.
    harness.mend();
    let job = harness.until_ended(harness.replay(&consumer_of("printer"), PACE).await).await;
    assert_eq!((job.state.as_str(), job.handled), ("done", 3), "{job:?}");
    harness.stop(service).await;
}

#[tokio::test]
async fn one_that_fails_leaves_out_only_those_behind_it() {
    let harness = Harness::new().await;
    let service = harness.operations().await;
    let handled = harness.consumer("printer", |event| event.aggregate() == "a" && harness::version(event) == 2).await;
    for version in 1..=3 {
        for name in ["a", "b"] {
            harness.publish(name, version).await;
        }
    }
    harness.until_letters(6).await;
    harness.mend();
    let pace = Pace { max_failures: 0.5, ..PACE };
    let job = harness.until_ended(harness.replay(&consumer_of("printer"), pace).await).await;
    assert_eq!((job.state.as_str(), job.handled, job.failed, job.skipped), ("done", 4, 1, 1), "{job:?}");
    assert!(!handled.lock().unwrap().contains(&("a".to_owned(), 3)), "it is behind the one that failed");
    let stats = harness.stats().await;
    assert_eq!((stats.handled, stats.failed_again, stats.open), (4, 1, 1));
    harness.stop(service).await;
}

#[tokio::test]
async fn two_operators_cannot_replay_the_same_letter() {
    let harness = Harness::new().await;
    let service = harness.operations().await;
    harness.consumer("printer", never).await;
    for name in ["a", "b", "c"] {
        harness.publish(name, 1).await;
    }
    harness.until_letters(3).await;
    let selection = consumer_of("printer");
    // So slow that both are asked for before it ends.
    let order =
        Order { kind: "replay", selection: &selection, pace: Pace { canary: 0, rate: 0.01, max_failures: 1.0 } };
    let (mut one, mut other) = (harness.db().await, harness.db().await);
    let planned = store_jobs::plan(&mut one, order.kind, order.selection).await.unwrap();
    let shown = ids(&planned);
    let (one, other) = tokio::join!(
        store_jobs::create(&mut one, order, &shown, ACT),
        store_jobs::create(&mut other, order, &shown, ACT)
    );
    let (made, refused) = if one.is_ok() { (one, other) } else { (other, one) };
    assert!(matches!(refused, Err(Refused::Busy(_))), "{refused:?}");
    let job = made.unwrap();
    let mut db = harness.db().await;
    let letter = store_letters::list(&mut db, &selection, 1).await.unwrap().remove(0);
    assert!(matches!(store_letters::edit(&mut db, letter.id, b"{}", ACT).await, Err(Refused::Busy(_))));
    store_jobs::steer(&mut db, job, Steer::Pause, ACT).await.unwrap();
    assert!(matches!(store_jobs::steer(&mut db, job, Steer::Pause, ACT).await, Err(Refused::JobIs(_, _))));
    store_jobs::steer(&mut db, job, Steer::Resume, ACT).await.unwrap();
    store_jobs::steer(&mut db, job, Steer::Abort, ACT).await.unwrap();
    assert_eq!(harness.stats().await.open, 3, "an aborted job leaves them as they are");
    harness.mend();
    let job = harness.until_ended(harness.replay(&selection, PACE).await).await;
    assert_eq!(job.handled, 3, "and they can be replayed");
    harness.stop(service).await;
}

#[tokio::test]
async fn a_job_outlives_its_process_and_its_broker_and_so_do_the_letters() {
    let mut harness = Harness::new().await;
    let service = harness.operations().await;
    harness.consumer("printer", never).await;
    for number in 0..200 {
        harness.publish(&format!("a{number}"), 1).await;
    }
    harness.until_letters(200).await;
    harness.mend();
    let job = harness.replay(&consumer_of("printer"), Pace { canary: 10, rate: 100.0, max_failures: 0.1 }).await;
    until("the job is on its way", || async { harness.job(job).await.handled > 10 }).await;
    assert_eq!(service.shut_down().await, None);
    assert!(harness.job(job).await.waiting > 0, "it was stopped in the middle");
    // The broker loses everything, replays in flight and the stream of dead letters too.
    harness.nats[0].kill().await;
    harness.nats[0].wipe();
    harness.nats[0].restart().await;
    harness.provision().await;
    assert_eq!(harness.stats().await.letters, 200);
    let service = harness.operations().await;
    let job = harness.until_ended(job).await;
    assert_eq!((job.state.as_str(), job.handled), ("done", 200), "{job:?}");
    assert_eq!(harness.stats().await.handled, 200);
    harness.stop(service).await;
}

#[tokio::test]
async fn the_events_of_an_ordered_consumer_take_effect_in_order_once_they_are_replayed() {
    let harness = Harness::new().await;
    let service = harness.operations().await;
    harness.ordered("ledger").await;
    for version in 1..=4 {
        for name in ["a", "b"] {
            harness.publish(name, version).await;
        }
    }
    harness.until_letters(6).await;
    assert_eq!(harness.effects().await, [("a".into(), vec![1]), ("b".into(), vec![1])].into());
    harness.mend();
    // Only the last one is selected: those that it waits behind go before it.
    let mut db = harness.db().await;
    let last = store_letters::list(&mut db, &aggregate("a"), 10).await.unwrap();
    let last = last.iter().max_by_key(|letter| letter.id).unwrap().id;
    let selection = Selection { ids: Some(vec![last]), ..Selection::default() };
    let job = harness.until_ended(harness.replay(&selection, PACE).await).await;
    assert_eq!((job.total, job.handled), (3, 3), "{job:?}");
    // The other aggregate's failed event is given up: those behind it take effect without it.
    let dead = Selection { reason: Some("no such account".to_owned()), ..aggregate("b") };
    let order = Order { kind: "discard", selection: &dead, pace: PACE };
    let (discard, _) = harness.job_of(order).await.unwrap();
    assert_eq!(harness.until_ended(discard).await.handled, 1);
    harness.until_ended(harness.replay(&aggregate("b"), PACE).await).await;
    for name in ["a", "b"] {
        harness.publish(name, 5).await;
    }
    until("later events pass again", || async {
        harness.effects().await == [("a".into(), vec![1, 2, 3, 4, 5]), ("b".into(), vec![1, 3, 4, 5])].into()
    })
    .await;
    let stats = harness.stats().await;
    assert_eq!((stats.letters, stats.handled, stats.discarded), (6, 5, 1));
    harness.stop(service).await;
}

#[tokio::test]
async fn an_event_is_mended_under_its_schema_and_the_original_is_kept() {
    let harness = Harness::new().await;
    let service = harness.operations().await;
    let handled = harness.consumer("printer", never).await;
    harness.publish("a", 1).await;
    harness.until_letters(1).await;
    let mut db = harness.db().await;
    let (letter, _) = store_letters::whole(&mut db, 1).await.unwrap();
    let original: serde_json::Value = serde_json::from_slice(letter.payload.as_ref().unwrap()).unwrap();
    let mut mended = original.clone();
    mended["data"]["todo"]["title"] = json!(7);
    let bytes = |value: &serde_json::Value| serde_json::to_vec(value).unwrap();
    let refused = store_letters::edit(&mut db, 1, &bytes(&mended), ACT).await;
    assert!(matches!(refused, Err(Refused::Edit(NotTheEvent::Schema(..)))), "{refused:?}");
    mended["data"]["todo"]["title"] = json!("mended");
    store_letters::edit(&mut db, 1, &bytes(&mended), ACT).await.unwrap();
    harness.mend();
    harness.until_ended(harness.replay(&consumer_of("printer"), PACE).await).await;
    assert_eq!(handled.lock().unwrap().len(), 1);
    let sent = stream(&harness, "REPLAY").await.get_raw_message(1).await.unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&sent.payload).unwrap(), mended, "the mended one was sent");
    let (letter, _) = store_letters::whole(&mut db, 1).await.unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&letter.payload.unwrap()).unwrap(), original);
    assert!(matches!(store_letters::edit(&mut db, 1, &bytes(&mended), ACT).await, Err(Refused::Settled(1, _))));
    harness.stop(service).await;
}

#[tokio::test]
async fn what_is_no_event_is_a_letter_that_can_be_given_up_and_no_death_is_counted_twice() {
    let harness = Harness::new().await;
    let service = harness.operations().await;
    harness.consumer("printer", never).await;
    let nul = json!({"specversion": "1.0", "id": "x\0y", "source": "/s", "type": "todo.created.v1"}).to_string();
    for payload in ["no event, and a \0 in it".to_owned(), nul] {
        assert!(harness.publish_bytes(payload).await);
    }
    harness.until_letters(2).await;
    assert_eq!(service.shut_down().await, None);
    // As if the dead-letter reader had acknowledged nothing: everything is reported once more.
    stream(&harness, "DLQ").await.delete_consumer("operations").await.unwrap();
    harness.provision().await;
    let service = harness.operations().await;
    harness.publish("a", 1).await;
    harness.until_letters(3).await;
    let stats = harness.stats().await;
    assert_eq!((stats.open, stats.deaths), (3, 3));
    let mut db = harness.db().await;
    let first = Selection { ids: Some(vec![1]), ..Selection::default() };
    let order = Order { kind: "discard", selection: &first, pace: PACE };
    let (job, _) = harness.job_of(order).await.unwrap();
    assert_eq!(harness.until_ended(job).await.handled, 1, "its consumer knew of it, and made no second letter of it");
    let stats = harness.stats().await;
    assert_eq!((stats.letters, stats.discarded, stats.deaths), (3, 1, 3));
    let changed = sqlx::query("update audit set actor = 'nobody'").execute(&mut db).await;
    assert!(changed.is_err(), "the audit is only added to");
    harness.stop(service).await;
}

#[tokio::test]
async fn names_that_no_index_takes_are_letters_all_the_same_and_two_stay_two() {
    let harness = Harness::new().await;
    let service = harness.operations().await;
    harness.consumer("printer", never).await;
    let long = "𠮷".repeat(600);
    for end in ["1", "2"] {
        let mut event = Harness::event(&format!("{long}{end}"), 1);
        (event["id"], event["source"]) = (json!(format!("{long}{end}")), json!(long));
        assert!(harness.publish_bytes(event.to_string()).await);
    }
    harness.until_letters(2).await;
    assert_eq!(harness.stats().await.deaths, 2);
    harness.stop(service).await;
}

#[tokio::test]
async fn letters_that_a_restore_of_the_database_took_are_read_again() {
    let harness = Harness::new().await;
    let service = harness.operations().await;
    harness.consumer("printer", never).await;
    for version in 1..=3 {
        harness.publish("a", version).await;
    }
    harness.until_letters(3).await;
    // The failures go before their letters; in one transaction, as others see a restore.
    let restore = "begin; delete from death where letter > (select max(id) from backup_letter); \
        delete from letter where id > (select max(id) from backup_letter); \
        update kept set (stream_created_at, sequence) = (select stream_created_at, sequence from backup_kept); commit";
    let mut db = harness.db().await;
    for table in ["letter", "kept"] {
        sqlx::query(sqlx::AssertSqlSafe(format!("create table backup_{table} as table {table}")))
            .execute(&mut db)
            .await
            .unwrap();
    }
    for version in 4..=6 {
        harness.publish("a", version).await;
    }
    harness.until_letters(6).await;
    // Under the running service, and once more while it is down.
    db.execute(restore).await.unwrap();
    harness.until_letters(6).await;
    assert_eq!(service.shut_down().await, None);
    db.execute(restore).await.unwrap();
    assert_eq!(harness.stats().await.letters, 3);
    let service = harness.operations().await;
    harness.until_letters(6).await;
    assert_eq!(harness.stats().await.deaths, 6, "no death is counted twice");
    harness.stop(service).await;
}

#[tokio::test]
async fn a_replay_that_its_consumer_passes_over_settles_no_letter() {
    let harness = Harness::new().await;
    let service = harness.operations().await;
    harness.one_letter_and_nobody().await;
    // The report of a release that does not know the event.
    let id = harness.replay(&consumer_of("printer"), PACE).await;
    until("it is sent", || async { harness.job(id).await.sent == 1 }).await;
    harness.tell("printer", &format!("{id}.1.1"), "skipped").await;
    let job = harness.until_ended(id).await;
    assert_eq!((job.handled, job.failed), (0, 1), "{job:?}");
    let stats = harness.stats().await;
    assert_eq!((stats.open, stats.handled), (1, 0));
    harness.stop(service).await;
}

#[tokio::test]
async fn what_was_shown_is_given_up_and_nothing_that_came_since() {
    let harness = Harness::new().await;
    let service = harness.operations().await;
    harness.consumer("printer", never).await;
    for name in ["a", "b"] {
        harness.publish(name, 2).await;
    }
    harness.until_letters(2).await;
    let selection = consumer_of("printer");
    let order = Order { kind: "discard", selection: &selection, pace: PACE };
    let mut db = harness.db().await;
    let shown = store_jobs::plan(&mut db, order.kind, order.selection).await.unwrap();
    // While the operator thinks, more letters match.
    for name in ["a", "b", "c"] {
        harness.publish(name, 1).await;
    }
    harness.until_letters(5).await;
    let job = store_jobs::create(&mut db, order, &ids(&shown), ACT).await.unwrap();
    assert_eq!(harness.until_ended(job).await.total, 2);
    let stats = harness.stats().await;
    assert_eq!((stats.discarded, stats.open), (2, 3));
    // What was settled meanwhile, or has another before it now, is not what was shown.
    let again = store_jobs::create(&mut db, order, &ids(&shown), ACT).await.unwrap_err();
    assert!(matches!(again, Refused::Changed { settled: 2, more: 0 }), "{again:?}");
    harness.publish("d", 2).await;
    harness.until_letters(6).await;
    let selection = aggregate("d");
    let order = Order { kind: "replay", selection: &selection, pace: PACE };
    let shown = store_jobs::plan(&mut db, order.kind, order.selection).await.unwrap();
    harness.publish("d", 1).await;
    harness.until_letters(7).await;
    let changed = store_jobs::create(&mut db, order, &ids(&shown), ACT).await.unwrap_err();
    assert!(matches!(changed, Refused::Changed { settled: 0, more: 1 }), "{changed:?}");
    harness.stop(service).await;
}

#[tokio::test]
async fn a_letter_that_cannot_be_kept_holds_up_no_other_and_is_kept_later() {
    let harness = Harness::new().await;
    harness.consumer("printer", never).await;
    // The dead-letter reader receives all of them at once.
    for name in ["a", "refused", "b"] {
        harness.publish(name, 1).await;
    }
    let letters = stream(&harness, "DLQ").await;
    until("three letters", || async { letters.get_info().await.unwrap().state.messages == 3 }).await;
    let mut db = harness.db().await;
    db.execute("alter table letter add constraint refused check (aggregate_id <> 'refused')").await.unwrap();
    let service = harness.operations().await;
    harness.until_letters(2).await;
    // One more: the reader goes on behind the refused one.
    harness.publish("c", 1).await;
    harness.until_letters(3).await;
    db.execute("alter table letter drop constraint refused").await.unwrap();
    harness.until_letters(4).await;
    harness.stop(service).await;
}

#[tokio::test]
async fn letters_are_kept_by_one_process_and_then_by_the_next() {
    let harness = Harness::new().await;
    let (one, other) = (harness.operations().await, harness.operations().await);
    harness.consumer("printer", never).await;
    for version in 1..=5 {
        harness.publish("a", version).await;
    }
    harness.until_letters(5).await;
    assert_eq!(one.shut_down().await, None);
    for version in 6..=8 {
        harness.publish("a", version).await;
    }
    harness.until_letters(8).await;
    assert_eq!(harness.stats().await.deaths, 8);
    harness.stop(other).await;
}

#[tokio::test]
async fn reports_of_a_job_that_a_restore_took_are_not_booked_on_another_of_its_number() {
    let harness = Harness::new().await;
    let service = harness.operations().await;
    harness.one_letter_and_nobody().await;
    let id = harness.replay(&consumer_of("printer"), PACE).await;
    until("it is sent", || async { harness.job(id).await.sent == 1 }).await;
    // A job of this number, created before the restore.
    harness.tell("printer", &format!("{id}.1.1.1700000000000000"), "done").await;
    let created = harness.job(id).await.created_at.timestamp_micros();
    harness.tell("printer", &format!("{id}.1.1.{created}"), "skipped").await;
    let job = harness.until_ended(id).await;
    assert_eq!((job.handled, job.failed), (0, 1), "{job:?}");
    harness.stop(service).await;
}
