//! Members, their roles, and invitations: the rules that no caller breaks.

use futures::future::join_all;
use prost_types::FieldMask;
use proto::identity::{
    DeleteGroupRequest, DeleteInvitationRequest, DeleteMemberRequest, GetGroupRequest, GetInvitationRequest, Group,
    ListAuditEntriesRequest, ListInvitationsRequest, ListMembersRequest, Member, Role, UpdateGroupRequest,
    UpdateMemberRequest,
};

use identity::people::Mode;

use crate::harness::{Client, Harness, Settings, reason, tenant};

async fn change(client: &Client, id: &str, role: Role) -> Result<Member, tonic::Status> {
    let member = Some(Member { role: role.into(), ..Member::default() });
    let request = client.request(UpdateMemberRequest { id: id.to_owned(), member, update_mask: None });
    Ok(client.inner.clone().update_member(request).await?.into_inner())
}

async fn remove(client: &Client, id: &str) -> Result<(), tonic::Status> {
    let request = client.request(DeleteMemberRequest { id: id.to_owned(), etag: String::new() });
    client.inner.clone().delete_member(request).await.map(drop)
}

async fn owner_of(client: &Client) -> Member {
    let request = client.request(ListMembersRequest::default());
    let members = client.inner.clone().list_members(request).await.unwrap().into_inner().members;
    members.into_iter().find(|member| member.role == i32::from(Role::Owner)).unwrap()
}

#[tokio::test]
async fn a_slug_is_given_once_whoever_asks() {
    let harness = Harness::start().await;
    let people: Vec<_> = (0..8).map(|number| harness.person(&format!("person-{number}"))).collect();
    let all = join_all(people.iter().map(|person| person.sign_up("acme"))).await;
    let (made, refused): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
    assert_eq!(made.len(), 1);
    for refused in refused {
        assert_eq!(reason(refused), "TENANT_EXISTS");
    }
    assert_eq!((harness.count("tenant").await, harness.count("member").await), (1, 1));
}

#[tokio::test]
async fn a_sign_up_that_is_repeated_happens_once_and_one_that_is_malformed_never() {
    let harness = Harness::start().await;
    let ann = harness.person("ann").with_key("one");
    let first = ann.sign_up("acme").await.unwrap();
    assert_eq!(ann.sign_up("acme").await.unwrap(), first);
    assert_eq!(reason(harness.person("ann").with_key("").sign_up("globex").await), "IDEMPOTENCY_KEY_REQUIRED");
    for (field, wrong) in
        [("id", "Acme"), ("name", ""), ("country", "Germany"), ("currency", "eur"), ("time_zone", "Berlin")]
    {
        let mut tenant = tenant("globex");
        match field {
            "id" => tenant.id = wrong.to_owned(),
            "name" => tenant.name = wrong.to_owned(),
            "country" => tenant.country = wrong.to_owned(),
            "currency" => tenant.currency = wrong.to_owned(),
            _ => tenant.time_zone = wrong.to_owned(),
        }
        let refused = harness.person("ann").create_tenant(tenant).await;
        assert!(refused.as_ref().unwrap_err().message().starts_with(field), "{refused:?}");
        assert_eq!(reason(refused), "INVALID_ARGUMENT");
    }
    assert_eq!(harness.count("tenant").await, 1);
}

#[tokio::test]
async fn the_last_owner_stays() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let owner = owner_of(&ann).await;
    assert_eq!(reason(remove(&ann, &owner.id).await), "LAST_OWNER");
    assert_eq!(reason(change(&ann, &owner.id, Role::Admin).await), "LAST_OWNER");
    // Two owners who both leave at once: one of them stays.
    let (bob, bobs) = harness.member(&ann, "acme", ("bob", Role::Owner)).await;
    let (one, another) = tokio::join!(remove(&ann, &owner.id), remove(&bobs, &bob.id));
    let left: Vec<_> = [one, another].into_iter().filter_map(Result::err).collect();
    assert_eq!(left.len(), 1, "{left:?}");
    let mut admin = harness.database.admin().await;
    let owners = "select count(*) from member where role = 'owner' and delete_time is null";
    assert_eq!(sqlx::query_scalar::<_, i64>(owners).fetch_one(&mut admin).await.unwrap(), 1);
}

