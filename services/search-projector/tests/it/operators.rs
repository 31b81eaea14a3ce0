//! What operators ask of the index: it touches no other, and what it is compared with is what it should hold.

use proto::ops::index_service_client::IndexServiceClient;
use proto::ops::{
    Aggregate, CompareDocumentsRequest, Key, ListDocumentsRequest, ListIndexesRequest, NoteIndexRequest,
    SwapIndexesRequest, Which, WriteDocumentsRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::harness::{Harness, todo};

async fn index(harness: &Harness) -> IndexServiceClient<Channel> {
    IndexServiceClient::connect(format!("http://{}", harness.ops)).await.unwrap()
}

fn ask<T>(harness: &Harness, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", harness.issuer.operator("olga").parse().unwrap());
    request
}

#[tokio::test]
async fn an_operator_touches_the_indexes_of_the_service_and_no_other() {
    let harness = Harness::start().await;
    let mut index = index(&harness).await;
    let refused = index.list_indexes(ListIndexesRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    for name in ["todos-v1", "_all", "*", "", &format!("{}-*", harness.index), &format!("{}-../x", harness.index)] {
        let note = NoteIndexRequest { name: name.to_owned(), notes: "{}".to_owned() };
        let refused = index.note_index(ask(&harness, note)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{name}");
        let swap = SwapIndexesRequest { from: None, to: name.to_owned(), reason: "a test".to_owned() };
        assert_eq!(index.swap_indexes(ask(&harness, swap)).await.unwrap_err().code(), Code::InvalidArgument, "{name}");
    }
    let without = SwapIndexesRequest { from: None, to: format!("{}-v1", harness.index), reason: String::new() };
    let refused = index.swap_indexes(ask(&harness, without)).await.unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("reason"), "{refused}");
    let refused = index.write_documents(ask(&harness, WriteDocumentsRequest::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "nothing is being built: {refused}");
    let unsaid = ListDocumentsRequest { limit: 1, ..ListDocumentsRequest::default() };
    assert_eq!(index.list_documents(ask(&harness, unsaid)).await.unwrap_err().code(), Code::InvalidArgument);
    harness.stop().await;
}

#[tokio::test]
async fn a_document_that_is_not_its_todo_s_is_said_to_differ() {
    let harness = Harness::start().await;
    let mut index = index(&harness).await;
    let shown = todo("a todo");
    harness.created("acme", &shown).await;
    harness.drain().await;
    let aggregate = |tenant: &str, version: i32, state: Option<String>| Aggregate {
        key: Some(Key { tenant: tenant.to_owned(), id: shown.id.to_string() }),
        version,
        deleted: state.is_none(),
        state,
        problem: None,
    };
    let state = serde_json::to_string(&shown).unwrap();
    let other =
        serde_json::to_string(&contracts::events::todo::Todo { title: "other".to_owned(), ..shown.clone() }).unwrap();
    let broken = Aggregate {
        problem: Some("a title of 900 characters".to_owned()),
        ..aggregate("acme", 1, Some(String::new()))
    };
    let request = CompareDocumentsRequest {
        which: Which::Searched.into(),
        aggregates: vec![
            aggregate("acme", 1, Some(state.clone())),
            aggregate("acme", 2, Some(state.clone())),
            aggregate("acme", 1, Some(other)),
            aggregate("acme", 1, None),
            broken,
        ],
        absent: vec![Key { tenant: "acme".to_owned(), id: shown.id.to_string() }],
    };
    let compared = index.compare_documents(ask(&harness, request)).await.unwrap().into_inner().comparisons;
    assert!(compared.iter().all(|comparison| comparison.version == Some(1)), "{compared:?}");
    let why: Vec<_> = compared.iter().map(|comparison| comparison.why.as_deref().unwrap_or("the same")).collect();
    assert_eq!(
        why,
        [
            "the same",
            "at version 2, the index at 1",
            "both at version 1, with another content",
            "both at version 1, with another content",
            "the database has what no todo may: a title of 900 characters",
            "the database has no such todo",
        ]
    );
    harness.stop().await;
}
