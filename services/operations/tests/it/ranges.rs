//! Replays a range of a stream to one consumer.

use operations::pace::Pace;
use operations::store_range::{self, Ranged};
use serde_json::json;
use testkit::until;

use crate::harness::{ACT, Handled, Harness, PACE};
use crate::{never, stream};

/// What a healthy consumer has handled: three events of one aggregate.
async fn three_are_handled(harness: &Harness) -> Handled {
    harness.mend();
    let handled = harness.consumer("printer", never).await;
    for version in 1..=3 {
        harness.publish("a", version).await;
    }
    until("all are handled", || async { handled.lock().unwrap().len() == 3 }).await;
    handled
}

/// The first so many events of the stream, as a range names them.
async fn ranged(harness: &Harness, count: u64) -> Vec<Ranged> {
    let stream = stream(harness, "EVENTS_TODO").await;
    let mut events = Vec::new();
    for sequence in 1..=count {
        events.push(Ranged::of(sequence, &stream.get_raw_message(sequence).await.unwrap().payload));
    }
    events
}

#[tokio::test]
async fn an_event_whose_place_another_one_has_taken_is_not_replayed_in_its_stead() {
    let harness = Harness::new().await;
    let service = harness.operations().await;
    let handled = three_are_handled(&harness).await;
    // As in a stream that was restored, and went on with other events: the last sequence is that of another event.
    let mut events = ranged(&harness, 3).await;
    events[2].event_id = events[0].event_id.clone();
    let pace = Pace { max_failures: 0.5, ..PACE };
    let selection = json!({"stream": "EVENTS_TODO"});
    let job =
        store_range::create_range(&mut harness.db().await, "printer", &selection, &events, pace, ACT).await.unwrap();
    let job = harness.until_ended(job).await;
    assert_eq!((job.handled, job.failed), (2, 1), "{job:?}");
    let versions: Vec<i32> = handled.lock().unwrap().iter().map(|one| one.1).collect();
    assert_eq!(versions, [1, 2, 3, 1, 2]);
    harness.stop(service).await;
}

#[tokio::test]
async fn a_range_of_a_stream_goes_to_one_consumer_again() {
    let harness = Harness::new().await;
    let service = harness.operations().await;
    harness.mend();
    let handled = harness.consumer("printer", never).await;
    let bystander = harness.consumer("bystander", never).await;
    for version in 1..=3 {
        harness.publish("a", version).await;
    }
    until("both have them", || async { handled.lock().unwrap().len() + bystander.lock().unwrap().len() == 6 }).await;
    // The second is gone from the stream by the time it is to be sent.
    let mut events = ranged(&harness, 3).await;
    // Those of one aggregate would wait for each other.
    (events[0].aggregate_id, events[1].aggregate_id) = ("b".to_owned(), String::new());
    stream(&harness, "EVENTS_TODO").await.delete_message(2).await.unwrap();
    let selection = json!({"stream": "EVENTS_TODO"});
    let pace = Pace { max_failures: 0.5, ..PACE };
    let mut db = harness.db().await;
    let job = store_range::create_range(&mut db, "printer", &selection, &events, pace, ACT).await.unwrap();
    let job = harness.until_ended(job).await;
    assert_eq!((job.handled, job.failed), (2, 1), "{job:?}");
    let versions: Vec<i32> = handled.lock().unwrap().iter().map(|one| one.1).collect();
    assert_eq!((versions.as_slice(), bystander.lock().unwrap().len()), (&[1, 2, 3, 1, 3][..], 3));
    assert_eq!(harness.stats().await.letters, 0);
    harness.stop(service).await;
}

#[tokio::test]
async fn a_range_of_a_stream_that_was_made_anew_is_not_replayed() {
    let harness = Harness::new().await;
    let service = harness.operations().await;
    let handled = three_are_handled(&harness).await;
    let created = stream(&harness, "EVENTS_TODO").await.get_info().await.unwrap().created;
    let of = |created: chrono::DateTime<chrono::Utc>| json!({"stream": "EVENTS_TODO", "streamCreatedAt": created});
    let events = ranged(&harness, 3).await;
    let mut db = harness.db().await;
    let other = created - chrono::TimeDelta::seconds(1);
    let wrong = store_range::create_range(&mut db, "printer", &of(other), &events, PACE, ACT).await.unwrap();
    let wrong = harness.until_ended(wrong).await;
    assert_eq!((wrong.state.as_str(), wrong.handled), ("aborted", 0), "{wrong:?}");
    assert!(wrong.detail.contains("created again"), "{wrong:?}");
    let right = store_range::create_range(&mut db, "printer", &of(created), &events, PACE, ACT).await.unwrap();
    assert_eq!(harness.until_ended(right).await.handled, 3);
    assert_eq!(handled.lock().unwrap().len(), 6);
    harness.stop(service).await;
}
