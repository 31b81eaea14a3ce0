//! What operators ask of the process: with their own tokens, and nobody else's.

use authz::OperatorRole;
use proto::ops::aggregate_service_client::AggregateServiceClient;
use proto::ops::data_service_client::DataServiceClient;
use proto::ops::outbox_service_client::OutboxServiceClient;
use proto::ops::{
    Aggregate, DiscardRowRequest, ExportDataRequest, GetAggregatesRequest, GetOutboxRequest, HeldTenant, Key,
    ListAggregatesRequest, ListHeldTenantsRequest, ListRowsRequest, ReleaseRowsRequest,
};
use serde_json::json;
use sqlx::Executor as _;
use testkit::until;
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::harness::Harness;

async fn outbox(harness: &Harness) -> OutboxServiceClient<Channel> {
    OutboxServiceClient::connect(format!("http://{}", harness.ops)).await.unwrap()
}

pub fn with<T>(bearer: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", bearer.parse().unwrap());
    request
}

#[tokio::test]
async fn only_an_operators_token_opens_the_operations_port() {
    let harness = Harness::start().await;
    let mut outbox = outbox(&harness).await;
    let refused = outbox.get_outbox(GetOutboxRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    // The owner of a tenant is no operator.
    let bearer = harness.issuer.bearer("acme", "ann");
    let refused = outbox.get_outbox(with(&bearer, GetOutboxRequest {})).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("another audience"), "{refused}");
    let olga = harness.issuer.operator("olga");
    outbox.get_outbox(with(&olga, GetOutboxRequest {})).await.unwrap();
    // The service's own port does not accept an operator.
    let refused = harness.client_with(Some(olga)).create(proto::todo::Todo::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_viewer_sees_and_does_nothing_and_a_token_without_a_role_neither() {
    let harness = Harness::start().await;
    let mut outbox = outbox(&harness).await;
    let viewer = harness.issuer.operator_as("vic", OperatorRole::Viewer);
    outbox.get_outbox(with(&viewer, GetOutboxRequest {})).await.unwrap();
    let discard = DiscardRowRequest { seq: 1, reason: "a try".to_owned() };
    let refused = outbox.discard_row(with(&viewer, discard)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("DiscardRow is for an operator of the role operator"), "{refused}");
    // What is held of a person is taken out by an act.
    let mut data = DataServiceClient::connect(format!("http://{}", harness.ops)).await.unwrap();
    let export = ExportDataRequest { tenant: "acme".to_owned(), person: None };
    assert_eq!(data.export_data(with(&viewer, export)).await.unwrap_err().code(), Code::PermissionDenied);
    let mut states = AggregateServiceClient::connect(format!("http://{}", harness.ops)).await.unwrap();
    let asked = ListAggregatesRequest { limit: 1, ..ListAggregatesRequest::default() };
    assert_eq!(states.list_aggregates(with(&viewer, asked)).await.unwrap_err().code(), Code::PermissionDenied);
    // A viewer of a tenant has a role of the same spelling.
    for (claims, code) in [
        (json!({}), Code::PermissionDenied),
        (json!({"role": "owner"}), Code::PermissionDenied),
        (json!({"role": "viewer", "tenant": "acme"}), Code::Unauthenticated),
        (json!({"role": "viewer", "aud": ["flotilla", authz::OPERATORS_AUDIENCE]}), Code::Unauthenticated),
        (json!({"role": "viewer", "act": {"sub": "planner", "kind": "agent"}}), Code::Unauthenticated),
    ] {
        let token = harness.issuer.operator_with("olga", &claims);
        let refused = outbox.get_outbox(with(&token, GetOutboxRequest {})).await.unwrap_err();
        assert_eq!(refused.code(), code, "{claims}");
    }
}

#[tokio::test]
async fn an_act_has_a_reason_and_the_name_of_the_token() {
    let harness = Harness::start().await;
    let mut admin = harness.database.admin().await;
    admin
        .execute(
            "insert into outbox (event_id, tenant, aggregate_id, subject, payload) \
             values (gen_random_uuid(), 'acme', 'poisoned', 'evt.todo.created.v1.*', '{}')",
        )
        .await
        .unwrap();
    harness.app.relay.wake();
    let (mut outbox, olga) = (outbox(&harness).await, harness.issuer.operator("olga"));
    until("the row is parked", || async {
        let mut outbox = outbox.clone();
        outbox.get_outbox(with(&olga, GetOutboxRequest {})).await.unwrap().into_inner().parked == 1
    })
    .await;
    let without = DiscardRowRequest { seq: 1, reason: " ".to_owned() };
    assert_eq!(outbox.discard_row(with(&olga, without)).await.unwrap_err().code(), Code::InvalidArgument);
    let release = ReleaseRowsRequest { aggregate_id: "nobody".to_owned(), reason: "it was mended".to_owned() };
    let refused = outbox.release_rows(with(&olga, release)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("nobody is not parked"), "{refused}");
    let discard = DiscardRowRequest { seq: 1, reason: "nobody needs it".to_owned() };
    outbox.discard_row(with(&olga, discard)).await.unwrap();
    let said: Vec<(String, String)> =
        sqlx::query_as("select actor, detail from outbox_journal where kind = 'discarded'")
            .fetch_all(&mut admin)
            .await
            .unwrap();
    let [(actor, detail)] = said.as_slice() else { panic!("{said:?}") };
    assert_eq!(actor, "olga");
    assert!(detail.ends_with("nobody needs it"), "{detail}");
}

#[tokio::test]
async fn rows_come_page_by_page() {
    let harness = Harness::start().await;
    let (ann, eve) = (harness.client("acme", "ann"), harness.client("globex", "eve"));
    for title in ["a", "b", "c"] {
        ann.titled(title).await;
        eve.titled(title).await;
    }
    let (mut outbox, olga) = (outbox(&harness).await, harness.issuer.operator("olga"));
    let (mut after, mut seen) = (0, Vec::new());
    loop {
        let page = ListRowsRequest { after, tenant: Some("acme".to_owned()), limit: 2, ..ListRowsRequest::default() };
        let mut rows = outbox.list_rows(with(&olga, page)).await.unwrap().into_inner();
        let before = seen.len();
        while let Some(row) = rows.message().await.unwrap() {
            after = row.seq;
            seen.push((row.tenant, row.digest.len()));
        }
        if seen.len() == before {
            break;
        }
    }
    assert_eq!(seen, vec![("acme".to_owned(), 32); 3]);
    let refused = outbox.list_rows(with(&olga, ListRowsRequest::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "a page has a size");
}

fn all() -> ListAggregatesRequest {
    ListAggregatesRequest { aggregate: "todo".to_owned(), ..ListAggregatesRequest::default() }
}

async fn collected(mut stream: tonic::Streaming<Aggregate>) -> Vec<Aggregate> {
    let mut all = Vec::new();
    while let Some(aggregate) = stream.message().await.unwrap() {
        all.push(aggregate);
    }
    all
}

#[tokio::test]
async fn todos_of_all_tenants_come_page_by_page_deleted_ones_too() {
    let harness = Harness::start().await;
    let mut written = Vec::new();
    for tenant in ["acme", "globex", "initech"] {
        let client = harness.client(tenant, "ann");
        for n in 0..3 {
            written.push((tenant.to_owned(), client.titled(&format!("{tenant} {n}")).await.id));
        }
        client.delete(&written.last().unwrap().1, "").await.unwrap();
    }
    written.sort();
    let mut todos = AggregateServiceClient::connect(format!("http://{}", harness.ops)).await.unwrap();
    let olga = harness.issuer.operator("olga");
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let page = ListAggregatesRequest { after, limit: 2, ..all() };
        let page = collected(todos.list_aggregates(with(&olga, page)).await.unwrap().into_inner()).await;
        let Some(last) = page.last() else { break };
        after = last.key.clone();
        seen.extend(page);
    }
    let name = |todo: &Aggregate| todo.key.clone().map(|key| (key.tenant, key.id)).unwrap();
    assert_eq!(seen.iter().map(name).collect::<Vec<_>>(), written);
    for todo in &seen {
        assert_eq!((todo.deleted, todo.state.is_none(), &todo.problem), (todo.version == 2, todo.version == 2, &None));
        let state = todo.state.as_deref().unwrap_or_default();
        assert!(todo.deleted || state.contains(&name(todo).0), "its title names its tenant: {state}");
    }
    let of_one = ListAggregatesRequest { tenant: Some("globex".to_owned()), limit: 10, ..all() };
    let of_one = collected(todos.list_aggregates(with(&olga, of_one)).await.unwrap().into_inner()).await;
    assert_eq!(of_one.iter().map(name).collect::<Vec<_>>(), written[3..6]);
    // Another tenant's todo is none of this one's, for any caller.
    let foreign = Key { tenant: "acme".to_owned(), id: written[3].1.clone() };
    let own = Key { tenant: "globex".to_owned(), id: written[3].1.clone() };
    let these = GetAggregatesRequest { keys: vec![foreign, own], aggregate: "todo".to_owned() };
    let these = collected(todos.get_aggregates(with(&olga, these)).await.unwrap().into_inner()).await;
    assert_eq!(these.iter().map(name).collect::<Vec<_>>(), written[3..4]);
    let bearer = harness.issuer.bearer("acme", "ann");
    let refused = todos.list_aggregates(with(&bearer, all())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let none = ListAggregatesRequest { aggregate: "ship".to_owned(), ..all() };
    let refused = todos.list_aggregates(with(&olga, none)).await.unwrap_err();
    assert_eq!((refused.code(), refused.message().ends_with("ask for todo")), (Code::InvalidArgument, true));
}

#[tokio::test]
async fn the_tenants_that_it_holds_come_with_whoever_made_the_first_that_is_there() {
    let harness = Harness::start().await;
    for tenant in ["globex", "acme", "initech"] {
        let first = harness.client(tenant, "ann").titled("first").await;
        harness.client(tenant, "bob").titled("second").await;
        if tenant == "globex" {
            harness.client(tenant, "ann").delete(&first.id, "").await.unwrap();
        }
    }
    let only = harness.client("emptied", "ann").titled("gone").await;
    harness.client("emptied", "ann").delete(&only.id, "").await.unwrap();
    let mut aggregates = AggregateServiceClient::connect(format!("http://{}", harness.ops)).await.unwrap();
    let olga = harness.issuer.operator("olga");
    let mut list = async |after: &str, limit| {
        let page = ListHeldTenantsRequest { after: after.to_owned(), limit };
        let mut held = aggregates.list_held_tenants(with(&olga, page)).await.unwrap().into_inner();
        let mut all = Vec::new();
        while let Some(HeldTenant { tenant, created_by }) = held.message().await.unwrap() {
            all.push(format!("{tenant} {}", created_by.unwrap_or_default()));
        }
        all
    };
    assert_eq!(list("", 10).await, ["acme ann", "emptied ", "globex bob", "initech ann"]);
    assert_eq!(
        (list("", 1).await, list("emptied", 1).await),
        (vec!["acme ann".to_owned()], vec!["globex bob".to_owned()])
    );
    assert_eq!(list("initech", 10).await, [""; 0]);
}

#[tokio::test]
async fn a_row_that_no_todo_may_be_is_said_and_holds_up_no_other() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    ann.titled("as it should be").await;
    let broken = ann.titled("to be spoilt").await.id;
    let mut admin = harness.database.admin().await;
    sqlx::query("update todo set assignee = '' where id = $1::uuid").bind(&broken).execute(&mut admin).await.unwrap();
    let mut todos = AggregateServiceClient::connect(format!("http://{}", harness.ops)).await.unwrap();
    let page = ListAggregatesRequest { limit: 10, ..all() };
    let page = todos.list_aggregates(with(&harness.issuer.operator("olga"), page)).await.unwrap().into_inner();
    let problems: Vec<_> = collected(page).await.into_iter().map(|todo| (todo.state.is_some(), todo.problem)).collect();
    assert_eq!(problems[0], (true, None));
    assert!(!problems[1].0 && problems[1].1.is_some(), "{problems:?}");
}
