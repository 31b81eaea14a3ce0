//! The tenants, as operators see them.

use contracts::{TenantId, UserId};
use proto::ops::tenant_service_server::{TenantService, TenantServiceServer};
use proto::ops::{
    AdmitMemberRequest, AdmittedMember, AdoptTenantRequest, AdoptedTenant, Adoption, EndStepUpRequest,
    FinishAdoptionRequest, GetAdoptionRequest, ListOpenInvitationsRequest, ListTenantsRequest, OpenInvitation,
    OperatedTenant, RepublishTenantRequest, RepublishedTenant, SetTenantStatusRequest,
};
use proto::timestamp;
use service::operators::{Answers, act, answers, limit};
use service::{Call, Failure, Process};
use tonic::{Request, Response, Status};

use crate::Config;
use crate::commands::App;
use crate::commands_adoption::{self, Adopted, Owner};
use crate::commands_operators as commands;
use crate::invitation::Invitation;
use crate::people::Links;
use crate::tenant::{Tenant, TenantDraft};
use crate::texts::{Country, Currency, Name, TimeZone};

/// The most that one answer has.
const MOST: i64 = 1_000;

struct Operated {
    app: App,
    service: UserId,
    links: Links,
    /// The people's provider.
    provider: String,
    /// The issuer of the fleet's tokens.
    issuer: String,
    /// Whether this is a developer's machine.
    local: bool,
}

impl Operated {
    /// The service's own call in a tenant.
    fn call(&self, tenant: TenantId) -> Call {
        Call::of_schedule(tenant, self.service.clone())
    }
}

/// The tenants, for operators ([`Process::operate`]).
///
/// # Errors
/// The service's name is no id.
pub(crate) fn tenants(
    process: &Process,
    app: App,
    config: &Config,
) -> Result<TenantServiceServer<impl TenantService + use<>>, anyhow::Error> {
    let (service, links) = (process.acts_as()?, config.people.links.clone());
    let (provider, issuer) = (config.people.provider.provider.clone(), config.common.issuer.name.clone());
    let local = config.common.issuer.local;
    Ok(TenantServiceServer::new(Operated { app, service, links, provider, issuer, local }))
}

fn tenant(tenant: &Tenant) -> OperatedTenant {
    let Tenant { slug, name, status, create_time, version, .. } = tenant;
    OperatedTenant {
        id: slug.to_string(),
        name: name.as_str().to_owned(),
        status: status.as_str().to_owned(),
        create_time: Some(timestamp(*create_time)),
        version: *version,
    }
}

/// As many as a request asks for, and no more than [`MOST`].
fn at_most(asked: i64) -> Result<usize, Status> {
    usize::try_from(limit(asked)?.min(MOST)).map_err(|error| Status::internal(error.to_string()))
}

fn named<T: std::str::FromStr<Err: std::fmt::Display>>(what: &str, text: &str) -> Result<T, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("the {what}: {error}")))
}

#[tonic::async_trait]
impl TenantService for Operated {
    type ListTenantsStream = Answers<OperatedTenant>;

    async fn list_tenants(
        &self,
        request: Request<ListTenantsRequest>,
    ) -> Result<Response<Answers<OperatedTenant>>, Status> {
        let ListTenantsRequest { after, limit } = request.into_inner();
        let (mut after, mut found, most) = (after, Vec::new(), at_most(limit)?);
        while found.len() < most {
            let Some(next) = commands::next_tenant(&self.app, &after).await.map_err(Failure::from)? else { break };
            after = next.to_string();
            let shown = commands::tenant(&self.app, &self.call(next)).await.map_err(Failure::from)?;
            found.extend(shown.as_ref().map(tenant));
        }
        Ok(answers(found))
    }

    type ListOpenInvitationsStream = Answers<OpenInvitation>;

    async fn list_open_invitations(
        &self,
        request: Request<ListOpenInvitationsRequest>,
    ) -> Result<Response<Answers<OpenInvitation>>, Status> {
        let ListOpenInvitationsRequest { tenant, limit } = request.into_inner();
        let call = self.call(named("tenant", &tenant)?);
        let found = commands::invitations(&self.app, &call, at_most(limit)?).await.map_err(Failure::from)?;
        let shown = |Invitation { id, email, role, expire_time, .. }: &Invitation| OpenInvitation {
            id: id.to_string(),
            email: email.as_str().to_owned(),
            role: role.as_str().to_owned(),
            expire_time: Some(timestamp(*expire_time)),
            link: self.links.to(*id),
        };
        Ok(answers(found.iter().map(shown).collect()))
    }

