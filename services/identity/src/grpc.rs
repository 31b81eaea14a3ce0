//! The gRPC server: reads a request, runs one command, writes the response.

use std::sync::Arc;

use authz::Person;
use authz::exchange::ACCESS_TOKEN;
use aws_lc_rs::rand;
use contracts::events::identity::{ApiKeyId, GroupId, InvitationId, MemberId, ServiceAccountId};
use contracts::{TenantId, UserId};
use prost::Message;
use proto::identity as pb;
use proto::identity::identity_service_server::IdentityService;
use service::grpc::{authorization, reading, writing};
use service::idempotency::{Attempt, Key};
use service::page::{self, PageTokens};
use service::{Call, Failure, IfMatch, Process, retry};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::api_key::KeySecret;
use crate::commands::{in_person, user_of};
use crate::commands_exchange::{Verifiers, exchange};
use crate::invitation::Invitation;
use crate::people::{self, Links, SignUp};
use crate::service_account::ServiceAccount;
use crate::store_audit::Entry;
use crate::tokens::{Signed, Signer};
use crate::{
    Config, commands, commands_groups, commands_invitations, commands_programs, commands_tenant, permissions, wire,
};

/// The implementation of `flotilla.identity.v1.IdentityService`.
pub struct Identity {
    /// The dependencies of the commands.
    pub app: commands::App,
    /// For lists.
    pub pages: PageTokens,
    /// Verify credentials.
    pub verifiers: Verifiers,
    /// Signs the fleet's tokens.
    pub signer: Signer,
    /// Who may sign up.
    pub sign_up: SignUp,
    /// Lead to invitations.
    pub links: Links,
    /// How much a caller may have of each process.
    pub limits: pb::Limits,
}

type RpcResult<T> = Result<Response<T>, Status>;

impl Identity {
    /// As the configuration says.
    ///
    /// # Errors
    /// The signing keys cannot be read, or no HTTP client can be made.
    pub fn of(config: &Config, process: &Process, app: commands::App) -> Result<Self, anyhow::Error> {
        let Config { common, pages, people, signing, .. } = config;
        let people::People { provider, links, sign_up } = people.clone();
        let signer = Signer::new(&signing.signing_keys, &common.issuer.name, &common.audience)?;
        service::config::refuse_development(&provider.provider, common.issuer.local)?;
        let (pages, people) = (process.page_tokens(pages), Arc::new(provider.verifier()?));
        process.looks_at("keys that sign tokens", &signing.signing_keys);
        if let Some(keys) = &signing.service_keys {
            process.looks_at("keys of services", keys);
        }
        // Whoever signed in before a provider went down goes on. Programs need none of it, so nothing waits for them.
        let keys = Arc::clone(&people);
        process.lifecycle.run("the provider's keys", |stop| async move {
            stop.run_until_cancelled(retry::retry_forever("the provider's keys", || keys.refresh())).await;
            stop.cancelled().await;
        });
        let (tenant_rate, principal_rate) = (common.admission.tenant_rate.get(), common.admission.principal_rate.get());
        let limits = pb::Limits { tenant_rate, principal_rate };
        let (fleet, issuer, service_keys) =
            (process.verifier(common)?, common.issuer.name.clone(), signing.service_keys.clone());
        let verifiers = Verifiers { people, fleet, issuer, service_keys };
        Ok(Self { app, pages, verifiers, signer, sign_up, links, limits })
    }

    /// The person who calls a public method, with the provider's token.
    async fn person<T>(&self, request: &Request<T>) -> Result<(Person, UserId), Failure> {
        let token = authorization(request.metadata().as_ref())?.and_then(|value| value.to_str().ok());
        let person = self.verifiers.people.verify(token).await?;
        let user = user_of(&self.app, &person).await?;
        Ok((person, user))
    }

    /// An invitation as its tenant sees it.
    fn linked(&self, invitation: &Invitation) -> pb::Invitation {
        pb::Invitation { link: self.links.to(invitation.id), ..wire::invitation(invitation) }
    }
}

