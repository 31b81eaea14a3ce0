//! What operators ask of the process: with their own tokens, and nobody else's.

use proto::ops::outbox_service_client::OutboxServiceClient;
use proto::ops::{DiscardRowRequest, GetOutboxRequest, ListRowsRequest, ReleaseRowsRequest};
use sqlx::Executor as _;
use testkit::until;
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::harness::Fleet;

async fn outbox(fleet: &Fleet) -> OutboxServiceClient<Channel> {
    OutboxServiceClient::connect(format!("http://{}", fleet.ops)).await.unwrap()
}

fn with<T>(bearer: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", bearer.parse().unwrap());
    request
}

#[tokio::test]
async fn only_an_operators_token_opens_the_operations_port() {
    let fleet = Fleet::start().await;
    let mut outbox = outbox(&fleet).await;
    let refused = outbox.get_outbox(GetOutboxRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    // The owner of a tenant is no operator.
    let bearer = fleet.issuer.bearer("acme", "ann");
    let refused = outbox.get_outbox(with(&bearer, GetOutboxRequest {})).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("another audience"), "{refused}");
    let olga = fleet.issuer.operator("olga");
    outbox.get_outbox(with(&olga, GetOutboxRequest {})).await.unwrap();
    // And an operator is nobody at the service's own door.
    let refused = fleet.client_with(Some(olga)).create(proto::todo::Todo::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn an_act_has_a_reason_and_the_name_of_the_token() {
    let fleet = Fleet::start().await;
    let mut admin = fleet.database.admin().await;
    admin
        .execute(
            "insert into outbox (event_id, tenant, aggregate_id, subject, payload) \
             values (gen_random_uuid(), 'acme', 'poisoned', 'evt.todo.created.v1.*', '{}')",
        )
        .await
        .unwrap();
    fleet.app.relay.wake();
    let (mut outbox, olga) = (outbox(&fleet).await, fleet.issuer.operator("olga"));
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
    let fleet = Fleet::start().await;
    let (ann, eve) = (fleet.client("acme", "ann"), fleet.client("globex", "eve"));
    for title in ["a", "b", "c"] {
        ann.titled(title).await;
        eve.titled(title).await;
    }
    let (mut outbox, olga) = (outbox(&fleet).await, fleet.issuer.operator("olga"));
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