    async fn set_tenant_status(
        &self,
        request: Request<SetTenantStatusRequest>,
    ) -> Result<Response<OperatedTenant>, Status> {
        let (operator, _) = act(&request, &request.get_ref().reason)?;
        let SetTenantStatusRequest { tenant: slug, status, reason: _ } = request.into_inner();
        let call = self.call(named("tenant", &slug)?).had_by(operator);
        let set = commands::set_status(&self.app, &call, named("status", &status)?).await.map_err(Failure::from)?;
        Ok(Response::new(tenant(&set)))
    }

    async fn republish_tenant(
        &self,
        request: Request<RepublishTenantRequest>,
    ) -> Result<Response<RepublishedTenant>, Status> {
        let (operator, _) = act(&request, &request.get_ref().reason)?;
        let call = self.call(named("tenant", &request.get_ref().tenant)?).had_by(operator);
        let members = commands::republish(&self.app, &call).await.map_err(Failure::from)?;
        Ok(Response::new(RepublishedTenant { members }))
    }

    async fn end_step_up(&self, request: Request<EndStepUpRequest>) -> Result<Response<OperatedTenant>, Status> {
        let (operator, _) = act(&request, &request.get_ref().reason)?;
        let call = self.call(named("tenant", &request.get_ref().tenant)?).had_by(operator);
        let ended = commands::end_step_up(&self.app, &call).await.map_err(Failure::from)?;
        Ok(Response::new(tenant(&ended)))
    }

    async fn adopt_tenant(&self, request: Request<AdoptTenantRequest>) -> Result<Response<AdoptedTenant>, Status> {
        let (operator, _) = act(&request, &request.get_ref().reason)?;
        let AdoptTenantRequest { tenant, time_zone, country, currency, owner, named: by_name, reason: _ } =
            request.into_inner();
        let refused = |what: &'static str| move |error| Status::invalid_argument(format!("the {what}: {error}"));
        let draft = TenantDraft {
            name: Name::parse(&tenant).map_err(refused("tenant"))?,
            time_zone: TimeZone::parse(&time_zone).map_err(refused("time zone"))?,
            country: Country::parse(&country).map_err(refused("country"))?,
            currency: Currency::parse(&currency).map_err(refused("currency"))?,
            billing_email: None,
        };
        let user: Option<UserId> = owner.map(|owner| named("owner", &owner)).transpose()?;
        let owner = user.as_ref().map(|user| Owner { issuer: &self.provider, user, named: by_name });
        let call = self.call(named("tenant", &tenant)?).had_by(operator);
        let adopted = commands_adoption::adopt(&self.app, &call, draft, owner).await.map_err(Failure::from)?;
        Ok(Response::new(match adopted {
            Some(Adopted { made, owner, has_owner }) => {
                AdoptedTenant { made, erased: false, owner: owner.map(|owner| owner.to_string()), has_owner }
            }
            None => AdoptedTenant { erased: true, ..AdoptedTenant::default() },
        }))
    }

    async fn finish_adoption(&self, request: Request<FinishAdoptionRequest>) -> Result<Response<Adoption>, Status> {
        act(&request, &request.get_ref().reason)?;
        commands_adoption::finish(&self.app).await.map_err(Failure::from)?;
        Ok(Response::new(Adoption { done: true }))
    }

    async fn get_adoption(&self, _request: Request<GetAdoptionRequest>) -> Result<Response<Adoption>, Status> {
        let done = commands_adoption::is_finished(&self.app).await.map_err(Failure::from)?;
        Ok(Response::new(Adoption { done }))
    }

    async fn admit_member(&self, request: Request<AdmitMemberRequest>) -> Result<Response<AdmittedMember>, Status> {
        let (operator, _) = act(&request, &request.get_ref().reason)?;
        if !self.local {
            return Err(Status::failed_precondition(
                "operators let nobody into a tenant, but on a developer's machine (FLOTILLA_LOCAL): its owners invite",
            ));
        }
        let AdmitMemberRequest { tenant, user, role, reason: _ } = request.into_inner();
        let (call, user) = (self.call(named("tenant", &tenant)?).had_by(operator), named("user", &user)?);
        let admitted = commands_adoption::admit(&self.app, &call, (&self.issuer, &user), named("role", &role)?).await;
        let role = admitted.map_err(Failure::from)?;
        Ok(Response::new(AdmittedMember { role: role.as_str().to_owned() }))
    }
}
