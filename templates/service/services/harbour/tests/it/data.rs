//! The operators' requests: the service's data compared, exported and erased.

use proto::ops::aggregate_service_client::AggregateServiceClient;
use proto::ops::data_service_client::DataServiceClient;
use proto::ops::{
    Aggregate, DataRow, EraseDataRequest, ErasedData, ExportDataRequest, ListAggregatesRequest, ListTablesRequest,
};
use proto::harbour::Vessel;
use serde_json::Value;
use testkit::catalog;

use crate::harness::{Client, Harness, reason};

async fn export(harness: &Harness, tenant: &str, person: Option<&str>) -> Vec<(String, Value)> {
    let mut data = DataServiceClient::connect(format!("http://{}", harness.ops)).await.unwrap();
    let request = ExportDataRequest { tenant: tenant.to_owned(), person: person.map(ToOwned::to_owned) };
    let mut rows = data.export_data(harness.operator(request)).await.unwrap().into_inner();
    let mut all = Vec::new();
    while let Some(DataRow { table, row }) = rows.message().await.unwrap() {
        all.push((table, serde_json::from_str(&row).unwrap()));
    }
    all
}

async fn erase(harness: &Harness, person: Option<&str>) -> ErasedData {
    let mut data = DataServiceClient::connect(format!("http://{}", harness.ops)).await.unwrap();
    let (person, reason) = (person.map(ToOwned::to_owned), "they asked for it".to_owned());
    let request = EraseDataRequest { tenant: "acme".to_owned(), person, reason };
    data.erase_data(harness.operator(request)).await.unwrap().into_inner()
}

async fn secret(client: &Client) -> Vessel {
    let vessel = Vessel { name: "a secret".to_owned(), notes: "secret".to_owned(), ..Vessel::default() };
    client.create_vessel(vessel).await.unwrap()
}

#[tokio::test]
async fn the_service_says_of_each_table_what_becomes_of_it() {
    let harness = Harness::start().await;
    let mut data = DataServiceClient::connect(format!("http://{}", harness.ops)).await.unwrap();
    let mut tables = data.list_tables(harness.operator(ListTablesRequest {})).await.unwrap().into_inner();
    let mut names = Vec::new();
    while let Some(table) = tables.message().await.unwrap() {
        names.push(table.table);
    }
    catalog::every_table_is_answered_for(&harness.database, names).await;
}

#[tokio::test]
async fn a_tenant_is_exported_and_erased_and_others_are_as_they_were() {
    let harness = Harness::start().await;
    let (ann, eve) = (harness.client("acme", "ann"), harness.client("globex", "eve"));
    let (vessel, other) = (secret(&ann).await, secret(&eve).await);
    let logbook = ann.logbook_of(&vessel).await;
    let notes = proto::harbour::Logbook { notes: "secret".to_owned(), ..Default::default() };
    ann.update_logbook(&logbook.id, notes, &[]).await.unwrap();
    harness.settled().await;
    let rows = export(&harness, "acme", None).await;
    let tables: Vec<_> = rows.iter().map(|(table, row)| (table.as_str(), row["tenant"].as_str().unwrap())).collect();
    assert_eq!(tables, [("vessel", "acme"), ("logbook", "acme")]);
    let before = harness.events().await.len();
    let erased = erase(&harness, None).await.aggregates;
    assert_eq!((erased["vessel"], erased["logbook"]), (1, 1));
    assert_eq!(reason(ann.get_vessel(&vessel.id).await), "VESSEL_NOT_FOUND");
    for stored in &harness.events().await[before..] {
        let said = stored.envelope.data.get();
        assert!(!said.contains("secret") && !said.contains("ann"), "{said}");
    }
    let before = harness.events().await.len();
    assert_eq!(reason(ann.get_logbook(&logbook.id).await), "LOGBOOK_NOT_FOUND");
    let left = Value::from_iter(export(&harness, "acme", None).await.into_iter().map(|(_, row)| row)).to_string();
    assert!(!left.contains("secret") && !left.contains("ann"), "{left}");
    assert_eq!(erase(&harness, None).await.aggregates.values().sum::<i64>(), 0);
    assert_eq!(harness.events().await.len(), before, "nothing is erased twice");
    assert_eq!(eve.get_vessel(&other.id).await.unwrap(), other);
}

#[tokio::test]
async fn a_person_is_taken_out_of_what_names_it() {
    let harness = Harness::start().await;
    let (ann, bob) = (harness.client("acme", "ann"), harness.client("acme", "bob"));
    let (hers, his) = (secret(&ann).await, secret(&bob).await);
    let logbook = ann.logbook_of(&his).await;
    harness.settled().await;
    assert_eq!(export(&harness, "acme", Some("bob")).await.len(), 2);
    let erased = erase(&harness, Some("bob")).await.aggregates;
    assert_eq!((erased["vessel"], erased["logbook"]), (1, 1));
    let now = ann.get_vessel(&his.id).await.unwrap();
    assert_eq!((now.name.as_str(), now.created_by.as_str(), now.version), ("a secret", "(deleted)", 2));
    assert_eq!(ann.get_logbook(&logbook.id).await.unwrap().created_by, "(deleted)");
    assert_eq!(ann.get_vessel(&hers.id).await.unwrap(), hers);
    assert_eq!(export(&harness, "acme", Some("bob")).await, []);
    assert_eq!(erase(&harness, None).await.aggregates["vessel"], 2, "one that names nobody is the tenant's all the same");
}

#[tokio::test]
async fn operators_compare_aggregates_of_each_kind_and_of_all_tenants() {
    let harness = Harness::start().await;
    let (ann, eve) = (harness.client("acme", "ann"), harness.client("globex", "eve"));
    let gone = ann.named("gone").await;
    ann.logbook_of(&gone).await;
    ann.delete_vessel(&gone.id, "").await.unwrap();
    let stays = eve.named("stays").await;
    let logbook = eve.logbook_of(&stays).await;
    harness.settled().await;
    let mut aggregates = AggregateServiceClient::connect(format!("http://{}", harness.ops)).await.unwrap();
    for (kind, name) in [("vessel", &stays.id), ("logbook", &logbook.id)] {
        let request = ListAggregatesRequest { aggregate: kind.to_owned(), limit: 10, ..Default::default() };
        let mut page = aggregates.list_aggregates(harness.operator(request)).await.unwrap().into_inner();
        let mut found = Vec::new();
        while let Some(Aggregate { key, deleted, state, problem, .. }) = page.message().await.unwrap() {
            let key = key.unwrap();
            assert_eq!((deleted, problem), (state.is_none(), None));
            found.push((key.tenant, key.id, deleted));
        }
        let [first, second] = found.as_slice() else { panic!("{kind}: {found:?}") };
        assert_eq!((first.0.as_str(), first.2), ("acme", true), "{kind}");
        assert_eq!((second.0.as_str(), &second.1, second.2), ("globex", name, false), "{kind}");
    }
}
