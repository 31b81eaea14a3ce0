//! `flotilla identity adopt`: the tenants that services, streams or indexes know and identity does not. Before, nobody signs up: a
//! stranger would own what is there.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail};
use clap::Args;
use contracts::events::identity;
use contracts::{Role, TenantId, UserId, subject};
use futures::TryStreamExt as _;
use proto::ops::aggregate_service_client::AggregateServiceClient;
use proto::ops::tenant_service_client::TenantServiceClient;
use proto::ops::{
    AdmitMemberRequest, AdoptTenantRequest, AdoptedTenant, FinishAdoptionRequest, GetAdoptionRequest, HeldTenant, Key,
    ListDocumentsRequest, ListHeldTenantsRequest, ListIndexesRequest,
};
use serde_json::json;
use tonic::Code;

use crate::context::Context;
use crate::operator::ActArgs;
use crate::processes::{self, Port, said};
use crate::verify::index::documents;
use crate::{audit, events};

/// How many tenants, or documents, to ask for at once.
const PAGE: i64 = 1_000;
const DOCUMENTS: i64 = 10_000;
/// What is not known of a tenant of a developer's machine.
const COUNTRY: &str = "DE";
const CURRENCY: &str = "EUR";

/// Which tenants to adopt, and what is not known of them.
#[derive(Debug, Clone, Args)]
pub struct AdoptArgs {
    /// Only this tenant: to name the owner of one of which nobody is known.
    #[arg(long, requires = "owner")]
    tenant: Option<TenantId>,
    /// Its owner, by the subject of the provider's tokens.
    #[arg(long, requires = "tenant", value_name = "SUBJECT")]
    owner: Option<UserId>,
    /// Their country, which each owner may change, such as DE.
    #[arg(long)]
    country: Option<String>,
    /// The currency that they pay in, likewise, such as EUR.
    #[arg(long)]
    currency: Option<String>,
    /// Their time zone, likewise.
    #[arg(long, default_value = "Etc/UTC")]
    time_zone: String,
    #[command(flatten)]
    act: ActArgs,
}

/// What identity tells operators of tenants.
pub type Tenants = TenantServiceClient<Port>;

/// Connects to what identity tells operators of tenants.
pub async fn open(context: &Context) -> Result<Tenants, anyhow::Error> {
    Ok(TenantServiceClient::new(context.port(identity::SERVICE).await?))
}

/// The tenants that services, streams and indexes know, each with the user who made its oldest aggregate, where that is known.
#[derive(Default)]
struct Known {
    tenants: BTreeMap<TenantId, Option<String>>,
    /// Names of none: nobody signs one up by them.
    foreign: BTreeSet<String>,
}

impl Known {
    fn note(&mut self, tenant: String, made_by: Option<String>) {
        match tenant.parse() {
            Ok(tenant) => {
                let known = self.tenants.entry(tenant).or_insert(None);
                *known = known.take().or(made_by);
            }
            Err(_) => drop(self.foreign.insert(tenant)),
        }
    }

    async fn find(context: &Context) -> Result<Self, anyhow::Error> {
        let mut known = Self::default();
        for service in fleet::SERVICES.iter().filter(|service| service.produces) {
            let stream = events::open_of(context, service.name).await?.1;
            let mut subjects = stream.info_with_subjects(subject::all(service.name)).await?;
            while let Some((subject, _)) = subjects.try_next().await.context("reading the stream's subjects")? {
                known.note(subject.rsplit('.').next().unwrap_or_default().to_owned(), None);
            }
            // Identity's own are there.
            if service.name != identity::SERVICE {
                known.held(context, service.name).await?;
            }
        }
        let mut documents = documents(context).await?;
        for index in processes::all(documents.list_indexes(ListIndexesRequest {}).await).await? {
            let mut after = None;
            loop {
                let page = ListDocumentsRequest { which: index.which, after, limit: DOCUMENTS, ..Default::default() };
                let keys = processes::all(documents.list_documents(page).await).await?;
                let Some(last) = keys.last().cloned() else { break };
                keys.into_iter().for_each(|Key { tenant, id: _ }| known.note(tenant, None));
                after = Some(last);
            }
        }
        Ok(known)
    }

