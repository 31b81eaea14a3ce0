//! PostgreSQL's part, by pgBackRest: base backups of the files, and every segment of the log as it is filled. It logs in over
//! loopback, for libpq takes the address from PGHOST.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::age::Key;
use super::repository::Repository;
use super::sets::Base;
use crate::postgres::{CONF, Postgres, STANZA, SUPERUSER};
use crate::stack_dir::{self, StackDir};

/// What a base backup copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Every file.
    Full,
    /// What changed since the last one; every file when there is none.
    Incremental,
}

/// Where pgBackRest finds what it works on.
pub struct Paths<'a> {
    /// The repository.
    pub repository: &'a Path,
    /// A folder for its locks.
    pub lock: &'a Path,
    /// The server's data.
    pub data: &'a Path,
}

/// The settings of pgBackRest, here and in a cluster.
fn settings(key: &Key, paths: &Paths, port: u16) -> Vec<(&'static str, String)> {
    let fixed = |text: &str| text.to_owned();
    vec![
        ("repo1-path", paths.repository.display().to_string()),
        ("repo1-cipher-type", fixed("aes-256-cbc")),
        ("repo1-cipher-pass", key.secret.clone()),
        ("repo1-retention-full", fixed("2")),
        ("lock-path", paths.lock.display().to_string()),
        ("log-level-file", fixed("off")),
        ("log-level-console", fixed("warn")),
        ("log-level-stderr", fixed("off")),
        ("log-timestamp", fixed("n")),
        ("compress-type", fixed("zst")),
        ("start-fast", fixed("y")),
        // How long a base backup waits for the last of its log.
        ("archive-timeout", fixed("60")),
        ("pg1-path", paths.data.display().to_string()),
        ("pg1-port", port.to_string()),
        ("pg1-user", fixed(SUPERUSER)),
    ]
}

/// As pgBackRest reads them from a file.
fn configuration(settings: &[(&str, String)]) -> String {
    let (of_server, of_all): (Vec<_>, Vec<_>) = settings.iter().partition(|(name, _)| name.starts_with("pg1-"));
    let lines = |settings: Vec<&(&str, String)>| -> String {
        settings.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
    };
    format!("[global]\n{}[{STANZA}]\n{}", lines(of_all), lines(of_server))
}

impl Key {
    /// The configuration of pgBackRest for a server elsewhere. It holds the key.
    #[must_use]
    pub fn configuration(&self, paths: &Paths, port: u16) -> String {
        configuration(&settings(self, paths, port))
    }
}

/// PostgreSQL's backups in a repository.
pub struct Archive {
    /// The configuration of the server's commands.
    conf: PathBuf,
    settings: Vec<(&'static str, String)>,
    password: String,
}

impl Archive {
    /// The backups of a stack's server.
    ///
    /// # Errors
    /// A folder cannot be made, or there is no user to run as.
    pub fn open(
        home: &StackDir,
        (repository, key): (&Repository, &Key),
        postgres: &Postgres,
    ) -> Result<Self, anyhow::Error> {
        let lock = home.data_of_user("pgbackrest-lock")?;
        std::fs::create_dir_all(&lock)?;
        stack_dir::give(&lock)?;
        let paths = Paths { repository: &repository.path("postgres"), lock: &lock, data: &postgres.data };
        let settings = settings(key, &paths, postgres.port);
        Ok(Self { conf: home.data_of_user(CONF)?, settings, password: postgres.password().to_owned() })
    }

    /// Has the server archive its log there, from now on.
    ///
    /// # Errors
    /// The configuration cannot be written.
    pub fn attach(&self) -> Result<(), anyhow::Error> {
        let text = configuration(&self.settings);
        stack_dir::write_secret(&self.conf, text.as_bytes())?;
        stack_dir::give(&self.conf)
    }

    /// Makes a base backup, and removes those beyond the number of full ones to keep, with their log.
    ///
    /// # Errors
    /// pgBackRest fails: the error is what it said.
    pub async fn back_up(&self, kind: Kind, keep: u8) -> Result<(), anyhow::Error> {
        self.run(&["stanza-create"]).await?;
        let kind = match kind {
            Kind::Full => "--type=full",
            Kind::Incremental => "--type=incr",
        };
        self.run(&["backup", kind, &format!("--repo1-retention-full={keep}")]).await?;
        Ok(())
    }

    /// The base backups, the oldest first.
    ///
    /// # Errors
    /// pgBackRest fails, or says what nobody understands.
    pub async fn bases(&self) -> Result<Vec<Base>, anyhow::Error> {
        Base::all(&self.run(&["info", "--output=json"]).await?)
    }

    /// Puts the files of a base backup into the server's empty folder. The server replays its log up to the moment when it starts.
    ///
    /// # Errors
    /// pgBackRest fails: the error is what it said.
    pub async fn put_back(&self, label: &str, target: Option<(&str, Option<u32>)>) -> Result<(), anyhow::Error> {
        let set = format!("--set={label}");
        let Some((target, timeline)) = target else {
            return self.run(&["restore", &set, "--type=default"]).await.map(drop);
        };
        let target = format!("--target={target}");
        // The newest one may have ended before it: where a restore was done, and nothing on it.
        let timeline = timeline.map_or_else(|| "current".to_owned(), |number| number.to_string());
        let timeline = format!("--target-timeline={timeline}");
        self.run(&["restore", &set, "--type=time", &target, &timeline, "--target-action=promote"]).await.map(drop)
    }

    async fn run(&self, args: &[&str]) -> Result<String, anyhow::Error> {
        let mut command = stack_dir::as_unprivileged("pgbackrest".as_ref())?;
        command.args(args).arg(format!("--stanza={STANZA}"));
        // By the environment, which no other user reads; what a restore gives the server to run names the file.
        command.arg(match args[0] {
            "restore" => format!("--config={}", self.conf.display()),
            _ => "--no-config".to_owned(),
        });
        for (name, value) in &self.settings {
            command.env(format!("PGBACKREST_{}", name.to_ascii_uppercase().replace('-', "_")), value);
        }
        command.env("PGHOST", "127.0.0.1").env("PGPASSWORD", &self.password).kill_on_drop(true);
        let output = command.output().await.context("running pgbackrest")?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            bail!("pgbackrest {}: {}", args[0], String::from_utf8_lossy(&said).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
