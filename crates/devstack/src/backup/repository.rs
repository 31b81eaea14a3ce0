//! The folder of backups.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use crate::stack_dir::{self, StackDir};

/// Where a stack notes its repository.
const NOTE: &str = "conf/backups";
/// The programs that back streams up.
const OF_STREAMS: [&str; 2] = ["age", "age-keygen"];
/// The program that backs PostgreSQL up.
const OF_POSTGRES: [&str; 1] = ["pgbackrest"];

/// The folder of a stack's backups.
#[derive(Debug, Clone)]
pub struct Repository(PathBuf);

impl Repository {
    /// The repository in a folder that is there, such as a mounted volume.
    ///
    /// # Errors
    /// A program is missing, or the folder cannot be used.
    pub fn at(folder: &Path) -> Result<Self, anyhow::Error> {
        has(&OF_STREAMS)?;
        let unusable = || format!("the folder of backups {} cannot be used", folder.display());
        let folder = folder.canonicalize().with_context(unusable)?;
        let text = folder.to_str().with_context(unusable)?;
        let plain = !text.contains(['\'', '\n', '#', ';']);
        ensure!(plain, "pgBackRest has no place for `{text}`: choose a folder without quotes and signs");
        std::fs::create_dir_all(folder.join("streams")).with_context(unusable)?;
        stack_dir::private(&folder.join("streams"))?;
        Ok(Self(folder))
    }

    /// The repository of a stack: in this folder, else in that of its earlier backups, else in one beside its data, which a
    /// reset removes.
    ///
    /// # Errors
    /// A program is missing, or the folder cannot be used.
    pub fn open(home: &StackDir, folder: Option<&Path>) -> Result<Self, anyhow::Error> {
        let folder = match folder {
            Some(folder) => folder.to_owned(),
            None => Self::noted(home).map_or_else(|| home.data_of_user("backups"), Ok)?,
        };
        installed()?;
        std::fs::create_dir_all(&folder).with_context(|| format!("making the folder {}", folder.display()))?;
        let repository = Self::at(&folder)?;
        // Where root starts the stack, PostgreSQL's user writes there.
        let of_server = repository.path("postgres");
        std::fs::create_dir_all(&of_server)?;
        stack_dir::private(&of_server)?;
        stack_dir::give(&of_server)?;
        Ok(repository)
    }

    /// The folder of a stack's last backup.
    #[must_use]
    pub fn noted(home: &StackDir) -> Option<PathBuf> {
        std::fs::read_to_string(home.path(NOTE)).ok().map(PathBuf::from)
    }

    /// Notes that this is the repository of a stack.
    ///
    /// # Errors
    /// The note cannot be written.
    pub fn note(&self, home: &StackDir) -> Result<(), anyhow::Error> {
        std::fs::write(home.path(NOTE), self.0.as_os_str().as_encoded_bytes()).context("noting the folder of backups")
    }

    /// Keeps others from writing there, for as long as the file is open.
    ///
    /// # Errors
    /// Another process writes there.
    pub fn lock(&self) -> Result<File, anyhow::Error> {
        let lock = File::create(self.path("lock"))?;
        lock.try_lock().with_context(|| format!("another backup or restore is at work in {}", self.0.display()))?;
        Ok(lock)
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0
    }

    pub(super) fn path(&self, inside: &str) -> PathBuf {
        self.0.join(inside)
    }
}

/// Checks that the programs are there that make backups.
///
/// # Errors
/// One is missing: the error names the command that installs all.
pub fn installed() -> Result<(), anyhow::Error> {
    has(&OF_POSTGRES)?;
    has(&OF_STREAMS)
}

fn has(programs: &[&str]) -> Result<(), anyhow::Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing = programs.iter().find(|name| !std::env::split_paths(&path).any(|folder| folder.join(name).exists()));
    ensure!(
        missing.is_none(),
        "{} is not installed: `apt-get install pgbackrest age` (Debian)",
        missing.unwrap_or(&"")
    );
    Ok(())
}

/// The secrets of a stack that nothing makes again as they were, by their names: no backup holds them. Passwords and credentials
/// are made from them, or anew.
///
/// # Errors
/// The folder cannot be read.
pub fn secrets(home: &StackDir) -> Result<Vec<String>, anyhow::Error> {
    let folder = home.path("secrets");
    let mut names = Vec::new();
    for (prefix, folder) in [("", folder.clone()), ("nats/", folder.join("nats"))] {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let name = entry.with_context(|| format!("reading {}", folder.display()))?.file_name();
            let name = name.to_string_lossy();
            // Of NATS the keys of accounts, and who has been given credentials; those of users are in their credentials.
            let lasts = name.ends_with("-key")
                || name.ends_with(".nk") && !name.starts_with("user-")
                || name.ends_with(".team");
            if lasts {
                names.push(format!("{prefix}{name}"));
            }
        }
    }
    names.sort();
    Ok(names)
}
