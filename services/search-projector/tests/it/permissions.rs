//! Who may search: by role and by scope.

use authz::Role;
use proto::search::SearchTodosRequest;
use search_projector::permissions::{MATRIX, SEARCH};
use serde_json::{Value, json};
use testkit::permissions::assert_reviewed;
use tonic::Request;
use tonic_types::StatusExt as _;

use crate::harness::Harness;

#[tokio::test]
async fn a_search_is_denied_to_whoever_may_not_see_todos() {
    let service = proto::POOL.get_service_by_name("flotilla.search.v1.SearchService").unwrap();
    let rpcs: Vec<String> = service.methods().map(|rpc| rpc.name().to_owned()).collect();
    assert_eq!(MATRIX.map(|(rpc, _)| rpc.to_owned()).to_vec(), rpcs, "each RPC has its row, and is called below");
    assert_reviewed(env!("CARGO_MANIFEST_DIR"), &MATRIX, &[], &[]);
    let harness = Harness::start().await;
    let refused = |claims: Value| {
        let mut request = Request::new(SearchTodosRequest::default());
        request
            .metadata_mut()
            .insert("authorization", harness.issuer.bearer_with("acme", "mel", &claims).parse().unwrap());
        let answer = harness.send(request);
        async { answer.await.err().and_then(|status| Some(status.get_details_error_info()?.reason)) }
    };
    for role in Role::ALL {
        let denied = (!SEARCH.roles.contains(&role)).then(|| "PERMISSION_DENIED".to_owned());
        assert_eq!(refused(json!({"role": role.as_str()})).await, denied, "{role:?}");
    }
    assert_eq!(SEARCH.roles, [Role::Owner, Role::Admin, Role::Member, Role::Viewer]);
    let reason = |text: &str| Some(text.to_owned());
    assert_eq!(refused(json!({})).await, reason("PERMISSION_DENIED"));
    assert_eq!(refused(json!({"role": "owner", "scope": "todo:write"})).await, reason("INSUFFICIENT_SCOPE"));
    assert_eq!(refused(json!({"role": "owner", "scope": "todo:read"})).await, None);
}
