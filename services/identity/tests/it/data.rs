//! The operators' requests: the service's data compared, exported and erased.

use proto::identity::{
    DeleteGroupRequest, DeleteServiceAccountRequest, GetGroupRequest, GetTenantRequest, ListApiKeysRequest,
    ListInvitationsRequest, Role,
};
use proto::ops::aggregate_service_client::AggregateServiceClient;
use proto::ops::data_service_client::DataServiceClient;
use proto::ops::{
    Aggregate, DataRow, EraseDataRequest, ErasedData, ExportDataRequest, ListAggregatesRequest, ListTablesRequest,
};
use serde_json::Value;
use testkit::catalog;

use crate::harness::{API_KEY, Harness, reason};
use crate::tenancy::furnished;

pub async fn export(harness: &Harness, tenant: &str, person: Option<&str>) -> Vec<(String, Value)> {
    let mut data = DataServiceClient::connect(format!("http://{}", harness.ops)).await.unwrap();
    let request = ExportDataRequest { tenant: tenant.to_owned(), person: person.map(ToOwned::to_owned) };
    let mut rows = data.export_data(harness.operator(request)).await.unwrap().into_inner();
    let mut all = Vec::new();
    while let Some(DataRow { table, row }) = rows.message().await.unwrap() {
        all.push((table, serde_json::from_str(&row).unwrap()));
    }
    all
}

pub async fn erase(harness: &Harness, person: Option<&str>) -> ErasedData {
    let mut data = DataServiceClient::connect(format!("http://{}", harness.ops)).await.unwrap();
    let (person, reason) = (person.map(ToOwned::to_owned), "they asked for it".to_owned());
    let request = EraseDataRequest { tenant: "acme".to_owned(), person, reason };
    data.erase_data(harness.operator(request)).await.unwrap().into_inner()
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
async fn a_tenant_is_exported_and_erased_and_its_slug_is_never_given_again() {
    let harness = Harness::start().await;
    let (ann, eve) = (harness.owner("acme", "ann").await, harness.owner("globex", "eve").await);
    furnished(&harness, &ann, "acme").await;
    let key = ann.create_key(Role::Viewer, &["todo:read"]).await.unwrap();
    let rows = export(&harness, "acme", None).await;
    assert!(rows.iter().all(|(_, row)| row["tenant"] == "acme"));
    let before = harness.events().await.len();
    let erased = erase(&harness, None).await.aggregates;
    let counts = ["tenant", "member", "invitation", "group", "service_account", "api_key"].map(|kind| erased[kind]);
    assert_eq!(counts, [1, 2, 1, 1, 2, 2]);
    for stored in &harness.events().await[before..] {
        let said = stored.envelope.data.get();
        assert!(!["x.example", "Acme", "dispatchers"].iter().any(|held| said.contains(held)), "{said}");
    }
    let left = Value::from_iter(export(&harness, "acme", None).await.into_iter().map(|(_, row)| row)).to_string();
    assert!(!["x.example", "Acme", "dispatchers"].iter().any(|held| left.contains(held)), "{left}");
    assert_eq!(erase(&harness, None).await.aggregates.values().sum::<i64>(), 0);
    assert_eq!(reason(harness.person("bob").sign_up("acme").await), "TENANT_EXISTS");
    assert_eq!(reason(harness.client_with(None).exchange(&key.key, API_KEY, "", "").await), "INVALID_GRANT");
    let request = eve.request(GetTenantRequest {});
    assert_eq!(eve.inner.clone().get_tenant(request).await.unwrap().into_inner().version, 1);
}

#[tokio::test]
async fn a_person_who_is_erased_is_no_member_and_the_keys_that_it_made_go_on() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let (bob, bobs) = harness.member(&ann, "acme", ("bob", Role::Admin)).await;
    let key = bobs.create_key(Role::Viewer, &["todo:read"]).await.unwrap();
    let (his, hers) = (bobs.create_group(&[&bob.id]).await.unwrap(), ann.create_group(&[&bob.id]).await.unwrap());
    // What he made and took away again names him no more.
    let gone = bobs.create_group(&[]).await.unwrap().id;
    bobs.inner.clone().delete_group(bobs.request(DeleteGroupRequest { id: gone, etag: String::new() })).await.unwrap();
    let account = bobs.create_account(Role::Viewer).await.unwrap().id;
    let request = DeleteServiceAccountRequest { id: account, etag: String::new() };
    bobs.inner.clone().delete_service_account(bobs.request(request)).await.unwrap();
    let erased = erase(&harness, Some(&bob.user)).await.aggregates;
    let counts = ["tenant", "member", "group", "service_account", "api_key"].map(|kind| erased[kind]);
    assert_eq!(counts, [0, 1, 1, 1, 1]);
    for (id, version) in [(his.id, 3), (hers.id, 2)] {
        let read = ann.inner.clone().get_group(ann.request(GetGroupRequest { id })).await.unwrap().into_inner();
        assert_eq!((read.members.len(), read.version), (0, version));
        assert_ne!(read.created_by, bob.user);
    }
    assert_eq!(export(&harness, "acme", Some(&bob.user)).await, []);
    let keys = ann.inner.clone().list_api_keys(ann.request(ListApiKeysRequest::default())).await.unwrap();
    assert_eq!(keys.into_inner().api_keys[0].created_by, "(deleted)");
    harness.client_with(None).exchange(&key.key, API_KEY, "", "").await.unwrap();
    let token = harness.issuer.person("bob", "bob@x.example");
    let refused = harness.client_with(None).exchange(&token, crate::harness::ACCESS_TOKEN, "", "").await;
    assert_eq!(reason(refused), "INVALID_TARGET");
}

