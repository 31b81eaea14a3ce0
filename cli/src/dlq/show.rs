//! What `flotilla dlq` prints.

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use operations::store::{self, Letter, Selection};
use operations::store_audit;
use operations::store_jobs::{Job, Planned};
use serde_json::Value;
use sqlx::PgConnection;

use crate::outbox::say;
use crate::stack::Context;
use crate::table;

fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S").to_string()
}

fn short(text: &str, most: usize) -> String {
    let cut: String = text.chars().take(most).collect();
    if cut.len() < text.len() { format!("{cut}…") } else { cut }
}

pub fn list(context: &Context, letters: &[Letter]) -> Result<(), anyhow::Error> {
    if context.json {
        println!("{}", serde_json::to_string_pretty(letters)?);
        return Ok(());
    }
    let row = |letter: &Letter| {
        vec![
            letter.id.to_string(),
            time(letter.last_died_at),
            letter.state.clone(),
            letter.group_id.clone(),
            letter.consumer.clone(),
            letter.event_type.clone(),
            letter.tenant.clone(),
            letter.aggregate_id.clone(),
            letter.deaths.to_string(),
            short(&letter.reason, 80),
        ]
    };
    let rows: Vec<_> = letters.iter().map(row).collect();
    let head =
        ["LETTER", "DIED AT (UTC)", "STATE", "GROUP", "CONSUMER", "TYPE", "TENANT", "AGGREGATE", "DEATHS", "REASON"];
    table::print(&head, &rows);
    Ok(())
}

pub async fn groups(context: &Context, db: &mut PgConnection, selection: &Selection) -> Result<(), anyhow::Error> {
    let groups = store::groups(db, selection).await?;
    if context.json {
        println!("{}", serde_json::to_string_pretty(&groups)?);
        return Ok(());
    }
    let row = |group: &store::Group| {
        vec![
            group.group_id.clone(),
            group.letters.to_string(),
            group.tenants.to_string(),
            group.aggregates.to_string(),
            group.consumer.clone(),
            group.event_type.clone(),
            time(group.first_seen),
            time(group.last_seen),
            short(&group.error_class, 100),
        ]
    };
    let rows: Vec<_> = groups.iter().map(row).collect();
    let head =
        ["GROUP", "LETTERS", "TENANTS", "AGGREGATES", "CONSUMER", "TYPE", "FIRST SEEN (UTC)", "LAST SEEN", "CAUSE"];
    table::print(&head, &rows);
    Ok(())
}

pub async fn show(context: &Context, db: &mut PgConnection, id: i64, event: bool) -> Result<(), anyhow::Error> {
    let (letter, deaths) = store::whole(db, id).await?;
    let read = |bytes: &Option<Vec<u8>>| {
        let bytes = bytes.as_ref()?;
        Some(
            serde_json::from_slice(bytes)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned())),
        )
    };
    let (payload, edited) = (read(&letter.payload), read(&letter.edited));
    if event {
        let bytes = letter.edited.as_ref().or(letter.payload.as_ref());
        let bytes = bytes.context("the letter came without its event, which was too large")?;
        let text = serde_json::from_slice::<Value>(bytes)
            .and_then(|value| serde_json::to_string_pretty(&value))
            .unwrap_or_else(|_| String::from_utf8_lossy(bytes).into_owned());
        println!("{text}");
        return Ok(());
    }
    if context.json {
        let mut whole = serde_json::to_value(&letter)?;
        whole["story"] = serde_json::to_value(&deaths)?;
        whole["event"] = payload.unwrap_or_default();
        whole["editedEvent"] = edited.unwrap_or_default();
        println!("{}", serde_json::to_string_pretty(&whole)?);
        return Ok(());
    }
    let line = &letter.letter;
    let settled = letter.settled_by.as_ref().map(|by| format!(", by {by}")).unwrap_or_default();
    let job = line.job.map(|job| format!(", in job {job}")).unwrap_or_default();
    let rows = [
        ("letter", format!("{} is {}{job}{settled}", line.id, line.state)),
        ("consumer", line.consumer.clone()),
        ("event", format!("{} {}", line.event_type, line.event_id)),
        ("tenant", line.tenant.clone()),
        ("aggregate", format!("{} at version {}", line.aggregate_id, letter.sequence.trim_start_matches('0'))),
        ("group", line.group_id.clone()),
        ("trace", letter.trace_id.clone()),
        ("was", format!("message {} of {}, on {}", letter.stream_sequence, letter.stream, letter.subject)),
        ("stored at", time(letter.stored_at)),
        ("first failed", time(line.first_failed_at)),
    ];
    for (name, value) in rows {
        println!("{name:<13} {value}");
    }
    println!("\nHow it died:");
    for death in &deaths {
        let replay = death.replay.as_ref().map(|replay| format!(" in replay {replay}")).unwrap_or_default();
        println!(
            "  {}  {} after {} attempts{replay}: {}",
            time(death.died_at),
            death.version,
            death.attempts,
            death.reason
        );
    }
    println!("\nHeaders: {}", letter.headers);
    println!("\nEvent:\n{}", serde_json::to_string_pretty(&payload)?);
    if let Some(edited) = edited {
        println!("\nMended, to be replayed:\n{}", serde_json::to_string_pretty(&edited)?);
    }
    Ok(())
}

