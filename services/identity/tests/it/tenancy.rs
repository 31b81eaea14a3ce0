//! No tenant sees or changes another's, through the service or through the database alone.

use proto::identity::{
    ApiKey, CreateApiKeyRequest, CreateInvitationRequest, CreateServiceAccountRequest, DeleteApiKeyRequest,
    DeleteGroupRequest, DeleteInvitationRequest, DeleteMemberRequest, DeleteServiceAccountRequest, GetApiKeyRequest,
    GetGroupRequest, GetInvitationRequest, GetMeRequest, GetMemberRequest, GetServiceAccountRequest, GetTenantRequest,
    Group, Invitation, ListApiKeysRequest, ListAuditEntriesRequest, ListGroupsRequest, ListInvitationsRequest,
    ListMembersRequest, ListServiceAccountsRequest, Member, Role, RotateApiKeyRequest, ServiceAccount, Tenant,
    UpdateGroupRequest, UpdateMemberRequest, UpdateServiceAccountRequest, UpdateTenantRequest,
};
use service::policy::Policy;
use testkit::catalog;
use tonic::Code;

use crate::harness::{Client, Harness, reason};

/// The ids of what a tenant has.
#[derive(Debug, Clone, Default)]
pub struct Ids {
    pub member: String,
    pub invitation: String,
    pub group: String,
    pub account: String,
    pub key: String,
}

/// Every RPC of the service that is not public.
pub fn rpcs() -> Vec<String> {
    named(|policy| !policy.public)
}

/// Those that are.
pub fn public() -> Vec<String> {
    named(|policy| policy.public)
}

fn named(is_one: fn(Policy) -> bool) -> Vec<String> {
    let service = proto::POOL.get_service_by_name("flotilla.identity.v1.IdentityService").unwrap();
    service.methods().filter(|rpc| is_one(Policy::of(rpc))).map(|rpc| rpc.name().to_owned()).collect()
}

/// Calls an RPC; returns how many its answer shows.
pub async fn call(client: &Client, rpc: &str, ids: &Ids) -> Result<usize, tonic::Status> {
    let (mut inner, Ids { member, invitation, group, account, key }) = (client.inner.clone(), ids.clone());
    let viewer = Role::Viewer.into();
    match rpc {
        "GetTenant" => inner.get_tenant(client.request(GetTenantRequest {})).await.map(|_| 1),
        "UpdateTenant" => {
            let tenant = Some(Tenant { name: "mine now".to_owned(), ..Tenant::default() });
            inner.update_tenant(client.request(UpdateTenantRequest { tenant, update_mask: None })).await.map(|_| 1)
        }
        "GetMe" => inner.get_me(client.request(GetMeRequest {})).await.map(|_| 0),
        "ListAuditEntries" => {
            let list = inner.list_audit_entries(client.request(ListAuditEntriesRequest::default())).await;
            list.map(|list| list.into_inner().audit_entries.len())
        }
        "GetMember" => inner.get_member(client.request(GetMemberRequest { id: member })).await.map(|_| 1),
        "ListMembers" => {
            let list = inner.list_members(client.request(ListMembersRequest::default())).await;
            list.map(|list| list.into_inner().members.len())
        }
        "UpdateMember" => {
            let new = Some(Member { role: viewer, ..Member::default() });
            let request = UpdateMemberRequest { id: member, member: new, update_mask: None };
            inner.update_member(client.request(request)).await.map(|_| 1)
        }
        "DeleteMember" => {
            let request = DeleteMemberRequest { id: member, etag: String::new() };
            inner.delete_member(client.request(request)).await.map(|_| 1)
        }
        "CreateInvitation" => {
            let invitation =
                Some(Invitation { email: "x@x.example".to_owned(), role: viewer, ..Invitation::default() });
            inner.create_invitation(client.request(CreateInvitationRequest { invitation })).await.map(|_| 0)
        }
        "GetInvitation" => {
            inner.get_invitation(client.request(GetInvitationRequest { id: invitation })).await.map(|_| 1)
        }
        "ListInvitations" => {
            let list = inner.list_invitations(client.request(ListInvitationsRequest::default())).await;
            list.map(|list| list.into_inner().invitations.len())
        }
        "DeleteInvitation" => {
            inner.delete_invitation(client.request(DeleteInvitationRequest { id: invitation })).await.map(|_| 1)
        }
        "CreateGroup" => client.create_group(&[]).await.map(|_| 0),
        "GetGroup" => inner.get_group(client.request(GetGroupRequest { id: group })).await.map(|_| 1),
        "ListGroups" => {
            let list = inner.list_groups(client.request(ListGroupsRequest::default())).await;
            list.map(|list| list.into_inner().groups.len())
        }
        "UpdateGroup" => {
            let new = Some(Group { name: "y".to_owned(), ..Group::default() });
            let request = UpdateGroupRequest { id: group, group: new, update_mask: None };
            inner.update_group(client.request(request)).await.map(|_| 1)
        }
        "DeleteGroup" => {
            let request = DeleteGroupRequest { id: group, etag: String::new() };
            inner.delete_group(client.request(request)).await.map(|_| 1)
        }
        "CreateServiceAccount" => {
            let account = ServiceAccount { name: "x".to_owned(), role: viewer, ..ServiceAccount::default() };
            let request = CreateServiceAccountRequest { service_account: Some(account) };
            inner.create_service_account(client.request(request)).await.map(|_| 0)
        }
        "GetServiceAccount" => {
            inner.get_service_account(client.request(GetServiceAccountRequest { id: account })).await.map(|_| 1)
        }
        "ListServiceAccounts" => {
            let list = inner.list_service_accounts(client.request(ListServiceAccountsRequest::default())).await;
            list.map(|list| list.into_inner().service_accounts.len())
        }
        "UpdateServiceAccount" => {
            let new = Some(ServiceAccount { name: "y".to_owned(), ..ServiceAccount::default() });
            let request = UpdateServiceAccountRequest { id: account, service_account: new, update_mask: None };
            inner.update_service_account(client.request(request)).await.map(|_| 1)
        }
        // One of its own: the keys go with it.
        "DeleteServiceAccount" => {
            let own = client.create_account(Role::Viewer).await.map_or(account, |account| account.id);
            let request = DeleteServiceAccountRequest { id: own, etag: String::new() };
            inner.delete_service_account(client.request(request)).await.map(|_| 1)
        }
        "CreateApiKey" => {
            let scopes = vec!["todo:read".to_owned()];
            let (service_account, name) = (account, "x".to_owned());
            let api_key = Some(ApiKey { service_account, name, scopes, ..ApiKey::default() });
            inner.create_api_key(client.request(CreateApiKeyRequest { api_key })).await.map(|_| 0)
        }
        "GetApiKey" => inner.get_api_key(client.request(GetApiKeyRequest { id: key })).await.map(|_| 1),
        "ListApiKeys" => {
            let list = inner.list_api_keys(client.request(ListApiKeysRequest::default())).await;
            list.map(|list| list.into_inner().api_keys.len())
        }
        "RotateApiKey" => {
            let request = RotateApiKeyRequest { id: key, overlap: None };
            inner.rotate_api_key(client.request(request)).await.map(|_| 1)
        }
        "DeleteApiKey" => inner.delete_api_key(client.request(DeleteApiKeyRequest { id: key })).await.map(|_| 1),
        other => panic!("{other} has no denial test: say here how it is called"),
    }
}

