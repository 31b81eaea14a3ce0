//! What operators ask and do: tenants suspended and resumed, and the invitations that are open.

use proto::identity::{DeleteMemberRequest, GetTenantRequest, ListAuditEntriesRequest, Role, TenantStatus};
use proto::ops::tenant_service_client::TenantServiceClient;
use proto::ops::{
    AdmitMemberRequest, AdoptTenantRequest, EndStepUpRequest, ListOpenInvitationsRequest, ListTenantsRequest,
    OperatedTenant, RepublishTenantRequest, SetTenantStatusRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::carried::carrying;
use crate::data::{erase, export};
use crate::harness::{Harness, reason, with};
use crate::tenancy::{call, furnished, rpcs};

async fn tenants(harness: &Harness) -> TenantServiceClient<Channel> {
    TenantServiceClient::connect(format!("http://{}", harness.ops)).await.unwrap()
}

fn status(tenant: &str, status: &str, why: &str) -> SetTenantStatusRequest {
    SetTenantStatusRequest { tenant: tenant.to_owned(), status: status.to_owned(), reason: why.to_owned() }
}

pub async fn set(harness: &Harness, tenant: &str, to: &str) -> Result<OperatedTenant, Status> {
    let request = harness.operator(status(tenant, to, "they do not pay"));
    Ok(tenants(harness).await.set_tenant_status(request).await?.into_inner())
}

#[tokio::test]
async fn a_suspended_tenant_reads_and_gives_no_access() {
    let harness = Harness::start().await;
    let (ann, eve) = (harness.owner("acme", "ann").await, harness.owner("globex", "eve").await);
    let ids = furnished(&harness, &ann, "acme").await;
    let open = ann.invite("bob@x.example", Role::Member).await.unwrap();
    let keyed = ann.with_key("one");
    let first = keyed.create_group(&[]).await.unwrap();
    let suspended = set(&harness, "acme", "suspended").await.unwrap();
    assert_eq!((suspended.status.as_str(), suspended.version), ("suspended", 2));
    let events = harness.events().await.len();
    for rpc in rpcs() {
        let result = call(&ann, &rpc, &ids).await;
        if rpc.starts_with("Get") || rpc.starts_with("List") {
            result.unwrap();
        } else {
            assert_eq!(reason(result), "TENANT_SUSPENDED", "{rpc}");
        }
    }
    assert_eq!(reason(harness.person("bob").accept(&open.id).await), "TENANT_SUSPENDED");
    assert_eq!(reason(harness.person("kim").accept(&open.id).await), "INVITATION_NOT_FOUND", "it is not for Kim");
    assert_eq!(harness.events().await.len(), events, "nothing was written");
    assert_eq!(keyed.create_group(&[]).await.unwrap(), first, "what was answered stands");
    // Whoever is a member gets in, and reads.
    let again = harness.token_of("ann", "acme").await;
    let read = again.inner.clone().get_tenant(again.request(GetTenantRequest {})).await.unwrap().into_inner();
    assert_eq!((read.status, read.version), (TenantStatus::Suspended.into(), 2));
    eve.invite("bob@x.example", Role::Member).await.unwrap();
    let exported = export(&harness, "acme", None).await;
    assert!(exported.iter().any(|(table, row)| table == "tenant" && row["status"] == "suspended"));
    assert_eq!(set(&harness, "acme", "active").await.unwrap().version, 3);
    harness.person("bob").accept(&open.id).await.unwrap();
    // Its owner sees it.
    let request = ann.request(ListAuditEntriesRequest::default());
    let audit = ann.inner.clone().list_audit_entries(request).await.unwrap().into_inner().audit_entries;
    let by_operators: Vec<_> = audit.iter().filter(|entry| entry.action == "tenant_status_changed").collect();
    assert!(by_operators.len() == 2 && by_operators.iter().all(|entry| entry.actor == "operator:olga"));
}

#[tokio::test]
async fn each_act_of_an_operator_is_in_the_tenants_audit_with_who_did_it() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let mut tenants = tenants(&harness).await;
    let (tenant, reason) = ("acme".to_owned(), "they asked".to_owned());
    set(&harness, "acme", "active").await.unwrap();
    let end = EndStepUpRequest { tenant: tenant.clone(), reason: reason.clone() };
    tenants.end_step_up(harness.operator(end)).await.unwrap();
    let (user, role) = ("bob".to_owned(), "viewer".to_owned());
    let admit = AdmitMemberRequest { tenant: tenant.clone(), user, role, reason: reason.clone() };
    tenants.admit_member(harness.operator(admit)).await.unwrap();
    erase(&harness, Some("bob")).await;
    let request = ann.request(ListAuditEntriesRequest::default());
    let audit = ann.inner.clone().list_audit_entries(request).await.unwrap().into_inner().audit_entries;
    let by_olga = audit.iter().filter(|entry| entry.actor == "operator:olga");
    let by_olga: Vec<_> = by_olga.map(|entry| entry.action.as_str()).collect();
    assert_eq!(by_olga, ["member_removed", "member_added", "tenant_updated", "tenant_status_changed"], "{audit:?}");
    // One of before, with its owner.
    let adopt = AdoptTenantRequest {
        tenant: "of-before".to_owned(),
        time_zone: "Etc/UTC".to_owned(),
        country: "DE".to_owned(),
        currency: "EUR".to_owned(),
        owner: Some("ada".to_owned()),
        named: true,
        reason,
    };
    tenants.adopt_tenant(harness.operator(adopt)).await.unwrap();
    let ada = harness.token_of("ada", "of-before").await;
    let request = ada.request(ListAuditEntriesRequest::default());
    let audit = ada.inner.clone().list_audit_entries(request).await.unwrap().into_inner().audit_entries;
    assert!(audit.len() == 2 && audit.iter().all(|entry| entry.actor == "operator:olga"), "{audit:?}");
}

