//! `flotilla restore`: a stopped stack as it was at a moment, then the fleet on it, brought to that one time and checked.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use authz::OperatorRole;
use chrono::TimeDelta;
use clap::{Args, Subcommand, ValueEnum};
use contracts::UserId;
use devstack::StackDir;
use devstack::backup::{Key, Moment, Plan, Repository, Streams};
use proto::ops::GetOutboxRequest;
use serde_json::{Value, json};

use crate::backup::{RepositoryArgs, clock};
use crate::context::Context;
use crate::exit::Exit;
use crate::operator::ActArgs;
use crate::outbox::say;
use crate::processes::said;
use crate::stack::{self, UpArgs};
use crate::verify::{self, VerifyArgs};
use crate::{audit, events, outbox, rebuild};

/// For how long a relay may publish nothing that is to be published.
const STANDS_STILL: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct RestoreArgs {
    #[command(subcommand)]
    command: Option<RestoreCommand>,
    /// The moment: what was committed until then is there afterwards, and nothing later. RFC 3339, such as 2026-11-28T03:00:00Z, or
    /// `latest` for all that was archived.
    #[arg(long, value_name = "TIME", required = true)]
    to: Option<Moment>,
    #[command(flatten)]
    repository: RepositoryArgs,
    /// The key of the backups, where the stack's folder has none (any more).
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// What becomes of the streams: `keep` those that are there, from which what is later is taken out and saved; or put back those of
    /// the `backup`. By default they are kept where there are any.
    #[arg(long)]
    streams: Option<KeepOrBackup>,
    /// Go on with the repository of a fleet that is gone: the log is archived there, and its next backup is this fleet's. Without it a
    /// fleet restored from another's repository is a trial, and that repository stays as it is.
    #[arg(long)]
    take_over: bool,
    /// Who restores: written into the journals.
    #[arg(long, required = true)]
    user: Option<UserId>,
    #[command(flatten)]
    act: ActArgs,
    #[command(flatten)]
    up: UpArgs,
}

