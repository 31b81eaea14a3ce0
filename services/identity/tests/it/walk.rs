//! A person signs up, invites another, and gives a program a key.

use authz::Verifier;
use proto::identity::{GetMeRequest, ListMembersRequest, Role};

use crate::harness::{ACCESS_TOKEN, API_KEY, Harness};

#[tokio::test]
async fn a_person_signs_up_invites_another_and_gives_a_program_a_key() {
    let harness = Harness::start().await;
    let acme = harness.person("ann").sign_up("acme").await.unwrap();
    assert_eq!(
        (acme.id.as_str(), acme.time_zone.as_str(), acme.billing_email.as_str()),
        ("acme", "UTC", "ann@x.example")
    );
    let ann = harness.token_of("ann", "").await;
    let (bob, bobs) = harness.member(&ann, "acme", ("bob", Role::Member)).await;
    assert_eq!((bob.email.as_str(), bob.role), ("bob@x.example", Role::Member.into()));
    let listed = bobs.inner.clone().list_members(bobs.request(ListMembersRequest::default())).await.unwrap();
    let members: Vec<_> = listed.into_inner().members.into_iter().map(|member| member.email).collect();
    assert_eq!(members, ["bob@x.example", "ann@x.example"]);

    let key = ann.create_key(Role::Viewer, &["todo:read", "identity:read"]).await.unwrap();
    let granted = harness.client_with(None).exchange(&key.key, API_KEY, "", "").await.unwrap();
    assert_eq!((granted.token_type.as_str(), granted.expires_in), ("Bearer", 600));
    assert_eq!((granted.issued_token_type.as_str(), granted.scope.as_str()), (ACCESS_TOKEN, "identity:read todo:read"));
    let program = harness.with(&granted.access_token);
    let me = program.inner.clone().get_me(program.request(GetMeRequest {})).await.unwrap().into_inner();
    assert_eq!((me.tenant.as_str(), me.role), ("acme", Role::Viewer.into()));
    assert_eq!(me.actor, format!("service_account:{}", key.service_account));
    let limits = me.limits.unwrap();
    assert!((1..=limits.tenant_rate).contains(&limits.principal_rate), "{limits:?}");

    // Whoever verifies tokens offline takes it.
    let verifier = Verifier::new(harness.issuer.jwks(), devstack::issuer::ISSUER, devstack::issuer::AUDIENCE).unwrap();
    let caller = verifier.verify(Some(&format!("Bearer {}", granted.access_token))).await.unwrap();
    assert_eq!(caller.scopes.unwrap(), ["identity:read", "todo:read"]);

    let types: Vec<_> = harness.events().await.into_iter().map(|stored| stored.envelope.event_type).collect();
    assert_eq!(
        types,
        [
            "identity.tenant_created.v1",
            "identity.member_added.v1",
            "identity.invitation_created.v1",
            "identity.invitation_closed.v1",
            "identity.member_added.v1",
            "identity.service_account_created.v1",
            "identity.api_key_created.v1"
        ]
    );
}
