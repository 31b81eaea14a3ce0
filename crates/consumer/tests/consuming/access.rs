//! The account of `nats/account.conf`: enough for a service, and no more.

use std::sync::{Arc, Mutex};

use async_nats::jetstream::{self, AckKind};
use async_nats::{Client, ConnectOptions, Event as Happened};
use consumer::{Consumer, Failure, ReplayRequest, Replayer};
use devstack::nats::Layout;
use futures::{FutureExt as _, StreamExt as _};
use testkit::{TestNats, until};

use crate::world::{STREAM, World, handled};

#[tokio::test]
async fn the_account_in_the_file_is_enough_for_a_consumer_and_no_more() {
    let file = include_str!("../../nats/account.conf").replace("$SHOP_ADMIN_PASSWORD", "one");
    let nats = TestNats::laid_out(Layout::Text(file.replace("$LEDGER_PASSWORD", "two"))).await;
    let refused = Arc::new(Mutex::new(Vec::new()));
    let login = async |user: &str, password: &str| -> Client {
        let refused = Arc::clone(&refused);
        let options = ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned());
        let options = options.custom_inbox_prefix(format!("_INBOX_{user}")).event_callback(move |event| {
            if let Happened::ServerError(error) = &event {
                refused.lock().unwrap().push(error.to_string());
            }
            std::future::ready(())
        });
        options.connect(nats.address()).await.unwrap()
    };
    let (admin, ledger) = (login("shop-admin", "one").await, login("ledger", "two").await);
    let world = World::on(nats, jetstream::new(admin.clone())).await;
    let config = World::ordered(8, 1);
    world.administer(&config).await;
    // One that JetStream gives up on, before anybody of the service is there: the backstop makes a letter of it.
    world.publish("c", 1).await;
    let mut first = world.durable().await.unwrap().fetch().max_messages(1).messages().await.unwrap();
    first.next().await.unwrap().unwrap().ack_with(AckKind::Term).await.unwrap();
    until("JetStream has given it up", || async {
        world.js.get_stream(config.records.advisories()).await.unwrap().cached_info().state.messages == 1
    })
    .await;
    let (consumer, stop, inbox) = (Consumer::new(ledger.clone(), config.clone()), world.stop.clone(), world.inbox());
    world.consumers.spawn(async move {
        consumer
            .run_in_order(stop, inbox, |tx, event| {
                let bad = event.replay.is_none() && event.attribute("id").ends_with("-b-1");
                handled(tx, event, bad.then(|| Failure::Reject("bad".to_owned()))).boxed()
            })
            .await;
    });
    world.publish("a", 1).await;
    world.publish("b", 1).await;
    world.until_letters(2).await;
    let replayer = Replayer::new(admin, config.records.clone());
    let found = replayer.find(STREAM, 3).await.unwrap().unwrap();
    replayer.send(&ReplayRequest { consumer: "ledger".to_owned(), id: "1.1.1".to_owned(), ..found }).await.unwrap();
    until("it is handled after all", || async { world.effects().await.contains_key("b") }).await;
    world.drain().await;
    assert_eq!(*refused.lock().unwrap(), Vec::<String>::new(), "it asks for nothing else");
    for subject in [
        "evt.shop.paid.v1.acme",
        "dlq.another.evt.shop.paid.v1.acme",
        "replay.ledger.evt.shop.paid.v1.acme",
        "$JS.API.STREAM.PURGE.EVENTS_SHOP",
        "$JS.API.CONSUMER.DELETE.EVENTS_SHOP.ledger",
    ] {
        ledger.publish(subject, "{}".into()).await.unwrap();
        until("it is refused", || async { refused.lock().unwrap().iter().any(|why| why.contains(subject)) }).await;
    }
    assert_eq!(world.js.get_stream(STREAM).await.unwrap().cached_info().state.messages, 3);
    world.stop().await;
}
