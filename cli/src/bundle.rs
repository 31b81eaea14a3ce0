//! `flotilla bundle`: what somebody who helps needs to see, in one file, with known secrets replaced.

use std::fs::OpenOptions;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use chrono::SecondsFormat;
use clap::Args;
use devstack::Unit;
use devstack::redaction::Redaction;
use devstack::stack::STATUS_FILE;
use tokio::process::Command;

use crate::context::Context;
use crate::lag;
use crate::stack::stop_requested;

/// How long one question may take, and how long a check that reads everything.
const PATIENCE: Duration = Duration::from_secs(60);
const CHECKED_WITHIN: Duration = Duration::from_secs(3_600);

/// How much of an answer is taken.
const MOST_BYTES: usize = 16 << 20;

#[derive(Debug, Clone, Args)]
pub struct BundleArgs {
    /// The file to write; by default flotilla-bundle-TIME.tar.gz in the current folder.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// Run `verify`, too: it reads every event and every todo.
    #[arg(long)]
    verify: bool,
    /// How much of the end of each log is taken, in KiB.
    #[arg(long, default_value_t = 1_024, value_parser = clap::value_parser!(u64).range(1..=16_384))]
    log: u64,
}

pub async fn run(context: &Context, args: &BundleArgs) -> Result<(), anyhow::Error> {
    // Stopped in the middle, it leaves nothing.
    tokio::select! {
        bundled = bundle(context, args) => bundled,
        stopped = stop_requested() => stopped.and_then(|()| bail!("stopped: nothing was written")),
    }
}

async fn bundle(context: &Context, args: &BundleArgs) -> Result<(), anyhow::Error> {
    ensure!(context.home.is_dir(), "there is no folder {}", context.home.display());
    let now = devstack::supervisor::now();
    let name = format!("flotilla-bundle-{}", now.format("%Y%m%dT%H%M%SZ"));
    let to = args.to.clone().unwrap_or_else(|| format!("{name}.tar.gz").into());
    ensure!(!to.exists(), "{} exists already", to.display());
    let mut bundle =
        Bundle { redaction: Redaction::of(&context.home)?, folder: Temporary::new(&name)?, name, missing: Vec::new() };

    let token = context.operator_token()?;
    for (file, command) in questions(args.verify) {
        bundle.take(&file, answer(context, token.as_deref(), &command).await)?;
    }
    match lag::metrics(context).await {
        Ok(metrics) => {
            for (service, text) in metrics {
                let text = if text.is_empty() { Err(anyhow!("it does not answer")) } else { Ok(text) };
                bundle.take(&format!("metrics/{service}.txt"), text)?;
            }
        }
        Err(error) => bundle.take("metrics", Err(error))?,
    }
    if !context.is_elsewhere() {
        bundle.take("state.json", std::fs::read_to_string(context.home.join(STATUS_FILE)).map_err(Into::into))?;
        for log in logs(&context.home) {
            let file = format!("logs/{}", log.file_name().unwrap_or_default().to_string_lossy());
            bundle.take(&file, end_of(&log, args.log << 10))?;
        }
        if let Ok(Some(prometheus)) = context.stack_status().map(|status| status.unit("prometheus").ok().cloned()) {
            bundle.take("alerts.json", alerts(context, &prometheus).await)?;
        }
        for (file, program, arguments) in MACHINE {
            let mut command = Command::new(program);
            command.args(*arguments);
            bundle.take(file, output(command, PATIENCE).await)?;
        }
    }
    let settings: Vec<_> = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    let mut settings: Vec<_> = settings.into_iter().filter(|name| name.starts_with("FLOTILLA_")).collect();
    settings.sort();
    let about = format!(
        "{}\nflotilla {}\ntaken at {}\n\nIt names tenants, users and ids; what is known to be a secret is replaced by [secret].\n\n\
         variables that are set, without their values: {}\n\nnot here:\n{}\n",
        bundle.name,
        env!("CARGO_PKG_VERSION"),
        now.to_rfc3339_opts(SecondsFormat::Secs, true),
        settings.join(" "),
        if bundle.missing.is_empty() { "nothing".to_owned() } else { bundle.missing.join("\n") }
    );
    bundle.take("about.txt", Ok(about))?;
    bundle.pack(&to).await?;
    println!(
        "{} holds what a supporter needs; the secrets that are known are replaced. Read it before you send it.",
        to.display()
    );
    bundle.missing.iter().for_each(|line| eprintln!("not in it: {line}"));
    Ok(())
}

