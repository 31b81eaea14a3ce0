//! The same intent, sent again, happens once.

use futures::future::join_all;
use proto::harbour::Vessel;

use crate::harness::{Harness, reason};

fn named(name: &str) -> Vessel {
    Vessel { name: name.to_owned(), ..Vessel::default() }
}

#[tokio::test]
async fn a_repeat_answers_what_was_answered_and_changes_nothing() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann").with_key("one");
    let first = ann.create_vessel(named("x")).await.unwrap();
    let patch = named("y");
    harness.client("acme", "ann").update_vessel(&first.id, patch, &[]).await.unwrap();
    assert_eq!(ann.create_vessel(named("x")).await.unwrap(), first, "the answer of then, not the state of now");
    assert_eq!(reason(ann.create_vessel(named("z")).await), "IDEMPOTENCY_KEY_REUSED");
    let logbook = ann.logbook_of(&first).await;
    let note = || proto::harbour::Logbook { notes: "n".to_owned(), ..Default::default() };
    let twice = harness.client("acme", "ann").with_key("two");
    let noted = twice.update_logbook(&logbook.id, note(), &[]).await.unwrap();
    assert_eq!(twice.update_logbook(&logbook.id, note(), &[]).await.unwrap(), noted);
    let other = harness.client("globex", "ann").with_key("one").create_vessel(named("x")).await.unwrap();
    assert_ne!(other.id, first.id, "a key belongs to its tenant");
    assert_eq!(reason(harness.client("acme", "ann").with_key("").create_vessel(named("x")).await), "IDEMPOTENCY_KEY_REQUIRED");
    assert_eq!(harness.count("vessel").await, 2);
}

#[tokio::test]
async fn many_at_once_with_one_key_write_once() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann").with_key("one");
    let answers = join_all((0..16).map(|_| ann.create_vessel(named("x")))).await;
    let (done, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert!(!done.is_empty());
    for answer in refused {
        assert_eq!(reason(answer), "IDEMPOTENCY_KEY_IN_USE");
    }
    assert_eq!(harness.count("vessel").await, 1);
}
