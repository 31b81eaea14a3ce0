//! A tenant marks acts, and a person who has not signed in as it demands is asked to (RFC 9470).

use proto::identity::{GetTenantRequest, Role, StepUp, Tenant, UpdateTenantRequest};
use proto::ops::EndStepUpRequest;
use proto::ops::tenant_service_client::TenantServiceClient;
use serde_json::json;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::carried::carrying;
use crate::harness::{ACCESS_TOKEN, Client, Harness, reason};

const MFA: &str = "urn:acr:mfa";

fn now() -> i64 {
    chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now()).timestamp()
}

/// A person with the fleet's token for acme, who signed in by this class, so many seconds ago.
async fn signed_in(harness: &Harness, name: &str, acr: &str, ago: i64) -> Client {
    let claims = json!({
        "email": format!("{name}@x.example"), "email_verified": true, "acr": acr, "auth_time": now() - ago,
    });
    let token = harness.issuer.person_with(name, &claims);
    let granted = harness.client_with(None).exchange(&token, ACCESS_TOKEN, "acme", "").await.unwrap();
    harness.with(&granted.access_token)
}

fn demand(acts: &[&str], acr_values: &[&str], max_age: Option<i64>) -> StepUp {
    let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
    let max_age = max_age.map(|seconds| prost_types::Duration { seconds, nanos: 0 });
    StepUp { acts: texts(acts), acr_values: texts(acr_values), max_age }
}

async fn set(client: &Client, step_up: Option<StepUp>) -> Result<Tenant, Status> {
    let update_mask = Some(prost_types::FieldMask { paths: vec!["step_up".to_owned()] });
    let request = UpdateTenantRequest { tenant: Some(Tenant { step_up, ..Tenant::default() }), update_mask };
    Ok(client.inner.clone().update_tenant(client.request(request)).await?.into_inner())
}

#[tokio::test]
async fn a_marked_act_demands_the_sign_in_that_the_tenant_says() {
    let harness = Harness::start().await;
    let before = harness.owner("acme", "ann").await;
    let ann = signed_in(&harness, "ann", MFA, 5).await;
    let marked = demand(&["CreateInvitation"], &[MFA, "urn:acr:key"], Some(300));
    let tenant = set(&ann, Some(marked.clone())).await.unwrap();
    assert_eq!((tenant.step_up.as_ref(), tenant.version), (Some(&marked), 2));
    let read = ann.inner.clone().get_tenant(ann.request(GetTenantRequest {})).await.unwrap().into_inner();
    assert_eq!(read, tenant);
    // A token from before says nothing of it, and gives no access all the same.
    before.inner.clone().get_tenant(before.request(GetTenantRequest {})).await.unwrap();
    assert_eq!(reason(before.invite("bob@x.example", Role::Member).await), "INSUFFICIENT_USER_AUTHENTICATION");
    for (acr, ago) in [("urn:acr:pwd", 5), (MFA, 400), ("", 5)] {
        let ann = signed_in(&harness, "ann", acr, ago).await;
        let refused = ann.invite("kim@x.example", Role::Member).await.unwrap_err();
        let info = refused.get_details_error_info().unwrap();
        assert_eq!((refused.code(), info.reason.as_str()), (Code::Unauthenticated, "INSUFFICIENT_USER_AUTHENTICATION"));
        assert_eq!(
            (info.metadata["acr_values"].as_str(), info.metadata["max_age"].as_str()),
            ("urn:acr:mfa urn:acr:key", "300")
        );
        // What is not marked, she reads as ever; and she makes nobody who is not asked.
        ann.inner.clone().get_tenant(ann.request(GetTenantRequest {})).await.unwrap();
        assert_eq!(reason(ann.create_account(Role::Viewer).await), "INSUFFICIENT_USER_AUTHENTICATION");
    }
    signed_in(&harness, "ann", "urn:acr:key", 200).await.invite("kim@x.example", Role::Member).await.unwrap();
    // A program does not sign in: its scopes bound it.
    let key = ann.create_key(Role::Admin, &["identity:read"]).await.unwrap().key;
    let granted = harness.client_with(None).exchange(&key, crate::harness::API_KEY, "", "").await.unwrap();
    let program = harness.with(&granted.access_token);
    program.inner.clone().get_tenant(program.request(GetTenantRequest {})).await.unwrap();
}

