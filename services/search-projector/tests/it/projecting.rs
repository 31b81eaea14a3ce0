//! From events to documents: whatever the order and however often.

use std::sync::atomic::Ordering;

use consumer::{RecordStreams, ReplayRequest, Replayer};
use contracts::events::todo::{CompletedV1, CompletedV2, DeletedV1, Status, UpdatedV1};
use serde_json::json;

use crate::harness::{Front, Harness, ann, at, todo};

#[tokio::test]
async fn an_older_event_never_overwrites_a_newer_one() {
    let harness = Harness::start().await;
    let first = todo("first");
    let third = at(&first, 3, "third");
    harness.publish("acme", &UpdatedV1 { todo: third.clone(), actor: ann() }, &third, None).await;
    harness.drain().await;
    let second = at(&first, 2, "second");
    harness.publish("acme", &UpdatedV1 { todo: second.clone(), actor: ann() }, &second, None).await;
    harness.created("acme", &first).await;
    harness.publish("acme", &UpdatedV1 { todo: third.clone(), actor: ann() }, &third, None).await;
    harness.drain().await;
    assert_eq!(harness.document("acme", first.id).await["_source"]["title"], "third");
    assert_eq!(harness.find("acme", "third").await, ["third"]);
    assert!(harness.find("acme", "second").await.is_empty());
    assert!(harness.letters().await.is_empty(), "a repeat is no failure");
}

#[tokio::test]
async fn a_deleted_todo_stays_deleted_when_an_older_event_comes_late() {
    let harness = Harness::start().await;
    let first = todo("secret plan");
    harness.created("acme", &first).await;
    let last = at(&first, 3, "secret plan");
    harness.publish("acme", &DeletedV1 { todo: last.clone(), actor: ann() }, &last, None).await;
    harness.drain().await;
    assert!(harness.find("acme", "secret").await.is_empty());
    let late = at(&first, 2, "secret plan, late");
    harness.publish("acme", &UpdatedV1 { todo: late.clone(), actor: ann() }, &late, None).await;
    harness.drain().await;
    assert!(harness.find("acme", "secret").await.is_empty());
    let document = harness.document("acme", first.id).await;
    assert_eq!(document["_source"]["deleted"], true);
    assert_eq!(document["_version"], 3);
    assert!(document["_source"]["title"].is_null(), "a tombstone keeps no content");
}

#[tokio::test]
async fn a_change_that_is_published_in_two_versions_is_one_document_whichever_comes_first() {
    let harness = Harness::start().await;
    for (title, newer_first) in [("older first", false), ("newer first", true)] {
        let first = todo("x");
        harness.created("acme", &first).await;
        let mut done = at(&first, 2, title);
        (done.status, done.complete_time) = (Status::Completed, Some(done.update_time));
        let old = CompletedV1 { todo: done.clone(), completed_by: "ann".parse().unwrap() };
        let new = CompletedV2 { todo: done.clone(), actor: ann() };
        if newer_first {
            harness.publish("acme", &new, &done, None).await;
        }
        harness.publish("acme", &old, &done, Some("todo.completed.v2")).await;
        if !newer_first {
            harness.publish("acme", &new, &done, None).await;
        }
        harness.drain().await;
        assert_eq!(harness.find("acme", title).await, [title]);
        assert_eq!(harness.document("acme", first.id).await["_version"], 2);
    }
    assert!(harness.letters().await.is_empty());
}

#[tokio::test]
async fn an_event_writes_no_other_todo_than_its_own_and_no_other_version() {
    let harness = Harness::start().await;
    let (mine, other) = (todo("mine"), todo("other"));
    harness.created("acme", &mine).await;
    harness.created("acme", &other).await;
    harness.drain().await;
    // As an edit of a letter might have it: the envelope is of one todo, the data of another, or of a version far ahead.
    let ahead = at(&mine, 999, "far ahead");
    harness.publish("acme", &UpdatedV1 { todo: ahead, actor: ann() }, &at(&mine, 2, ""), None).await;
    let foreign = at(&other, 2, "not its own");
    harness.publish("acme", &UpdatedV1 { todo: foreign, actor: ann() }, &at(&mine, 2, ""), None).await;
    let below = at(&mine, -1, "below");
    harness.publish("acme", &UpdatedV1 { todo: below.clone(), actor: ann() }, &below, None).await;
    let second = at(&mine, 2, "second");
    harness.publish("acme", &UpdatedV1 { todo: second.clone(), actor: ann() }, &second, None).await;
    harness.drain().await;
    assert_eq!(harness.document("acme", mine.id).await["_source"]["title"], "second");
    assert_eq!(harness.document("acme", other.id).await["_source"]["title"], "other");
    assert_eq!(harness.letters().await.len(), 3);
}

