//! `flotilla backup` and `flotilla backups`: of the stores of a stack, into a folder.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand};
use devstack::backup::{Archive, KEY, Key, Kind, Repository, Sets, StreamSet};
use devstack::postgres::{self, Postgres};
use devstack::{StackDir, backup};
use serde_json::json;

use crate::context::Context;
use crate::outbox::say;
use crate::table;

#[derive(Debug, Clone, Args)]
pub struct RepositoryArgs {
    /// The folder of the backups: on another disk, if they are to outlive this one. By default that of the earlier backups; the first
    /// one is made beside the stack's data, where `reset` removes it.
    #[arg(long, value_name = "FOLDER", env = "FLOTILLA_BACKUPS", global = true)]
    pub repository: Option<PathBuf>,
}

impl RepositoryArgs {
    /// The repository of earlier backups.
    pub fn of(&self, home: &StackDir) -> Result<Repository, anyhow::Error> {
        let Some(folder) = &self.repository else { return Repository::of(home) };
        ensure!(folder.is_dir(), "{} is no folder", folder.display());
        backup::installed()?;
        Repository::at(folder)
    }
}

#[derive(Debug, Clone, Args)]
pub struct BackupsArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// The key of the backups; by default the folder's.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BackupArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// Copy every file of PostgreSQL, and not only what changed since the last backup.
    #[arg(long)]
    full: bool,
    /// How many full backups to keep, with what is based on them and the log since; older ones are removed. By default as many as the
    /// last time, and 2 at first.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
    keep: Option<u8>,
    /// Begin another repository in --repository; that of the earlier backups stays as it is.
    #[arg(long, requires = "repository")]
    anew: bool,
    #[command(subcommand)]
    command: Option<BackupCommand>,
}

#[derive(Debug, Clone, Subcommand)]
enum BackupCommand {
    /// Save the streams alone: for a job of a cluster, which has the logins of the administration in its folder.
    Streams {
        /// Where NATS is.
        #[arg(long, value_name = "URL")]
        nats: String,
        /// The key of the backups; by default the folder's.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// How many sets to keep.
        #[arg(long, default_value_t = 14, value_parser = clap::value_parser!(u16).range(1..))]
        keep: u16,
    },
}

pub async fn run(context: &Context, args: &BackupArgs) -> Result<(), anyhow::Error> {
    if let Some(BackupCommand::Streams { nats, key, keep }) = &args.command {
        let home = StackDir::given(&context.home);
        let folder = args.repository.repository.as_ref().context("say where to: --repository FOLDER")?;
        let repository = Repository::at(folder)?;
        let _lock = repository.lock()?;
        let key = Key::given(&home, key.as_deref()).await?;
        let set = Box::pin(repository.save(&home, &key, nats)).await?;
        let expired = repository.keep(usize::from(*keep))?;
        say(context, &json!({"streams": set, "expired": expired}), &streams(&set));
        return Ok(());
    }
    context.only_here("what `backup` copies")?;
    let (home, started) = (context.open_stack_dir()?, Instant::now());
    let address = context.nats()?;
    let server = server(context, &home)?;
    let timeline = postgres::timeline(&superuser_url(context)?).await?;
    let repository = Repository::make(&home, args.repository.repository.as_deref(), args.anew, timeline)?;
    let _lock = repository.lock()?;
    repository.check(timeline)?;
    let sets = repository.sets()?;
    let first = sets.streams.is_empty();
    // Another key would open nothing of what is there.
    let key = if first { Key::make(&home).await? } else { Key::of(&home).await? };
    let archive = Archive::open(&home, (&repository, &key), &server)?;
    archive.prepare().await?;
    let keep = repository.note(&home, args.keep)?;
    archive.attach()?;
    let keep = Sets { bases: archive.bases().await?, ..sets }.retention(keep, args.full);
    // The streams first: every event in them is of a row that the base backup, or its log, leads to.
    let set = Box::pin(repository.save(&home, &key, &address)).await?;
    archive.back_up(if args.full { Kind::Full } else { Kind::Incremental }, keep).await?;
    let bases = archive.bases().await?;
    let sets = Sets { bases, ..repository.sets()? };
    let (expired, since) = (repository.expire(&sets)?, sets.since());
    let base = sets.bases.last().context("pgBackRest has made a backup and does not know it")?;
    let key = home.path("secrets").join(KEY);
    let seconds = started.elapsed().as_secs_f64();
    let json = json!({
        "repository": repository.folder(), "key": key, "base": base, "streams": set, "expired": expired,
        "restorableFrom": since, "seconds": seconds,
    });
    let kind = if base.full { "every file" } else { "what changed" };
    let mut text = format!(
        "PostgreSQL  {} ({kind}, {})\n{}\nin          {} ({seconds:.1} s)\n\
         The log is archived from now on: `flotilla restore --to TIME` leads to any moment since {}, but for the last minute.",
        base.label,
        size(base.bytes),
        streams(&set),
        repository.folder().display(),
        clock(since.unwrap_or(base.ended)),
    );
    if first {
        text += &format!(
            "\nCopy {} to where secrets are kept: nothing opens a backup without it.\nNo other secret is in a backup either; \
             `flotilla backups` names them.",
            key.display()
        );
    }
    say(context, &json, &text);
    Ok(())
}

