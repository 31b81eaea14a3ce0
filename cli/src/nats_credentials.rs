//! `flotilla provision` and `flotilla nats-credentials`: what the administration of NATS does.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use chrono::{DateTime, TimeDelta, Utc};
use clap::{Args, Subcommand};
use contracts::TenantId;
use devstack::StackDir;
use devstack::nats::team::{self, Team};
use devstack::nats::teams;
use devstack::nats::{Change, Wanted, announce, changes, configurations, provision, push};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::audit;
use crate::context::Context;
use crate::databases::patiently;
use crate::outbox::say;
use crate::table;

#[derive(Debug, Clone, Args)]
pub struct ProvisionArgs {
    /// How long the event streams keep an event, in days. An existing stream keeps its setting.
    #[arg(long, default_value_t = fleet::STREAM_DAYS)]
    stream_days: u64,
    /// How many servers hold each stream: 1, 3 or 5. By default an existing stream keeps its number.
    #[arg(long, value_parser = ["1", "3", "5"])]
    replicas: Option<String>,
    /// Give NATS the accounts in this file, as `flotilla k8s secrets` writes it, instead of making them from their keys: for a job
    /// of a cluster, which has the logins of the administration in its folder, and no keys. It waits two minutes for NATS.
    #[arg(long, value_name = "FILE", requires = "nats")]
    accounts: Option<PathBuf>,
    /// Where NATS is, with --accounts.
    #[arg(long, value_name = "URL", requires = "accounts")]
    nats: Option<String>,
}

