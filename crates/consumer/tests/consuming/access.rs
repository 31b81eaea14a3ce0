//! What the account of `nats/account.conf` lets a service publish: what it needs, and nothing else.

use std::sync::{Arc, Mutex};

use async_nats::jetstream::{self, AckKind};
use consumer::{Config, Consumer, Failure, RecordStreams, ReplayRequest, Replayer, Verdict};
use devstack::nats::Layout;
use futures::{FutureExt as _, StreamExt as _};
use testkit::{PATIENCE, TestNats, until};

use crate::fixture::{Fixture, STREAM, handled};

/// The file, with the user of the service that publishes in the same list.
fn file() -> String {
    let of_outbox = include_str!("../../../outbox/nats/account.conf");
    let publisher = of_outbox.split_once("      # The service").unwrap().1.split_once("\n    ]").unwrap().0;
    let ours = include_str!("../../nats/account.conf").replacen("users: [", &format!("users: [\n#{publisher}\n"), 1);
    let with_passwords = ours.replace("$SHOP_ADMIN_PASSWORD", "one").replace("$LEDGER_PASSWORD", "two");
    with_passwords.replace("$SHOP_PASSWORD", "three")
}

#[tokio::test]
async fn a_consumer_may_publish_by_the_account_in_the_file_what_it_needs_and_nothing_else() {
    may_publish_what_it_needs(file(), RecordStreams::default()).await;
}

/// As the file says of a prefix.
#[tokio::test]
async fn with_a_prefix_the_rights_have_it_too() {
    let file = file().replace("\"dlq.", "\"shop.dlq.").replace("\"replayed.", "\"shop.replayed.");
    may_publish_what_it_needs(file.replace(".REPLAY", ".shop_REPLAY"), RecordStreams::prefixed("shop")).await;
}

async fn may_publish_what_it_needs(file: String, records: RecordStreams) {
    let nats = TestNats::laid_out(Layout::Text(file)).await;
    let refused = Arc::new(Mutex::new(Vec::new()));
    let (admin, ledger) = (nats.user("shop-admin", "one", &refused).await, nats.user("ledger", "two", &refused).await);
    drop(nats.user("shop", "three", &refused).await);
    let fixture = Fixture::on(nats, jetstream::new(admin.clone())).await;
    let config = Config { records, ..Fixture::ordered(8, 1) };
    fixture.administer(&config).await;
    // One that JetStream gives up on, before anybody of the service is there: the backstop makes a letter of it.
    fixture.publish("c", 1).await;
    let mut first =
        fixture.durable().await.unwrap().batch().max_messages(1).expires(PATIENCE).messages().await.unwrap();
    first.next().await.unwrap().unwrap().ack_with(AckKind::Term).await.unwrap();
    until("JetStream has given it up", || async {
        fixture.js.get_stream(config.records.advisories()).await.unwrap().cached_info().state.messages == 1
    })
    .await;
    // In batches first: an inbox that knows of nothing would have it delivered again.
    let batches = Config { records: config.records.clone(), ..Fixture::batched(8, 1) };
    fixture.administer(&batches).await;
    let (first, stop) = (Consumer::new(ledger.clone(), batches), fixture.stop.child_token());
    let stopped = stop.clone();
    let first = fixture
        .consumers
        .spawn(first.run_batches(stopped, |events| std::future::ready(vec![Verdict::Done; events.len()])));
    let letters = async |count| {
        until("so many are letters", || async {
            fixture.js.get_stream(config.records.dead_letters()).await.unwrap().cached_info().state.messages == count
        })
        .await;
    };
    letters(1).await;
    stop.cancel();
    first.await.unwrap();
    let (consumer, stop, inbox) =
        (Consumer::new(ledger.clone(), config.clone()), fixture.stop.clone(), fixture.inbox());
    fixture.consumers.spawn(async move {
        consumer
            .run_in_order(stop, inbox, |tx, event| {
                let bad = event.replay.is_none() && event.attribute("id").ends_with("-b-1");
                handled(tx, event, bad.then(|| Failure::Reject("bad".to_owned()))).boxed()
            })
            .await;
    });
    fixture.publish("a", 1).await;
    fixture.publish("b", 1).await;
    letters(2).await;
    let replayer = Replayer::new(admin, config.records.clone());
    let found = replayer.find(STREAM, 3).await.unwrap().unwrap();
    replayer.send(&ReplayRequest { consumer: "ledger".to_owned(), id: "1.1.1".to_owned(), ..found }).await.unwrap();
    until("it is handled after all", || async { fixture.effects().await.contains_key("b") }).await;
    fixture.drain().await;
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
    assert_eq!(fixture.js.get_stream(STREAM).await.unwrap().cached_info().state.messages, 3);
    fixture.stop().await;
}
