//! Tenants that other services knew before identity did.

use proto::identity::ListMembersRequest;
use proto::ops::tenant_service_client::TenantServiceClient;
use proto::ops::{AdmitMemberRequest, AdoptTenantRequest, AdoptedTenant, FinishAdoptionRequest, GetAdoptionRequest};
use serde_json::json;
use service::{Process, Service as _};
use testkit::{TestIssuer, TestNats};
use tonic::Code;
use tonic::transport::Channel;

use identity::Program;

use crate::harness::{ACCESS_TOKEN, Harness, Settings, config, database, reason, with};

async fn tenants(harness: &Harness) -> TenantServiceClient<Channel> {
    TenantServiceClient::connect(format!("http://{}", harness.ops)).await.unwrap()
}

fn of(tenant: &str, owner: Option<&str>) -> AdoptTenantRequest {
    AdoptTenantRequest {
        tenant: tenant.to_owned(),
        time_zone: "Europe/Berlin".to_owned(),
        country: "DE".to_owned(),
        currency: "EUR".to_owned(),
        owner: owner.map(ToOwned::to_owned),
        named: false,
        reason: "they were here before".to_owned(),
    }
}

fn admit(tenant: &str, user: &str, role: &str) -> AdmitMemberRequest {
    let text = str::to_owned;
    AdmitMemberRequest { tenant: text(tenant), user: text(user), role: text(role), reason: text("a token") }
}

#[tokio::test]
async fn nobody_signs_up_before_the_tenants_of_other_services_are_adopted() {
    let harness = Harness::start_with(Settings { adopted: false, ..Settings::default() }).await;
    let mut tenants = tenants(&harness).await;
    let done = harness.operator(GetAdoptionRequest {});
    assert!(!tenants.get_adoption(done).await.unwrap().into_inner().done);
    assert_eq!(reason(harness.person("eve").sign_up("acme").await), "SIGN_UP_CLOSED");
    tenants.adopt_tenant(harness.operator(of("acme", Some("ann")))).await.unwrap();
    assert_eq!(reason(harness.person("eve").sign_up("globex").await), "SIGN_UP_CLOSED");
    for _ in 0..2 {
        let finish = harness.operator(FinishAdoptionRequest { reason: "all are there".to_owned() });
        assert!(tenants.finish_adoption(finish).await.unwrap().into_inner().done);
    }
    assert_eq!(reason(harness.person("eve").sign_up("acme").await), "TENANT_EXISTS");
    harness.person("eve").sign_up("globex").await.unwrap();
}

#[tokio::test]
async fn whoever_made_the_first_is_the_owner_and_keeps_the_name_that_others_hold() {
    let harness = Harness::start().await;
    let mut tenants = tenants(&harness).await;
    let made = tenants.adopt_tenant(harness.operator(of("acme", Some("ann")))).await.unwrap().into_inner();
    assert_eq!(made, AdoptedTenant { made: true, owner: Some("ann".to_owned()), has_owner: true, erased: false });
    let ann = harness.token_of("ann", "acme").await;
    assert_eq!(ann.user().await, "ann");
    let members = ann.inner.clone().list_members(ann.request(ListMembersRequest::default())).await.unwrap();
    let [member] = members.into_inner().members.try_into().unwrap();
    // What her provider says is noted when she comes.
    assert_eq!((member.user.as_str(), member.email.as_str()), ("ann", "ann@x.example"));
    // She is one user wherever she goes, and in what events say of her.
    let bob = harness.owner("globex", "bob").await;
    let (there, ann_there) = harness.member(&bob, "globex", ("ann", proto::identity::Role::Admin)).await;
    assert_eq!((there.user.as_str(), ann_there.user().await), ("ann", "ann".to_owned()));
    let events = harness.events().await;
    let added = events.iter().rfind(|event| event.envelope.event_type == "identity.member_added.v1").unwrap();
    let added: serde_json::Value = serde_json::from_str(added.envelope.data.get()).unwrap();
    assert_eq!((&added["member"]["user"], &added["actor"]["id"]), (&json!("ann"), &json!("ann")), "{added}");
    let eve = harness.issuer.person("eve", "eve@x.example");
    let refused = harness.client_with(None).exchange(&eve, ACCESS_TOKEN, "acme", "").await;
    assert_eq!(reason(refused), "INVALID_TARGET");
}

