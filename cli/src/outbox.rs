//! `flotilla outbox`: parked rows, the journal, and a stream that is ahead of its outbox.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use clap::{Args, Subcommand};
use outbox::operate;
use proto::ops::outbox_service_client::OutboxServiceClient;
use proto::ops::{
    AcceptRequest, DiscardRowRequest, GetBehindRequest, GetDivergenceRequest, JournalLine, ListJournalRequest,
    ListParkedRowsRequest, ParkedRow, ReleaseRowsRequest, RenumberRowsRequest, RequeueRowsRequest,
};
use serde_json::{Value, json};

use crate::context::Context;
use crate::operator::ActArgs;
use crate::processes::{self, Port, clock, said};
use crate::{events, table};

/// The API of a service's outbox, at its process.
pub type Outbox = OutboxServiceClient<Port>;

/// Connects to the API of a service's outbox.
pub async fn open(context: &Context, service: &str) -> Result<Outbox, anyhow::Error> {
    Ok(OutboxServiceClient::new(context.port(service).await?))
}

#[derive(Debug, Clone, Args)]
pub struct OutboxArgs {
    /// The service that owns the outbox.
    #[arg(long, default_value = "todo", global = true)]
    service: String,
    #[command(subcommand)]
    command: OutboxCommand,
}

#[derive(Debug, Clone, Subcommand)]
enum OutboxCommand {
    /// List the rows that could not be published, and the rows that wait behind them.
    Parked,
    /// Publish an aggregate's parked rows, in order, with the same event ids.
    Release {
        /// The aggregate.
        aggregate: String,
        #[command(flatten)]
        act: ActArgs,
    },
    /// Discard a parked row: it is never published. Later rows of its aggregate stay parked until they are released.
    Discard {
        /// The number of the row.
        seq: i64,
        #[command(flatten)]
        act: ActArgs,
    },
    /// Publish rows again, under new numbers and with the same event ids: those that the stream has lost, as
    /// `flotilla verify` names them.
    Requeue {
        /// The numbers of the rows.
        #[arg(required = true)]
        seqs: Vec<i64>,
        #[command(flatten)]
        act: ActArgs,
    },
    /// After the database was moved without its sequence: correct the sequence, and give new numbers to rows that were
    /// numbered behind what is in the stream, so that they are published.
    Renumber {
        #[command(flatten)]
        act: ActArgs,
    },
    /// After Postgres was restored from an older backup, or somebody else published: remove from the stream the messages
    /// that the outbox does not know, and resume. They are saved first; afterwards rebuild what consumers made of them.
    Accept {
        /// The file for the messages that the outbox does not know, one JSON object a line.
        #[arg(long)]
        export: PathBuf,
        #[command(flatten)]
        act: ActArgs,
    },
    /// List unusual events: refills, halts, parked rows, and what operators did.
    Journal {
        /// The most lines to list, newest first.
        #[arg(long, default_value_t = 50)]
        lines: i64,
    },
}

pub async fn run(context: &Context, args: &OutboxArgs) -> Result<(), anyhow::Error> {
    let mut outbox = open(context, &args.service).await?;
    match &args.command {
        OutboxCommand::Parked => parked(context, &mut outbox).await,
        OutboxCommand::Release { aggregate, act } => {
            act.check(context)?;
            act.confirm(&format!("Publish the parked rows of {aggregate} and the later ones behind them?"))?;
            let request = ReleaseRowsRequest { aggregate_id: aggregate.clone(), reason: act.reason.clone() };
            let rows = outbox.release_rows(request).await.map_err(said)?.into_inner().rows;
            say(context, &json!({"released": rows}), &format!("{rows} rows go out again, in their order."));
            Ok(())
        }
        OutboxCommand::Discard { seq, act } => {
            act.check(context)?;
            act.confirm(&format!("Give up row {seq} for ever?"))?;
            outbox.discard_row(DiscardRowRequest { seq: *seq, reason: act.reason.clone() }).await.map_err(said)?;
            say(context, &json!({"discarded": seq}), &format!("Row {seq} will never be published."));
            Ok(())
        }
        OutboxCommand::Requeue { seqs, act } => {
            act.check(context)?;
            act.confirm(&format!("Publish {} rows once more, behind what is in the stream?", seqs.len()))?;
            let request = RequeueRowsRequest { seqs: seqs.clone(), reason: act.reason.clone() };
            let rows = outbox.requeue_rows(request).await.map_err(said)?.into_inner().rows;
            say(context, &json!({"requeued": rows}), &format!("{rows} rows go out again."));
            Ok(())
        }
        OutboxCommand::Renumber { act } => renumber(context, &mut outbox, act).await,
        OutboxCommand::Accept { export, act } => accept(context, &mut outbox, &args.service, export, act).await,
        OutboxCommand::Journal { lines } => journal(context, &mut outbox, *lines).await,
    }
}

pub fn say(context: &Context, json: &Value, text: &str) {
    if context.quiet {
        return;
    }
    if context.json {
        println!("{json}");
    } else {
        println!("{text}");
    }
}

async fn parked(context: &Context, outbox: &mut Outbox) -> Result<(), anyhow::Error> {
    let rows = processes::all(outbox.list_parked_rows(ListParkedRowsRequest {}).await).await?;
    if context.json {
        return processes::print_json(&rows);
    }
    let cells = |row: &ParkedRow| {
        vec![
            row.seq.to_string(),
            clock(row.parked_at.as_ref()),
            row.tenant.clone(),
            row.aggregate_id.clone(),
            row.subject.clone(),
            row.reason.clone(),
        ]
    };
    let cells: Vec<_> = rows.iter().map(cells).collect();
    table::print(&["ROW", "PARKED AT (UTC)", "TENANT", "AGGREGATE", "SUBJECT", "REASON"], &cells);
    Ok(())
}

