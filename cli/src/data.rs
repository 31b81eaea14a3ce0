//! `flotilla data`: what the services hold about a tenant, or about one person in it, exported and erased.

use anyhow::Context as _;
use clap::{Args, Subcommand};
use contracts::{TenantId, UserId};
use proto::ops::data_service_client::DataServiceClient;
use proto::ops::{DataTable, EraseDataRequest, ExportDataRequest, ListTablesRequest};
use serde_json::{Value, json};

use crate::context::Context;
use crate::operator::ActArgs;
use crate::outbox::say;
use crate::processes::{self, Port, said};
use crate::{audit, table};

#[derive(Debug, Clone, Args)]
pub struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Debug, Clone, Subcommand)]
enum DataCommand {
    /// Show what becomes of each table of each service when data are exported or erased.
    Tables,
    /// Print the rows of a tenant, or those that name one person of it, one JSON object a line.
    Export {
        #[command(flatten)]
        whose: WhoseArgs,
        #[command(flatten)]
        act: ActArgs,
    },
    /// Erase what the services hold of a tenant, or what names one person of it. Events say so, so that read models follow; streams
    /// and outboxes forget their copies with their retention.
    Erase {
        #[command(flatten)]
        whose: WhoseArgs,
        #[command(flatten)]
        act: ActArgs,
    },
}

#[derive(Debug, Clone, Args)]
struct WhoseArgs {
    /// The tenant.
    #[arg(long)]
    tenant: TenantId,
    /// A person of it: the subject of its tokens.
    #[arg(long)]
    person: Option<UserId>,
    /// Of this service alone.
    #[arg(long)]
    service: Option<String>,
}

impl WhoseArgs {
    /// The services that hold such data: those that publish events.
    fn services(&self) -> Result<Vec<&'static str>, anyhow::Error> {
        let Some(name) = &self.service else { return Ok(fleet::producers()) };
        let known = fleet::producers().into_iter().find(|known| known == name);
        let known = known.with_context(|| format!("{name} holds no data of tenants: name {:?}", fleet::producers()))?;
        Ok(vec![known])
    }

    fn person(&self) -> Option<String> {
        self.person.as_ref().map(ToString::to_string)
    }

    /// For the audit. Not who the person is: the audit outlives what is erased.
    fn detail(&self, services: &[&str]) -> Value {
        json!({"tenant": self.tenant, "ofOnePerson": self.person.is_some(), "services": services})
    }
}

async fn open(context: &Context, service: &str) -> Result<DataServiceClient<Port>, anyhow::Error> {
    Ok(DataServiceClient::new(context.port(service).await?))
}

pub async fn run(context: &Context, args: &DataArgs) -> Result<(), anyhow::Error> {
    match &args.command {
        DataCommand::Tables => tables(context).await,
        DataCommand::Export { whose, act } => export(context, whose, act).await,
        DataCommand::Erase { whose, act } => erase(context, whose, act).await,
    }
}

async fn tables(context: &Context) -> Result<(), anyhow::Error> {
    let mut all = Vec::new();
    for service in fleet::producers() {
        let tables = processes::all(open(context, service).await?.list_tables(ListTablesRequest {}).await).await?;
        all.extend(tables.into_iter().map(|table| (service, table)));
    }
    if context.json {
        let one = |(service, table): &(&str, DataTable)| {
            let mut said = processes::json(table)?;
            said["service"] = (*service).into();
            Ok(said)
        };
        println!("{}", Value::Array(all.iter().map(one).collect::<Result<_, anyhow::Error>>()?));
        return Ok(());
    }
    let row = |(service, DataTable { table, people, not_exported }): (&str, DataTable)| {
        let answer =
            not_exported.map_or_else(|| "exported, and erased".to_owned(), |why| format!("not exported: {why}"));
        vec![service.to_owned(), table, people.join(", "), answer]
    };
    let rows: Vec<_> = all.into_iter().map(row).collect();
    table::print(&["SERVICE", "TABLE", "COLUMNS WITH PEOPLE", "EXPORT AND ERASE"], &rows);
    Ok(())
}

async fn export(context: &Context, whose: &WhoseArgs, act: &ActArgs) -> Result<(), anyhow::Error> {
    act.check(context)?;
    let services = whose.services()?;
    audit::record(context, "export data", 0, &whose.detail(&services), &act.reason).await?;
    for service in services {
        let request = ExportDataRequest { tenant: whose.tenant.to_string(), person: whose.person() };
        let mut rows = open(context, service).await?.export_data(request).await.map_err(said)?.into_inner();
        while let Some(row) = rows.message().await.map_err(said)? {
            let columns: Value = serde_json::from_str(&row.row).context("a row is no JSON")?;
            println!("{}", json!({"service": service, "table": row.table, "row": columns}));
        }
    }
    Ok(())
}

async fn erase(context: &Context, whose: &WhoseArgs, act: &ActArgs) -> Result<(), anyhow::Error> {
    act.check(context)?;
    let services = whose.services()?;
    let tenant = &whose.tenant;
    let what = match &whose.person {
        None => format!("all that {} hold of the tenant {tenant}", services.join(", ")),
        Some(person) => format!("the person {person} in what {} hold of the tenant {tenant}", services.join(", ")),
    };
    act.confirm(&format!("Erase {what} for ever?"))?;
    // First: the effects of a failed call are unknown here.
    audit::record(context, "erase data", 0, &whose.detail(&services), &act.reason).await?;
    let (mut all, mut count) = (serde_json::Map::new(), 0);
    for service in services {
        let request =
            EraseDataRequest { tenant: tenant.to_string(), person: whose.person(), reason: act.reason.clone() };
        let erased = open(context, service).await?.erase_data(request).await.map_err(said);
        let aggregates = erased.with_context(|| format!("erasing in {service}"))?.into_inner().aggregates;
        let of_it = aggregates.values().sum::<i64>();
        audit::record(context, "erased data", of_it, &whose.detail(&[service]), &act.reason).await?;
        count += of_it;
        all.insert(service.to_owned(), json!(aggregates));
    }
    say(context, &Value::Object(all), &format!("Erased in {count} aggregates. Repeat it until it says 0."));
    Ok(())
}