#[tokio::test]
async fn a_tenant_that_is_there_gets_no_owner_but_one_whom_an_operator_names() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await.user().await;
    let mut tenants = tenants(&harness).await;
    // Whoever made its oldest todo that is there may have been expelled from it.
    crate::data::erase(&harness, Some(&ann)).await;
    let none = AdoptedTenant::default();
    let guessed = tenants.adopt_tenant(harness.operator(of("acme", Some("eve")))).await.unwrap().into_inner();
    assert_eq!(guessed, none);
    let named = |owner| AdoptTenantRequest { named: true, ..of("acme", Some(owner)) };
    let made = tenants.adopt_tenant(harness.operator(named("zed"))).await.unwrap().into_inner();
    assert_eq!(made, AdoptedTenant { owner: Some("zed".to_owned()), has_owner: true, ..none.clone() });
    // Nobody can sign in as that: another one is named, and after that no further one.
    let made = tenants.adopt_tenant(harness.operator(named("bob"))).await.unwrap().into_inner();
    assert_eq!(made, AdoptedTenant { owner: Some("bob".to_owned()), has_owner: true, ..none.clone() });
    harness.token_of("bob", "acme").await;
    let late = tenants.adopt_tenant(harness.operator(named("eve"))).await.unwrap().into_inner();
    assert_eq!(late, AdoptedTenant { has_owner: true, ..none });
}

#[tokio::test]
async fn what_services_name_and_is_no_subject_becomes_nobodys_owner() {
    let harness = Harness::start().await;
    let bob = harness.owner("globex", "bob").await.user().await;
    let mut tenants = tenants(&harness).await;
    let adopt = |tenant: &str, owner: &str| harness.operator(of(tenant, Some(owner)));
    let (program, stranger) = ("0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2f00", "5a2f5c1e-8f6b-5d0a-9c3e-1b2d3c4e5f60");
    let unheard_of = "é".repeat(150);
    for (tenant, nobody) in [("a", program), ("b", stranger), ("c", &unheard_of)] {
        let adopted = tenants.adopt_tenant(adopt(tenant, nobody)).await.unwrap().into_inner();
        assert_eq!(adopted, AdoptedTenant { made: true, ..AdoptedTenant::default() }, "{nobody}");
    }
    // A user of the fleet's, named by an operator, is who it is.
    let named = AdoptTenantRequest { named: true, ..of("a", Some(&bob)) };
    let adopted = tenants.adopt_tenant(harness.operator(named)).await.unwrap().into_inner();
    assert_eq!(adopted.owner.as_deref(), Some(bob.as_str()));
    assert_eq!(harness.token_of("bob", "a").await.user().await, bob);
}

#[tokio::test]
async fn two_that_adopt_one_tenant_at_once_make_it_once() {
    let harness = Harness::start().await;
    let adopt = async || {
        let mut tenants = tenants(&harness).await;
        tenants.adopt_tenant(harness.operator(of("acme", Some("ann")))).await.unwrap().into_inner()
    };
    let all = tokio::join!(adopt(), adopt(), adopt(), adopt());
    let all = [all.0, all.1, all.2, all.3];
    assert_eq!(all.iter().filter(|adopted| adopted.made).count(), 1, "{all:?}");
    assert!(all.iter().all(|adopted| adopted.has_owner && !adopted.erased), "{all:?}");
    assert_eq!(harness.count("member").await, 1);
    // So does one whom an operator names, who may be new to identity.
    let name = async |owner: &str| {
        let mut tenants = tenants(&harness).await;
        let named = AdoptTenantRequest { named: true, ..of("globex", Some(owner)) };
        tenants.adopt_tenant(harness.operator(named)).await.unwrap().into_inner()
    };
    let all = tokio::join!(name("bob"), name("kim"), name("lea"), name("zoe"));
    let all = [all.0, all.1, all.2, all.3];
    assert_eq!(all.iter().filter(|adopted| adopted.made).count(), 1, "{all:?}");
    assert!(all.iter().all(|adopted| adopted.owner.is_some() && !adopted.erased), "{all:?}");
}

#[tokio::test]
async fn an_erased_tenant_is_not_adopted_and_what_is_no_tenant_is_refused() {
    let harness = Harness::start().await;
    harness.owner("acme", "ann").await;
    crate::data::erase(&harness, None).await;
    let mut tenants = tenants(&harness).await;
    let erased = tenants.adopt_tenant(harness.operator(of("acme", Some("eve")))).await.unwrap().into_inner();
    assert_eq!(erased, AdoptedTenant { erased: true, ..AdoptedTenant::default() });
    let wrong: [fn(&mut AdoptTenantRequest); 5] = [
        |request| request.tenant = "No Tenant".to_owned(),
        |request| request.time_zone = "Mars".to_owned(),
        |request| request.country.clear(),
        |request| request.owner = Some(String::new()),
        |request| request.reason.clear(),
    ];
    for spoil in wrong {
        let mut request = of("globex", None);
        spoil(&mut request);
        let refused = tenants.adopt_tenant(harness.operator(request.clone())).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{request:?}: {refused}");
    }
    assert_eq!(harness.count("tenant").await, 1);
}

