//! The audit of operators' acts: read, and written for acts outside the operations service.

use proto::ops::audit_service_client::AuditServiceClient;
use proto::ops::{AuditLine, ListAuditRequest, RecordActRequest};
use serde_json::Value;

use crate::context::Context;
use crate::processes::{self, Port, clock, said};
use crate::table::{self, short};

async fn open(context: &Context) -> Result<AuditServiceClient<Port>, anyhow::Error> {
    Ok(AuditServiceClient::new(context.port(fleet::OPERATIONS).await?))
}

/// Records an act of the operator whom the token names.
pub async fn record(
    context: &Context,
    action: &str,
    count: i64,
    detail: &Value,
    reason: &str,
) -> Result<(), anyhow::Error> {
    let act =
        RecordActRequest { action: action.to_owned(), count, detail: detail.to_string(), reason: reason.to_owned() };
    open(context).await?.record_act(act).await.map_err(said)?;
    Ok(())
}

/// The newest line of one kind of act.
pub async fn last(port: Port, action: &str) -> Result<Option<AuditLine>, anyhow::Error> {
    let request = ListAuditRequest { lines: 1, action: Some(action.to_owned()) };
    Ok(processes::all(AuditServiceClient::new(port).list_audit(request).await).await?.pop())
}

/// Prints the newest lines.
pub async fn show(context: &Context, lines: i64) -> Result<(), anyhow::Error> {
    let lines = processes::all(open(context).await?.list_audit(ListAuditRequest { lines, action: None }).await).await?;
    if context.json {
        let all: Vec<_> = lines.iter().map(|line| processes::json_with(line, "detail")).collect::<Result<_, _>>()?;
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    let row = |line: &AuditLine| {
        vec![
            clock(line.at.as_ref()),
            line.actor.clone(),
            line.action.clone(),
            line.count.to_string(),
            line.reason.clone(),
            short(&line.detail, 100),
        ]
    };
    let rows: Vec<_> = lines.iter().map(row).collect();
    table::print(&["AT (UTC)", "WHO", "WHAT", "COUNT", "WHY", "DETAIL"], &rows);
    Ok(())
}
