//! A suspended tenant reads, and writes nothing; what the service does by itself goes on.

use contracts::events::identity::TenantStatus;
use proto::todo::{Basis, ListTodosRequest};
use testkit::until;

use crate::data::{erase, export};
use crate::harness::{Client, Harness, reason};
use crate::recurring::{drained, next, recurring};
use crate::tenancy::{call, rpcs};

/// Waits until a write is refused because the tenant is suspended.
async fn refused(client: &Client, id: &str) {
    until("writes are refused", || async {
        let renamed = client.rename(id, "x").await;
        renamed.is_err() && reason(renamed) == "TENANT_SUSPENDED"
    })
    .await;
}

#[tokio::test]
async fn a_suspended_tenant_reads_and_writes_nothing_until_it_is_resumed() {
    let harness = Harness::start().await;
    let (ann, eve) = (harness.client("acme", "ann"), harness.client("globex", "eve"));
    let keyed = ann.with_key("one");
    let first = keyed.create(recurring("Sweep the quay", "FREQ=DAILY", Basis::DueTime)).await.unwrap();
    harness.nats.set_status("acme", TenantStatus::Suspended, (2, 5)).await;
    refused(&ann, &first.id).await;
    let rows = harness.count("outbox").await;
    for rpc in rpcs() {
        let result = call(&ann, &rpc, &first.id).await;
        if rpc.starts_with("Watch") {
            result.unwrap();
        } else if rpc.starts_with("Get") || rpc.starts_with("List") {
            assert_eq!(result.unwrap(), 1, "{rpc}");
        } else {
            assert_eq!(reason(result), "TENANT_SUSPENDED", "{rpc}");
        }
    }
    assert_eq!(harness.count("outbox").await, rows);
    // What was answered stands.
    let again = keyed.create(recurring("Sweep the quay", "FREQ=DAILY", Basis::DueTime)).await.unwrap();
    assert_eq!(again.id, first.id);
    let hers = eve.titled("another tenant's").await;
    // What identity has said before changes nothing: the other tenant's suspension comes behind it.
    harness.nats.set_status("acme", TenantStatus::Active, (1, 4)).await;
    harness.nats.set_status("globex", TenantStatus::Suspended, (2, 2)).await;
    refused(&eve, &hers.id).await;
    refused(&ann, &first.id).await;
    // A restored identity counts its versions anew.
    harness.nats.set_status("acme", TenantStatus::Active, (3, 2)).await;
    until("it writes again", || async { ann.rename(&first.id, "z").await.is_ok() }).await;
    assert_eq!(reason(eve.create(proto::todo::Todo::default()).await), "INVALID_ARGUMENT", "what is wrong stays so");
    // A token of an erased tenant writes nothing that nobody would erase.
    harness.nats.erase("acme", (4, 3)).await;
    until("its tokens write nothing", || async {
        let renamed = ann.rename(&first.id, "x").await;
        renamed.is_err() && reason(renamed) == "TENANT_NOT_FOUND"
    })
    .await;
    // For good, whatever comes behind it; what has come shows by the other tenant, who writes again.
    harness.nats.set_status("acme", TenantStatus::Active, (5, 4)).await;
    harness.nats.set_status("globex", TenantStatus::Active, (3, 3)).await;
    until("the other tenant writes again", || async { eve.rename(&hers.id, "z").await.is_ok() }).await;
    assert_eq!(reason(ann.rename(&first.id, "x").await), "TENANT_NOT_FOUND");
}

#[tokio::test]
async fn what_the_service_does_by_itself_goes_on() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let hour = chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now()) + chrono::TimeDelta::hours(1);
    let stream = harness.stream().await;
    stream.pause_consumer("todo-recurrence", hour).await.unwrap();
    let first = ann.create(recurring("Sweep the quay", "FREQ=DAILY", Basis::DueTime)).await.unwrap();
    let first = ann.complete(&first.id, "").await.unwrap();
    harness.nats.set_status("acme", TenantStatus::Suspended, (2, 5)).await;
    refused(&ann, &first.id).await;
    stream.resume_consumer("todo-recurrence").await.unwrap();
    let second = next(&ann, &first).await;
    assert_eq!(reason(ann.complete(&second.id, "").await), "TENANT_SUSPENDED");
    drained(&harness).await;
    // What comes due is announced.
    let mut admin = harness.database.admin().await;
    let due = "update todo set due_time = now() - interval '1 minute' where id = $1::uuid";
    sqlx::query(due).bind(&second.id).execute(&mut admin).await.unwrap();
    until("it is announced", || async {
        harness.stored().await.iter().any(|stored| stored.subject.contains("became_due"))
    })
    .await;
    // Its data are exported, and erased.
    assert!(export(&harness, "acme", None).await.len() >= 2);
    assert_eq!(erase(&harness, "acme", None).await.unwrap().aggregates["todo"], 2);
    assert!(ann.list(ListTodosRequest::default()).await.unwrap().todos.is_empty());
}