#[tokio::test]
async fn an_index_of_an_older_release_is_given_the_fields_it_lacks() {
    let lacks = |definition: &mut serde_json::Value| {
        definition["mappings"]["properties"].as_object_mut().unwrap().remove("created_by").unwrap();
    };
    let harness = Harness::start_on(lacks).await;
    harness.created("acme", &todo("by ann")).await;
    harness.drain().await;
    assert_eq!(harness.find("acme", "by").await, ["by ann"]);
    assert!(harness.letters().await.is_empty(), "it is no fault of the events");
    assert!(harness.behind().await.is_empty());
}

#[tokio::test]
async fn the_index_to_go_back_to_is_given_the_fields_it_lacks_as_well() {
    let harness = Harness::start().await;
    let lacks = |definition: &mut serde_json::Value| {
        definition["mappings"]["properties"].as_object_mut().unwrap().remove("created_by").unwrap();
    };
    let has = || async { harness.has_field_before_the_swap("created_by").await };
    harness.searched_before_the_swap(lacks).await;
    testkit::until("it takes what a rollback would write into it", has).await;
}

#[tokio::test]
async fn an_index_of_an_older_release_is_searched_as_it_takes_words_apart_and_says_so() {
    let plain = |definition: &mut serde_json::Value| {
        definition["settings"].as_object_mut().unwrap().remove("analysis").unwrap();
        for field in ["title", "notes", "labels"] {
            definition["mappings"]["properties"][field].as_object_mut().unwrap().remove("analyzer").unwrap();
        }
    };
    let harness = Harness::start_on(plain).await;
    harness.created("acme", &todo("Café")).await;
    harness.drain().await;
    assert_eq!(harness.find("acme", "CAFÉ").await, ["Café"]);
    assert!(harness.find("acme", "cafe").await.is_empty());
    let behind = harness.behind().await;
    assert_eq!(behind.len(), 3, "{behind:?}");
}

#[tokio::test]
async fn an_index_that_was_restored_from_a_snapshot_has_again_what_came_since() {
    let harness = Harness::start().await;
    let todos = ["one", "two", "three", "four"].map(todo);
    for todo in &todos[..2] {
        harness.created("acme", todo).await;
    }
    harness.drain().await;
    testkit::until("it is noted how far it is", || async { harness.floor().await == Some(2) }).await;
    let older = harness.copy_of_index().await;
    for todo in &todos[2..] {
        harness.created("acme", todo).await;
    }
    harness.drain().await;
    testkit::until("it is noted how far it is", || async { harness.floor().await == Some(4) }).await;
    harness.restore_index(&older).await;
    testkit::until("all are there again", || async { harness.find("acme", "").await.len() == 4 }).await;
    harness.drain().await;
    for (todo, title) in todos.iter().zip(["one", "two", "three", "four"]) {
        assert_eq!(harness.document("acme", todo.id).await["_source"]["title"], title);
    }
}

#[tokio::test]
async fn an_index_that_shows_what_its_stream_does_not_hold_keeps_the_evidence() {
    let harness = Harness::start().await;
    harness.created("acme", &todo("kept")).await;
    harness.created("acme", &todo("undone")).await;
    harness.drain().await;
    testkit::until("an event is noted as handled", || async { harness.anchor().await == Some(2) }).await;
    harness.undo_newest().await;
    for floor in 3..=4 {
        harness.created("acme", &todo("after")).await;
        testkit::until("the floor goes on", || async { harness.floor().await == Some(floor) }).await;
        assert_eq!(harness.anchor().await, Some(2), "what the stream lacks is what was noted");
    }
    harness.drain().await;
    assert_eq!(harness.find("acme", "undone").await, ["undone"], "a person looks before it goes");
}