async fn journal(context: &Context, outbox: &mut Outbox, lines: i64) -> Result<(), anyhow::Error> {
    let request = ListJournalRequest { lines: lines.clamp(1, 10_000) };
    let lines = processes::all(outbox.list_journal(request).await).await?;
    if context.json {
        return processes::print_json(&lines);
    }
    let cells: Vec<_> = lines.iter().map(journal_cells).collect();
    table::print(&["AT (UTC)", "WHAT", "WHO", "ROWS", "DETAIL"], &cells);
    Ok(())
}

/// A line of the journal as a table row.
pub fn journal_cells(line: &JournalLine) -> Vec<String> {
    let seq = |seq: Option<i64>| seq.map_or_else(String::new, |seq| seq.to_string());
    let rows = match (line.from_seq, line.to_seq) {
        (Some(from), Some(to)) if from == to => from.to_string(),
        (None, None) => "-".to_owned(),
        (from, to) => format!("{}..{}", seq(from), seq(to)),
    };
    vec![clock(line.at.as_ref()), line.kind.clone(), line.actor.clone(), rows, line.detail.clone()]
}

async fn renumber(context: &Context, outbox: &mut Outbox, act: &ActArgs) -> Result<(), anyhow::Error> {
    act.check(context)?;
    let behind = outbox.get_behind(GetBehindRequest {}).await.map_err(said)?.into_inner();
    let (rows, published, sequence) = (behind.rows.len(), behind.published_seq, behind.sequence);
    act.confirm(&format!(
        "The sequence stands at {sequence}, and row {published} is published. Set it right, and give {rows} rows new numbers?"
    ))?;
    let request = RenumberRowsRequest { behind: Some(behind), reason: act.reason.clone() };
    let moved = outbox.renumber_rows(request).await.map_err(said)?.into_inner().rows;
    let more = if rows == 1_000 { " There may be more: run the command again." } else { "" };
    say(context, &json!({"renumbered": moved}), &format!("{moved} rows have new numbers and are published.{more}"));
    Ok(())
}

/// Removes from the stream what the outbox does not know, once it is saved in a file.
pub async fn accept(
    context: &Context,
    outbox: &mut Outbox,
    service: &str,
    export: &Path,
    act: &ActArgs,
) -> Result<(), anyhow::Error> {
    act.check(context)?;
    let (_, stream) = events::open_of(context, service).await?;
    let divergence = outbox.get_divergence(GetDivergenceRequest {}).await.map_err(said)?.into_inner();
    let saved = save(&stream, divergence.from, divergence.to, export).await?;
    if !context.json {
        println!(
            "The stream holds {saved} messages ({} to {}) that the outbox does not know; saved in {}.\n\
             The newest row that both have is {}. They are removed from the stream; whoever has read them has them: \
             rebuild the read models afterwards.",
            divergence.from,
            divergence.to,
            export.display(),
            divergence.outbox_seq
        );
    }
    act.confirm(&format!("Remove these {saved} messages from the stream, and go on?"))?;
    let json = json!({"accepted": processes::json(&divergence)?, "messages": saved, "export": export});
    let request = AcceptRequest { divergence: Some(divergence), reason: act.reason.clone() };
    let mut removed = false;
    let mut accepted = follow(outbox, request.clone(), &stream, &mut removed).await;
    if removed && accepted.is_err() {
        // The service did not wait so long.
        accepted = follow(outbox, request, &stream, &mut removed).await;
    }
    accepted?;
    say(context, &json, "Accepted: the relay goes on within seconds; `flotilla status` shows it.");
    Ok(())
}

/// Removes the messages beyond the outbox, which a service may not do in its own stream, until the service reports that it goes on.
async fn follow(
    outbox: &mut Outbox,
    request: AcceptRequest,
    stream: &Stream,
    removed: &mut bool,
) -> Result<(), anyhow::Error> {
    let divergence = request.divergence.as_ref().map(processes::json).transpose()?;
    let divergence = serde_json::from_value(divergence.unwrap_or_default())?;
    let mut progress = outbox.accept(request).await.map_err(said)?.into_inner();
    while let Some(step) = progress.message().await.map_err(said)? {
        if step.accepted {
            return Ok(());
        }
        if !*removed {
            operate::remove(stream, &divergence).await?;
            *removed = true;
        }
    }
    anyhow::bail!("the service did not say that it goes on: run the command again")
}

/// Writes messages of the stream to a file; returns how many.
async fn save(stream: &Stream, from: u64, to: u64, export: &Path) -> Result<u64, anyhow::Error> {
    // It holds tenants' data.
    let mut options = std::fs::OpenOptions::new();
    let file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(export)
        .with_context(|| format!("creating {}", export.display()))?;
    let mut file = std::io::BufWriter::new(file);
    let mut saved = 0;
    for sequence in from..=to {
        let message = match stream.get_raw_message(sequence).await {
            Ok(message) => message,
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => continue,
            Err(error) => return Err(error).context("reading the stream"),
        };
        let text = String::from_utf8_lossy(&message.payload);
        let payload = serde_json::from_str(&text).unwrap_or_else(|_| Value::String(text.into_owned()));
        let line = json!({"sequence": sequence, "subject": message.subject.as_str(), "storedAt": message.time, "event": payload});
        writeln!(file, "{line}")?;
        saved += 1;
    }
    file.flush()?;
    Ok(saved)
}
