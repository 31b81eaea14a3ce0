//! What consumers see, whole, so that a change of it shows in review. `INSTA_UPDATE=always` writes it anew.

use std::collections::BTreeSet;

use contracts::events::identity::SERVICE;
use proto::identity::{
    DeleteApiKeyRequest, DeleteGroupRequest, DeleteInvitationRequest, DeleteMemberRequest, DeleteServiceAccountRequest,
    Group, Member, Role, RotateApiKeyRequest, ServiceAccount, Tenant, UpdateGroupRequest, UpdateMemberRequest,
    UpdateServiceAccountRequest, UpdateTenantRequest,
};
use testkit::assert_snapshot;

use crate::data::erase;
use crate::harness::Harness;
use crate::operators::set;

#[tokio::test]
async fn the_events_of_a_tenant_and_of_what_it_has() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let (bob, _) = harness.member(&ann, "acme", ("bob", Role::Member)).await;
    let mut inner = ann.inner.clone();
    let admin = Some(Member { role: Role::Admin.into(), ..Member::default() });
    let promote = UpdateMemberRequest { id: bob.id.clone(), member: admin, update_mask: None };
    inner.update_member(ann.request(promote)).await.unwrap();
    let tenant = Some(Tenant { name: "Acme".to_owned(), ..Tenant::default() });
    inner.update_tenant(ann.request(UpdateTenantRequest { tenant, update_mask: None })).await.unwrap();

    let key = ann.create_key(Role::Viewer, &["todo:read"]).await.unwrap();
    let rotate = RotateApiKeyRequest { id: key.id.clone(), overlap: None };
    inner.rotate_api_key(ann.request(rotate)).await.unwrap();
    inner.delete_api_key(ann.request(DeleteApiKeyRequest { id: key.id })).await.unwrap();
    let service_account = Some(ServiceAccount { role: Role::Member.into(), ..ServiceAccount::default() });
    let program = key.service_account;
    let update = UpdateServiceAccountRequest { id: program.clone(), service_account, update_mask: None };
    inner.update_service_account(ann.request(update)).await.unwrap();
    let delete = DeleteServiceAccountRequest { id: program, ..DeleteServiceAccountRequest::default() };
    inner.delete_service_account(ann.request(delete)).await.unwrap();

    let id = ann.create_group(&[&bob.id]).await.unwrap().id;
    let group = Some(Group { name: "crew".to_owned(), ..Group::default() });
    inner.update_group(ann.request(UpdateGroupRequest { id: id.clone(), group, update_mask: None })).await.unwrap();
    inner.delete_group(ann.request(DeleteGroupRequest { id, ..DeleteGroupRequest::default() })).await.unwrap();
    let open = ann.invite("kim@x.example", Role::Viewer).await.unwrap();
    inner.delete_invitation(ann.request(DeleteInvitationRequest { id: open.id })).await.unwrap();
    inner.delete_member(ann.request(DeleteMemberRequest { id: bob.id, etag: String::new() })).await.unwrap();
    set(&harness, "acme", "suspended").await.unwrap();
    erase(&harness, None).await;

    let events = harness.events().await;
    let published: BTreeSet<_> = events.iter().map(|stored| stored.envelope.event_type.clone()).collect();
    let own = contracts::events::all().filter(|event| event.service == SERVICE);
    assert_eq!(published, own.map(|event| event.name.to_owned()).collect(), "each type is in the snapshot");
    let events: Vec<_> = events.into_iter().map(|stored| stored.text).collect();
    assert_snapshot!("events", &format!("[{}]", events.join(",")));
}