#[tokio::test]
async fn what_was_trimmed_before_it_was_read_is_noted_in_the_index_and_outlasts_the_projector() {
    let mut harness = Harness::start().await;
    harness.created("acme", &todo("read")).await;
    harness.drain().await;
    testkit::until("it is noted how far it is", || async { harness.floor().await == Some(1) }).await;
    harness.stop().await;
    for title in ["trimmed", "trimmed too", "there"] {
        harness.created("acme", &todo(title)).await;
    }
    harness.forget_before(4).await;
    harness.start_again().await;
    testkit::until("that is noted", || async { harness.trimmed_unread().await == Some(2) }).await;
    harness.drain().await;
    assert_eq!(harness.find("acme", "there").await, ["there"]);
    harness.stop().await;
    harness.start_again().await;
    testkit::until("answers say so", || async { harness.degraded().await == Some("search-index".to_owned()) }).await;
    harness.created("acme", &todo("later")).await;
    harness.drain().await;
    testkit::until("the floor goes on", || async { harness.floor().await == Some(5) }).await;
    assert_eq!(harness.trimmed_unread().await, Some(2), "the note stands");
}

#[tokio::test]
async fn what_was_replayed_comes_again_into_an_index_that_was_restored() {
    let harness = Harness::start().await;
    harness.created("acme", &todo("as it came")).await;
    harness.drain().await;
    testkit::until("it is noted how far it is", || async { harness.floor().await == Some(1) }).await;
    let older = harness.copy_of_index().await;
    // An edited letter: what the stream holds of it is no event.
    harness.publish_raw("evt.todo.created.v1.acme", b"not json".to_vec()).await;
    harness.drain().await;
    let mended = todo("mended");
    let replayer = Replayer::new(harness.nats.client("operations").await, RecordStreams::default());
    let found = replayer.find("EVENTS_TODO", 1).await.unwrap().unwrap();
    let mut event: serde_json::Value = serde_json::from_slice(&found.payload).unwrap();
    (event["subject"], event["partitionkey"]) = (json!(mended.id), json!(mended.id));
    event["data"]["todo"] = serde_json::to_value(&mended).unwrap();
    let sending = ReplayRequest {
        consumer: "search-projector".to_owned(),
        id: "1.1.1".to_owned(),
        payload: event.to_string().into(),
        stream_sequence: 2,
        ..found
    };
    replayer.send(&sending).await.unwrap();
    testkit::until("it is found", || async { harness.find("acme", "mended").await == ["mended"] }).await;
    testkit::until("that is noted", || async { harness.floor_of_replays().await == Some(1) }).await;
    harness.restore_index(&older).await;
    testkit::until("it is found again", || async { harness.find("acme", "mended").await == ["mended"] }).await;
}

