//! Committed rows go from their writers to the relay by hand; what was not committed must not, and what the database has
//! lost since neither.

use outbox::{NewEvent, Role};
use sqlx::{Connection as _, Executor as _, PgConnection, Postgres, Transaction};
use testkit::PATIENCE;

use crate::harness::Fleet;
use crate::losses::stored;
use crate::relay::rows;

fn an_event(tenant: &str) -> NewEvent {
    NewEvent {
        id: service::clock::new_id(),
        tenant: tenant.to_owned(),
        aggregate_id: "a".to_owned(),
        subject: format!("evt.todo.created.v1.{tenant}"),
        traceparent: None,
        payload: b"{}".to_vec(),
    }
}

/// A connection of the service's role, for the tenant acme.
async fn app(fleet: &Fleet) -> PgConnection {
    let mut app = PgConnection::connect(&fleet.database.app).await.unwrap();
    app.execute("set app.tenant = 'acme'").await.unwrap();
    app
}

#[tokio::test]
async fn o1_what_was_not_committed_is_not_handed_over() {
    let fleet = Fleet::start().await;
    let relay = &fleet.app.relay;
    let mut app = app(&fleet).await;
    // A statement has failed and nobody minded: the database answers such a COMMIT with a rollback, and sqlx says Ok.
    let mut tx = app.begin().await.unwrap();
    tx.execute("select 1 / 0").await.unwrap_err();
    relay.commit(tx, vec![an_event("acme")], Transaction::commit).await.unwrap_err();
    // The second of two is refused.
    let tx = app.begin().await.unwrap();
    relay.commit(tx, vec![an_event("acme"), an_event("globex")], Transaction::commit).await.unwrap_err();
    // The commit fails.
    let tx = app.begin().await.unwrap();
    let fails = |tx: Transaction<'_, Postgres>| {
        drop(tx);
        std::future::ready(Err(sqlx::Error::WorkerCrashed))
    };
    relay.commit(tx, vec![an_event("acme")], fails).await.unwrap_err();
    let (tx, told) = (app.begin().await.unwrap(), an_event("acme"));
    let id = told.id.to_string();
    relay.commit(tx, vec![told], Transaction::commit).await.unwrap();
    assert_eq!(stored(&fleet).await, [id]);
}

#[tokio::test]
async fn o7_rows_from_before_a_restore_are_not_published_in_the_place_of_those_that_have_their_numbers_now() {
    let mut fleet = Fleet::start().await;
    let ann = fleet.client("acme", "ann");
    ann.titled("stored").await;
    fleet.drain().await;
    fleet.nats.kill().await;
    let mut status = fleet.app.relay.status();
    ann.titled("in flight when the broker went").await;
    tokio::time::timeout(PATIENCE, status.wait_for(|status| status.role == Role::Standby)).await.unwrap().unwrap();
    // Handed over while nobody publishes; then the database comes back without it.
    ann.titled("lost by the restore").await;
    let mut admin = fleet.database.admin().await;
    admin.execute("delete from outbox where seq = 3; select setval('outbox_seq', 2)").await.unwrap();
    fleet.nats.restart().await;
    fleet.drain().await;
    // It gets the number of the one that is lost.
    ann.titled("new").await;
    let stored = stored(&fleet).await;
    assert_eq!(stored, rows(&fleet).await);
    assert_eq!(stored.len(), 3);
}