/// The server of the running stack.
fn server(context: &Context, home: &StackDir) -> Result<Postgres, anyhow::Error> {
    let status = context.stack_status()?;
    let address = status.unit("postgres")?.address.clone();
    let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
    let port = port.with_context(|| format!("{address} has no port"))?;
    Postgres::of(home, "".as_ref(), port, true)
}

/// Since when the log of a stack that has backups cannot be archived; None where all is well, or nobody knows.
pub async fn fails_since(context: &Context) -> Result<Option<String>, anyhow::Error> {
    if context.is_elsewhere() {
        return Ok(None);
    }
    match Repository::noted(&StackDir::given(&context.home)) {
        Some(_) => Ok(postgres::archiver(&superuser_url(context)?).await?.fails_since),
        None => Ok(None),
    }
}

fn superuser_url(context: &Context) -> Result<String, anyhow::Error> {
    context.stack_status()?.unit("postgres")?.login_url()
}

fn streams(set: &StreamSet) -> String {
    let (messages, bytes) =
        (set.streams.iter().map(|s| s.messages).sum::<u64>(), set.streams.iter().map(|s| s.bytes).sum());
    format!("JetStream   {} ({} streams, {messages} messages, {})", set.label, set.streams.len(), size(bytes))
}

/// What there is, and which secrets it needs beside it.
pub async fn list(context: &Context, args: &BackupsArgs) -> Result<(), anyhow::Error> {
    context.only_here("the folder of the backups")?;
    let home = context.open_stack_dir()?;
    let repository = args.repository.of(&home)?;
    let (key, server) = (Key::given(&home, args.key.as_deref()).await?, Postgres::of(&home, "".as_ref(), 1, true)?);
    let archive = Archive::open(&home, (&repository, &key), &server)?;
    let sets = Sets { bases: archive.bases().await?, ..repository.sets()? };
    if context.json {
        let mut json = serde_json::to_value(&sets)?;
        json["repository"] = json!(repository.folder());
        json["restorableFrom"] = json!(sets.since());
        println!("{}", serde_json::to_string_pretty(&json)?);
        return Ok(());
    }
    let row = |what: &str, label: &str, began: DateTime<Utc>, ended: DateTime<Utc>, bytes: u64| {
        vec![what.to_owned(), label.to_owned(), clock(began), clock(ended), size(bytes)]
    };
    let mut rows = Vec::new();
    for base in &sets.bases {
        let what = if base.full { "PostgreSQL, every file" } else { "PostgreSQL, what changed" };
        rows.push((base.ended, row(what, &base.label, base.began, base.ended, base.bytes)));
    }
    for set in &sets.streams {
        let bytes = set.streams.iter().map(|stream| stream.bytes).sum();
        rows.push((set.ended, row("JetStream", &set.label, set.began, set.ended, bytes)));
    }
    rows.sort_by_key(|(ended, _)| *ended);
    let rows: Vec<_> = rows.into_iter().map(|(_, row)| row).collect();
    println!("{}\n", repository.folder().display());
    table::print(&["OF", "LABEL", "BEGAN", "ENDED", "SIZE"], &rows);
    if let Some(since) = sets.since() {
        println!("\n`flotilla restore --to TIME` leads to any moment since {}, but for the last minute.", clock(since));
    }
    if context.is_supervised() && repository.is_of(&home)? {
        let archiver = postgres::archiver(&superuser_url(context)?).await?;
        match (archiver.fails_since, archiver.archived) {
            (Some(since), _) => {
                println!("THE LOG CANNOT BE ARCHIVED since {since}: docs/runbooks/backups.md#an-archive-that-fails")
            }
            (None, Some(at)) => println!("The log was archived last at {at}."),
            (None, None) => {}
        }
    }
    for undone in &sets.restores {
        println!("What was done from {} to {} was undone by a restore.", clock(undone.to), clock(undone.at));
    }
    let named: Vec<String> = match sets.streams.last() {
        Some(set) => set.secrets.clone(),
        None => backup::secrets(&home)?,
    };
    println!("\nKept elsewhere, and in no backup: {}.", named.join(", "));
    Ok(())
}

/// A moment, as `restore --to` takes it.
pub fn clock(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes.div_ceil(1_000)),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