#[tokio::test]
async fn an_admin_makes_and_changes_no_owner_and_a_member_only_leaves() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let owner = owner_of(&ann).await;
    let (_, admin) = harness.member(&ann, "acme", ("abe", Role::Admin)).await;
    let (bob, bobs) = harness.member(&ann, "acme", ("bob", Role::Member)).await;
    for refused in [change(&admin, &bob.id, Role::Owner).await, change(&admin, &owner.id, Role::Viewer).await] {
        assert_eq!(reason(refused), "PERMISSION_DENIED");
    }
    assert_eq!(reason(remove(&admin, &owner.id).await), "PERMISSION_DENIED");
    assert_eq!(reason(admin.invite("eve@x.example", Role::Owner).await), "PERMISSION_DENIED");
    assert_eq!(change(&admin, &bob.id, Role::Viewer).await.unwrap().version, 2);
    assert_eq!(reason(remove(&bobs, &owner.id).await), "PERMISSION_DENIED");
    remove(&bobs, &bob.id).await.unwrap();
    assert_eq!(reason(remove(&ann, &bob.id).await), "MEMBER_NOT_FOUND");
}

#[tokio::test]
async fn an_invitation_is_for_its_address_and_for_once() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let invitation = ann.invite("BOB@x.example", Role::Member).await.unwrap();
    assert_eq!(reason(harness.person("eve").accept(&invitation.id).await), "INVITATION_NOT_FOUND");
    let unverified = serde_json::json!({"email": "bob@x.example", "email_verified": false});
    let unverified = harness.with(&harness.issuer.person_with("bob", &unverified));
    assert_eq!(reason(unverified.accept(&invitation.id).await), "EMAIL_NOT_VERIFIED");
    // Many at once are one.
    let bob = harness.person("bob");
    let all = join_all((0..8).map(|_| bob.accept(&invitation.id))).await;
    assert_eq!(all.iter().filter(|accepted| accepted.is_ok()).count(), 1, "{all:?}");
    for refused in all.into_iter().filter(Result::is_err) {
        assert_eq!(reason(refused), "INVITATION_NOT_FOUND");
    }
    let again = ann.invite("bob@x.example", Role::Admin).await.unwrap();
    assert_eq!(reason(bob.accept(&again.id).await), "MEMBER_EXISTS");
    let request = ann.request(DeleteInvitationRequest { id: again.id.clone() });
    ann.inner.clone().delete_invitation(request).await.unwrap();
    assert_eq!(reason(bob.accept(&again.id).await), "INVITATION_NOT_FOUND");
    assert_eq!(harness.count("member").await, 2);
    // One that has ended is for nobody.
    let ended = ann.invite("kim@x.example", Role::Member).await.unwrap();
    harness.sql("update invitation set expire_time = now() - interval '1 second' where delete_time is null").await;
    assert_eq!(reason(harness.person("kim").accept(&ended.id).await), "INVITATION_NOT_FOUND");
}

#[tokio::test]
async fn a_link_holds_an_invitations_id_and_nothing_else() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let keyed = ann.with_key("one");
    let made = keyed.invite("bob@x.example", Role::Member).await.unwrap();
    assert_eq!(made.link, format!("https://app.example/join/{}", made.id));
    assert_eq!(keyed.invite("bob@x.example", Role::Member).await.unwrap(), made, "a repeat has it too");
    let read = ann.request(GetInvitationRequest { id: made.id.clone() });
    assert_eq!(ann.inner.clone().get_invitation(read).await.unwrap().into_inner(), made);
    let list = ann.inner.clone().list_invitations(ann.request(ListInvitationsRequest::default())).await.unwrap();
    assert_eq!(list.into_inner().invitations, [made]);
    assert!(harness.events().await.iter().all(|stored| !stored.text.contains("app.example")));
}