#[tokio::test]
async fn what_is_unknown_is_skipped_and_what_is_broken_becomes_a_dead_letter() {
    let harness = Harness::start().await;
    let event = |event_type: &str, tenant: &str, data: serde_json::Value| {
        let todo = data["todo"]["id"].as_str().unwrap_or("a").to_owned();
        json!({"specversion": "1.0", "id": "0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2e4f", "time": "2026-01-01T00:00:00Z", "subject": todo, "partitionkey": todo, "sequence": "00000000000000000001", "source": "/flotilla/todo", "type": event_type, "tenant": tenant, "data": data})
            .to_string()
            .into_bytes()
    };
    harness.publish_raw("evt.todo.exploded.v1.acme", event("todo.exploded.v1", "acme", json!({}))).await;
    harness.publish_raw("evt.todo.created.v1.acme", b"not json".to_vec()).await;
    harness.publish_raw("evt.todo.created.v1.acme", event("todo.created.v1", "acme", json!({"todo": 1}))).await;
    // An event that names another tenant than its subject does.
    let foreign = serde_json::to_value(todo("foreign")).unwrap();
    let data = json!({"todo": foreign, "actor": ann()});
    harness.publish_raw("evt.todo.created.v1.acme", event("todo.created.v1", "globex", data)).await;
    let good = todo("good");
    harness.created("acme", &good).await;
    harness.drain().await;
    assert_eq!(harness.find("acme", "").await, ["good"], "what follows is not held up");
    assert!(harness.find("globex", "").await.is_empty());
    let mut letters = harness.letters().await;
    letters.sort_by_key(|(_, headers, _)| headers.get("Dlq-Stream-Sequence").unwrap().to_string());
    let reasons: Vec<_> =
        letters.iter().map(|(_, headers, _)| headers.get("Dlq-Reason").unwrap().to_string()).collect();
    assert_eq!(letters.len(), 3, "{reasons:?}");
    let (subject, headers, payload) = &letters[0];
    assert_eq!(subject, "dlq.search-projector.evt.todo.created.v1.acme");
    assert_eq!(payload, b"not json", "whole");
    assert_eq!(headers.get("Dlq-Consumer").unwrap().as_str(), "search-projector");
    assert_eq!(headers.get("Dlq-Stream").unwrap().as_str(), "EVENTS_TODO");
    assert_eq!(headers.get("Dlq-Stream-Sequence").unwrap().as_str(), "2");
    assert!(reasons[1].contains("does not fit its schema") && reasons[2].contains("subject"), "{reasons:?}");
}

#[tokio::test]
async fn a_broker_that_comes_back_is_consumed_again() {
    let mut harness = Harness::start().await;
    harness.created("acme", &todo("before")).await;
    harness.drain().await;
    harness.nats.kill().await;
    harness.nats.restart().await;
    harness.created("acme", &todo("after")).await;
    // Not until all is acknowledged: a killed broker may have forgotten that "before" was, and asks again only after
    // the acknowledgement wait.
    testkit::until("both are found", || async {
        let mut found = harness.find("acme", "").await;
        found.sort();
        found == ["after", "before"]
    })
    .await;
}

#[tokio::test]
async fn an_index_that_takes_nothing_is_waited_for() {
    let harness = Harness::start().await;
    harness.created("acme", &todo("before")).await;
    harness.drain().await;
    // What OpenSearch does by itself when its disk is nearly full.
    harness.block_writes(true).await;
    // Long enough for the first of them to be refused.
    for count in 1..=12 {
        harness.created("acme", &todo("meanwhile")).await;
        harness.until_in_hand(count).await;
    }
    harness.block_writes(false).await;
    harness.drain().await;
    assert_eq!(harness.find("acme", "meanwhile").await.len(), 12);
    assert!(harness.letters().await.is_empty(), "it was not the events' fault");
    assert_eq!(harness.deliveries().await, 13, "they were kept in hand");
}

#[tokio::test]
async fn an_index_that_is_lost_fills_itself_from_the_beginning_of_the_stream() {
    let harness = Harness::start().await;
    let todos = ["one", "two", "three"].map(todo);
    for todo in &todos {
        harness.created("acme", todo).await;
    }
    harness.drain().await;
    assert_eq!(harness.filled_since().await, Some(1));
    harness.lose_index().await;
    testkit::until("it is there again, and says so", || async { harness.filled_since().await == Some(1) }).await;
    harness.drain().await;
    for (todo, title) in todos.iter().zip(["one", "two", "three"]) {
        assert_eq!(harness.document("acme", todo.id).await["_source"]["title"], title);
    }
    // Where the stream has dropped the first events, the index says what it lacks, and takes the rest.
    harness.forget_before(3).await;
    harness.lose_index().await;
    testkit::until("it says that it lacks some", || async { harness.filled_since().await == Some(3) }).await;
    harness.drain().await;
    assert_eq!(harness.document("acme", todos[2].id).await["_source"]["title"], "three");
    assert_eq!(harness.document("acme", todos[0].id).await["found"], false);
}