    /// Those of which a service has aggregates.
    async fn held(&mut self, context: &Context, service: &str) -> Result<(), anyhow::Error> {
        let mut aggregates = AggregateServiceClient::new(context.port(service).await?);
        let mut after = String::new();
        loop {
            let page = ListHeldTenantsRequest { after: after.clone(), limit: PAGE };
            let tenants = processes::all(aggregates.list_held_tenants(page).await).await?;
            let Some(last) = tenants.last() else { return Ok(()) };
            after.clone_from(&last.tenant);
            tenants.into_iter().for_each(|HeldTenant { tenant, created_by }| self.note(tenant, created_by));
        }
    }
}

/// What became of the tenants.
#[derive(Default)]
struct Done {
    /// Those that were made, or got an owner, with the owner that was made.
    adopted: BTreeMap<TenantId, Option<String>>,
    without_owner: Vec<TenantId>,
    erased: Vec<TenantId>,
    failed: BTreeMap<TenantId, String>,
}

impl Done {
    async fn adopt(
        &mut self,
        tenants: &mut Tenants,
        known: BTreeMap<TenantId, Option<String>>,
        draft: &AdoptTenantRequest,
    ) {
        for (tenant, owner) in known {
            let request = AdoptTenantRequest { tenant: tenant.to_string(), owner, ..draft.clone() };
            match tenants.adopt_tenant(request).await.map_err(said) {
                Ok(adopted) => self.note(tenant, adopted.into_inner()),
                Err(error) => drop(self.failed.insert(tenant, format!("{error:#}"))),
            }
        }
    }

    fn note(&mut self, tenant: TenantId, AdoptedTenant { made, erased, owner, has_owner }: AdoptedTenant) {
        if erased {
            self.erased.push(tenant);
            return;
        }
        if !has_owner {
            self.without_owner.push(tenant.clone());
        }
        if made || owner.is_some() {
            self.adopted.insert(tenant, owner);
        }
    }

    /// Goes on until nothing knows a further tenant: what was written meanwhile is seen too.
    async fn all(
        &mut self,
        context: &Context,
        tenants: &mut Tenants,
        (mut known, draft): (Known, &AdoptTenantRequest),
    ) -> Result<(), anyhow::Error> {
        let mut seen = BTreeSet::new();
        while !known.tenants.is_empty() {
            seen.extend(known.tenants.keys().cloned());
            self.adopt(tenants, known.tenants, draft).await;
            known = Known::find(context).await?;
            known.tenants.retain(|tenant, _| !seen.contains(tenant));
        }
        anyhow::ensure!(self.failed.is_empty(), "these could not be adopted, and nobody signs up: {:?}", self.failed);
        tenants.finish_adoption(FinishAdoptionRequest { reason: draft.reason.clone() }).await.map_err(said)?;
        Ok(())
    }
}

