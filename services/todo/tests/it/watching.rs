//! What those who watch hear: all that happens to their tenant's todos, in order, also across what cuts them off.

use std::collections::BTreeMap;

use proto::todo::Todo;
use proto::todo::watch_todos_response::{Change, DeletedTodo};
use serde_json::json;
use testkit::{PATIENCE, until};
use tonic::transport::Channel;

use crate::harness::{Client, Harness, Watching, reason};

/// The versions of todos, as they come: until this one.
async fn versions(watching: &mut Watching, last: &Todo) -> Vec<(String, i32)> {
    let mut versions = Vec::new();
    loop {
        let todo = watching.todo().await;
        versions.push((todo.id.clone(), todo.version));
        if todo.id == last.id && todo.version == last.version {
            return versions;
        }
    }
}

#[tokio::test]
async fn each_change_of_the_tenant_s_todos_is_heard_as_it_is_and_nobody_else_s() {
    let harness = Harness::start().await;
    let (ann, eve) = (harness.client("acme", "ann"), harness.client("globex", "eve"));
    ann.titled("before").await;
    harness.drain().await;
    let (mut watching, mut others) = (ann.watch("").await.unwrap(), eve.watch("").await.unwrap());
    let created = ann.titled("Splice the line").await;
    let renamed = ann.rename(&created.id, "Splice both lines").await.unwrap();
    let completed = ann.complete(&created.id, "").await.unwrap();
    ann.delete(&created.id, "").await.unwrap();
    let of_eve = eve.titled("hers").await;
    for wanted in [created.clone(), renamed, completed] {
        assert_eq!(watching.todo().await, wanted);
    }
    let deleted = DeletedTodo { id: created.id, version: 4 };
    assert_eq!(watching.next().await.1, Change::Deleted(deleted));
    assert_eq!(others.todo().await, of_eve, "the first that she hears of");
}

#[tokio::test]
async fn whoever_was_cut_off_goes_on_behind_what_it_has_at_another_process() {
    let harness = Harness::start().await;
    let (ann, eve) = (harness.client("acme", "ann"), harness.client("globex", "eve"));
    // Cut off before anything has happened.
    let begun = ann.watch("").await.unwrap().message().await.unwrap().unwrap();
    assert!(matches!(begun.change, Some(Change::Heartbeat(_))));
    let mut todos = Vec::new();
    for number in 0..300 {
        todos.push(ann.titled(&format!("{number}")).await);
        if number % 10 == 0 {
            eve.titled("hers").await;
        }
    }
    harness.drain().await;
    let (second, lifecycle) = harness.second().await;
    let channel = Channel::from_shared(format!("http://{}", second.address)).unwrap().connect().await.unwrap();
    let other = Client::new(channel, harness.issuer.bearer("acme", "ann"));
    let mut watching = other.watch(&begun.id).await.unwrap();
    let mut last_id = String::new();
    for wanted in &todos {
        let (id, change) = watching.next().await;
        assert_eq!(change, Change::Todo(wanted.clone()));
        last_id = id;
    }
    // From the first process again, while others write.
    let next = ann.titled("next").await;
    assert_eq!(ann.watch(&last_id).await.unwrap().todo().await, next);
    assert_eq!(watching.todo().await, next);
    assert_eq!(lifecycle.shut_down().await, None);
    // An id is its tenant's, and nobody makes one.
    let of_acme = harness.client("globex", "eve").watch(&last_id).await;
    assert_eq!(reason(of_acme.map(drop)), "INVALID_ARGUMENT");
    for id in ["7", "AAAA", &last_id[1..]] {
        assert_eq!(reason(ann.watch(id).await.map(drop)), "INVALID_ARGUMENT", "{id}");
    }
}

#[tokio::test]
async fn where_nothing_happens_a_watcher_hears_where_it_is() {
    let harness = Harness::start().await;
    let mut watching = harness.client("acme", "ann").watch("").await.unwrap();
    for _ in 0..2 {
        let message = watching.message().await.unwrap().unwrap();
        assert!(matches!(message.change, Some(Change::Heartbeat(_))) && !message.id.is_empty(), "{message:?}");
    }
}

#[tokio::test]
async fn whoever_reads_too_slowly_is_told_so_and_misses_nothing_afterwards() {
    const CHANGES: usize = 450;
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    // Nothing of it is read until all has happened; a connection takes some fifty of these.
    let endpoint = Channel::from_shared(format!("http://{}", harness.app.address)).unwrap();
    let channel = endpoint.initial_stream_window_size(65_535).connect().await.unwrap();
    let mut slow = Client::new(channel, harness.issuer.bearer("acme", "ann")).watch("").await.unwrap();
    let mut quick = ann.watch("").await.unwrap();
    let large = Todo { title: "Splice".to_owned(), notes: "x".repeat(8_000), ..Todo::default() };
    for _ in 0..CHANGES {
        let created = ann.create(large.clone()).await.unwrap();
        assert_eq!(quick.todo().await.id, created.id);
    }
    let (mut heard, mut last) = (0, String::new());
    let refused = loop {
        match slow.message().await {
            Ok(Some(message)) => {
                heard += usize::from(matches!(message.change, Some(Change::Todo(_))));
                last = message.id;
            }
            Ok(None) => panic!("it ends and says nothing"),
            Err(refused) => break refused,
        }
    };
    assert_eq!(reason(Err::<(), _>(refused)), "SLOW_READER");
    assert!((1..CHANGES).contains(&heard), "{heard}");
    let mut again = ann.watch(&last).await.unwrap();
    for _ in heard..CHANGES {
        again.todo().await;
    }
}

