//! Writers hand committed rows to the relay. They must not hand over what was not committed, or what the database has
//! lost since.

use outbox::{NewEvent, Role};
use sqlx::{Connection as _, Executor as _, Postgres, Transaction};
use testkit::PATIENCE;

use crate::fixture::{Fixture, event};

#[tokio::test]
async fn o1_what_was_not_committed_is_not_handed_over() {
    let fixture = Fixture::new().await;
    let relay = &fixture.relay;
    let mut app = fixture.app().await;
    // A failed statement went unnoticed: the database answers such a COMMIT with a rollback, and sqlx says Ok.
    let mut tx = app.begin().await.unwrap();
    tx.execute("select 1 / 0").await.unwrap_err();
    relay.commit(tx, vec![event("a")], Transaction::commit).await.unwrap_err();
    // The second of two is refused.
    let tx = app.begin().await.unwrap();
    let of_globex = NewEvent { tenant: "globex".to_owned(), ..event("a") };
    relay.commit(tx, vec![event("a"), of_globex], Transaction::commit).await.unwrap_err();
    // The commit fails.
    let tx = app.begin().await.unwrap();
    let fails = |tx: Transaction<'_, Postgres>| {
        drop(tx);
        std::future::ready(Err(sqlx::Error::WorkerCrashed))
    };
    relay.commit(tx, vec![event("a")], fails).await.unwrap_err();
    let (tx, new) = (app.begin().await.unwrap(), event("a"));
    let id = new.id.to_string();
    relay.commit(tx, vec![new], Transaction::commit).await.unwrap();
    assert_eq!(fixture.stored().await, [id]);
    fixture.stop().await;
}

#[tokio::test]
async fn o7_rows_from_before_a_restore_are_not_published_in_the_place_of_those_that_have_their_numbers_now() {
    let mut fixture = Fixture::new().await;
    fixture.write(1).await;
    fixture.drain().await;
    fixture.nats.kill().await;
    let mut status = fixture.relay.status();
    // In flight when the broker went.
    fixture.write(1).await;
    tokio::time::timeout(PATIENCE, status.wait_for(|status| status.role == Role::Standby)).await.unwrap().unwrap();
    // Handed over while nobody publishes; then the database comes back without it.
    let lost = fixture.write(1).await;
    let mut admin = fixture.database.admin().await;
    admin.execute("delete from outbox where seq = 3; select setval('outbox_seq', 2)").await.unwrap();
    fixture.nats.restart().await;
    fixture.drain().await;
    // It gets the number of the one that is lost.
    fixture.write(1).await;
    let stored = fixture.stored().await;
    assert_eq!(stored, fixture.rows().await);
    assert_eq!(stored.len(), 3);
    assert!(!stored.contains(&lost[0]));
    fixture.stop().await;
}
