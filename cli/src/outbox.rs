//! `flotilla outbox`: parked rows worked, the journal read, and a stream that is ahead of its outbox.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use anyhow::Context as _;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use clap::{Args, Subcommand};
use contracts::subject;
use outbox::operate::{self, Act};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use crate::operator::ActArgs;
use crate::stack::Context;
use crate::{events, table};

#[derive(Debug, Clone, Args)]
pub struct OutboxArgs {
    /// Whose outbox.
    #[arg(long, default_value = "todo", global = true)]
    service: String,
    #[command(subcommand)]
    command: OutboxCommand,
}

#[derive(Debug, Clone, Subcommand)]
enum OutboxCommand {
    /// List the rows that could not be published, and those that wait behind them.
    Parked,
    /// Publish an aggregate's parked rows after all, in their order, with the same event ids.
    Release {
        /// The aggregate.
        aggregate: String,
        #[command(flatten)]
        act: ActArgs,
    },
    /// Give up a parked row: it is never published. Later ones of its aggregate stay parked until they are released.
    Discard {
        /// The row, by its number.
        seq: i64,
        #[command(flatten)]
        act: ActArgs,
    },
    /// Publish rows once more, under new numbers and with the same event ids: what a hole in the stream has lost, as
    /// `flotilla verify` names it.
    Requeue {
        /// The rows, by their numbers.
        #[arg(required = true)]
        seqs: Vec<i64>,
        #[command(flatten)]
        act: ActArgs,
    },
    /// After the database was moved without its sequence: set that right, and give rows that were numbered behind what
    /// is in the stream new numbers, so that they are published.
    Renumber {
        #[command(flatten)]
        act: ActArgs,
    },
    /// After Postgres was restored from an older backup, or somebody else published: remove from the stream what the
    /// outbox does not know, and go on. It is saved first; rebuild afterwards what consumers have made of it.
    Accept {
        /// Where to save the messages that the outbox does not know, one JSON object a line.
        #[arg(long)]
        export: PathBuf,
        #[command(flatten)]
        act: ActArgs,
    },
    /// What happened beyond the everyday: refills, halts, parked rows, and what operators did.
    Journal {
        /// How many lines, newest first.
        #[arg(long, default_value_t = 50)]
        lines: i64,
    },
}

/// A connection to a service's database as the operator.
pub async fn database(context: &Context, service: &str) -> Result<PgConnection, anyhow::Error> {
    let url = context.board()?.unit("postgres")?.login_url()?;
    let (server, _) = url.rsplit_once('/').context("the login of postgres names a database")?;
    let connection = PgConnection::connect(&format!("{server}/{service}")).await;
    connection.with_context(|| format!("connecting to the database of {service}"))
}

pub async fn run(context: &Context, args: &OutboxArgs) -> Result<(), anyhow::Error> {
    let mut db = database(context, &args.service).await?;
    match &args.command {
        OutboxCommand::Parked => parked(context, &mut db).await,
        OutboxCommand::Release { aggregate, act } => {
            let actor = act.operator(context).await?;
            act.confirm(&format!("Publish the parked rows of {aggregate} and the later ones behind them?"))?;
            let rows = operate::release(&mut db, aggregate, Act { actor: &actor, reason: &act.reason }).await?;
            say(context, &json!({"released": rows}), &format!("{rows} rows go out again, in their order."));
            Ok(())
        }
        OutboxCommand::Discard { seq, act } => {
            let actor = act.operator(context).await?;
            act.confirm(&format!("Give up row {seq} for ever?"))?;
            operate::discard(&mut db, *seq, Act { actor: &actor, reason: &act.reason }).await?;
            say(context, &json!({"discarded": seq}), &format!("Row {seq} will never be published."));
            Ok(())
        }
        OutboxCommand::Requeue { seqs, act } => {
            let actor = act.operator(context).await?;
            act.confirm(&format!("Publish {} rows once more, behind what is in the stream?", seqs.len()))?;
            let rows = operate::requeue(&mut db, seqs, Act { actor: &actor, reason: &act.reason }).await?;
            say(context, &json!({"requeued": rows}), &format!("{rows} rows go out again."));
            Ok(())
        }
        OutboxCommand::Renumber { act } => renumber(context, &mut db, &args.service, act).await,
        OutboxCommand::Accept { export, act } => accept(context, &mut db, &args.service, export, act).await,
        OutboxCommand::Journal { lines } => journal(context, &mut db, *lines).await,
    }
}