pub async fn run(context: &Context, args: &AdoptArgs) -> Result<(), anyhow::Error> {
    let AdoptArgs { tenant, owner, country, currency, time_zone, act } = args;
    act.check(context)?;
    let mut tenants = open(context).await?;
    let known = match tenant {
        Some(tenant) => {
            let tenants = BTreeMap::from([(tenant.clone(), owner.as_ref().map(ToString::to_string))]);
            Known { tenants, ..Known::default() }
        }
        None => Known::find(context).await?,
    };
    let (country, currency) = match (country, currency, known.tenants.is_empty()) {
        (Some(country), Some(currency), _) => (country.clone(), currency.clone()),
        (_, _, true) => <(String, String)>::default(),
        _ => bail!("there are tenants to adopt: say their --country and --currency, which each owner may change"),
    };
    for (tenant, made_by) in known.tenants.iter().filter(|_| !context.json) {
        println!("{tenant}: {}", made_by.as_deref().unwrap_or("nobody is known"));
    }
    act.confirm(
        "Make those of these tenants that identity does not know, each with whom the line names as its owner?",
    )?;
    let detail = json!({"tenants": known.tenants.iter().take(100).collect::<BTreeMap<_, _>>()});
    // First: the effects of a failed call are unknown here.
    audit::record(context, "adopt tenants", i64::try_from(known.tenants.len())?, &detail, &act.reason).await?;
    let (reason, time_zone, named) = (act.reason.clone(), time_zone.clone(), tenant.is_some());
    let draft = AdoptTenantRequest { time_zone, country, currency, reason, named, ..AdoptTenantRequest::default() };
    let (mut done, foreign) = (Done::default(), known.foreign.clone());
    let ended = if named {
        done.adopt(&mut tenants, known.tenants, &draft).await;
        anyhow::Ok(())
    } else {
        done.all(context, &mut tenants, (known, &draft)).await
    };
    say(context, &done, &foreign);
    ended?;
    match done.failed.into_iter().next() {
        Some((tenant, why)) => bail!("{tenant}: {why}"),
        None => Ok(()),
    }
}

fn say(context: &Context, done: &Done, foreign: &BTreeSet<String>) {
    let Done { adopted, without_owner, erased, failed } = done;
    if context.json {
        let said = json!({"adopted": adopted, "withoutOwner": without_owner, "erased": erased, "failed": failed, "foreign": foreign});
        println!("{said}");
        return;
    }
    println!("{} tenants are adopted.", adopted.len());
    for tenant in without_owner {
        println!("{tenant} has no owner: name one by --tenant {tenant} --owner SUBJECT");
    }
    for tenant in erased {
        println!("{tenant} is erased, and something still knows it: its id is never given again");
    }
    for name in foreign {
        println!("{name:?} is no tenant's id, and something knows it: see `flotilla verify`");
    }
}

/// Adopts the tenants of this machine's fleet, unless that is done.
pub async fn of_this_machine(context: &Context) -> Result<(), anyhow::Error> {
    let mut tenants = open(context).await?;
    if tenants.get_adoption(GetAdoptionRequest {}).await.map_err(said)?.into_inner().done {
        return Ok(());
    }
    let (known, mut done) = (Known::find(context).await?, Done::default());
    done.all(context, &mut tenants, (known, &local("the fleet starts"))).await?;
    if !done.adopted.is_empty() && !context.json {
        println!("  identity knows {} tenants of before now (`flotilla identity tenants`)", done.adopted.len());
    }
    Ok(())
}

fn local(reason: &str) -> AdoptTenantRequest {
    AdoptTenantRequest {
        time_zone: "Etc/UTC".to_owned(),
        country: COUNTRY.to_owned(),
        currency: CURRENCY.to_owned(),
        reason: reason.to_owned(),
        ..AdoptTenantRequest::default()
    }
}

/// Makes a user a member of a tenant on a developer's machine, and the tenant, where they are missing.
pub async fn admit(context: &Context, tenant: &str, user: &str, role: Role) -> Result<(), anyhow::Error> {
    let mut tenants = open(context).await?;
    let reason = "a development token is minted";
    let request = AdmitMemberRequest {
        tenant: tenant.to_owned(),
        user: user.to_owned(),
        role: role.as_str().to_owned(),
        reason: reason.to_owned(),
    };
    let admitted = match tenants.admit_member(request.clone()).await {
        Err(status) if status.code() == Code::NotFound => {
            let made = AdoptTenantRequest { tenant: tenant.to_owned(), ..local(reason) };
            let made = tenants.adopt_tenant(made).await.map_err(said)?.into_inner();
            anyhow::ensure!(!made.erased, "the tenant {tenant} is erased: its id is never given again");
            tenants.admit_member(request).await
        }
        admitted => admitted,
    };
    admitted.map(drop).map_err(said)
}
