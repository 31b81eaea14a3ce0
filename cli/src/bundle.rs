//! `flotilla bundle`: what somebody who helps needs to see, in one file and without secrets.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use chrono::SecondsFormat;
use clap::Args;
use devstack::redaction::Redaction;
use tokio::process::Command;

use crate::context::Context;
use crate::lag;

/// How long one question may take, and how long a check that reads everything.
const PATIENCE: Duration = Duration::from_secs(60);
const CHECKED_WITHIN: Duration = Duration::from_secs(3_600);

#[derive(Debug, Clone, Args)]
pub struct BundleArgs {
    /// The file to write; by default flotilla-bundle-TIME.tar.gz in the current folder.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// Run `verify`, too: it reads every event and every todo.
    #[arg(long)]
    verify: bool,
    /// How much of the end of each log is taken, in KiB.
    #[arg(long, default_value_t = 1_024, value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    log: u64,
}

pub async fn run(context: &Context, args: &BundleArgs) -> Result<(), anyhow::Error> {
    let now = devstack::supervisor::now();
    let name = format!("flotilla-bundle-{}", now.format("%Y%m%dT%H%M%SZ"));
    let to = args.to.clone().unwrap_or_else(|| format!("{name}.tar.gz").into());
    let redaction = Redaction::of(&context.home)?;
    let mut files = BTreeMap::new();
    let mut missing = Vec::new();

    for (file, command) in questions(args.verify) {
        match answer(context, &command).await {
            Ok(text) => drop(files.insert(file, text)),
            Err(error) => missing.push(format!("{file}: {error:#}")),
        }
    }
    match lag::metrics(context).await {
        Ok(metrics) => {
            files.extend(metrics.into_iter().map(|(service, text)| (format!("metrics/{service}.txt"), text)));
        }
        Err(error) => missing.push(format!("metrics: {error:#}")),
    }
    if !context.is_elsewhere() {
        for log in logs(&context.home)? {
            let file = format!("logs/{}", log.file_name().unwrap_or_default().to_string_lossy());
            match end_of(&log, args.log << 10) {
                Ok(text) => drop(files.insert(file, text)),
                Err(error) => missing.push(format!("{file}: {error}")),
            }
        }
        for (file, program, arguments) in MACHINE {
            let mut command = Command::new(program);
            command.args(*arguments);
            match output(command, PATIENCE).await {
                Ok(text) => drop(files.insert((*file).to_owned(), text)),
                Err(error) => missing.push(format!("{file}: {error:#}")),
            }
        }
    }
    let settings: Vec<_> = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    let mut settings: Vec<_> = settings.into_iter().filter(|name| name.starts_with("FLOTILLA_")).collect();
    settings.sort();
    let about = format!(
        "{name}\nflotilla {}\ntaken at {}\n\nIt names tenants, users and ids; what is a secret of the fleet is replaced by [secret].\n\nvariables that are set, \
         without their values: {}\n\nnot here:\n{}\n",
        env!("CARGO_PKG_VERSION"),
        now.to_rfc3339_opts(SecondsFormat::Secs, true),
        settings.join(" "),
        if missing.is_empty() { "nothing".to_owned() } else { missing.join("\n") }
    );
    files.insert("about.txt".to_owned(), about);
    let files = files.into_iter().map(|(file, text)| (file, redaction.apply(&text)));
    pack(&name, files.collect(), &to).await?;
    println!("{} holds what a supporter needs, without secrets. Read it before you send it.", to.display());
    missing.iter().for_each(|line| eprintln!("not in it: {line}"));
    Ok(())
}

/// The commands whose answers are taken, by the name of the file.
fn questions(verify: bool) -> Vec<(String, Vec<String>)> {
    let mut all: Vec<(String, Vec<&str>)> = vec![
        ("status.json".to_owned(), vec!["status"]),
        ("lag.json".to_owned(), vec!["lag"]),
        ("consumers.json".to_owned(), vec!["consumers"]),
        ("dead-letter-groups.json".to_owned(), vec!["dlq", "groups"]),
    ];
    for service in fleet::producers() {
        all.push((format!("outbox-journal-{service}.json"), vec!["outbox", "journal", "--service", service]));
    }
    if verify {
        all.push(("verify.json".to_owned(), vec!["verify"]));
    }
    let words = |words: Vec<&str>| words.into_iter().map(ToOwned::to_owned).collect();
    all.into_iter().map(|(file, command)| (file, words(command))).collect()
}

/// What is asked of this machine.
const MACHINE: &[(&str, &str, &[&str])] = &[
    ("machine/disks.txt", "df", &["-h"]),
    ("machine/memory.txt", "free", &["-m"]),
    ("machine/system.txt", "uname", &["-a"]),
    ("machine/uptime.txt", "uptime", &[]),
];

/// What a command of ours answers about the same fleet. `verify` that finds something has answered.
async fn answer(context: &Context, command: &[String]) -> Result<String, anyhow::Error> {
    let mut child = Command::new(std::env::current_exe()?);
    child.args(context.of_fleet()).arg("--json").args(command);
    if let Some(token) = context.operator_token()? {
        child.env("FLOTILLA_OPERATOR_TOKEN", token);
    }
    output(child, if command[0] == "verify" { CHECKED_WITHIN } else { PATIENCE }).await
}

async fn output(mut command: Command, patience: Duration) -> Result<String, anyhow::Error> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(patience, command.output()).await.context("no answer in time")??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(!text.is_empty(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(text)
}

fn logs(home: &Path) -> Result<Vec<PathBuf>, anyhow::Error> {
    let folder = home.join("logs");
    let entries = folder.read_dir().with_context(|| format!("reading {}", folder.display()))?;
    let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(files.filter(|path| path.is_file() && path.extension().is_some_and(|end| end == "log")).collect())
}

/// The last bytes of a file, from the beginning of a line.
fn end_of(file: &Path, bytes: u64) -> std::io::Result<String> {
    let mut file = std::fs::File::open(file)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut content = Vec::new();
    file.take(bytes).read_to_end(&mut content)?;
    let text = String::from_utf8_lossy(&content).into_owned();
    // Half a line may hold half a secret, which nothing would know again.
    let whole = if length > bytes { text.split_once('\n').map_or("", |(_, rest)| rest) } else { &text };
    Ok(whole.to_owned())
}

/// Writes them as one archive that nobody else reads. What is there is not overwritten.
async fn pack(name: &str, files: BTreeMap<String, String>, to: &Path) -> Result<(), anyhow::Error> {
    let archive = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    let archive = archive.with_context(|| format!("writing {}", to.display()))?;
    let work = Temporary::new(name)?;
    for (file, text) in files {
        let file = work.0.join(name).join(file);
        std::fs::create_dir_all(file.parent().unwrap_or(&work.0))?;
        std::fs::write(&file, text)?;
    }
    let mut tar = Command::new("tar");
    tar.arg("-cz").arg("-C").arg(&work.0).arg(name).stdin(Stdio::null()).stdout(Stdio::from(archive));
    let status = tar.status().await.context("running tar")?;
    ensure!(status.success(), "tar failed ({status}): {} is not whole", to.display());
    Ok(())
}

/// A folder that nobody else enters, removed at the end.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Result<Self, anyhow::Error> {
        use std::os::unix::fs::DirBuilderExt as _;
        let folder = std::env::temp_dir().join(format!("{name}-{}", uuid::Uuid::new_v4()));
        std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}
