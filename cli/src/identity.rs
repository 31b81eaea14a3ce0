//! `flotilla identity`: the tenants as operators see them.

use anyhow::Context as _;
use clap::{Args, Subcommand};
use contracts::TenantId;
use proto::ops::{
    EndStepUpRequest, ListOpenInvitationsRequest, ListTenantsRequest, OpenInvitation, OperatedTenant,
    RepublishTenantRequest, SetTenantStatusRequest,
};
use serde_json::{Value, json};
use tonic::Code;

use crate::adoption::{self, AdoptArgs, Tenants, open};
use crate::context::Context;
use crate::operator::ActArgs;
use crate::outbox::say;
use crate::processes::{self, clock, said};
use crate::{audit, table};

#[derive(Debug, Clone, Args)]
pub struct IdentityArgs {
    #[command(subcommand)]
    command: IdentityCommand,
}

#[derive(Debug, Clone, Subcommand)]
enum IdentityCommand {
    /// List the tenants that are not erased, by their ids.
    Tenants {
        /// Those behind this id.
        #[arg(long, default_value = "", hide_default_value = true)]
        after: String,
        /// How many at most.
        #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(i64).range(1..=1_000))]
        limit: i64,
    },
    /// List the invitations of a tenant that may be taken up, with their links.
    Invitations {
        /// The tenant.
        tenant: TenantId,
        /// How many at most.
        #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(i64).range(1..=1_000))]
        limit: i64,
    },
    /// Make the tenants that services, streams or indexes know and identity does not, each with who made its oldest aggregate as its owner. Before,
    /// nobody signs up.
    Adopt(AdoptArgs),
    /// Publish again by events whether each tenant may write, who its members are and who has left, for a service that has not heard of it: a new one,
    /// or one whose database was restored. Each member gets a next version and a new update time.
    Republish {
        /// The tenant; without it, all.
        tenant: Option<TenantId>,
        #[command(flatten)]
        act: ActArgs,
    },
    /// End what a tenant demands of a sign-in before marked acts, where nobody there can sign in so any more.
    EndStepUp {
        /// The tenant.
        tenant: TenantId,
        #[command(flatten)]
        act: ActArgs,
    },
    /// Let a tenant read and not write. What the services do by themselves goes on. Repeated, it tells them anew.
    Suspend {
        /// The tenant.
        tenant: TenantId,
        #[command(flatten)]
        act: ActArgs,
    },
    /// Let a suspended tenant write again.
    Resume {
        /// The tenant.
        tenant: TenantId,
        #[command(flatten)]
        act: ActArgs,
    },
}

pub async fn run(context: &Context, args: &IdentityArgs) -> Result<(), anyhow::Error> {
    match &args.command {
        IdentityCommand::Tenants { after, limit } => tenants(context, after.clone(), *limit).await,
        IdentityCommand::Invitations { tenant, limit } => invitations(context, tenant, *limit).await,
        IdentityCommand::Adopt(args) => adoption::run(context, args).await,
        IdentityCommand::Republish { tenant, act } => republish(context, tenant.as_ref(), act).await,
        IdentityCommand::EndStepUp { tenant, act } => end_step_up(context, tenant, act).await,
        IdentityCommand::Suspend { tenant, act } => {
            let question = format!("Suspend the tenant {tenant}? It reads, and all its writes are refused.");
            set(context, tenant, ("suspended", "suspend tenant"), (&question, act)).await
        }
        IdentityCommand::Resume { tenant, act } => {
            let question = format!("Let the tenant {tenant} write again?");
            set(context, tenant, ("active", "resume tenant"), (&question, act)).await
        }
    }
}