#[tokio::test]
async fn adopted_tenants_do_not_count_as_signed_up() {
    let harness = Harness::start_with(Settings { sign_ups_an_hour: 1, ..Settings::default() }).await;
    let mut tenants = tenants(&harness).await;
    for tenant in ["a", "b", "c"] {
        tenants.adopt_tenant(harness.operator(of(tenant, Some("ann")))).await.unwrap();
    }
    harness.person("ann").sign_up("acme").await.unwrap();
    assert_eq!(reason(harness.person("bob").sign_up("globex").await), "TOO_MANY_REQUESTS");
}

#[tokio::test]
async fn whoever_signs_up_at_the_same_time_is_counted() {
    let harness = Harness::start_with(Settings { sign_ups_an_hour: 2, ..Settings::default() }).await;
    let sign_ups = ["ann", "bob", "kim", "eve", "olga", "vic"].map(|user| {
        let person = harness.person(user);
        async move { person.sign_up(&format!("of-{user}")).await.is_ok() }
    });
    let signed_up = futures::future::join_all(sign_ups).await;
    assert_eq!(signed_up.iter().filter(|signed_up| **signed_up).count(), 2);
}

#[tokio::test]
async fn operators_let_users_into_a_tenant_on_a_developers_machine() {
    let harness = Harness::start().await;
    let mut tenants = tenants(&harness).await;
    let missing = tenants.admit_member(harness.operator(admit("acme", "ann", "viewer"))).await;
    assert_eq!(reason(missing), "TENANT_NOT_FOUND");
    // Who signs in as ann is another user.
    let ann = harness.owner("acme", "ann").await.user().await;
    assert_ne!(ann, "ann");
    // Whoever is a member stays what it is.
    for (user, role, is) in [("bob", "viewer", "viewer"), ("bob", "owner", "viewer"), ("ann", "member", "member")] {
        let admitted = tenants.admit_member(harness.operator(admit("acme", user, role))).await.unwrap().into_inner();
        assert_eq!(admitted.role, is);
    }
    let bob = harness.client_as("acme", "bob", &json!({"role": "viewer"}));
    let members = bob.inner.clone().list_members(bob.request(ListMembersRequest::default())).await.unwrap();
    let users: Vec<_> = members.into_inner().members.into_iter().map(|member| member.user).collect();
    // The newest first.
    assert_eq!(users, ["ann", "bob", ann.as_str()]);
}

#[tokio::test]
async fn elsewhere_the_development_issuer_and_provider_are_refused_and_operators_let_nobody_in() {
    let (database, nats, issuer) = (database().await, TestNats::start().await, TestIssuer::new());
    let mut config = config(&database, &nats, &issuer);
    config.common.issuer.local = false;
    let process = Process::new(Program::NAME, "test");
    let why = Program::start(&config, &process).await.err().unwrap().to_string();
    assert!(why.contains(devstack::issuer::ISSUER) && why.contains("FLOTILLA_LOCAL"), "{why}");
    process.lifecycle.shut_down().await;
    config.common.issuer.name = "https://issuer.acme.example".to_owned();
    let process = Process::new(Program::NAME, "test");
    let why = Program::start(&config, &process).await.err().unwrap().to_string();
    assert!(why.contains(devstack::issuer::PROVIDER) && why.contains("FLOTILLA_LOCAL"), "{why}");
    process.lifecycle.shut_down().await;

    config.people.provider.provider = "https://people.acme.example".to_owned();
    let process = Process::new(Program::NAME, "test");
    let ops = service::ops::serve(&process, ([127, 0, 0, 1], 0).into(), None).await.unwrap();
    Program::start(&config, &process).await.unwrap();
    let claims = json!({"iss": "https://issuer.acme.example", "role": "operator"});
    let operator = issuer.operator_with("olga", &claims);
    let mut tenants = TenantServiceClient::connect(format!("http://{ops}")).await.unwrap();
    let made = tenants.adopt_tenant(with(&operator, of("acme", Some("ann")))).await.unwrap().into_inner();
    assert!(made.made && made.has_owner, "{made:?}");
    let refused = tenants.admit_member(with(&operator, admit("acme", "eve", "owner"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(process.lifecycle.shut_down().await, None);
}
