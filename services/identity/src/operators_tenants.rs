//! The tenants, as operators see them.

use contracts::{TenantId, UserId};
use proto::ops::tenant_service_server::{TenantService, TenantServiceServer};
use proto::ops::{
    ListOpenInvitationsRequest, ListTenantsRequest, OpenInvitation, OperatedTenant, SetTenantStatusRequest,
};
use proto::timestamp;
use service::operators::{Answers, act, answers, limit};
use service::{Call, Failure, Process};
use tonic::{Request, Response, Status};

use crate::commands::App;
use crate::commands_operators as commands;
use crate::invitation::Invitation;
use crate::people::Links;
use crate::tenant::Tenant;

/// The most that one answer has.
const MOST: i64 = 1_000;

struct Operated {
    app: App,
    service: UserId,
    links: Links,
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
    links: Links,
) -> Result<TenantServiceServer<impl TenantService + use<>>, anyhow::Error> {
    Ok(TenantServiceServer::new(Operated { app, service: process.acts_as()?, links }))
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
        act(&request, &request.get_ref().reason)?;
        let SetTenantStatusRequest { tenant: slug, status, reason: _ } = request.into_inner();
        let call = self.call(named("tenant", &slug)?);
        let set = commands::set_status(&self.app, &call, named("status", &status)?).await.map_err(Failure::from)?;
        Ok(Response::new(tenant(&set)))
    }
}