/// What a tenant has beside its owner: a member, an invitation, a group of the member and a key.
pub async fn furnished(harness: &Harness, owner: &Client, tenant: &str) -> Ids {
    let (member, _) = harness.member(owner, tenant, (&testkit::unique("member-"), Role::Member)).await;
    let invitation = owner.invite("guest@x.example", Role::Member).await.unwrap();
    let key = owner.create_key(Role::Member, &["todo:read"]).await.unwrap();
    let group = owner.create_group(&[&member.id]).await.unwrap();
    Ids { member: member.id, invitation: invitation.id, group: group.id, account: key.service_account, key: key.id }
}

#[tokio::test]
async fn another_tenant_finds_nothing_by_any_call() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let ids = furnished(&harness, &ann, "acme").await;
    // The same person, in another tenant.
    let other = harness.owner("globex", "ann").await;
    for rpc in rpcs() {
        let result = call(&other, &rpc, &ids).await;
        match rpc.as_str() {
            "GetMe"
            | "GetTenant"
            | "UpdateTenant"
            | "CreateInvitation"
            | "CreateGroup"
            | "CreateServiceAccount"
            | "DeleteServiceAccount" => assert!(result.is_ok(), "{rpc}: {result:?}"),
            "ListMembers" | "ListInvitations" | "ListGroups" | "ListServiceAccounts" => {
                assert_eq!(result.unwrap(), 1, "{rpc} shows its own");
            }
            "ListAuditEntries" => assert!(result.unwrap() < 10, "its own"),
            "ListApiKeys" => assert_eq!(result.unwrap(), 0, "it has none"),
            rpc if rpc.ends_with("ServiceAccount") || rpc == "CreateApiKey" => {
                assert_eq!(reason(result), "SERVICE_ACCOUNT_NOT_FOUND", "{rpc}");
            }
            rpc if rpc.ends_with("Group") => assert_eq!(reason(result), "GROUP_NOT_FOUND", "{rpc}"),
            rpc if rpc.ends_with("Member") => assert_eq!(reason(result), "MEMBER_NOT_FOUND", "{rpc}"),
            rpc if rpc.ends_with("Invitation") => assert_eq!(reason(result), "INVITATION_NOT_FOUND", "{rpc}"),
            rpc => assert_eq!(reason(result), "API_KEY_NOT_FOUND", "{rpc}"),
        }
    }
    let foreign = DeleteServiceAccountRequest { id: ids.account.clone(), etag: String::new() };
    let refused = other.inner.clone().delete_service_account(other.request(foreign)).await;
    assert_eq!(reason(refused), "SERVICE_ACCOUNT_NOT_FOUND");
    for rpc in ["GetMember", "GetInvitation", "GetGroup", "GetServiceAccount", "GetApiKey"] {
        assert_eq!(call(&ann, rpc, &ids).await.unwrap(), 1, "{rpc}");
    }
}

#[tokio::test]
async fn no_call_is_answered_without_a_good_token() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let ids = furnished(&harness, &ann, "acme").await;
    let provider = Some(format!("Bearer {}", harness.issuer.person("ann", "ann@x.example")));
    for bearer in harness.issuer.refused().into_iter().chain([provider]) {
        for rpc in rpcs() {
            let result = call(&harness.client_with(bearer.clone()), &rpc, &ids).await;
            assert_eq!(result.unwrap_err().code(), Code::Unauthenticated, "{rpc} with {bearer:?}");
        }
    }
}

#[tokio::test]
async fn every_table_is_a_tenants_or_listed() {
    let database = crate::harness::database().await;
    catalog::every_table_is_a_tenants_or_listed(
        &database,
        "identity",
        &[
            "api_key",
            "audit",
            "idempotency",
            "invitation",
            "member",
            "member_group",
            "outbox",
            "service_account",
            "tenant",
        ],
    )
    .await;
    catalog::no_function_is_led_to_a_callers_tables(&database).await;
}