#[tokio::test]
async fn the_address_of_a_person_who_is_erased_is_nowhere_in_the_tenant() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let (_, bobs) = harness.member(&ann, "acme", ("bob", Role::Owner)).await;
    // Invoices go to her who signed up; and somebody invites her again.
    let request = || bobs.request(GetTenantRequest {});
    let before = bobs.inner.clone().get_tenant(request()).await.unwrap().into_inner();
    assert_eq!(before.billing_email, "ann@x.example");
    bobs.invite("Ann@x.example", Role::Viewer).await.unwrap();
    let other = bobs.invite("kim@x.example", Role::Viewer).await.unwrap();
    let events = harness.events().await.len();
    erase(&harness, Some(&ann.user().await)).await;
    let after = bobs.inner.clone().get_tenant(request()).await.unwrap().into_inner();
    assert_eq!((after.billing_email.as_str(), after.created_by.as_str()), ("", "(deleted)"));
    let left = Value::from_iter(export(&harness, "acme", None).await.into_iter().map(|(_, row)| row)).to_string();
    assert!(!left.contains("ann@") && left.contains("kim@x.example"), "{left}");
    let said = harness.events().await.split_off(events);
    assert!(said.iter().all(|stored| !stored.text.contains("ann@")));
    let said: Vec<_> = said.iter().map(|stored| stored.envelope.event_type.as_str()).collect();
    let of_it = ["tenant_updated", "invitation_closed", "member_removed", "tenant_updated"];
    assert_eq!(said, of_it.map(|event| format!("identity.{event}.v1")));
    let open = bobs.inner.clone().list_invitations(bobs.request(ListInvitationsRequest::default())).await.unwrap();
    assert_eq!(open.into_inner().invitations, [other]);
}

#[tokio::test]
async fn operators_compare_aggregates_of_each_kind_and_of_all_tenants() {
    let harness = Harness::start().await;
    for (tenant, owner) in [("acme", "ann"), ("globex", "eve")] {
        let owner = harness.owner(tenant, owner).await;
        furnished(&harness, &owner, tenant).await;
    }
    erase(&harness, None).await;
    let mut aggregates = AggregateServiceClient::connect(format!("http://{}", harness.ops)).await.unwrap();
    for (kind, there) in
        [("tenant", 1), ("member", 2), ("invitation", 1), ("group", 1), ("service_account", 1), ("api_key", 1)]
    {
        let request = ListAggregatesRequest { aggregate: kind.to_owned(), limit: 10, ..Default::default() };
        let mut page = aggregates.list_aggregates(harness.operator(request)).await.unwrap().into_inner();
        let mut found = [0, 0];
        while let Some(Aggregate { key, deleted, state, problem, .. }) = page.message().await.unwrap() {
            let gone = key.unwrap().tenant == "acme";
            assert_eq!((deleted, state.is_none(), problem), (gone || kind == "invitation" && deleted, deleted, None));
            found[usize::from(deleted)] += 1;
        }
        assert_eq!(found[0], there, "{kind}");
        assert!(found[1] >= there, "{kind}");
    }
}
