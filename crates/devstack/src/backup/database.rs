//! PostgreSQL's part, by pgBackRest: base backups of the files, and every segment of the log as it is filled. It logs in over
//! loopback, for libpq takes the address from PGHOST.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::age::Key;
use super::repository::Repository;
use super::sets::{Base, Info, info};
use crate::postgres::{CONF, Postgres, Recovered, STANZA, SUPERUSER};
use crate::stack_dir::{self, RESTORING, StackDir};

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
    /// The authorities of the server's certificate, if it speaks TLS.
    authorities: Option<PathBuf>,
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
        let (password, authorities) = (postgres.password().to_owned(), postgres.authorities());
        Ok(Self { conf: home.data_of_user(CONF)?, settings, password, authorities })
    }

    /// Has the server archive its log there, from now on.
    ///
    /// # Errors
    /// The configuration cannot be written.
    pub fn attach(&self) -> Result<(), anyhow::Error> {
        self.write(&self.conf)
    }

    fn write(&self, conf: &Path) -> Result<(), anyhow::Error> {
        stack_dir::give_secret(conf, configuration(&self.settings).as_bytes())
    }

    /// Makes a place for this server's backups, if there is none.
    ///
    /// # Errors
    /// The repository is another server's or of another key, or cannot be written.
    pub async fn prepare(&self) -> Result<(), anyhow::Error> {
        self.run(&["stanza-create"]).await.map(drop)
    }

    /// Makes a base backup, and removes those beyond the number of full ones to keep, with their log.
    ///
    /// # Errors
    /// pgBackRest fails: the error is what it said.
    pub async fn back_up(&self, kind: Kind, keep: usize) -> Result<(), anyhow::Error> {
        let kind = match kind {
            Kind::Full => "--type=full",
            Kind::Incremental => "--type=incr",
        };
        self.run(&["backup", kind, &format!("--repo1-retention-full={keep}")]).await.map(drop)
    }

    /// The base backups, the oldest first.
    ///
    /// # Errors
    /// pgBackRest fails, or says what nobody understands.
    pub async fn bases(&self) -> Result<Vec<Base>, anyhow::Error> {
        Ok(self.info().await?.bases)
    }

    pub(super) async fn info(&self) -> Result<Info, anyhow::Error> {
        info(&self.run(&["info", "--output=json"]).await?)
    }

    /// Puts the files of a base backup into a server's empty folder, and replays the log up to the moment, or to its end.
    ///
    /// # Errors
    /// A program fails: the error is what it said.
    pub async fn put_back(
        &self,
        label: &str,
        (target, timeline): (Option<&str>, Option<u32>),
        server: &Postgres,
    ) -> Result<Recovered, anyhow::Error> {
        // By it the server asks for its log. The one by which it archives stays as it is, for this may fail.
        let conf = self.conf.with_extension(RESTORING);
        self.write(&conf)?;
        let put_back = async {
            self.copy_back(label, (target, timeline), server, &conf).await?;
            server.recover().await.context(
                "PostgreSQL does not reach that moment; if its log says that recovery ended before, the archive ends earlier: \
                 say an earlier moment, or `latest`",
            )
        };
        let recovered = put_back.await;
        std::fs::remove_file(&conf).ok();
        recovered
    }

    async fn copy_back(
        &self,
        label: &str,
        (target, timeline): (Option<&str>, Option<u32>),
        server: &Postgres,
        conf: &Path,
    ) -> Result<(), anyhow::Error> {
        server.make_data()?;
        let (set, conf) = (format!("--set={label}"), format!("--config={}", conf.display()));
        let data = format!("--pg1-path={}", server.data.display());
        // Always named: the newest one may have ended before the moment, or be on no path from here.
        let timeline = timeline.map_or_else(|| "current".to_owned(), |number| number.to_string());
        let mut args = vec!["restore".to_owned(), set, conf, data, format!("--target-timeline={timeline}")];
        match target {
            Some(target) => args.extend([
                "--type=time".to_owned(),
                format!("--target={target}"),
                "--target-action=promote".to_owned(),
            ]),
            None => args.push("--type=default".to_owned()),
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.run(&args).await.map(drop)
    }

    async fn run(&self, args: &[&str]) -> Result<String, anyhow::Error> {
        let mut command = stack_dir::as_unprivileged("pgbackrest".as_ref())?;
        command.args(args).arg(format!("--stanza={STANZA}"));
        // By the environment, which no other user reads; what a restore gives the server to run names a file.
        if args[0] != "restore" {
            command.arg("--no-config");
        }
        for (name, value) in &self.settings {
            command.env(format!("PGBACKREST_{}", name.to_ascii_uppercase().replace('-', "_")), value);
        }
        if let Some(authorities) = &self.authorities {
            // Its own certificate it would look for in the home of whoever runs this, and fail where it may not look.
            command.env("PGSSLMODE", "verify-full").env("PGSSLROOTCERT", authorities).env("HOME", "/");
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