/// What is gathered, in a folder of its own until it is packed.
struct Bundle {
    name: String,
    folder: Temporary,
    redaction: Redaction,
    missing: Vec<String>,
}

impl Bundle {
    /// Takes a file without its secrets; or notes why it is not there.
    fn take(&mut self, file: &str, text: Result<String, anyhow::Error>) -> Result<(), anyhow::Error> {
        match text {
            Ok(text) => {
                let path = self.folder.0.join(&self.name).join(file);
                std::fs::create_dir_all(path.parent().unwrap_or(&self.folder.0))?;
                std::fs::write(&path, self.redaction.apply(&text))
                    .with_context(|| format!("writing {}", path.display()))?;
            }
            Err(error) => self.missing.push(format!("{file}: {error:#}")),
        }
        Ok(())
    }

    /// Writes it as one archive that nobody else reads, whole or not at all. What is there is not overwritten.
    async fn pack(&self, to: &Path) -> Result<(), anyhow::Error> {
        let packed = self.folder.0.join("packed");
        let archive = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&packed)?;
        let mut tar = Command::new("tar");
        tar.arg("-cz").arg("-C").arg(&self.folder.0).arg(&self.name).kill_on_drop(true);
        let status = tar.stdin(Stdio::null()).stdout(Stdio::from(archive)).status().await.context("running tar")?;
        ensure!(status.success(), "tar failed ({status})");
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
        let copied = match &mut file {
            Ok(file) => std::io::copy(&mut std::fs::File::open(&packed)?, file),
            Err(error) => bail!("writing {}: {error}", to.display()),
        };
        // Half of an archive is none.
        copied.inspect_err(|_| drop(std::fs::remove_file(to))).with_context(|| format!("writing {}", to.display()))?;
        Ok(())
    }
}

/// The alerts that Prometheus has, firing and pending.
async fn alerts(context: &Context, prometheus: &Unit) -> Result<String, anyhow::Error> {
    let url = format!("{}/api/v1/alerts", prometheus.login_url()?);
    let answer: serde_json::Value = context.http(PATIENCE)?.get(url).send().await?.json().await?;
    Ok(serde_json::to_string_pretty(&answer)?)
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
async fn answer(context: &Context, token: Option<&str>, command: &[String]) -> Result<String, anyhow::Error> {
    let mut child = Command::new(std::env::current_exe()?);
    child.args(context.of_fleet()).arg("--json").args(command);
    if let Some(token) = token {
        child.env("FLOTILLA_OPERATOR_TOKEN", token);
    }
    output(child, if command[0] == "verify" { CHECKED_WITHIN } else { PATIENCE }).await
}

async fn output(mut command: Command, patience: Duration) -> Result<String, anyhow::Error> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(patience, command.output()).await.context("no answer in time")??;
    let text = &output.stdout[..output.stdout.len().min(MOST_BYTES)];
    let text = String::from_utf8_lossy(text).into_owned();
    ensure!(!text.is_empty(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(text)
}

fn logs(home: &Path) -> Vec<PathBuf> {
    let files = home.join("logs").read_dir().into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    // What a link leads to is no log of the stack.
    let is_file = |path: &PathBuf| path.symlink_metadata().is_ok_and(|metadata| metadata.is_file());
    files.filter(|path| is_file(path) && path.extension().is_some_and(|end| end == "log")).collect()
}

/// The last bytes of a file, whole lines only: half a line may hold half a secret, which nothing would know again.
fn end_of(file: &Path, bytes: u64) -> Result<String, anyhow::Error> {
    let mut file = std::fs::File::open(file)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut content = Vec::new();
    file.take(bytes).read_to_end(&mut content)?;
    let text = String::from_utf8_lossy(&content);
    let text = if length > bytes { text.split_once('\n').map_or("", |(_, rest)| rest) } else { &text };
    Ok(text.rsplit_once('\n').map_or_else(String::new, |(lines, _)| format!("{lines}\n")))
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
