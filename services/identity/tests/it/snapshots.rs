//! What consumers see, whole, so that a change of it shows in review. `INSTA_UPDATE=always` writes it anew.

use proto::identity::{DeleteApiKeyRequest, DeleteMemberRequest, Role, Tenant, UpdateTenantRequest};
use testkit::assert_snapshot;

use crate::harness::Harness;

#[tokio::test]
async fn the_events_of_a_tenant_and_of_what_it_has() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let (bob, _) = harness.member(&ann, "acme", ("bob", Role::Member)).await;
    let key = ann.create_key(Role::Viewer, &["todo:read"]).await.unwrap();
    let tenant = Some(Tenant { name: "Acme".to_owned(), ..Tenant::default() });
    let mut inner = ann.inner.clone();
    inner.update_tenant(ann.request(UpdateTenantRequest { tenant, update_mask: None })).await.unwrap();
    inner.delete_api_key(ann.request(DeleteApiKeyRequest { id: key.id })).await.unwrap();
    inner.delete_member(ann.request(DeleteMemberRequest { id: bob.id, etag: String::new() })).await.unwrap();
    let events: Vec<_> = harness.events().await.into_iter().map(|stored| stored.text).collect();
    assert_snapshot!("events", &format!("[{}]", events.join(",")));
}