#[tokio::test]
async fn whoever_marks_acts_has_signed_in_so_and_whoever_has_not_ends_nothing() {
    let harness = Harness::start().await;
    harness.owner("acme", "ann").await;
    let (weak, strong) = (signed_in(&harness, "ann", "urn:acr:pwd", 5).await, signed_in(&harness, "ann", MFA, 5).await);
    let marked = demand(&["DeleteTodo"], &[MFA], None);
    // Nobody locks the tenant out of itself, by a class that nobody has.
    assert_eq!(reason(set(&weak, Some(marked.clone())).await), "INSUFFICIENT_USER_AUTHENTICATION");
    assert_eq!(
        reason(set(&strong, Some(demand(&["DeleteTodo"], &["urn:acr:none"], None))).await),
        "INSUFFICIENT_USER_AUTHENTICATION"
    );
    set(&strong, Some(marked)).await.unwrap();
    for weaker in [None, Some(demand(&["GetTodo"], &["urn:acr:pwd"], None))] {
        assert_eq!(reason(set(&weak, weaker).await), "INSUFFICIENT_USER_AUTHENTICATION");
    }
    // An admin could demand what owners do not have.
    harness.member(&strong, "acme", ("adam", Role::Admin)).await;
    let adam = signed_in(&harness, "adam", MFA, 5).await;
    for change in [None, Some(demand(&["GetTodo"], &[MFA], None))] {
        assert_eq!(reason(set(&adam, change).await), "PERMISSION_DENIED");
    }
    assert_eq!(set(&strong, None).await.unwrap().step_up, None);
    // Where nobody can sign in so any more, an operator ends it.
    set(&strong, Some(demand(&["DeleteTodo"], &[MFA], None))).await.unwrap();
    let mut tenants = TenantServiceClient::connect(format!("http://{}", harness.ops)).await.unwrap();
    let end = EndStepUpRequest { tenant: "acme".to_owned(), reason: "the provider is another".to_owned() };
    assert_eq!(tenants.end_step_up(Request::new(end.clone())).await.unwrap_err().code(), Code::Unauthenticated);
    tenants.end_step_up(harness.operator(end)).await.unwrap();
    weak.create_account(Role::Viewer).await.unwrap();
    for (wrong, why) in [
        (demand(&[], &[MFA], None), "acts"),
        (demand(&["DeleteTodo", "DeleteTodo"], &[MFA], None), "acts"),
        (demand(&["delete_todo"], &[MFA], None), "acts"),
        (demand(&["CreateTenant"], &[MFA], None), "acts"),
        (demand(&["SetTenantStatus"], &[MFA], None), "acts"),
        (demand(&["DeleteTodo"], &[], None), "acr_values or a max_age"),
        (demand(&["DeleteTodo"], &["a b"], None), "acr_values"),
        (demand(&["DeleteTodo"], &["a\""], None), "acr_values"),
        (demand(&["DeleteTodo"], &["a", "b", "c", "d", "e", "f"], None), "acr_values"),
        (demand(&["DeleteTodo"], &[], Some(59)), "max_age"),
        (demand(&["DeleteTodo"], &[], Some(86_401)), "max_age"),
    ] {
        let refused = set(&strong, Some(wrong)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(why), "{refused}");
    }
}

#[tokio::test]
async fn a_service_that_acts_for_a_person_has_signed_in_as_that_person_has() {
    let harness = Harness::start().await;
    harness.owner("acme", "ann").await;
    let ann = signed_in(&harness, "ann", MFA, 5).await;
    let weak = signed_in(&harness, "ann", "urn:acr:pwd", 5).await;
    set(&ann, Some(demand(&["GetTenant"], &[MFA], None))).await.unwrap();
    // Tokens from before the mark say nothing of it: carried on, they do.
    for (caller, refused) in [(&ann, None), (&weak, Some("INSUFFICIENT_USER_AUTHENTICATION"))] {
        caller.inner.clone().get_tenant(caller.request(GetTenantRequest {})).await.unwrap();
        let granted = harness.client_with(None).exchange_by(carrying(&harness, &caller.token())).await.unwrap();
        let todo = harness.with(&granted.access_token);
        let answer = todo.inner.clone().get_tenant(todo.request(GetTenantRequest {})).await;
        assert_eq!(answer.err().map(|status| reason(Err::<(), _>(status))).as_deref(), refused);
    }
}