#[tokio::test]
async fn a_status_that_is_set_again_is_said_again() {
    let harness = Harness::start().await;
    harness.owner("acme", "ann").await;
    for version in [2, 3] {
        assert_eq!(set(&harness, "acme", "suspended").await.unwrap().version, version);
    }
    let said = harness.events().await;
    let said: Vec<_> = said.iter().filter(|stored| stored.envelope.event_type.contains("status_changed")).collect();
    assert!(said.len() == 2 && said.iter().all(|stored| stored.text.contains(r#""status":"suspended""#)));
}

#[tokio::test]
async fn who_is_a_member_and_who_has_left_is_said_again() {
    let harness = Harness::start().await;
    let (ann, _eve) = (harness.owner("acme", "ann").await, harness.owner("globex", "eve").await);
    harness.member(&ann, "acme", ("bob", Role::Member)).await;
    let (kim, _) = harness.member(&ann, "acme", ("kim", Role::Viewer)).await;
    ann.inner
        .clone()
        .delete_member(ann.request(DeleteMemberRequest { id: kim.id, etag: String::new() }))
        .await
        .unwrap();
    let (before, audited) = (harness.events().await.len(), harness.count("audit").await);
    let of = |tenant: &str| RepublishTenantRequest { tenant: tenant.to_owned(), reason: "todo is new".to_owned() };
    let mut tenants = tenants(&harness).await;
    let republished = tenants.republish_tenant(harness.operator(of("acme"))).await.unwrap().into_inner();
    assert_eq!(republished.members, 2);
    let said = harness.events().await;
    let said: Vec<_> = said[before..]
        .iter()
        .map(|event| (event.envelope.event_type.as_str(), event.envelope.tenant.as_str()))
        .collect();
    let member = ("identity.member_updated.v1", "acme");
    let gone = ("identity.member_removed.v1", "acme");
    assert_eq!(said, [("identity.tenant_status_changed.v1", "acme"), gone, member, member]);
    assert_eq!(harness.count("audit").await, audited, "nobody got anything by it");
    // She goes on as before, by what she has read.
    let read = ann.inner.clone().get_tenant(ann.request(GetTenantRequest {})).await.unwrap().into_inner();
    assert_eq!((read.status, read.version), (TenantStatus::Active.into(), 2));
    for (wrong, code) in [(of("nobody"), Code::NotFound), (of("A"), Code::InvalidArgument)] {
        assert_eq!(tenants.republish_tenant(harness.operator(wrong)).await.unwrap_err().code(), code);
    }
    let refused = tenants.republish_tenant(Request::new(of("acme"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn every_rpc_for_operators_refuses_whatever_is_no_operators_token() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let key = ann.create_key(Role::Admin, &["identity:read"]).await.unwrap().key;
    let carried = harness.client_with(None).exchange_by(carrying(&harness, &ann.token())).await.unwrap().access_token;
    let olga = harness.issuer.operator("olga").replace("Bearer ", "");
    let no_credentials = [
        ("nothing", None),
        ("an owner's", Some(ann.token())),
        ("a provider's", Some(harness.issuer.person("ann", "ann@x.example"))),
        ("a key", Some(key)),
        ("a service's", Some(carried)),
        ("an assertion", Some(harness.issuer.assertion("todo", "todo"))),
        ("a broken one", Some(olga[..olga.len() - 4].to_owned())),
    ];
    let channel = Channel::from_shared(format!("http://{}", harness.ops)).unwrap().connect().await.unwrap();
    let mut tried = 0;
    for name in ["TenantService", "DataService", "AggregateService", "OutboxService"] {
        let service = proto::POOL.get_service_by_name(&format!("flotilla.ops.v1.{name}")).unwrap();
        for rpc in service.methods() {
            for (who, credential) in &no_credentials {
                let mut grpc = tonic::client::Grpc::new(channel.clone());
                grpc.ready().await.unwrap();
                let request = match credential {
                    Some(credential) => with(&format!("Bearer {credential}"), ()),
                    None => Request::new(()),
                };
                let path = format!("/{}/{}", service.full_name(), rpc.name()).parse().unwrap();
                let refused = grpc.unary(request, path, ProstCodec::<(), ()>::default()).await.unwrap_err();
                assert_eq!(refused.code(), Code::Unauthenticated, "{name}/{} with {who}: {refused}", rpc.name());
                tried += 1;
            }
        }
    }
    assert!(tried >= 7 * 15, "{tried}");
}

#[tokio::test]
async fn nobody_but_an_operator_suspends_and_what_is_wrong_is_said() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let mut tenants = tenants(&harness).await;
    let owner = harness.issuer.bearer_with("acme", &ann.user().await, &serde_json::json!({"role": "owner"}));
    for request in [Request::new(status("acme", "suspended", "x")), with(&owner, status("acme", "suspended", "x"))] {
        assert_eq!(tenants.set_tenant_status(request).await.unwrap_err().code(), Code::Unauthenticated);
    }
    for wrong in [status("acme", "suspended", " "), status("acme", "gone", "x"), status("A", "active", "x")] {
        let refused = tenants.set_tenant_status(harness.operator(wrong.clone())).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{wrong:?}");
    }
    assert_eq!(reason(set(&harness, "globex", "suspended").await), "TENANT_NOT_FOUND");
    assert_eq!(harness.count("tenant where status = 'suspended'").await, 0);
}

#[tokio::test]
async fn operators_list_tenants_and_the_links_to_open_invitations() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    harness.owner("globex", "eve").await;
    set(&harness, "globex", "suspended").await.unwrap();
    let mut tenants = tenants(&harness).await;
    let mut list = async |after: &str, limit| {
        let request = harness.operator(ListTenantsRequest { after: after.to_owned(), limit });
        let mut all = tenants.list_tenants(request).await.unwrap().into_inner();
        let mut shown = Vec::new();
        while let Some(tenant) = all.message().await.unwrap() {
            shown.push(format!("{} {}", tenant.id, tenant.status));
        }
        shown
    };
    assert_eq!(list("", 10).await, ["acme active", "globex suspended"]);
    assert_eq!(
        (list("", 1).await, list("acme", 10).await),
        (vec!["acme active".to_owned()], vec!["globex suspended".to_owned()])
    );
    let made = ann.invite("bob@x.example", Role::Viewer).await.unwrap();
    let mut tenants = self::tenants(&harness).await;
    let request = |tenant: &str| harness.operator(ListOpenInvitationsRequest { tenant: tenant.to_owned(), limit: 10 });
    let mut open = tenants.list_open_invitations(request("acme")).await.unwrap().into_inner();
    let shown = open.message().await.unwrap().unwrap();
    assert_eq!((shown.email.as_str(), shown.role.as_str(), &shown.link), ("bob@x.example", "viewer", &made.link));
    assert!(open.message().await.unwrap().is_none());
    assert_eq!(reason(tenants.list_open_invitations(request("nobody")).await.map(drop)), "TENANT_NOT_FOUND");
}
