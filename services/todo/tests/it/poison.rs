//! O8: a row that cannot be published, for whatever reason, holds up its aggregate and nothing else.

use async_nats::jetstream::stream;
use outbox::operate;
use proto::todo::Todo;
use sqlx::{Connection as _, Executor as _, PgConnection};
use testkit::until;

use crate::harness::Fleet;
use crate::losses::ACT;

/// A row that the service would not write.
async fn insert(fleet: &Fleet, aggregate: &str, subject: &str) {
    let mut writer = PgConnection::connect(&fleet.database.app).await.unwrap();
    sqlx::query(
        "with tenant as (select set_config('app.tenant', 'acme', false)) \
         insert into outbox (event_id, tenant, aggregate_id, subject, payload) \
         select gen_random_uuid(), 'acme', $1, $2, '{}' from tenant",
    )
    .bind(aggregate)
    .bind(subject)
    .execute(&mut writer)
    .await
    .unwrap();
}

/// The parked rows: their aggregates, and why.
async fn parked(fleet: &Fleet) -> Vec<(String, String)> {
    let mut admin = fleet.database.admin().await;
    sqlx::query_as("select aggregate_id, reason from outbox_parked where state = 'parked' order by seq")
        .fetch_all(&mut admin)
        .await
        .unwrap()
}

async fn titles(fleet: &Fleet) -> Vec<String> {
    fleet.events().await.into_iter().map(|stored| stored.todo().title.clone()).collect()
}

/// Has the stream take other subjects.
async fn take(fleet: &Fleet, subjects: &[&str]) {
    let is = fleet.stream().await.cached_info().config.clone();
    let subjects = subjects.iter().map(|&subject| subject.to_owned()).collect();
    fleet.nats.jetstream().await.update_stream(stream::Config { subjects, ..is }).await.unwrap();
}

#[tokio::test]
async fn o8_a_poison_row_parks_its_aggregate_and_nothing_else() {
    let fleet = Fleet::start().await;
    let ann = fleet.client("acme", "ann");
    let mut writer = PgConnection::connect(&fleet.database.app).await.unwrap();
    writer.execute("set app.tenant = 'acme'").await.unwrap();
    for (aggregate, subject, size) in [
        ("too large", "evt.todo.created.v1.acme", 70_000),
        ("too large", "evt.todo.updated.v1.acme", 2),
        ("bad subject", "evt.todo.created.v1.*", 2),
    ] {
        sqlx::query(
            "insert into outbox (event_id, tenant, aggregate_id, subject, payload) \
             values (gen_random_uuid(), 'acme', $1, $2, convert_to(repeat('x', $3), 'UTF8'))",
        )
        .bind(aggregate)
        .bind(subject)
        .bind(size)
        .execute(&mut writer)
        .await
        .unwrap();
    }
    let id = ann.titled("a good one").await.id;
    let events = fleet.events().await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].envelope.subject, id);
    let mut admin = fleet.database.admin().await;
    let parked: Vec<(String, String)> = sqlx::query_as("select aggregate_id, reason from outbox_parked order by seq")
        .fetch_all(&mut admin)
        .await
        .unwrap();
    let aggregates: Vec<&str> = parked.iter().map(|(aggregate, _)| aggregate.as_str()).collect();
    assert_eq!(aggregates, ["too large", "too large", "bad subject"]);
    assert!(parked[1].1.contains("earlier"), "{parked:?}");
}

#[tokio::test]
async fn o8_a_row_that_the_broker_never_answers_for_is_parked_after_its_neighbours_passed() {
    let fleet = Fleet::start().await;
    let ann = fleet.client("acme", "ann");
    ann.titled("before").await;
    fleet.drain().await;
    // The stream takes it, and the user `todo` may not publish it: the server drops it without an answer.
    take(&fleet, &["evt.todo.>", "evt.billing.>"]).await;
    fleet.app.relay.wake();
    insert(&fleet, "forbidden", "evt.billing.paid.v1.acme").await;
    ann.titled("after").await;
    assert_eq!(titles(&fleet).await, ["before", "after"]);
    let parked = parked(&fleet).await;
    assert_eq!(parked.len(), 1, "{parked:?}");
    assert_eq!(parked[0].0, "forbidden");
}