/// The call of a person in a tenant, with the key that the method requires.
fn personal<T: Message>(
    request: Request<T>,
    method: &'static str,
    (tenant, user): (TenantId, UserId),
) -> Result<(Call, T), Failure> {
    let (key, caller) = (Key::required(request.metadata().as_ref())?, in_person(tenant, user));
    let request = request.into_inner();
    let attempt = Attempt::new(&caller, method, key, &request);
    Ok((Call::of_request(caller, Some(attempt)), request))
}

#[tonic::async_trait]
impl IdentityService for Identity {
    async fn create_tenant(&self, request: Request<pb::CreateTenantRequest>) -> RpcResult<pb::Tenant> {
        let (person, user) = self.person(&request).await?;
        let (slug, draft) = wire::tenant_draft(request.get_ref().tenant.as_ref())?;
        let (call, _) = personal(request, "CreateTenant", (slug, user))?;
        response(commands_tenant::sign_up(&self.app, &call, (&person, &self.sign_up), draft).await, wire::tenant)
    }

    async fn get_tenant(&self, request: Request<pb::GetTenantRequest>) -> RpcResult<pb::Tenant> {
        let (call, pb::GetTenantRequest {}) = reading(request)?;
        response(commands_tenant::get_tenant(&self.app, &call).await, wire::tenant)
    }

    async fn update_tenant(&self, request: Request<pb::UpdateTenantRequest>) -> RpcResult<pb::Tenant> {
        let (call, request) = writing(request, "UpdateTenant")?;
        let (if_match, patch) = wire::tenant_patch(request.tenant.as_ref(), request.update_mask.as_ref())?;
        response(commands_tenant::update_tenant(&self.app, &call, &if_match, patch).await, wire::tenant)
    }

    async fn get_me(&self, request: Request<pb::GetMeRequest>) -> RpcResult<pb::Me> {
        let (call, pb::GetMeRequest {}) = reading(request)?;
        call.authorize(&permissions::GET_ME).map_err(Failure::from)?;
        let caller = call.caller;
        Ok(Response::new(pb::Me {
            tenant: caller.tenant.to_string(),
            actor: caller.actor.to_string(),
            role: caller.role.map_or(pb::Role::Unspecified, wire::role_of).into(),
            scopes: caller.scopes.unwrap_or_default(),
            limits: Some(self.limits),
            task: caller.issued.and_then(|issued| issued.task.clone()).unwrap_or_default(),
        }))
    }

    async fn list_audit_entries(
        &self,
        request: Request<pb::ListAuditEntriesRequest>,
    ) -> RpcResult<pb::ListAuditEntriesResponse> {
        let (call, request) = reading(request)?;
        let size = page::size(request.page_size)?;
        let question = (call.caller.tenant.as_str(), "audit");
        let after: Option<Uuid> = self.pages.read(&question, &request.page_token)?;
        // One row more than requested shows whether there is a next page.
        let found = commands::list_audit(&self.app, &call, after, size + 1).await.map_err(Failure::from)?;
        let shown = (|entry: &Entry| entry.id, wire::audit_entry);
        let (audit_entries, next_page_token) = self.pages.page(&question, size, found, shown)?;
        Ok(Response::new(pb::ListAuditEntriesResponse { audit_entries, next_page_token }))
    }

    async fn get_member(&self, request: Request<pb::GetMemberRequest>) -> RpcResult<pb::Member> {
        let (call, request) = reading(request)?;
        response(commands::get_member(&self.app, &call, wire::member_id(&request.id)?).await, wire::member)
    }

    async fn list_members(&self, request: Request<pb::ListMembersRequest>) -> RpcResult<pb::ListMembersResponse> {
        let (call, request) = reading(request)?;
        let size = page::size(request.page_size)?;
        let user = service::wire::optional_id("user", &request.user)?;
        let question = (call.caller.tenant.as_str(), "members", &request.user);
        let after: Option<MemberId> = self.pages.read(&question, &request.page_token)?;
        // One row more than requested shows whether there is a next page.
        let found =
            commands::list_members(&self.app, &call, user.as_ref(), (after, size + 1)).await.map_err(Failure::from)?;
        let (members, next_page_token) = self.pages.page(&question, size, found, (|member| member.id, wire::member))?;
        Ok(Response::new(pb::ListMembersResponse { members, next_page_token }))
    }

