//! O8: a row that cannot be published, for whatever reason, holds up its aggregate and nothing else.

use async_nats::jetstream::stream;
use outbox::{NewEvent, operate};
use sqlx::Executor as _;
use testkit::until;

use crate::fixture::{ACT, Fixture, event};

/// An event that a service would not write.
fn astray(aggregate: &str, subject: &str) -> NewEvent {
    NewEvent { subject: subject.to_owned(), ..event(aggregate) }
}

fn sized(aggregate: &str, size: usize) -> NewEvent {
    NewEvent { payload: vec![b'x'; size], ..event(aggregate) }
}

/// The parked rows: their aggregates, and why.
async fn parked(fixture: &Fixture) -> Vec<(String, String)> {
    let mut admin = fixture.database.admin().await;
    sqlx::query_as("select aggregate_id, reason from outbox_parked where state = 'parked' order by seq")
        .fetch_all(&mut admin)
        .await
        .unwrap()
}

/// Has the stream take other subjects.
async fn take(fixture: &Fixture, subjects: &[&str]) {
    let is = fixture.stream().await.cached_info().config.clone();
    let subjects = subjects.iter().map(|&subject| subject.to_owned()).collect();
    fixture.nats.jetstream().await.update_stream(stream::Config { subjects, ..is }).await.unwrap();
}

#[tokio::test]
async fn o8_a_poison_row_parks_its_aggregate_and_nothing_else() {
    let fixture = Fixture::new().await;
    for poison in [sized("too large", 70_000), sized("too large", 2), astray("bad subject", "evt.todo.created.v1.*")] {
        fixture.append(poison).await;
    }
    let good = fixture.write(1).await;
    assert_eq!(fixture.stored().await, good);
    let parked = parked(&fixture).await;
    let aggregates: Vec<&str> = parked.iter().map(|(aggregate, _)| aggregate.as_str()).collect();
    assert_eq!(aggregates, ["too large", "too large", "bad subject"]);
    assert!(parked[1].1.contains("earlier"), "{parked:?}");
    fixture.stop().await;
}

#[tokio::test]
async fn o8_a_row_that_the_broker_never_answers_for_is_parked_after_its_neighbours_passed() {
    let fixture = Fixture::new().await;
    let before = fixture.write(1).await;
    fixture.drain().await;
    // The stream takes it, and the user `todo` may not publish it: the server drops it without an answer.
    take(&fixture, &["evt.todo.>", "evt.billing.>"]).await;
    fixture.relay.wake();
    fixture.append(astray("forbidden", "evt.billing.paid.v1.acme")).await;
    let after = fixture.write(1).await;
    assert_eq!(fixture.stored().await, [before, after].concat());
    let parked = parked(&fixture).await;
    assert_eq!(parked.len(), 1, "{parked:?}");
    assert_eq!(parked[0].0, "forbidden");
    fixture.stop().await;
}

#[tokio::test]
async fn o8_a_row_on_a_subject_that_no_stream_takes_is_parked_after_its_neighbours_passed() {
    let fixture = Fixture::new().await;
    let before = fixture.write(1).await;
    fixture.append(astray("astray", "evt.billing.paid.v1.acme")).await;
    let after = fixture.write(1).await;
    assert_eq!(fixture.stored().await, [before, after].concat());
    let parked = parked(&fixture).await;
    assert_eq!(parked.len(), 1, "{parked:?}");
    assert!(parked[0].1.contains("does not take the subject evt.billing.paid.v1.acme"), "{parked:?}");
    fixture.stop().await;
}

#[tokio::test]
async fn o8_a_row_that_is_larger_than_the_server_takes_is_parked_after_its_neighbours_passed() {
    let mut fixture = Fixture::new().await;
    let before = fixture.write(1).await;
    fixture.drain().await;
    fixture.nats.configure("max_payload: 16384").await;
    let fits = fixture.commit(sized("fits", 10_000)).await;
    let too_long = fixture.commit(sized("too long", 27_000)).await;
    let after = fixture.write(1).await;
    let passed = [before, vec![fits], after].concat();
    assert_eq!(fixture.stored().await, passed);
    let parked = parked(&fixture).await;
    assert_eq!(parked.len(), 1, "{parked:?}");
    assert!(parked[0].1.contains("16384"), "{parked:?}");
    assert_eq!(parked[0].0, "too long");
    // Once the server takes it, it goes out.
    fixture.nats.configure("max_payload: 1048576").await;
    let mut admin = fixture.database.admin().await;
    assert_eq!(operate::release(&mut admin, "too long", ACT).await.unwrap(), 1);
    until("the server takes it", || async { fixture.stored().await.len() == 4 }).await;
    assert_eq!(fixture.stored().await, [passed, vec![too_long]].concat());
    fixture.stop().await;
}

#[tokio::test]
async fn o8_when_the_stream_takes_no_row_at_all_few_of_them_are_parked() {
    let fixture = Fixture::new().await;
    let before = fixture.write(1).await;
    fixture.drain().await;
    take(&fixture, &["evt.billing.>"]).await;
    let (one, others) = (fixture.write(1).await, fixture.write(4).await);
    until("the first is parked", || async { parked(&fixture).await.len() == 1 }).await;
    take(&fixture, &["evt.todo.>"]).await;
    // As an operator's act does, or the next session in a few seconds.
    let mut admin = fixture.database.admin().await;
    let (aggregate, _) = parked(&fixture).await.remove(0);
    assert_eq!(operate::release(&mut admin, &aggregate, ACT).await.unwrap(), 1);
    assert_eq!(fixture.stored().await, [before, others, one].concat());
    assert!(parked(&fixture).await.is_empty());
    fixture.stop().await;
}

#[tokio::test]
async fn a_release_that_waits_for_a_writer_holds_up_no_other() {
    let fixture = Fixture::new().await;
    fixture.append(astray("parked", "evt.todo.created.v1.*")).await;
    until("it is parked", || async { parked(&fixture).await.len() == 1 }).await;
    // A writer that has begun and does not end: a release must not go on beside it.
    let mut open = fixture.open_writer().await;
    let mut releasing = fixture.database.admin().await;
    let release = async { operate::release(&mut releasing, "parked", ACT).await.unwrap() };
    let writing = async {
        until("the release waits", || async {
            let waits = "select exists (select from pg_locks where relation = 'outbox'::regclass and not granted)";
            sqlx::query_scalar(waits).fetch_one(&mut fixture.database.admin().await).await.unwrap()
        })
        .await;
        // Each would fail if it had to wait for as long as the release does.
        fixture.write(10).await;
        open.execute("rollback").await.unwrap();
    };
    assert_eq!(tokio::join!(release, writing).0, 1);
    fixture.stop().await;
}