#[tokio::test]
async fn what_is_not_heard_is_read_when_nats_is_back() {
    let mut harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let mut watching = ann.watch("").await.unwrap();
    let first = ann.titled("first").await;
    assert_eq!(watching.todo().await, first);
    harness.nats.kill().await;
    let mut last = first;
    for number in 0..5 {
        last = ann.titled(&format!("while it is away {number}")).await;
    }
    harness.nats.restart().await;
    let heard = versions(&mut watching, &last).await;
    assert_eq!(heard.len(), 5, "each once: {heard:?}");
}

#[tokio::test]
async fn whoever_was_away_for_longer_than_events_are_kept_is_told_to_list_again() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let mut watching = ann.watch("").await.unwrap();
    let old = watching.message().await.unwrap().unwrap().id;
    for number in 0..3 {
        ann.titled(&format!("{number}")).await;
    }
    harness.drain().await;
    let stream = harness.stream().await;
    stream.purge().keep(1).await.unwrap();
    let (id, change) = ann.watch(&old).await.unwrap().next().await;
    assert!(matches!(change, Change::Reset(_)), "{change:?}");
    let next = ann.titled("next").await;
    assert_eq!(ann.watch(&id).await.unwrap().todo().await, next, "from there on nothing is missed");
}

#[tokio::test]
async fn a_stream_that_is_made_anew_is_told_to_all_who_watch() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let mut watching = ann.watch("").await.unwrap();
    for number in 0..3 {
        ann.titled(&format!("{number}")).await;
        watching.todo().await;
    }
    harness.nats.jetstream().await.delete_stream("EVENTS_TODO").await.unwrap();
    harness.nats.provision(devstack::nats::Wanted::default()).await;
    let reset = tokio::time::timeout(PATIENCE, async {
        loop {
            let (_, change) = watching.next().await;
            if matches!(change, Change::Reset(_)) {
                return;
            }
        }
    });
    reset.await.expect("they list again");
    // The relay fills it again.
    let next = ann.titled("next").await;
    let heard = versions(&mut watching, &next).await;
    assert_eq!(heard.last(), Some(&(next.id, 1)));
}

#[tokio::test]
async fn a_stream_ends_with_its_caller_s_access() {
    let harness = Harness::start().await;
    let expires = service::clock::now().timestamp() + 2;
    let short = harness.client_as("acme", "ann", &json!({"exp": expires, "role": "member"}));
    let mut watching = short.watch("").await.unwrap();
    let ended = loop {
        match watching.message().await {
            Ok(message) => assert!(message.is_some(), "it says why it ends"),
            Err(status) => break reason(Err::<(), _>(status)),
        }
    };
    assert_eq!(ended, "TOKEN_EXPIRED");
}

#[tokio::test]
async fn a_thousand_watch_and_each_hears_each_change_in_order() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let address = format!("http://{}", harness.app.address);
    let mut watchers = tokio::task::JoinSet::new();
    let (begun, mut all_begun) = tokio::sync::mpsc::channel(1_000);
    for _ in 0..10 {
        let channel = Channel::from_shared(address.clone()).unwrap().connect().await.unwrap();
        let client = Client::new(channel, harness.issuer.bearer("acme", "ann"));
        for _ in 0..100 {
            let (client, begun) = (client.clone(), begun.clone());
            watchers.spawn(async move {
                let mut watching = client.watch("").await.unwrap();
                watching.message().await.unwrap();
                begun.send(()).await.unwrap();
                let mut heard = BTreeMap::new();
                loop {
                    let todo = watching.todo().await;
                    let before = heard.insert(todo.id.clone(), todo.version).unwrap_or(0);
                    assert_eq!(todo.version, before + 1, "in order, and each once");
                    if todo.title == "last" {
                        return heard.values().sum::<i32>();
                    }
                }
            });
        }
    }
    for _ in 0..1_000 {
        tokio::time::timeout(PATIENCE, all_begun.recv()).await.unwrap().unwrap();
    }
    let todos = [ann.titled("a").await, ann.titled("b").await];
    for version in 1..10 {
        for todo in &todos {
            ann.rename(&todo.id, &format!("{version}")).await.unwrap();
        }
    }
    ann.titled("last").await;
    while let Some(heard) = watchers.join_next().await {
        assert_eq!(heard.unwrap(), 21);
    }
    // A process remembers nobody who is gone.
    until("all places are free", || async { ann.watch("").await.is_ok() }).await;
}