#[tokio::test]
async fn a_group_is_of_members_and_whoever_leaves_the_tenant_leaves_it() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let (bob, bobs) = harness.member(&ann, "acme", ("bob", Role::Member)).await;
    let (kim, _) = harness.member(&ann, "acme", ("kim", Role::Member)).await;
    let eve = owner_of(&harness.owner("globex", "eve").await).await;
    for stranger in [eve.id.as_str(), "0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2f00"] {
        let refused = ann.create_group(&[&bob.id, stranger]).await;
        assert!(refused.as_ref().unwrap_err().message().contains(stranger), "{refused:?}");
        assert_eq!(reason(refused), "INVALID_ARGUMENT");
    }
    assert_eq!(reason(ann.create_group(&["bob"]).await), "INVALID_ARGUMENT");
    // Each is in it once.
    let both = ann.create_group(&[&kim.id, &bob.id, &bob.id]).await.unwrap();
    assert_eq!(both.members, [bob.id.clone(), kim.id.clone()]);
    let other = ann.create_group(&[&kim.id]).await.unwrap();
    let before = harness.events().await.len();
    remove(&bobs, &bob.id).await.unwrap();
    let said: Vec<_> =
        harness.events().await.split_off(before).into_iter().map(|stored| stored.envelope.event_type).collect();
    assert_eq!(said, ["identity.group_updated.v1", "identity.member_removed.v1"]);
    let read = async |id: &str| {
        let request = ann.request(GetGroupRequest { id: id.to_owned() });
        ann.inner.clone().get_group(request).await.unwrap().into_inner()
    };
    assert_eq!((read(&both.id).await.members, read(&other.id).await.version), (vec![kim.id.clone()], 1));
    // Nobody stays in a group who left meanwhile, and nobody is put back.
    let put_back = Some(Group { members: vec![bob.id], ..Group::default() });
    let request = UpdateGroupRequest { id: both.id.clone(), group: put_back, update_mask: None };
    assert_eq!(reason(ann.inner.clone().update_group(ann.request(request)).await), "INVALID_ARGUMENT");
    let nobody = Some(FieldMask { paths: vec!["members".to_owned()] });
    let request = UpdateGroupRequest { id: both.id.clone(), group: Some(Group::default()), update_mask: nobody };
    let emptied = ann.inner.clone().update_group(ann.request(request)).await.unwrap().into_inner();
    assert_eq!((emptied.members.len(), emptied.name.as_str(), emptied.version), (0, "dispatchers", 3));
    let stale = DeleteGroupRequest { id: both.id.clone(), etag: both.etag };
    assert_eq!(reason(ann.inner.clone().delete_group(ann.request(stale)).await), "ETAG_MISMATCH");
}

#[tokio::test]
async fn groups_and_their_members_have_a_limit() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let many: Vec<_> = (0..201).map(|number| uuid::Uuid::from_u128(number).to_string()).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert_eq!(reason(ann.create_group(&many).await), "INVALID_ARGUMENT");
    for _ in 0..100 {
        ann.create_group(&[]).await.unwrap();
    }
    assert_eq!(reason(ann.create_group(&[]).await), "TOO_MANY_GROUPS");
}

#[tokio::test]
async fn whoever_was_taken_out_gives_no_access_with_the_token_in_hand() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let (bob, bobs) = harness.member(&ann, "acme", ("bob", Role::Owner)).await;
    let (open, owners) = (
        bobs.invite("eve@x.example", Role::Member).await.unwrap(),
        bobs.invite("kim@x.example", Role::Owner).await.unwrap(),
    );
    // An admin now, who makes no owner.
    change(&ann, &bob.id, Role::Admin).await.unwrap();
    assert_eq!(reason(harness.person("kim").accept(&owners.id).await), "INVITATION_NOT_FOUND");
    assert_eq!(reason(bobs.invite("lea@x.example", Role::Owner).await), "PERMISSION_DENIED");
    remove(&ann, &bob.id).await.unwrap();
    assert_eq!(reason(bobs.invite("lea@x.example", Role::Member).await), "PERMISSION_DENIED");
    assert_eq!(reason(bobs.create_key(Role::Viewer, &["todo:read"]).await), "PERMISSION_DENIED");
    assert_eq!(reason(remove(&bobs, &owner_of(&ann).await.id).await), "PERMISSION_DENIED");
    assert_eq!(reason(harness.person("eve").accept(&open.id).await), "INVITATION_NOT_FOUND");
    assert_eq!(harness.count("member where delete_time is null").await, 1);
}