    async fn update_member(&self, request: Request<pb::UpdateMemberRequest>) -> RpcResult<pb::Member> {
        let (call, request) = writing(request, "UpdateMember")?;
        let id = wire::member_id(&request.id)?;
        let (if_match, role) = wire::new_role(request.member.as_ref(), request.update_mask.as_ref())?;
        response(commands::change_role(&self.app, &call, id, &if_match, role).await, wire::member)
    }

    async fn delete_member(&self, request: Request<pb::DeleteMemberRequest>) -> RpcResult<()> {
        let (call, request) = writing(request, "DeleteMember")?;
        let (id, if_match) = (wire::member_id(&request.id)?, IfMatch::parse(&request.etag));
        response(commands::remove_member(&self.app, &call, id, &if_match).await, |()| ())
    }

    async fn create_invitation(&self, request: Request<pb::CreateInvitationRequest>) -> RpcResult<pb::Invitation> {
        let (call, request) = writing(request, "CreateInvitation")?;
        let draft = wire::invitation_draft(request.invitation.as_ref())?;
        response(commands_invitations::invite(&self.app, &call, draft).await, |made| self.linked(made))
    }

    async fn get_invitation(&self, request: Request<pb::GetInvitationRequest>) -> RpcResult<pb::Invitation> {
        let (call, request) = reading(request)?;
        let id = wire::invitation_id(&request.id)?;
        response(commands_invitations::get_invitation(&self.app, &call, id).await, |found| self.linked(found))
    }

    async fn list_invitations(
        &self,
        request: Request<pb::ListInvitationsRequest>,
    ) -> RpcResult<pb::ListInvitationsResponse> {
        let (call, request) = reading(request)?;
        let size = page::size(request.page_size)?;
        let question = (call.caller.tenant.as_str(), "invitations");
        let after: Option<InvitationId> = self.pages.read(&question, &request.page_token)?;
        // One row more than requested shows whether there is a next page.
        let found =
            commands_invitations::list_invitations(&self.app, &call, after, size + 1).await.map_err(Failure::from)?;
        let (invitations, next_page_token) =
            self.pages.page(&question, size, found, (|invitation| invitation.id, |found| self.linked(found)))?;
        Ok(Response::new(pb::ListInvitationsResponse { invitations, next_page_token }))
    }

    async fn delete_invitation(&self, request: Request<pb::DeleteInvitationRequest>) -> RpcResult<()> {
        let (call, request) = writing(request, "DeleteInvitation")?;
        let id = wire::invitation_id(&request.id)?;
        response(commands_invitations::withdraw(&self.app, &call, id).await, |()| ())
    }

    async fn accept_invitation(&self, request: Request<pb::AcceptInvitationRequest>) -> RpcResult<pb::Member> {
        let (person, user) = self.person(&request).await?;
        commands::profile(&person).map_err(Failure::from)?;
        let id = wire::invitation_id(&request.get_ref().id)?;
        let tenant = commands_invitations::invites_to(&self.app, id).await.map_err(Failure::from)?;
        let (call, _) = personal(request, "AcceptInvitation", (tenant, user))?;
        response(commands_invitations::accept(&self.app, &call, &person, id).await, wire::member)
    }

    async fn create_group(&self, request: Request<pb::CreateGroupRequest>) -> RpcResult<pb::Group> {
        let (call, request) = writing(request, "CreateGroup")?;
        let draft = wire::group_draft(request.group.as_ref())?;
        response(commands_groups::create_group(&self.app, &call, draft).await, wire::group)
    }

    async fn get_group(&self, request: Request<pb::GetGroupRequest>) -> RpcResult<pb::Group> {
        let (call, request) = reading(request)?;
        response(commands_groups::get_group(&self.app, &call, wire::group_id(&request.id)?).await, wire::group)
    }

