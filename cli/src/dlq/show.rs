//! What `flotilla dlq` prints.

use anyhow::Context as _;
use proto::ops::{
    GetLetterRequest, GetStatsRequest, Group, Job, Letter, ListGroupsRequest, PlannedLetter, Selection, WholeLetter,
};
use serde_json::{Value, json};

use super::calls::{Letters, json_of};
use crate::context::Context;
use crate::outbox::say;
use crate::processes::{self, clock, said};
use crate::table::{self, short};

pub fn list(context: &Context, letters: &[Letter]) -> Result<(), anyhow::Error> {
    if context.json {
        return processes::print_json(letters);
    }
    let row = |letter: &Letter| {
        vec![
            letter.id.to_string(),
            clock(letter.last_died_at.as_ref()),
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

pub async fn groups(context: &Context, letters: &mut Letters, selection: Selection) -> Result<(), anyhow::Error> {
    let groups = processes::all(letters.list_groups(ListGroupsRequest { selection: Some(selection) }).await).await?;
    if context.json {
        return processes::print_json(&groups);
    }
    let row = |group: &Group| {
        vec![
            group.group_id.clone(),
            group.letters.to_string(),
            group.tenants.to_string(),
            group.aggregates.to_string(),
            group.consumer.clone(),
            group.event_type.clone(),
            clock(group.first_seen.as_ref()),
            clock(group.last_seen.as_ref()),
            short(&group.error_class, 100),
        ]
    };
    let rows: Vec<_> = groups.iter().map(row).collect();
    let head =
        ["GROUP", "LETTERS", "TENANTS", "AGGREGATES", "CONSUMER", "TYPE", "FIRST SEEN (UTC)", "LAST SEEN", "CAUSE"];
    table::print(&head, &rows);
    Ok(())
}

/// A letter as JSON: the line, and its details.
fn whole_json(letter: &WholeLetter, line: &Letter) -> Result<Value, anyhow::Error> {
    let read = |bytes: &Option<Vec<u8>>| bytes.as_deref().map(any);
    let mut whole = processes::json(line)?;
    let more = json!({
        "stream": letter.stream, "streamSequence": letter.stream_sequence, "subject": letter.subject,
        "storedAt": processes::time(letter.stored_at.as_ref()), "sequence": letter.sequence, "traceId": letter.trace_id,
        "headers": any(letter.headers.as_bytes()), "settledBy": letter.settled_by,
        "settledAt": letter.settled_at.as_ref().and_then(proto::time),
        "failures": letter.deaths.iter().map(processes::json).collect::<Result<Vec<_>, _>>()?,
        "event": read(&letter.payload), "editedEvent": read(&letter.edited),
    });
    if let (Some(whole), Value::Object(more)) = (whole.as_object_mut(), more) {
        whole.extend(more);
    }
    Ok(whole)
}

/// The content of bytes: JSON, or text.
fn any(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned()))
}

pub async fn show(context: &Context, letters: &mut Letters, id: i64, event: bool) -> Result<(), anyhow::Error> {
    let letter = letters.get_letter(GetLetterRequest { id }).await.map_err(said)?.into_inner();
    let line = letter.letter.as_ref().context("the letter came without its line")?;
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
        println!("{}", serde_json::to_string_pretty(&whole_json(&letter, line)?)?);
        return Ok(());
    }
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
        ("stored at", clock(letter.stored_at.as_ref())),
        ("first failed", clock(line.first_failed_at.as_ref())),
    ];
    for (name, value) in rows {
        println!("{name:<13} {value}");
    }
    println!("\nFailure history:");
    for death in &letter.deaths {
        let replay = death.replay.as_ref().map(|replay| format!(" in replay {replay}")).unwrap_or_default();
        println!(
            "  {}  {} after {} attempts{replay}: {}",
            clock(death.died_at.as_ref()),
            death.version,
            death.attempts,
            death.reason
        );
    }
    println!("\nHeaders: {}", letter.headers);
    println!("\nEvent:\n{}", serde_json::to_string_pretty(&letter.payload.as_deref().map(any))?);
    if let Some(edited) = &letter.edited {
        println!("\nMended, to be replayed:\n{}", serde_json::to_string_pretty(&any(edited))?);
    }
    Ok(())
}

pub fn print_plan(planned: &[PlannedLetter]) {
    const SHOWN: usize = 10;
    let Some(first) = planned.first() else { return };
    let count = |of: fn(&PlannedLetter) -> &str| {
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
    let row = |letter: &PlannedLetter| {
        let mut notes = Vec::new();
        if letter.added {
            notes.push("not asked for: it failed before one of its aggregate that was");
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
    let problems = planned.iter().filter_map(|letter| Some((letter.id, letter.problem.as_ref()?)));
    for (id, problem) in problems.take(SHOWN) {
        println!("Letter {id} will most likely fail again: {problem}");
    }
}

pub fn jobs(context: &Context, jobs: &[Job]) -> Result<(), anyhow::Error> {
    if context.json {
        let all: Vec<_> = jobs.iter().map(json_of).collect::<Result<_, _>>()?;
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    let row = |job: &Job| {
        vec![
            job.id.to_string(),
            clock(job.created_at.as_ref()),
            job.kind.clone(),
            job.consumer.clone(),
            job.state.clone(),
            format!("{}/{}", job.handled, job.total),
            job.failed.to_string(),
            job.skipped.to_string(),
            job.actor.clone(),
            short(&job.reason, 40),
            short(&job.detail, 60),
        ]
    };
    let rows: Vec<_> = jobs.iter().map(row).collect();
    let head =
        ["JOB", "SINCE (UTC)", "KIND", "CONSUMER", "STATE", "HANDLED", "FAILED", "LEFT OUT", "WHO", "WHY", "STORY"];
    table::print(&head, &rows);
    Ok(())
}

pub async fn stats(context: &Context, letters: &mut Letters) -> Result<(), anyhow::Error> {
    let stats = letters.get_stats(GetStatsRequest {}).await.map_err(said)?.into_inner();
    let sum = stats.open + stats.failed_again + stats.handled + stats.discarded;
    anyhow::ensure!(sum == stats.letters, "{} letters, and the states add up to {sum}", stats.letters);
    let text = format!(
        "{} letters: {} open, {} failed again, {} handled, {} discarded ({} failures reported)",
        stats.letters, stats.open, stats.failed_again, stats.handled, stats.discarded, stats.deaths
    );
    say(context, &processes::json(&stats)?, &text);
    Ok(())
}
