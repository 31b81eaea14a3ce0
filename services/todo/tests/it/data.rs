//! What the service holds of a tenant and of one person: export and erasure.

use contracts::events::todo::Event;
use proto::ops::data_service_client::DataServiceClient;
use proto::ops::{DataRow, EraseDataRequest, ErasedData, ExportDataRequest, ListTablesRequest};
use proto::todo::{Basis, Todo};
use serde_json::Value;
use testkit::catalog;
use tonic::{Code, Status};

use crate::harness::{Harness, reason};
use crate::operators::with;
use crate::recurring::{drained, recurring};

pub async fn export(harness: &Harness, tenant: &str, person: Option<&str>) -> Vec<(String, Value)> {
    let mut data = DataServiceClient::connect(format!("http://{}", harness.ops)).await.unwrap();
    let request = ExportDataRequest { tenant: tenant.to_owned(), person: person.map(ToOwned::to_owned) };
    let mut rows = data.export_data(with(&harness.issuer.operator("olga"), request)).await.unwrap().into_inner();
    let mut all = Vec::new();
    while let Some(DataRow { table, row }) = rows.message().await.unwrap() {
        all.push((table, serde_json::from_str(&row).unwrap()));
    }
    all
}

pub async fn erase(harness: &Harness, tenant: &str, person: Option<&str>) -> Result<ErasedData, Status> {
    let mut data = DataServiceClient::connect(format!("http://{}", harness.ops)).await.unwrap();
    let (person, reason) = (person.map(ToOwned::to_owned), "they asked for it".to_owned());
    let request = EraseDataRequest { tenant: tenant.to_owned(), person, reason };
    Ok(data.erase_data(with(&harness.issuer.operator("olga"), request)).await?.into_inner())
}

fn full(title: &str) -> Todo {
    let labels = vec!["secret".to_owned()];
    Todo { title: title.to_owned(), notes: "secret".to_owned(), labels, assignee: "bob".to_owned(), ..Todo::default() }
}