pub fn print_plan(planned: &[Planned], undecodable: &[(i64, String)]) {
    const SHOWN: usize = 10;
    let Some(first) = planned.first() else { return };
    let count = |of: fn(&Planned) -> &str| {
        let mut all: Vec<&str> = planned.iter().map(of).collect();
        all.sort_unstable();
        all.dedup();
        all.len()
    };
    println!(
        "{} letters of {} aggregates and {} tenants go to {} and nobody else, in this order:",
        planned.len(),
        count(|letter| &letter.aggregate_id),
        count(|letter| &letter.tenant),
        first.consumer
    );
    let row = |letter: &Planned| {
        let mut notes = Vec::new();
        if letter.added {
            notes.push("not asked for: it died before one of its aggregate that was");
        }
        if letter.is_edited {
            notes.push("mended");
        }
        vec![
            letter.id.to_string(),
            letter.event_type.clone(),
            letter.tenant.clone(),
            letter.aggregate_id.clone(),
            letter.sequence.trim_start_matches('0').to_owned(),
            notes.join(", "),
        ]
    };
    let rows: Vec<_> = planned.iter().take(SHOWN).map(row).collect();
    table::print(&["LETTER", "TYPE", "TENANT", "AGGREGATE", "VERSION", "NOTE"], &rows);
    if planned.len() > SHOWN {
        println!("... and {} more", planned.len() - SHOWN);
    }
    for (id, error) in undecodable.iter().take(SHOWN) {
        println!("Letter {id} will most likely fail again: {error}");
    }
}

pub fn jobs(context: &Context, jobs: &[Job]) -> Result<(), anyhow::Error> {
    if context.json {
        println!("{}", serde_json::to_string_pretty(jobs)?);
        return Ok(());
    }
    let row = |job: &Job| {
        vec![
            job.id.to_string(),
            time(job.created_at),
            job.kind.clone(),
            job.consumer.clone(),
            job.state.clone(),
            format!("{}/{}", job.handled, job.total),
            job.failed.to_string(),
            job.skipped.to_string(),
            job.actor.clone(),
            short(&job.reason, 40),
            short(&job.story, 60),
        ]
    };
    let rows: Vec<_> = jobs.iter().map(row).collect();
    let head =
        ["JOB", "SINCE (UTC)", "KIND", "CONSUMER", "STATE", "HANDLED", "FAILED", "LEFT OUT", "WHO", "WHY", "STORY"];
    table::print(&head, &rows);
    Ok(())
}

pub async fn stats(context: &Context, db: &mut PgConnection) -> Result<(), anyhow::Error> {
    let stats = store::stats(db).await?;
    let sum = stats.open + stats.failed_again + stats.handled + stats.discarded;
    anyhow::ensure!(sum == stats.letters, "{} letters, and the states add up to {sum}", stats.letters);
    let text = format!(
        "{} letters: {} open, {} failed again, {} handled, {} discarded ({} deaths told)",
        stats.letters, stats.open, stats.failed_again, stats.handled, stats.discarded, stats.deaths
    );
    say(context, &serde_json::to_value(stats)?, &text);
    Ok(())
}

pub async fn audit(context: &Context, db: &mut PgConnection, lines: i64) -> Result<(), anyhow::Error> {
    let lines = store_audit::audit_lines(db, lines).await?;
    if context.json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
        return Ok(());
    }
    let row = |line: &store_audit::AuditLine| {
        let detail = short(&line.detail.to_string(), 100);
        vec![
            time(line.at),
            line.actor.clone(),
            line.action.clone(),
            line.count.to_string(),
            line.reason.clone(),
            detail,
        ]
    };
    let rows: Vec<_> = lines.iter().map(row).collect();
    table::print(&["AT (UTC)", "WHO", "WHAT", "COUNT", "WHY", "DETAIL"], &rows);
    Ok(())
}