pub fn say(context: &Context, json: &Value, text: &str) {
    if context.json {
        println!("{json}");
    } else {
        println!("{text}");
    }
}

async fn parked(context: &Context, db: &mut PgConnection) -> Result<(), anyhow::Error> {
    let rows = operate::parked(db).await?;
    if context.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    let cells = |row: &operate::ParkedRow| {
        let at = row.parked_at.format("%Y-%m-%d %H:%M:%S").to_string();
        vec![
            row.seq.to_string(),
            at,
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

async fn journal(context: &Context, db: &mut PgConnection, lines: i64) -> Result<(), anyhow::Error> {
    let lines = operate::journal(db, lines.clamp(1, 10_000)).await?;
    if context.json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
        return Ok(());
    }
    let cells: Vec<_> = lines.iter().map(journal_cells).collect();
    table::print(&["AT (UTC)", "WHAT", "WHO", "ROWS", "DETAIL"], &cells);
    Ok(())
}

/// A line of the journal, for a table.
pub fn journal_cells(line: &operate::JournalLine) -> Vec<String> {
    let seq = |seq: Option<i64>| seq.map_or_else(String::new, |seq| seq.to_string());
    let rows = match (line.from_seq, line.to_seq) {
        (Some(from), Some(to)) if from == to => from.to_string(),
        (None, None) => "-".to_owned(),
        (from, to) => format!("{}..{}", seq(from), seq(to)),
    };
    vec![
        line.at.format("%Y-%m-%d %H:%M:%S").to_string(),
        line.kind.clone(),
        line.actor.clone(),
        rows,
        line.detail.clone(),
    ]
}

async fn renumber(context: &Context, db: &mut PgConnection, service: &str, act: &ActArgs) -> Result<(), anyhow::Error> {
    let actor = act.operator(context).await?;
    let (js, _) = events::open(context).await?;
    let stream = js.get_stream(subject::stream(service)).await.context("opening the stream")?;
    let behind = operate::numbered_behind(db, &stream).await?;
    let (rows, published, sequence) = (behind.rows.len(), behind.published_seq, behind.sequence);
    act.confirm(&format!(
        "The sequence stands at {sequence}, and row {published} is published. Set it right, and give {rows} rows new numbers?"
    ))?;
    let moved = operate::renumber(db, &behind, Act { actor: &actor, reason: &act.reason }).await?;
    let more = if rows == 1_000 { " There may be more: run the command again." } else { "" };
    say(context, &json!({"renumbered": moved}), &format!("{moved} rows have new numbers and are published.{more}"));
    Ok(())
}

async fn accept(
    context: &Context,
    db: &mut PgConnection,
    service: &str,
    export: &PathBuf,
    act: &ActArgs,
) -> Result<(), anyhow::Error> {
    let actor = act.operator(context).await?;
    let (js, _) = events::open(context).await?;
    let stream = js.get_stream(subject::stream(service)).await.context("opening the stream")?;
    let beyond = operate::beyond(db, &stream).await?;
    let saved = save(&stream, beyond.from, beyond.to, export).await?;
    if !context.json {
        println!(
            "The stream holds {saved} messages ({} to {}) that the outbox does not know; saved in {}.\n\
             The newest row that both have is {}. They are removed from the stream; whoever has read them has them: \
             rebuild the read models afterwards.",
            beyond.from,
            beyond.to,
            export.display(),
            beyond.outbox_seq
        );
    }
    act.confirm(&format!("Remove these {saved} messages from the stream, and go on?"))?;
    operate::accept(db, &stream, &beyond, Act { actor: &actor, reason: &act.reason }).await?;
    let json = json!({"accepted": beyond, "messages": saved, "export": export});
    say(context, &json, "Accepted: the relay goes on within seconds; `flotilla status` shows it.");
    Ok(())
}

/// Writes messages of the stream to a file; how many there were.
async fn save(stream: &Stream, from: u64, to: u64, export: &PathBuf) -> Result<u64, anyhow::Error> {
    // It holds what tenants wrote.
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