#[derive(Debug, Clone, Subcommand)]
pub enum CredentialsCommand {
    /// Give a program one tenant's events: a credentials file, and a durable consumer of its own.
    Create {
        /// Whose events.
        #[arg(long)]
        tenant: TenantId,
        /// A name for its purpose: 1 to 32 of a-z, 0-9 and -.
        #[arg(long)]
        name: String,
        /// The service that publishes the events.
        #[arg(long, default_value = "todo")]
        events: String,
        /// How long the credentials are valid: 30d, 12h, 90m.
        #[arg(long, default_value = "30d", value_parser = parse_duration)]
        expires: TimeDelta,
        /// Why: written into the audit.
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// List the credentials and when they expire.
    List,
    /// Revoke credentials. Programs logged in with them are disconnected at once; their unread events are not kept for them.
    Revoke {
        /// Whose events.
        #[arg(long)]
        tenant: TenantId,
        /// The name of the credentials.
        #[arg(long)]
        name: String,
        /// Why: written into the audit.
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
}

/// Minutes, hours or days: from a minute to ten years.
fn parse_duration(text: &str) -> Result<TimeDelta, anyhow::Error> {
    let wrong = || anyhow!("`{text}` is no time: say 30d, 12h or 90m");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let number: i64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| wrong())?;
    let time = match unit {
        'd' => TimeDelta::try_days(number),
        'h' => TimeDelta::try_hours(number),
        'm' => TimeDelta::try_minutes(number),
        _ => None,
    };
    let bounded = |time: &TimeDelta| (TimeDelta::minutes(1)..=TimeDelta::days(3_650)).contains(time);
    time.filter(bounded).ok_or_else(wrong)
}

/// Makes the missing accounts, streams and durable consumers, and changes what may be changed.
pub async fn provide(context: &Context, args: &ProvisionArgs) -> Result<(), anyhow::Error> {
    let wanted = Wanted {
        max_age: Duration::from_secs(args.stream_days * 86_400),
        replicas: args.replicas.as_deref().and_then(|text| text.parse().ok()),
    };
    let changed = if let (Some(accounts), Some(address)) = (&args.accounts, &args.nats) {
        let text = std::fs::read_to_string(accounts).with_context(|| format!("reading {}", accounts.display()))?;
        let jwts: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
        let home = StackDir::given(&context.home);
        // Of the first attempt that gets so far: a later one would find what that one has made.
        let before = OnceCell::new();
        let attempt = || async {
            push(&home, address, &jwts).await?;
            before.get_or_try_init(|| configurations(&home, address)).await?;
            Box::pin(provision(&home, address, wanted)).await
        };
        Box::pin(patiently("NATS", attempt)).await?;
        changes(&before.into_inner().unwrap_or_default(), &configurations(&home, address).await?)
    } else {
        let (home, address) = (context.open_keys()?, context.nats()?);
        Box::pin(announce(&home, &address, &[])).await?;
        let before = configurations(&home, &address).await?;
        Box::pin(provision(&home, &address, wanted)).await?;
        changes(&before, &configurations(&home, &address).await?)
    };
    let line = |Change { name, setting, before, after }: &Change| match setting {
        Some(setting) => format!("changed  {name}: {setting} was {before}, is {after}"),
        None => format!("made     {name}"),
    };
    let end = if changed.is_empty() { ": nothing was changed" } else { "" };
    let end = format!("Every stream and every durable consumer is as this release asks for it{end}.");
    let text = changed.iter().map(line).chain([end]).collect::<Vec<_>>().join("\n");
    say(context, &json!({"provisioned": true, "changes": changed}), &text);
    Ok(())
}

pub async fn run(context: &Context, command: &CredentialsCommand) -> Result<(), anyhow::Error> {
    let (address, home) = (context.nats()?, context.open_keys()?);
    let now: DateTime<Utc> = std::time::SystemTime::now().into();
    match command {
        CredentialsCommand::Create { tenant, name, events, expires, reason } => {
            let (tenant, name, events) = (tenant.clone(), name.clone(), events.clone());
            let team = Team { tenant, name, events, created: now, expires: now + *expires };
            written(context, "create nats credential", &team, reason).await?;
            let file = Box::pin(teams::create(&home, &address, &team)).await?;
            let durable = team.durable();
            let stream = contracts::subject::stream(&team.events);
            let answer = json!({
                "credsFile": file, "url": address, "stream": stream, "durable": durable, "expires": team.expires,
            });
            let text = format!(
                "credentials  {}\nurl          {address}\nstream       {stream}\ndurable      {durable}\nuntil        {}",
                file.display(),
                team.expires.format("%Y-%m-%d %H:%M UTC")
            );
            say(context, &answer, &text);
        }
        CredentialsCommand::List => list(context, &home, &team::all(&home)?)?,
        CredentialsCommand::Revoke { tenant, name, reason } => {
            let team = Box::pin(teams::revoke(&home, &address, tenant, name)).await?;
            written(context, "revoke nats credential", &team, reason).await?;
            say(context, &json!({"revoked": team.durable()}), &format!("`{name}` of {tenant} reads nothing any more."));
        }
    }
    Ok(())
}

fn list(context: &Context, home: &StackDir, teams: &[Team]) -> Result<(), anyhow::Error> {
    if context.json {
        let one = |team: &Team| {
            let mut value = serde_json::to_value(team)?;
            value["credsFile"] = json!(team.credentials(home));
            value["durable"] = team.durable().into();
            value["expired"] = team.is_expired().into();
            Ok::<Value, anyhow::Error>(value)
        };
        let all: Vec<Value> = teams.iter().map(one).collect::<Result<_, _>>()?;
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    let row = |team: &Team| {
        let until = team.expires.format("%Y-%m-%d %H:%M UTC").to_string();
        let until = if team.is_expired() { format!("{until} (expired)") } else { until };
        vec![team.tenant.to_string(), team.name.clone(), team.events.clone(), team.durable(), until]
    };
    let rows: Vec<_> = teams.iter().map(row).collect();
    table::print(&["TENANT", "NAME", "EVENTS", "DURABLE", "UNTIL"], &rows);
    Ok(())
}

async fn written(context: &Context, action: &str, team: &Team, reason: &str) -> Result<(), anyhow::Error> {
    let detail = json!({"tenant": team.tenant, "name": team.name, "events": team.events, "expires": team.expires});
    let reason = if reason.trim().is_empty() { "not said" } else { reason };
    audit::record(context, action, 1, &detail, reason).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_and_a_unit() {
        assert_eq!(parse_duration("30d").ok(), Some(TimeDelta::days(30)));
        assert_eq!(parse_duration("90m").ok(), Some(TimeDelta::minutes(90)));
        for wrong in ["", "30", "d", "0d", "-1d", "1.5h", "99999999999d", "3651d", "1ü"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