    async fn list_groups(&self, request: Request<pb::ListGroupsRequest>) -> RpcResult<pb::ListGroupsResponse> {
        let (call, request) = reading(request)?;
        let size = page::size(request.page_size)?;
        let question = (call.caller.tenant.as_str(), "groups");
        let after: Option<GroupId> = self.pages.read(&question, &request.page_token)?;
        // One row more than requested shows whether there is a next page.
        let found = commands_groups::list_groups(&self.app, &call, after, size + 1).await.map_err(Failure::from)?;
        let (groups, next_page_token) = self.pages.page(&question, size, found, (|group| group.id, wire::group))?;
        Ok(Response::new(pb::ListGroupsResponse { groups, next_page_token }))
    }

    async fn update_group(&self, request: Request<pb::UpdateGroupRequest>) -> RpcResult<pb::Group> {
        let (call, request) = writing(request, "UpdateGroup")?;
        let id = wire::group_id(&request.id)?;
        let (if_match, patch) = wire::group_patch(request.group.as_ref(), request.update_mask.as_ref())?;
        response(commands_groups::update_group(&self.app, &call, id, &if_match, patch).await, wire::group)
    }

    async fn delete_group(&self, request: Request<pb::DeleteGroupRequest>) -> RpcResult<()> {
        let (call, request) = writing(request, "DeleteGroup")?;
        let (id, if_match) = (wire::group_id(&request.id)?, IfMatch::parse(&request.etag));
        response(commands_groups::delete_group(&self.app, &call, id, &if_match).await, |()| ())
    }

    async fn create_service_account(
        &self,
        request: Request<pb::CreateServiceAccountRequest>,
    ) -> RpcResult<pb::ServiceAccount> {
        let (call, request) = writing(request, "CreateServiceAccount")?;
        let draft = wire::service_account_draft(request.service_account.as_ref())?;
        let made = commands_programs::create_service_account(&self.app, &call, draft).await;
        response(made, wire::service_account)
    }

    async fn get_service_account(
        &self,
        request: Request<pb::GetServiceAccountRequest>,
    ) -> RpcResult<pb::ServiceAccount> {
        let (call, request) = reading(request)?;
        let id = wire::service_account_id(&request.id)?;
        response(commands_programs::get_service_account(&self.app, &call, id).await, wire::service_account)
    }

    async fn list_service_accounts(
        &self,
        request: Request<pb::ListServiceAccountsRequest>,
    ) -> RpcResult<pb::ListServiceAccountsResponse> {
        let (call, request) = reading(request)?;
        let size = page::size(request.page_size)?;
        let question = (call.caller.tenant.as_str(), "service accounts");
        let after: Option<ServiceAccountId> = self.pages.read(&question, &request.page_token)?;
        // One row more than requested shows whether there is a next page.
        let found = commands_programs::list_service_accounts(&self.app, &call, after, size + 1).await;
        let shown = (|account: &ServiceAccount| account.id, wire::service_account);
        let (service_accounts, next_page_token) =
            self.pages.page(&question, size, found.map_err(Failure::from)?, shown)?;
        Ok(Response::new(pb::ListServiceAccountsResponse { service_accounts, next_page_token }))
    }

    async fn update_service_account(
        &self,
        request: Request<pb::UpdateServiceAccountRequest>,
    ) -> RpcResult<pb::ServiceAccount> {
        let (call, request) = writing(request, "UpdateServiceAccount")?;
        let id = wire::service_account_id(&request.id)?;
        let (if_match, patch) =
            wire::service_account_patch(request.service_account.as_ref(), request.update_mask.as_ref())?;
        let updated = commands_programs::update_service_account(&self.app, &call, id, &if_match, patch).await;
        response(updated, wire::service_account)
    }