#[tokio::test]
async fn o8_a_row_on_a_subject_that_no_stream_takes_is_parked_after_its_neighbours_passed() {
    let fleet = Fleet::start().await;
    let ann = fleet.client("acme", "ann");
    ann.titled("before").await;
    insert(&fleet, "astray", "evt.billing.paid.v1.acme").await;
    ann.titled("after").await;
    assert_eq!(titles(&fleet).await, ["before", "after"]);
    let parked = parked(&fleet).await;
    assert_eq!(parked.len(), 1, "{parked:?}");
    assert!(parked[0].1.contains("does not take the subject evt.billing.paid.v1.acme"), "{parked:?}");
}

#[tokio::test]
async fn o8_a_row_that_is_larger_than_the_server_takes_is_parked_after_its_neighbours_passed() {
    let mut fleet = Fleet::start().await;
    let ann = fleet.client("acme", "ann");
    ann.titled("before").await;
    fleet.drain().await;
    fleet.nats.configure("max_payload: 16384").await;
    let long = Todo { title: "long".to_owned(), notes: "n".repeat(10_000), ..Todo::default() };
    let fits = ann.create(long.clone()).await.unwrap();
    let too_long = ann.create(Todo { notes: "€".repeat(9_000), ..long }).await.unwrap();
    ann.titled("after").await;
    assert_eq!(titles(&fleet).await, ["before", "long", "after"]);
    let parked = parked(&fleet).await;
    assert_eq!(parked.len(), 1, "{parked:?}");
    assert!(parked[0].1.contains("16384"), "{parked:?}");
    assert_ne!(parked[0].0, fits.id);
    // Once the server takes it, it goes out.
    fleet.nats.configure("max_payload: 1048576").await;
    let mut admin = fleet.database.admin().await;
    assert_eq!(operate::release(&mut admin, &too_long.id, ACT).await.unwrap(), 1);
    until("the server takes it", || async { titles(&fleet).await.len() == 4 }).await;
}

#[tokio::test]
async fn o8_when_the_stream_takes_no_row_at_all_few_of_them_are_parked() {
    let fleet = Fleet::start().await;
    let ann = fleet.client("acme", "ann");
    ann.titled("before").await;
    fleet.drain().await;
    take(&fleet, &["evt.billing.>"]).await;
    for title in ["one", "two", "three", "four", "five"] {
        ann.titled(title).await;
    }
    until("the first is parked", || async { parked(&fleet).await.len() == 1 }).await;
    take(&fleet, &["evt.todo.>"]).await;
    // As an operator's act does, or the next session in a few seconds.
    let mut admin = fleet.database.admin().await;
    let (aggregate, _) = parked(&fleet).await.remove(0);
    assert_eq!(operate::release(&mut admin, &aggregate, ACT).await.unwrap(), 1);
    assert_eq!(titles(&fleet).await, ["before", "two", "three", "four", "five", "one"]);
    assert!(parked(&fleet).await.is_empty());
}

#[tokio::test]
async fn a_release_that_waits_for_a_writer_holds_up_no_other() {
    let fleet = Fleet::start().await;
    insert(&fleet, "parked", "evt.todo.created.v1.*").await;
    until("it is parked", || async { parked(&fleet).await.len() == 1 }).await;
    // A writer that has begun and does not end: a release must not go on beside it.
    let mut app = PgConnection::connect(&fleet.database.app).await.unwrap();
    app.execute("set app.tenant = 'acme'").await.unwrap();
    let mut open = app.begin().await.unwrap();
    open.execute("insert into outbox (event_id, tenant, aggregate_id, subject, payload) values (gen_random_uuid(), 'acme', 'a', 's', '{}')")
        .await
        .unwrap();
    let mut releasing = fleet.database.admin().await;
    let release = async { operate::release(&mut releasing, "parked", ACT).await.unwrap() };
    let writing = async {
        until("the release waits", || async {
            let waits = "select exists (select from pg_locks where relation = 'outbox'::regclass and not granted)";
            sqlx::query_scalar(waits).fetch_one(&mut fleet.database.admin().await).await.unwrap()
        })
        .await;
        // Each would fail if it had to wait for as long as the release does.
        for n in 0..10 {
            fleet.client("acme", "ann").titled(&n.to_string()).await;
        }
        open.rollback().await.unwrap();
    };
    assert_eq!(tokio::join!(release, writing).0, 1);
}