async fn tenants(context: &Context, after: String, limit: i64) -> Result<(), anyhow::Error> {
    let all = processes::all(open(context).await?.list_tenants(ListTenantsRequest { after, limit }).await).await?;
    if context.json {
        println!("{}", Value::Array(all.iter().map(processes::json).collect::<Result<_, _>>()?));
        return Ok(());
    }
    let row = |tenant: &OperatedTenant| {
        let OperatedTenant { id, name, status, create_time, version } = tenant;
        vec![id.clone(), name.clone(), status.clone(), clock(create_time.as_ref()), version.to_string()]
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    table::print(&["TENANT", "NAME", "STATUS", "SIGNED UP (UTC)", "VERSION"], &rows);
    Ok(())
}

async fn invitations(context: &Context, tenant: &TenantId, limit: i64) -> Result<(), anyhow::Error> {
    let request = ListOpenInvitationsRequest { tenant: tenant.to_string(), limit };
    let all = processes::all(open(context).await?.list_open_invitations(request).await).await?;
    if context.json {
        println!("{}", Value::Array(all.iter().map(processes::json).collect::<Result<_, _>>()?));
        return Ok(());
    }
    let row = |invitation: &OpenInvitation| {
        let OpenInvitation { id: _, email, role, expire_time, link } = invitation;
        vec![email.clone(), role.clone(), clock(expire_time.as_ref()), link.clone()]
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    table::print(&["E-MAIL", "ROLE", "ENDS (UTC)", "LINK"], &rows);
    Ok(())
}

async fn republish(context: &Context, named: Option<&TenantId>, act: &ActArgs) -> Result<(), anyhow::Error> {
    act.check(context)?;
    let mut identity = open(context).await?;
    let tenants = match named {
        Some(tenant) => vec![tenant.to_string()],
        None => every(&mut identity).await?,
    };
    act.confirm(&format!("Publish again who the members of {} tenants are?", tenants.len()))?;
    audit::record(context, "republish tenants", i64::try_from(tenants.len())?, &json!({"tenant": named}), &act.reason)
        .await?;
    let mut members = 0;
    for tenant in &tenants {
        let request = RepublishTenantRequest { tenant: tenant.clone(), reason: act.reason.clone() };
        match identity.republish_tenant(request).await {
            Ok(republished) => members += republished.into_inner().members,
            // Erased since it was listed.
            Err(status) if named.is_none() && status.code() == Code::NotFound => {}
            Err(status) => return Err(said(status)).with_context(|| tenant.clone()),
        }
    }
    say(
        context,
        &json!({"tenants": tenants.len(), "members": members}),
        &format!(
            "{members} members of {} tenants are published again. The services follow within seconds.",
            tenants.len()
        ),
    );
    Ok(())
}

async fn end_step_up(context: &Context, tenant: &TenantId, act: &ActArgs) -> Result<(), anyhow::Error> {
    act.check(context)?;
    act.confirm(&format!("Let {tenant} demand nothing of a sign-in any more?"))?;
    audit::record(context, "end step-up", 1, &json!({"tenant": tenant}), &act.reason).await?;
    let request = EndStepUpRequest { tenant: tenant.to_string(), reason: act.reason.clone() };
    let ended = open(context).await?.end_step_up(request).await.map_err(said)?.into_inner();
    say(
        context,
        &processes::json(&ended)?,
        &format!("{} demands nothing of a sign-in. Tokens in hand do for ten minutes.", ended.id),
    );
    Ok(())
}

/// The ids of all tenants that are not erased.
async fn every(identity: &mut Tenants) -> Result<Vec<String>, anyhow::Error> {
    let mut found: Vec<String> = Vec::new();
    loop {
        let after = found.last().cloned().unwrap_or_default();
        let page = processes::all(identity.list_tenants(ListTenantsRequest { after, limit: 1_000 }).await).await?;
        let more = page.len() == 1_000;
        found.extend(page.into_iter().map(|tenant| tenant.id));
        if !more {
            return Ok(found);
        }
    }
}

async fn set(
    context: &Context,
    tenant: &TenantId,
    (status, action): (&str, &str),
    (question, act): (&str, &ActArgs),
) -> Result<(), anyhow::Error> {
    act.check(context)?;
    act.confirm(question)?;
    // First: the effects of a failed call are unknown here.
    audit::record(context, action, 1, &json!({"tenant": tenant}), &act.reason).await?;
    let (tenant, status) = (tenant.to_string(), status.to_owned());
    let request = SetTenantStatusRequest { tenant, status, reason: act.reason.clone() };
    let set = open(context).await?.set_tenant_status(request).await.map_err(said)?.into_inner();
    say(
        context,
        &processes::json(&set)?,
        &format!("{} is {}. The services follow within seconds.", set.id, set.status),
    );
    Ok(())
}