#[tokio::test]
async fn an_id_of_the_fleets_own_is_nobodys() {
    let harness = Harness::start().await;
    for slug in ["operators", "system", "flotilla"] {
        assert_eq!(reason(harness.person("ann").sign_up(slug).await), "TENANT_EXISTS");
    }
}

#[tokio::test]
async fn sign_up_can_be_closed_and_has_a_rate() {
    let closed = Harness::start_with(Settings { sign_up: Mode::Closed, ..Settings::default() }).await;
    assert_eq!(reason(closed.person("ann").sign_up("acme").await), "SIGN_UP_CLOSED");
    assert_eq!((closed.count("tenant").await, closed.count("person").await), (0, 0), "nothing is left of it");
    let harness = Harness::start_with(Settings { sign_ups_an_hour: 6, ..Settings::default() }).await;
    let ann = harness.person("ann");
    for number in 0..5 {
        ann.sign_up(&format!("acme-{number}")).await.unwrap();
    }
    assert_eq!(reason(ann.sign_up("acme-5").await), "TOO_MANY_REQUESTS", "five of one person");
    let bob = harness.person("bob").with_key("one");
    let first = bob.sign_up("globex").await.unwrap();
    assert_eq!(reason(harness.person("eve").sign_up("other").await), "TOO_MANY_REQUESTS", "six of all");
    assert_eq!(bob.sign_up("globex").await.unwrap(), first, "a repeat has its answer");
}

#[tokio::test]
async fn owners_and_admins_see_who_gave_access() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let (bob, bobs) = harness.member(&ann, "acme", ("bob", Role::Member)).await;
    change(&ann, &bob.id, Role::Admin).await.unwrap();
    // What the provider says of a person gives no access.
    let renamed = serde_json::json!({"email": "bob@x.example", "email_verified": true, "name": "Robert"});
    let renamed = harness.issuer.person_with("bob", &renamed);
    harness.client_with(None).exchange(&renamed, crate::harness::ACCESS_TOKEN, "", "").await.unwrap();
    let key = ann.create_key(Role::Viewer, &["todo:read"]).await.unwrap();
    // By Bob, who is an admin now.
    let page = async |page_token: String| {
        let request = bobs_now(&harness).await;
        let list = request.request(ListAuditEntriesRequest { page_size: 4, page_token });
        request.inner.clone().list_audit_entries(list).await.unwrap().into_inner()
    };
    let mut entries = page(String::new()).await;
    let rest = page(entries.next_page_token.clone()).await;
    entries.audit_entries.extend(rest.audit_entries);
    let shown: Vec<_> =
        entries.audit_entries.iter().map(|entry| (entry.action.as_str(), entry.actor.as_str())).collect();
    let (by_ann, by_bob) = (format!("user:{}", ann.user().await), format!("user:{}", bob.user));
    assert_eq!(
        shown,
        [
            ("api_key_created", by_ann.as_str()),
            ("service_account_created", &by_ann),
            ("member_updated", &by_ann),
            ("member_added", &by_bob),
            ("invitation_closed", &by_bob),
            ("invitation_created", &by_ann),
            ("member_added", &by_ann),
            ("tenant_created", &by_ann),
        ]
    );
    assert_eq!(entries.audit_entries[0].subject, key.id);
    let request = bobs.request(ListAuditEntriesRequest::default());
    assert_eq!(reason(bobs.inner.clone().list_audit_entries(request).await), "PERMISSION_DENIED", "a member's token");
    let mut admin = harness.database.admin().await;
    let may = "select has_table_privilege('identity_app', 'audit', 'update')";
    assert!(!sqlx::query_scalar::<_, bool>(may).fetch_one(&mut admin).await.unwrap());
}

async fn bobs_now(harness: &Harness) -> Client {
    harness.token_of("bob", "acme").await
}