#[derive(Debug, Clone, Subcommand)]
enum RestoreCommand {
    /// Bring streams and index to the time of databases that are back already, by other means, and check. The services run. Works on
    /// a fleet that is elsewhere, with an operator's token.
    Follow {
        #[command(flatten)]
        act: ActArgs,
    },
    /// Give servers of NATS that have no streams those of a backup, with their durable consumers: with the logins of the administration
    /// in the folder.
    Streams {
        /// Where NATS is.
        #[arg(long, value_name = "URL")]
        nats: String,
        /// The moment: of the sets that had ended by then, the newest. `latest` is the newest of all.
        #[arg(long, value_name = "TIME")]
        to: Moment,
        /// The key of the backups; by default the folder's.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KeepOrBackup {
    Keep,
    Backup,
}

pub async fn run(context: &Context, args: &RestoreArgs) -> Result<(), anyhow::Error> {
    match &args.command {
        Some(RestoreCommand::Streams { nats, to, key }) => {
            return Box::pin(streams(context, args, (nats, *to), key.as_deref())).await;
        }
        Some(RestoreCommand::Follow { act }) => {
            act.verify(context).await?;
            act.confirm("Take out of the streams what the databases do not know, and rebuild the index?")?;
            return Box::pin(agree(context, act, &json!({}))).await;
        }
        None => {}
    }
    let (Some(to), Some(user)) = (args.to, &args.user) else { bail!("say --to TIME and --user YOU") };
    context.only_here("what `restore` puts back")?;
    ensure!(!args.act.reason.trim().is_empty(), "--reason must say why: it is what the journal is read for");
    ensure!(!context.is_supervised(), "the fleet is running: `flotilla down` first");
    let started = Instant::now();
    let home = context.open_stack_dir()?;
    let repository = args.repository.of(&home)?;
    let goes_on = args.take_over || repository.is_of(&home)?;
    let _lock = goes_on.then(|| repository.lock()).transpose()?;
    let keep = args.streams.map(|streams| streams == KeepOrBackup::Keep);
    let json = context.json;
    let say: devstack::Reporter = Arc::new(move |line| {
        if !json {
            println!("  {line}");
        }
    });
    let plan = Box::pin(Plan::make(&home, (&repository, args.key.as_deref()), to, (goes_on, keep), &say)).await?;
    args.act.confirm(&question(&plan, to, goes_on))?;
    let restored = Box::pin(plan.run()).await?;
    drop(plan);
    let stores = started.elapsed();
    say(&format!(
        "the stores are put back: PostgreSQL {:.1} s, streams {:.1} s; the newest change is of {}",
        restored.database_seconds,
        restored.streams_seconds,
        restored.newest.as_deref().unwrap_or("the backup")
    ));
    for data in &restored.aside {
        say(&format!("what was there before is in {}: remove it when nobody misses anything", data.display()));
    }
    // There is data, whoever starts the fleet.
    std::fs::write(context.home.join(stack::DEMO_DONE), b"")?;
    let starting = stack::bring_up(context, &args.up).await;
    starting.context("the stores are back: start the fleet (`flotilla up`), then run `flotilla restore follow`")?;
    let up = started.elapsed().saturating_sub(stores);
    let token =
        context.development_issuer()?.operator_token(user.as_str(), OperatorRole::Operator, TimeDelta::hours(12))?;
    let act = ActArgs { yes: true, ..args.act.clone() };
    let done = json!({
        "to": moment(to), "stores": restored, "storesSeconds": stores.as_secs_f64(), "upSeconds": up.as_secs_f64(),
    });
    Box::pin(agree(&context.acting_with(token), &act, &done)).await
}

/// Puts the streams of a set back, and nothing else.
async fn streams(
    context: &Context,
    args: &RestoreArgs,
    (nats, to): (&str, Moment),
    key: Option<&Path>,
) -> Result<(), anyhow::Error> {
    let home = StackDir::given(&context.home);
    let folder = args.repository.repository.as_ref().context("say from where: --repository FOLDER")?;
    let repository = Repository::at(folder)?;
    let key = Key::given(&home, key).await?;
    let sets = repository.sets()?;
    let set = sets.streams(to.time()).context("no backup of the streams is old enough")?;
    repository.load(&home, &key, nats, set).await?;
    let text =
        format!("The streams of {} are back: run `flotilla provision` before the services start.", clock(set.ended));
    say(context, &json!({"streams": set}), &text);
    Ok(())
}

/// Brings streams and index to the time of the databases, and checks; `done` is what was done before, for the audit.
async fn agree(context: &Context, act: &ActArgs, done: &Value) -> Result<(), anyhow::Error> {
    let (began, act, parts) = (Instant::now(), &ActArgs { yes: true, ..act.clone() }, &context.as_part());
    let mut lost = Vec::new();
    for service in fleet::producers() {
        lost.extend(Box::pin(level(parts, service, act)).await?);
    }
    Box::pin(rebuild::search(parts, act)).await?;
    audit::record(context, "restore", 1, done, &act.reason).await?;
    let report = Box::pin(verify::check(context, &VerifyArgs::of_index(proto::ops::Which::Searched))).await;
    let found = report.findings();
    if context.json {
        let mut answer = json!({
            "lost": lost, "findings": found, "unchecked": report.unchecked, "agreedSeconds": began.elapsed().as_secs_f64(),
        });
        for (name, value) in done.as_object().into_iter().flatten() {
            answer[name] = value.clone();
        }
        println!("{answer}");
    } else {
        verify::print(&report, began.elapsed());
        for file in &lost {
            println!("What was undone is in {}: re-enter what must not be lost.", file.display());
        }
    }
    if found > 0 {
        return Err(Exit::found("the stores do not agree: docs/runbooks/verify.md".to_owned()).into());
    }
    if !report.unchecked.is_empty() {
        return Err(Exit::unchecked("not everything could be checked".to_owned()).into());
    }
    if !context.json {
        println!("Streams and index are at the time of the databases, after {:.1} s.", began.elapsed().as_secs_f64());
    }
    Ok(())
}

fn moment(to: Moment) -> String {
    match to {
        Moment::Latest => "the end of the archive".to_owned(),
        Moment::At(at) => at.to_rfc3339(),
    }
}

fn question(plan: &Plan, to: Moment, goes_on: bool) -> String {
    let streams = match &plan.streams {
        Streams::Kept => "The streams stay; what they have beyond that is taken out and saved.".to_owned(),
        Streams::Of(set) => format!("The streams are those of {}, and are filled from the outboxes.", clock(set.ended)),
        Streams::Empty => "No backup of the streams is old enough: they are filled from the outboxes.".to_owned(),
    };
    format!(
        "PostgreSQL goes back to {}, from its backup of {}. {streams} What is there now is moved aside. {} Do it?",
        moment(to),
        clock(plan.base.ended),
        if goes_on {
            "The repository goes on with this fleet."
        } else {
            "It is a trial: the repository stays as it is."
        }
    )
}

/// Waits until a stream has what its outbox had when this began, and nothing that the outbox does not know. What was published
/// beyond a restored outbox is saved in a file and taken out.
async fn level(context: &Context, service: &str, act: &ActArgs) -> Result<Option<PathBuf>, anyhow::Error> {
    let mut port = outbox::open(context, service).await?;
    let (_, mut stream) = events::open_of(context, service).await?;
    let (mut saved, mut marks, mut seen) = (None, None, (0, 0, Instant::now()));
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tick.tick().await;
        let overview = port.get_outbox(GetOutboxRequest {}).await.map_err(said)?.into_inner();
        let stream = stream.info().await.context("asking for the stream")?;
        let last = stream.state.last_sequence;
        // What was taken out at its end left its number.
        let of_this = overview.accepted_stream_created_at.as_ref().and_then(proto::time) == Some(stream.created);
        let accepted = overview.accepted_stream_seq.filter(|_| of_this).unwrap_or_default();
        let known = overview.stream_seq.max(accepted).cast_unsigned();
        let (rows, messages) = *marks.get_or_insert((overview.unparked_seq, last));
        if overview.halted.is_some() {
            ensure!(saved.is_none(), "the relay of {service} has halted again: docs/runbooks/outbox.md#halted");
            // Of a fleet that is elsewhere, where the command runs.
            let folder = if context.is_elsewhere() { std::env::current_dir()? } else { context.home.clone() };
            let export = folder.join(format!("undone-{service}-{}.jsonl", uuid::Uuid::new_v4()));
            outbox::accept(context, &mut port, service, &export, act).await?;
            saved = Some(export);
        // A relay that has not looked yet knows of more than an older stream has, or of less than a newer one.
        } else if overview.stored_seq >= rows && (messages..=last).contains(&known) {
            return Ok(saved);
        }
        if (known, last) != (seen.0, seen.1) {
            seen = (known, last, Instant::now());
        }
        ensure!(
            seen.2.elapsed() < STANDS_STILL,
            "the outbox of {service} stands still at row {}: docs/runbooks/outbox.md#backlog; then `flotilla restore follow`",
            overview.stored_seq
        );
    }
}