#[tokio::test]
async fn the_service_says_of_each_table_what_becomes_of_it() {
    let harness = Harness::start().await;
    let mut data = DataServiceClient::connect(format!("http://{}", harness.ops)).await.unwrap();
    let mut tables =
        data.list_tables(with(&harness.issuer.operator("olga"), ListTablesRequest {})).await.unwrap().into_inner();
    let mut names = Vec::new();
    while let Some(table) = tables.message().await.unwrap() {
        names.push(table.table);
    }
    catalog::every_table_is_answered_for(&harness.database, names).await;
    let bearer = harness.issuer.bearer("acme", "ann");
    assert_eq!(data.list_tables(with(&bearer, ListTablesRequest {})).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn an_export_has_every_row_of_the_tenant_and_no_other() {
    let harness = Harness::start().await;
    let (ann, bob, eve) =
        (harness.client("acme", "ann"), harness.client("acme", "bob"), harness.client("globex", "eve"));
    harness.join("acme", "bob").await;
    harness.join("globex", "bob").await;
    ann.create(full("one")).await.unwrap();
    for number in 0..300 {
        bob.titled(&format!("{number}")).await;
    }
    eve.create(full("another tenant's")).await.unwrap();
    let rows = export(&harness, "acme", None).await;
    assert!(rows.iter().all(|(_, row)| row["tenant"] == "acme"));
    let count = |name: &str| rows.iter().filter(|(table, _)| table == name).count();
    assert_eq!((count("todo"), count("todo_label")), (301, 1));
    let of = async |person: &str| {
        let rows = export(&harness, "acme", Some(person)).await;
        rows.iter().map(|(_, row)| row["created_by"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(of("ann").await, ["ann"]);
    // What she has created for him, and his own.
    assert_eq!(of("bob").await.len(), 301);
    assert_eq!(of("eve").await, [""; 0], "she is another tenant's");
    assert_eq!(export(&harness, "nobody", None).await, []);
}

#[tokio::test]
async fn a_tenant_that_is_erased_has_left_nothing_and_others_are_as_they_were() {
    let harness = Harness::start().await;
    let (ann, eve) = (harness.client("acme", "ann"), harness.client("globex", "eve"));
    harness.join("acme", "bob").await;
    harness.join("globex", "bob").await;
    let todo = ann.create(full("a secret")).await.unwrap();
    let deleted = ann.create(full("a secret too")).await.unwrap();
    ann.delete(&deleted.id, "").await.unwrap();
    let other = eve.create(full("hers")).await.unwrap();
    let before = harness.events().await.len();
    assert_eq!(erase(&harness, "acme", None).await.unwrap().aggregates["todo"], 2);
    assert_eq!(reason(ann.get(&todo.id).await), "TODO_NOT_FOUND");
    assert_eq!(eve.get(&other.id).await.unwrap(), other);
    let left = Value::from_iter(export(&harness, "acme", None).await.into_iter().map(|(_, row)| row)).to_string();
    assert!(!["secret", "ann", "bob"].iter().any(|word| left.contains(word)), "{left}");
    let events = harness.events().await;
    let [erased] = &events[before..] else { panic!("what was deleted already is not deleted again") };
    assert!(matches!(&erased.event, Event::Deleted(event) if event.todo.id.to_string() == todo.id));
    assert_eq!(erased.todo().title, "(deleted)");
    let said = erased.envelope.data.get();
    assert!(!["secret", "ann", "bob"].iter().any(|word| said.contains(word)), "{said}");
    assert_eq!(erased.envelope.actor.as_ref().unwrap().to_string(), "service:todo");
    assert_eq!(erase(&harness, "acme", None).await.unwrap().aggregates["todo"], 0);
    assert_eq!(harness.events().await.len(), before + 1);
}

#[tokio::test]
async fn a_person_is_taken_out_of_what_names_it_and_what_the_tenant_works_on_stays() {
    let harness = Harness::start().await;
    let (ann, bob) = (harness.client("acme", "ann"), harness.client("acme", "bob"));
    harness.join("acme", "bob").await;
    let for_him = ann.create(full("for Bob")).await.unwrap();
    let by_him = bob.titled("by Bob").await;
    let deleted = bob.titled("gone").await;
    bob.delete(&deleted.id, "").await.unwrap();
    let hers = ann.titled("hers").await;
    let foreign = harness.client("globex", "bob").titled("another Bob's").await;
    assert_eq!(erase(&harness, "acme", Some("bob")).await.unwrap().aggregates["todo"], 3);
    let (now_for, now_by) = (ann.get(&for_him.id).await.unwrap(), ann.get(&by_him.id).await.unwrap());
    assert_eq!((now_for.title.as_str(), now_for.assignee.as_str(), now_for.version), ("for Bob", "", 2));
    assert_eq!((now_by.title.as_str(), now_by.created_by.as_str()), ("by Bob", "(deleted)"));
    assert_eq!(ann.get(&hers.id).await.unwrap(), hers);
    assert_eq!(harness.client("globex", "bob").get(&foreign.id).await.unwrap(), foreign);
    assert_eq!(export(&harness, "acme", Some("bob")).await, []);
    let events = harness.events().await;
    let updated = events.iter().filter(|stored| matches!(stored.event, Event::Updated(_)));
    let names: Vec<_> = updated.map(|stored| stored.envelope.data.get().contains("bob")).collect();
    assert_eq!(names, [false, false]);
    for nobody in ["", "(deleted)"] {
        let refused = erase(&harness, "acme", Some(nobody)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{nobody:?}");
    }
    assert_eq!(erase(&harness, "acme", Some("bob")).await.unwrap().aggregates["todo"], 0);
    assert_eq!(
        erase(&harness, "acme", None).await.unwrap().aggregates["todo"],
        3,
        "one that names nobody is the tenant's, too"
    );
    assert_eq!(reason(ann.get(&by_him.id).await), "TODO_NOT_FOUND");
}

#[tokio::test]
async fn an_event_from_before_does_not_bring_back_what_was_erased() {
    let harness = Harness::start().await;
    let (ann, bob) = (harness.client("acme", "ann"), harness.client("acme", "bob"));
    let until = chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now()) + chrono::TimeDelta::hours(1);
    let stream = harness.stream().await;
    stream.pause_consumer("todo-recurrence", until).await.unwrap();
    let erased = ann.create(recurring("a secret", "FREQ=DAILY", Basis::DueTime)).await.unwrap();
    let own = Todo { assignee: "bob".to_owned(), ..recurring("for all", "FREQ=DAILY", Basis::DueTime) };
    let his = bob.create(own).await.unwrap();
    for todo in [&erased, &his] {
        ann.complete(&todo.id, "").await.unwrap();
    }
    let app = todo::commands::App {
        db: service::Db::lazy(&harness.database.app.clone().into(), "test", 2).unwrap(),
        outbox: service::Outbox::new(harness.app.relay.clone()),
        directory: service::members::Directory::default(),
    };
    let call = service::Call::of_schedule("acme".parse().unwrap(), "todo".parse().unwrap());
    assert!(todo::commands::erase(&app, &call, erased.id.parse().unwrap()).await.unwrap());
    erase(&harness, "acme", Some("bob")).await.unwrap();
    harness.drain().await;
    stream.resume_consumer("todo-recurrence").await.unwrap();
    drained(&harness).await;
    let all = ann.list(proto::todo::ListTodosRequest::default()).await.unwrap().todos;
    let next = |todo: &Todo| todo.occurrence.as_ref().is_some_and(|place| place.number == 2);
    let [next] = &*all.into_iter().filter(next).collect::<Vec<_>>() else {
        panic!("one follows, of that which is there")
    };
    assert_eq!((next.title.as_str(), next.created_by.as_str(), next.assignee.as_str()), ("for all", "(deleted)", ""));
}
