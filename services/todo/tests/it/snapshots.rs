//! What consumers and callers see, whole, so that a change of it shows in review. `INSTA_UPDATE=always` writes it anew.

use proto::todo::{Recurrence, Todo};
use serde_json::json;
use testkit::assert_snapshot;
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::harness::Harness;
use crate::writes::full;

#[tokio::test]
async fn the_events_of_a_todo() {
    let harness = Harness::start().await;
    harness.join("acme", "bob").await;
    let ann = harness.client("acme", "ann");
    let created = ann.create(full()).await.unwrap();
    ann.update(&created.id, Todo { title: "Splice it".to_owned(), ..Todo::default() }, &["title"]).await.unwrap();
    ann.complete(&created.id, "").await.unwrap();
    ann.reopen(&created.id).await.unwrap();
    ann.delete(&created.id, "").await.unwrap();
    let events: Vec<_> = harness.events().await.into_iter().map(|stored| stored.text).collect();
    assert_snapshot!("events", &format!("[{}]", events.join(",")));
}

#[tokio::test]
async fn the_failures_of_calls() {
    let harness = Harness::start().await;
    harness.join("acme", "bob").await;
    let ann = harness.client("acme", "ann");
    let id = ann.create(full()).await.unwrap().id;
    ann.with_key("used").create(full()).await.unwrap();
    let vic = harness.client_as("acme", "vic", &json!({"role": "viewer"}));
    let recurring = |rule: &str| {
        let recurrence =
            Recurrence { rule: rule.to_owned(), time_zone: "Europe/Berlin".to_owned(), ..Recurrence::default() };
        Todo { recurrence: Some(recurrence), ..full() }
    };
    let failures: Vec<(&str, Status)> = vec![
        ("no title", ann.create(Todo::default()).await.unwrap_err()),
        (
            "the first of several fields",
            ann.create(Todo { title: String::new(), notes: "\0".to_owned(), ..full() }).await.unwrap_err(),
        ),
        ("a rule that is none", ann.create(recurring("FREQ=HOURLY")).await.unwrap_err()),
        ("a stranger", ann.create(Todo { assignee: "eve".to_owned(), ..full() }).await.unwrap_err()),
        ("no id", ann.get("x").await.unwrap_err()),
        ("of another tenant", harness.client("globex", "bob").get(&id).await.unwrap_err()),
        ("a viewer", vic.delete(&id, "").await.unwrap_err()),
        ("changed by then", ann.complete(&id, "v7").await.unwrap_err()),
        ("open already", ann.reopen(&id).await.unwrap_err()),
        (
            "a key for another request",
            ann.with_key("used").create(Todo { title: "x".to_owned(), ..full() }).await.unwrap_err(),
        ),
        ("no token", harness.client_with(None).get(&id).await.unwrap_err()),
    ];
    let shown: Vec<_> = failures.iter().map(|(what, status)| failure(what, status, &id)).collect();
    assert_snapshot!("failures", &serde_json::Value::from(shown).to_string());
}

fn failure(what: &str, status: &Status, id: &str) -> serde_json::Value {
    let violations: Vec<_> =
        status.get_details_bad_request().into_iter().flat_map(|bad| bad.field_violations).collect();
    let retry = status.get_details_retry_info().and_then(|info| info.retry_delay).map(|delay| delay.as_secs());
    json!({
        "when": what,
        "code": format!("{:?}", status.code()),
        "reason": status.get_details_error_info().map(|info| info.reason),
        "message": status.message().replace(id, "<id>"),
        "fields": violations.iter().map(|field| json!({"field": field.field, "description": field.description})).collect::<Vec<_>>(),
        "retryAfterSeconds": retry,
    })
}