    async fn delete_service_account(&self, request: Request<pb::DeleteServiceAccountRequest>) -> RpcResult<()> {
        let (call, request) = writing(request, "DeleteServiceAccount")?;
        let (id, if_match) = (wire::service_account_id(&request.id)?, IfMatch::parse(&request.etag));
        response(commands_programs::delete_service_account(&self.app, &call, id, &if_match).await, |()| ())
    }

    async fn create_api_key(&self, request: Request<pb::CreateApiKeyRequest>) -> RpcResult<pb::ApiKey> {
        let (call, request) = writing(request, "CreateApiKey")?;
        let draft = wire::api_key_draft(request.api_key.as_ref())?;
        let made = commands_programs::create_api_key(&self.app, &call, draft, &secret()?).await;
        response(made, |(key, shown)| wire::api_key(key, shown.clone()))
    }

    async fn get_api_key(&self, request: Request<pb::GetApiKeyRequest>) -> RpcResult<pb::ApiKey> {
        let (call, request) = reading(request)?;
        let id = wire::api_key_id(&request.id)?;
        response(commands_programs::get_api_key(&self.app, &call, id).await, |key| wire::api_key(key, None))
    }

    async fn list_api_keys(&self, request: Request<pb::ListApiKeysRequest>) -> RpcResult<pb::ListApiKeysResponse> {
        let (call, request) = reading(request)?;
        let size = page::size(request.page_size)?;
        let question = (call.caller.tenant.as_str(), "api keys");
        let after: Option<ApiKeyId> = self.pages.read(&question, &request.page_token)?;
        // One row more than requested shows whether there is a next page.
        let found = commands_programs::list_api_keys(&self.app, &call, after, size + 1).await.map_err(Failure::from)?;
        let shown = (|key: &crate::api_key::ApiKey| key.id, |key: &crate::api_key::ApiKey| wire::api_key(key, None));
        let (api_keys, next_page_token) = self.pages.page(&question, size, found, shown)?;
        Ok(Response::new(pb::ListApiKeysResponse { api_keys, next_page_token }))
    }

    async fn rotate_api_key(&self, request: Request<pb::RotateApiKeyRequest>) -> RpcResult<pb::ApiKey> {
        let (call, request) = writing(request, "RotateApiKey")?;
        let which = (wire::api_key_id(&request.id)?, wire::overlap(request.overlap.as_ref())?);
        let made = commands_programs::rotate_api_key(&self.app, &call, which, &secret()?).await;
        response(made, |(key, shown)| wire::api_key(key, shown.clone()))
    }

    async fn delete_api_key(&self, request: Request<pb::DeleteApiKeyRequest>) -> RpcResult<()> {
        let (call, request) = writing(request, "DeleteApiKey")?;
        let id = wire::api_key_id(&request.id)?;
        response(commands_programs::revoke_api_key(&self.app, &call, id).await, |()| ())
    }

    async fn exchange_token(&self, request: Request<pb::ExchangeTokenRequest>) -> RpcResult<pb::ExchangeTokenResponse> {
        let request = request.into_inner();
        let wire::Exchange { credential, tenant, scope } = wire::exchange(&request)?;
        let grant = exchange(&self.app, &self.verifiers, credential, (tenant, scope)).await?;
        let Signed { token, seconds } = self.signer.sign(&grant)?;
        Ok(Response::new(pb::ExchangeTokenResponse {
            access_token: token,
            issued_token_type: ACCESS_TOKEN.to_owned(),
            token_type: "Bearer".to_owned(),
            expires_in: i32::try_from(seconds).unwrap_or_default(),
            scope: grant.scope.unwrap_or_default(),
        }))
    }
}

/// What only the holder of a new key will have.
fn secret() -> Result<KeySecret, Failure> {
    let mut drawn = [0; 32];
    rand::fill(&mut drawn).map_err(|_| Failure::internal(anyhow::anyhow!("the machine has no randomness")))?;
    Ok(KeySecret::new(drawn))
}

fn response<T, M>(result: Result<T, commands::Error>, message: impl FnOnce(&T) -> M) -> RpcResult<M> {
    result.map(|done| Response::new(message(&done))).map_err(|error| Failure::from(error).into())
}
