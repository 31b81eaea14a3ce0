//! The same intent, sent again, happens once.

use futures::future::join_all;
use proto::todo::Todo;
use sqlx::Executor as _;

use authz::Caller;
use service::idempotency::{Attempt, Key};
use service::idempotency_sweep::sweep_some;
use service::{Call, Db, Outbox};

use crate::harness::{Harness, reason};

fn titled(title: &str) -> Todo {
    Todo { title: title.to_owned(), ..Todo::default() }
}

#[tokio::test]
async fn a_repeat_answers_what_was_answered_and_changes_nothing() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann").with_key("one");
    let first = ann.create(titled("x")).await.unwrap();
    assert_eq!(ann.create(titled("x")).await.unwrap(), first);
    let complete = harness.client("acme", "ann").with_key("two");
    let done = complete.complete(&first.id, "").await.unwrap();
    assert_eq!(complete.complete(&first.id, "").await.unwrap(), done, "though it is completed already");
    assert_eq!(ann.create(titled("x")).await.unwrap().version, 1, "the answer of then, not the state of now");
    assert_eq!((harness.count("todo").await, harness.count("outbox").await), (1, 3));
}

#[tokio::test]
async fn a_key_belongs_to_a_caller_a_method_and_a_request() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann").with_key("one");
    let first = ann.create(titled("x")).await.unwrap();
    assert_eq!(reason(ann.create(titled("y")).await), "IDEMPOTENCY_KEY_REUSED");
    assert_ne!(harness.client("acme", "bob").with_key("one").create(titled("x")).await.unwrap().id, first.id);
    assert_ne!(harness.client("globex", "ann").with_key("one").create(titled("x")).await.unwrap().id, first.id);
    ann.complete(&first.id, "").await.unwrap();
    assert_eq!(harness.count("todo").await, 3);
}

#[tokio::test]
async fn a_command_that_does_not_ask_for_an_earlier_answer_cannot_commit_and_a_read_cannot_write() {
    let harness = Harness::start().await;
    let db = Db::lazy(&harness.database.app.clone().into(), "test", 2).unwrap();
    let outbox = Outbox::new(harness.app.relay.clone());
    let caller = Caller::service("acme".parse().unwrap(), "test".parse().unwrap());
    let mut request = tonic::Request::new(());
    request.metadata_mut().insert("idempotency-key", "k".parse().unwrap());
    let key = Key::required(request.metadata().as_ref()).unwrap();
    let call = || Call::of_request(caller.clone(), Some(Attempt::new(&caller, "Test", key.clone(), &())));
    outbox.commit(db.begin(&call()).await.unwrap(), Vec::new(), &()).await.unwrap();
    let forgetful = db.begin(&call()).await.unwrap();
    assert_eq!(outbox.commit(forgetful, Vec::new(), &()).await.unwrap_err().reason, "INTERNAL");
    let mut tx = db.begin(&call()).await.unwrap();
    assert_eq!(tx.replayed::<()>().unwrap(), Some(()));
    tx.end().await.unwrap();

    let mut read = db.read(&call()).await.unwrap();
    let refused =
        sqlx::query("insert into todo_label (tenant, label, todo_id) values ('acme', 'x', gen_random_uuid())")
            .execute(&mut *read)
            .await
            .unwrap_err();
    assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("25006"), "{refused}");
    drop(read);
    outbox.commit(db.begin(&Call::of_request(caller, None)).await.unwrap(), Vec::new(), &()).await.unwrap();
}

#[tokio::test]
async fn many_at_once_with_one_key_write_once() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann").with_key("one");
    let answers = join_all((0..16).map(|_| ann.create(titled("x")))).await;
    let (done, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert!(!done.is_empty());
    for answer in refused {
        assert_eq!(reason(answer), "IDEMPOTENCY_KEY_IN_USE");
    }
    assert_eq!((harness.count("todo").await, harness.count("outbox").await), (1, 1));
}

#[tokio::test]
async fn an_error_is_not_kept_and_a_key_is_needed() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann").with_key("one");
    assert_eq!(reason(ann.create(titled("")).await), "INVALID_ARGUMENT");
    ann.create(titled("x")).await.unwrap();
    let none = harness.client("acme", "ann").with_key("");
    assert_eq!(reason(none.create(titled("x")).await), "IDEMPOTENCY_KEY_REQUIRED");
    assert_eq!(reason(none.reopen("x").await), "IDEMPOTENCY_KEY_REQUIRED");
    let long = harness.client("acme", "ann").with_key(&"k".repeat(256));
    assert_eq!(reason(long.create(titled("x")).await), "IDEMPOTENCY_KEY_MALFORMED");
    assert_eq!(harness.count("todo").await, 1);
}

#[tokio::test]
async fn old_answers_are_forgotten() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann").with_key("one");
    ann.create(titled("x")).await.unwrap();
    let mut admin = harness.database.admin().await;
    sqlx::query("update idempotency set created_at = created_at - interval '25 hours'")
        .execute(&mut admin)
        .await
        .unwrap();
    let db = Db::lazy(&harness.database.app.clone().into(), contracts::events::todo::SERVICE, 1).unwrap();
    // The service sweeps too; either may come first.
    sweep_some(&db, None).await.unwrap();
    testkit::until("the old answer is gone", || async { harness.count("idempotency").await == 0 }).await;
    let again = ann.create(titled("another")).await.unwrap();
    assert_eq!(again.title, "another", "the key is free again");
}

#[tokio::test]
async fn a_look_for_old_answers_does_not_walk_over_those_that_are_gone() {
    let harness = Harness::start().await;
    let mut admin = harness.database.admin().await;
    // A long read keeps in the index what is deleted meanwhile.
    let mut reader = harness.database.admin().await;
    reader.execute("begin isolation level repeatable read; select count(*) from idempotency").await.unwrap();
    admin
        .execute(
            "insert into idempotency select 'acme', 'ann', 'm', n::text, '', '', clock_timestamp() - interval '2 days' \
             + n * interval '1 ms' from generate_series(1, 20000) n; analyze idempotency",
        )
        .await
        .unwrap();
    let db = Db::lazy(&harness.database.app.clone().into(), contracts::events::todo::SERVICE, 1).unwrap();
    let mut from = None;
    while let (1.., up_to) = sweep_some(&db, from).await.unwrap() {
        from = up_to.or(from);
    }
    testkit::until("all are gone", || async { harness.count("idempotency").await == 0 }).await;
    let mut blocks = [0; 2];
    for (blocks, from) in blocks.iter_mut().zip([None, from]) {
        let plan: serde_json::Value =
            sqlx::query_scalar("explain (analyze, buffers, format json) select * from idempotency_sweep(1000, $1)")
                .bind(from)
                .fetch_one(&mut admin)
                .await
                .unwrap();
        *blocks = plan[0]["Plan"]["Shared Hit Blocks"].as_i64().unwrap();
    }
    assert!(blocks[1] * 10 < blocks[0], "blocks from the beginning and from where it was: {blocks:?}");
    reader.execute("rollback").await.unwrap();
}
