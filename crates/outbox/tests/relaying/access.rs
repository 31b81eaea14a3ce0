//! The account of `nats/account.conf` and the grants of `schema/*_access.sql`: enough for a service, which may publish nothing
//! else.

use std::sync::{Arc, Mutex};

use async_nats::jetstream;
use devstack::nats::Layout;
use outbox::{NewEvent, Relay, RelayConfig, administer};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection, Transaction};
use testkit::{PATIENCE, TestNats, until};
use tokio_util::sync::CancellationToken;

use crate::fixture::{database, ids, pool};

#[tokio::test]
async fn a_relay_may_publish_by_the_account_in_the_file_what_it_needs_and_nothing_else() {
    let file = include_str!("../../nats/account.conf").replace("$SHOP_ADMIN_PASSWORD", "one");
    let nats = TestNats::laid_out(Layout::Text(file.replace("$SHOP_PASSWORD", "two"))).await;
    let refused = Arc::new(Mutex::new(Vec::new()));
    let (admin, shop) = (nats.user("shop-admin", "one", &refused).await, nats.user("shop", "two", &refused).await);
    let (database, config) = (database().await, RelayConfig::new("EVENTS_SHOP", ["evt.shop.>"]));
    let js = jetstream::new(admin);
    administer::stream(&js, &config.stream).await.unwrap();
    let (relay, stop) = (Relay::new(pool(&database.relay), shop.clone(), config), CancellationToken::new());
    let (handle, stopped) = (relay.handle(), stop.clone());
    let relaying = tokio::spawn(relay.run(stopped));
    // A writer without tenants.
    let options: PgConnectOptions = database.app.parse().unwrap();
    let mut app = PgConnection::connect_with(&options.options([("app.tenant", "")])).await.unwrap();
    let new = NewEvent::new("a", "evt.shop.paid.v1", "{}");
    let id = new.id.to_string();
    handle.commit(app.begin().await.unwrap(), vec![new], Transaction::commit).await.unwrap();
    let mut status = handle.status();
    tokio::time::timeout(PATIENCE, status.wait_for(|status| status.done == 1)).await.unwrap().unwrap();
    assert_eq!(*refused.lock().unwrap(), Vec::<String>::new(), "it asks for nothing else");
    for subject in ["evt.other.paid.v1", "$JS.API.STREAM.PURGE.EVENTS_SHOP", "$JS.API.STREAM.DELETE.EVENTS_SHOP"] {
        shop.publish(subject, "{}".into()).await.unwrap();
        until("it is refused", || async { refused.lock().unwrap().iter().any(|why| why.contains(subject)) }).await;
    }
    assert_eq!(ids(&js.get_stream("EVENTS_SHOP").await.unwrap()).await, [id]);
    stop.cancel();
    relaying.await.unwrap();
}
