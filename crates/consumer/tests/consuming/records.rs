//! The streams beside those of the events: under names of one's own, in an account that others share.

use std::sync::{Arc, Mutex};

use consumer::{
    Config, Consumer, DeadLetterReader, DlqPosition, DlqRecord, Event, Failure, RecordStreams, ReplayRequest, Replayer,
    Verdict, administer,
};
use futures::FutureExt as _;
use testkit::{PATIENCE, until};

use crate::fixture::{Fixture, STREAM, handled};

#[tokio::test]
async fn two_teams_in_one_account_have_letters_and_replays_of_their_own() {
    let fixture = Fixture::new().await;
    let shop = RecordStreams::prefixed("shop");
    // The other team has a consumer of the same events, under the names that nobody has changed.
    fixture
        .batches(
            8,
            1,
            |event| {
                if event.replay.is_some() { Verdict::Done } else { Verdict::Reject("theirs".to_owned()) }
            },
        )
        .await;
    let ours = Config { durable: "invoices".to_owned(), records: shop.clone(), ..Fixture::ordered(8, 1) };
    let (consumer, stop, inbox) = (fixture.deployed(ours).await, fixture.stop.clone(), fixture.inbox());
    fixture.consumers.spawn(async move {
        consumer
            .run_in_order(stop, inbox, |tx, event| {
                let fault = event.replay.is_none().then(|| Failure::Reject("ours".to_owned()));
                handled(tx, event, fault).boxed()
            })
            .await;
    });
    administer::letter_reader(&fixture.js, &shop, "desk").await.unwrap();
    let (letters, outcomes) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
    let reader = DeadLetterReader::new(fixture.nats.client("admin").await, shop.clone(), "desk");
    let (read, done, stop) = (Arc::clone(&letters), Arc::clone(&outcomes), fixture.stop.clone());
    fixture.consumers.spawn(async move {
        let kept = || std::future::ready(Ok(DlqPosition { stream_created_at: None, sequence: 0 }));
        let keep = |batch: consumer::Batch| {
            for record in batch.records {
                match record {
                    DlqRecord::Letter(letter) => read.lock().unwrap().push(letter),
                    DlqRecord::Replayed { id, outcome } => done.lock().unwrap().push((id, outcome)),
                }
            }
            std::future::ready(Ok(()))
        };
        reader.run(&stop, kept, keep).await;
    });
    fixture.publish("a", 1).await;
    until("both have made a letter of it", || async {
        !letters.lock().unwrap().is_empty() && fixture.letters().await.len() == 1
    })
    .await;
    let letter = letters.lock().unwrap()[0].clone();
    assert_eq!((letter.consumer.as_str(), letter.reason.as_str()), ("invoices", "ours"));
    assert_eq!(fixture.letters().await[0].1, "theirs", "nobody sees the letters of others");
    let stored = fixture.js.get_stream("shop_DLQ").await.unwrap().get_raw_message(1).await.unwrap();
    assert_eq!(stored.subject.as_str(), format!("shop.dlq.invoices.{}", letter.subject));
    let replayer = Replayer::new(fixture.nats.client("admin").await, shop);
    let found = replayer.find(STREAM, letter.stream_sequence).await.unwrap().unwrap();
    let again = ReplayRequest { consumer: "invoices".to_owned(), id: "1.1.1".to_owned(), ..found };
    replayer.send(&again).await.unwrap();
    until("it is handled", || async { *outcomes.lock().unwrap() == [("1.1.1".to_owned(), "done".to_owned())] }).await;
    assert_eq!(fixture.effects().await["a"], [1]);
    let others = fixture.js.get_stream("REPLAY").await.unwrap().cached_info().state.messages;
    assert_eq!(others, 0, "a replay goes to its team alone");
    fixture.stop().await;
}

async fn client(fixture: &Fixture) -> async_nats::Client {
    fixture.nats.client("admin").await
}

#[tokio::test]
async fn nothing_is_pulled_in_another_way_than_was_configured() {
    let fixture = Fixture::new().await;
    fixture.publish("a", 1).await;
    drop(fixture.deployed(Fixture::ordered(8, 1)).await);
    let (ordered, batched) = (Fixture::ordered(8, 1), Fixture::batched(8, 1));
    let (in_order, in_batches) =
        (Consumer::new(client(&fixture).await, batched), Consumer::new(client(&fixture).await, ordered));
    let (stop, inbox) = (fixture.stop.clone(), fixture.inbox());
    let done = |events: Vec<Event>| std::future::ready(vec![Verdict::Done; events.len()]);
    let all = [
        fixture.consumers.spawn(in_batches.run_batches(stop.clone(), done)),
        fixture.consumers.spawn(in_order.run_in_order(stop, inbox, |tx, event| handled(tx, event, None).boxed())),
    ];
    for ended in all {
        let ended = tokio::time::timeout(PATIENCE, ended).await.expect("each ends at once");
        let said = ended.unwrap_err().into_panic().downcast::<String>().unwrap();
        assert!(said.starts_with("ledger was made by Config::"), "{said}");
    }
    assert!(fixture.effects().await.is_empty());
    assert_eq!(fixture.durable().await.unwrap().cached_info().num_pending, 1);
}
