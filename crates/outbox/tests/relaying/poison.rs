//! O8: a row that cannot be published, for whatever reason, holds up its aggregate and nothing else.

use async_nats::jetstream::stream;
use outbox::{NewEvent, operate};
use sqlx::Executor as _;
use testkit::until;

use crate::world::{ACT, World, event};

/// An event that a service would not write.
fn astray(aggregate: &str, subject: &str) -> NewEvent {
    NewEvent { subject: subject.to_owned(), ..event(aggregate) }
}

fn sized(aggregate: &str, size: usize) -> NewEvent {
    NewEvent { payload: vec![b'x'; size], ..event(aggregate) }
}

/// The parked rows: their aggregates, and why.
async fn parked(world: &World) -> Vec<(String, String)> {
    let mut admin = world.database.admin().await;
    sqlx::query_as("select aggregate_id, reason from outbox_parked where state = 'parked' order by seq")
        .fetch_all(&mut admin)
        .await
        .unwrap()
}

/// Has the stream take other subjects.
async fn take(world: &World, subjects: &[&str]) {
    let is = world.stream().await.cached_info().config.clone();
    let subjects = subjects.iter().map(|&subject| subject.to_owned()).collect();
    world.nats.jetstream().await.update_stream(stream::Config { subjects, ..is }).await.unwrap();
}

#[tokio::test]
async fn o8_a_poison_row_parks_its_aggregate_and_nothing_else() {
    let world = World::new().await;
    for poison in [sized("too large", 70_000), sized("too large", 2), astray("bad subject", "evt.todo.created.v1.*")] {
        world.append(poison).await;
    }
    let good = world.write(1).await;
    assert_eq!(world.stored().await, good);
    let parked = parked(&world).await;
    let aggregates: Vec<&str> = parked.iter().map(|(aggregate, _)| aggregate.as_str()).collect();
    assert_eq!(aggregates, ["too large", "too large", "bad subject"]);
    assert!(parked[1].1.contains("earlier"), "{parked:?}");
    world.stop().await;
}

#[tokio::test]
async fn o8_a_row_that_the_broker_never_answers_for_is_parked_after_its_neighbours_passed() {
    let world = World::new().await;
    let before = world.write(1).await;
    world.drain().await;
    // The stream takes it, and the user `todo` may not publish it: the server drops it without an answer.
    take(&world, &["evt.todo.>", "evt.billing.>"]).await;
    world.relay.wake();
    world.append(astray("forbidden", "evt.billing.paid.v1.acme")).await;
    let after = world.write(1).await;
    assert_eq!(world.stored().await, [before, after].concat());
    let parked = parked(&world).await;
    assert_eq!(parked.len(), 1, "{parked:?}");
    assert_eq!(parked[0].0, "forbidden");
    world.stop().await;
}

#[tokio::test]
async fn o8_a_row_on_a_subject_that_no_stream_takes_is_parked_after_its_neighbours_passed() {
    let world = World::new().await;
    let before = world.write(1).await;
    world.append(astray("astray", "evt.billing.paid.v1.acme")).await;
    let after = world.write(1).await;
    assert_eq!(world.stored().await, [before, after].concat());
    let parked = parked(&world).await;
    assert_eq!(parked.len(), 1, "{parked:?}");
    assert!(parked[0].1.contains("does not take the subject evt.billing.paid.v1.acme"), "{parked:?}");
    world.stop().await;
}

#[tokio::test]
async fn o8_a_row_that_is_larger_than_the_server_takes_is_parked_after_its_neighbours_passed() {
    let mut world = World::new().await;
    let before = world.write(1).await;
    world.drain().await;
    world.nats.configure("max_payload: 16384").await;
    let fits = world.commit(sized("fits", 10_000)).await;
    let too_long = world.commit(sized("too long", 27_000)).await;
    let after = world.write(1).await;
    let passed = [before, vec![fits], after].concat();
    assert_eq!(world.stored().await, passed);
    let parked = parked(&world).await;
    assert_eq!(parked.len(), 1, "{parked:?}");
    assert!(parked[0].1.contains("16384"), "{parked:?}");
    assert_eq!(parked[0].0, "too long");
    // Once the server takes it, it goes out.
    world.nats.configure("max_payload: 1048576").await;
    let mut admin = world.database.admin().await;
    assert_eq!(operate::release(&mut admin, "too long", ACT).await.unwrap(), 1);
    until("the server takes it", || async { world.stored().await.len() == 4 }).await;
    assert_eq!(world.stored().await, [passed, vec![too_long]].concat());
    world.stop().await;
}

#[tokio::test]
async fn o8_when_the_stream_takes_no_row_at_all_few_of_them_are_parked() {
    let world = World::new().await;
    let before = world.write(1).await;
    world.drain().await;
    take(&world, &["evt.billing.>"]).await;
    let (one, others) = (world.write(1).await, world.write(4).await);
    until("the first is parked", || async { parked(&world).await.len() == 1 }).await;
    take(&world, &["evt.todo.>"]).await;
    // As an operator's act does, or the next session in a few seconds.
    let mut admin = world.database.admin().await;
    let (aggregate, _) = parked(&world).await.remove(0);
    assert_eq!(operate::release(&mut admin, &aggregate, ACT).await.unwrap(), 1);
    assert_eq!(world.stored().await, [before, others, one].concat());
    assert!(parked(&world).await.is_empty());
    world.stop().await;
}

#[tokio::test]
async fn a_release_that_waits_for_a_writer_holds_up_no_other() {
    let world = World::new().await;
    world.append(astray("parked", "evt.todo.created.v1.*")).await;
    until("it is parked", || async { parked(&world).await.len() == 1 }).await;
    // A writer that has begun and does not end: a release must not go on beside it.
    let mut open = world.open_writer().await;
    let mut releasing = world.database.admin().await;
    let release = async { operate::release(&mut releasing, "parked", ACT).await.unwrap() };
    let writing = async {
        until("the release waits", || async {
            let waits = "select exists (select from pg_locks where relation = 'outbox'::regclass and not granted)";
            sqlx::query_scalar(waits).fetch_one(&mut world.database.admin().await).await.unwrap()
        })
        .await;
        // Each would fail if it had to wait for as long as the release does.
        world.write(10).await;
        open.execute("rollback").await.unwrap();
    };
    assert_eq!(tokio::join!(release, writing).0, 1);
    world.stop().await;
}