#[tokio::test]
async fn of_a_bulk_that_is_refused_as_a_whole_only_the_document_that_is_why_is_not_written() {
    let front = Front::new(20_000).await;
    let harness = Harness::start_behind(&front).await;
    *front.wrong.lock().unwrap() = Some("outrageous");
    let mut todos: Vec<_> = (0..30).map(|n| todo(&n.to_string())).collect();
    for todo in &mut todos {
        todo.notes = "n".repeat(4_000);
    }
    todos[7].notes = "n".repeat(40_000);
    todos[11].title = "outrageous".to_owned();
    for todo in &todos {
        harness.created("acme", todo).await;
    }
    // A document that is too large becomes a letter; one that may not be at fault is tried again.
    harness.until_in_hand(1).await;
    let letters = harness.letters().await;
    assert_eq!(letters.len(), 1, "{letters:?}");
    let reason = letters[0].1.get("Dlq-Reason").unwrap().as_str();
    assert!(reason.contains("413") && reason.contains("too large"), "{reason}");
    for (number, todo) in todos.iter().enumerate().filter(|(number, _)| ![7, 11].contains(number)) {
        assert_eq!(harness.document("acme", todo.id).await["_source"]["title"], number.to_string());
    }
    *front.wrong.lock().unwrap() = None;
    harness.drain().await;
    assert_eq!(harness.document("acme", todos[11].id).await["_source"]["title"], "outrageous");
    assert_eq!(harness.letters().await.len(), 1);
}

#[tokio::test]
async fn what_refuses_everything_before_the_index_makes_no_letters() {
    let front = Front::new(1_000_000).await;
    let harness = Harness::start_behind(&front).await;
    *front.wrong.lock().unwrap() = Some("");
    let todos = ["one", "two"].map(todo);
    for todo in &todos {
        harness.created("acme", todo).await;
    }
    let before = front.refused.load(Ordering::SeqCst);
    testkit::until("it is tried again", || async { front.refused.load(Ordering::SeqCst) > before + 20 }).await;
    *front.wrong.lock().unwrap() = None;
    harness.drain().await;
    assert_eq!(harness.find("acme", "").await.len(), 2);
    assert!(harness.letters().await.is_empty());
}

#[tokio::test]
async fn while_an_index_is_filled_again_answers_say_what_they_lack() {
    let mut harness = Harness::start().await;
    harness.created("acme", &todo("before")).await;
    harness.drain().await;
    testkit::until("answers are whole", || async { harness.degraded().await.is_none() }).await;
    harness.pause("2100-01-01T00:00:00Z").await;
    harness.lose_index().await;
    testkit::until("answers say so", || async { harness.degraded().await == Some("search-index".to_owned()) }).await;
    // Also those of a process that has not made the index.
    harness.stop().await;
    harness.start_again().await;
    testkit::until("answers say so still", || async { harness.degraded().await == Some("search-index".to_owned()) })
        .await;
    harness.pause("2001-01-01T00:00:00Z").await;
    harness.drain().await;
    testkit::until("answers are whole once more", || async { harness.degraded().await.is_none() }).await;
    assert_eq!(harness.find("acme", "before").await, ["before"]);
}

#[tokio::test]
async fn a_lost_index_is_filled_while_the_stream_of_replays_is_away() {
    let harness = Harness::start().await;
    harness.created("acme", &todo("before")).await;
    harness.drain().await;
    harness.nats.records().await.delete_stream("REPLAY").await.unwrap();
    harness.lose_index().await;
    testkit::until("it is made anew and filled", || async { harness.floor().await == Some(1) }).await;
    testkit::until("answers are whole again", || async { harness.degraded().await.is_none() }).await;
    harness.created("acme", &todo("after")).await;
    testkit::until("the floor has moved", || async { harness.floor().await == Some(2) }).await;
    assert_eq!(harness.floor_of_replays().await, Some(0), "what was replayed is still to come again");
    harness.drain().await;
    assert_eq!(harness.find("acme", "").await.len(), 2);
    // The index is made again, and replays go on.
    harness.nats.provision(devstack::nats::Wanted::default()).await;
    assert!(harness.letters().await.is_empty());
}
