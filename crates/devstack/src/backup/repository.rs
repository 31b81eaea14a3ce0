//! The folder of backups: whose it is, and that it is the one that it was.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};

use crate::postgres::STANZA;
use crate::stack_dir::{self, StackDir, sync_file};

/// Where a stack notes its repository.
const NOTE: &str = "conf/backups.json";
/// Where a repository says which it is.
const IDENTITY: &str = "repository.json";
/// The programs that back streams up.
const OF_STREAMS: [&str; 2] = ["age", "age-keygen"];
/// The program that backs PostgreSQL up.
const OF_POSTGRES: [&str; 1] = ["pgbackrest"];

/// The folder of a stack's backups.
#[derive(Debug, Clone)]
pub struct Repository {
    folder: PathBuf,
    identity: Option<Identity>,
}

/// Which repository it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    /// Drawn when a fleet makes it, or takes it over.
    id: String,
    /// The timeline of PostgreSQL's log with which it began.
    timeline: u32,
}

/// What a stack notes of its repository.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Note {
    folder: PathBuf,
    id: String,
    /// How many full backups stay.
    keep: u8,
}

impl Note {
    fn of(home: &StackDir) -> Result<Option<Self>, anyhow::Error> {
        read(&home.path(NOTE))
    }
}

/// Reads a file of JSON, if it is there.
fn read<T: for<'de> Deserialize<'de>>(file: &Path) -> Result<Option<T>, anyhow::Error> {
    match std::fs::read(file) {
        Ok(json) => serde_json::from_slice(&json).map(Some).with_context(|| format!("reading {}", file.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
    }
}

impl Repository {
    /// The repository in a folder that is there.
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
        // What another user may change can lead anywhere.
        let owner = std::fs::metadata(&folder).with_context(unusable)?.uid();
        let server = stack_dir::unprivileged()?.map(|user| user.uid.as_raw());
        let ours = [Some(0), Some(Uid::effective().as_raw()), server].contains(&Some(owner));
        ensure!(ours, "{} belongs to another user", folder.display());
        let identity = read(&folder.join(IDENTITY))?;
        Ok(Self { folder, identity })
    }

    /// The repository of a stack.
    ///
    /// # Errors
    /// It has none, or what is there is another one, or nothing.
    pub fn of(home: &StackDir) -> Result<Self, anyhow::Error> {
        installed()?;
        let note = Note::of(home)?.context("this fleet has no backup yet: say --repository FOLDER")?;
        let repository = Self::at(&note.folder)?;
        ensure!(
            repository.is(&note),
            "{} is not the repository that it was: is it mounted, or did another fleet take it over? To begin another one: \
             `flotilla backup --anew --repository FOLDER`",
            note.folder.display()
        );
        Ok(repository)
    }

    /// The repository of a stack for its next backup, made if it has none: in this folder, else in one beside its data, which a reset
    /// removes. `anew` makes another one; `timeline` is that of the server's log.
    ///
    /// # Errors
    /// A program is missing, or the folder cannot be used, or is another's.
    pub fn make(home: &StackDir, folder: Option<&Path>, anew: bool, timeline: u32) -> Result<Self, anyhow::Error> {
        installed()?;
        let note = Note::of(home)?;
        if let Some(note) = note.filter(|_| !anew) {
            let Some(folder) = folder.filter(|folder| **folder != *note.folder) else { return Self::of(home) };
            // It may be mounted elsewhere now.
            let repository = if folder.is_dir() { Some(Self::at(folder)?) } else { None };
            let Some(repository) = repository.filter(|repository| repository.is(&note)) else {
                bail!(
                    "the backups of this fleet are in {}: say --anew to leave them there and begin another repository",
                    note.folder.display()
                );
            };
            return Ok(repository);
        }
        let folder = match folder {
            Some(folder) => folder.to_owned(),
            None => home.data_of_user("backups")?,
        };
        std::fs::create_dir_all(&folder).with_context(|| format!("making the folder {}", folder.display()))?;
        let mut repository = Self::at(&folder)?;
        ensure!(
            !repository.has_backups(),
            "{} holds the backups of another fleet, or of this one before a reset: choose an empty folder, or restore from there with \
             --take-over",
            folder.display()
        );
        // Where root starts the stack, PostgreSQL's user writes there.
        let of_server = repository.path("postgres");
        std::fs::create_dir_all(&of_server)?;
        stack_dir::private(&of_server)?;
        stack_dir::give(&of_server)?;
        repository.identify(timeline)?;
        Ok(repository)
    }

    fn has_backups(&self) -> bool {
        let has_folder = |folder: &str| {
            let entries = std::fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_type().ok()).any(|kind| kind.is_dir())
        };
        has_folder("streams") || has_folder(&format!("postgres/backup/{STANZA}"))
    }

    /// Makes it the repository of this stack; another one that had it finds that out at its next backup.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(super) fn take_over(&mut self, home: &StackDir) -> Result<(), anyhow::Error> {
        self.identify(self.began_with())?;
        self.note(home, None).map(drop)
    }

    fn identify(&mut self, timeline: u32) -> Result<(), anyhow::Error> {
        let identity = Identity { id: stack_dir::random_hex(8)?, timeline };
        sync_file(&self.path(IDENTITY), &serde_json::to_vec(&identity)?)?;
        self.identity = Some(identity);
        Ok(())
    }

    /// Notes that it is the repository of this stack, and returns how many full backups stay: as many as are said, else as before.
    ///
    /// # Errors
    /// The note cannot be written.
    pub fn note(&self, home: &StackDir, keep: Option<u8>) -> Result<u8, anyhow::Error> {
        let keep = keep.or(Note::of(home)?.map(|note| note.keep)).unwrap_or(KEEP);
        let id = self.identity.as_ref().map(|identity| identity.id.clone()).unwrap_or_default();
        let note = Note { folder: self.folder.clone(), id, keep };
        sync_file(&home.path(NOTE), &serde_json::to_vec(&note)?)?;
        Ok(keep)
    }

    /// Whether it is the one of this stack.
    ///
    /// # Errors
    /// The note cannot be read.
    pub fn is_of(&self, home: &StackDir) -> Result<bool, anyhow::Error> {
        Ok(Note::of(home)?.is_some_and(|note| self.is(&note)))
    }

    fn is(&self, note: &Note) -> bool {
        self.identity.as_ref().is_some_and(|identity| identity.id == note.id)
    }

    /// The timeline with which it began.
    pub(super) fn began_with(&self) -> u32 {
        self.identity.as_ref().map_or(1, |identity| identity.timeline)
    }

    /// The folder of a stack's backups, if it has any.
    #[must_use]
    pub fn noted(home: &StackDir) -> Option<PathBuf> {
        Note::of(home).ok().flatten().map(|note| note.folder)
    }

    /// Keeps others from writing there, for as long as the file is open.
    ///
    /// # Errors
    /// Another process writes there.
    pub fn lock(&self) -> Result<File, anyhow::Error> {
        let lock = File::create(self.path("lock"))?;
        lock.try_lock()
            .with_context(|| format!("another backup or restore is at work in {}", self.folder.display()))?;
        Ok(lock)
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn path(&self, inside: &str) -> PathBuf {
        self.folder.join(inside)
    }
}

/// How many full backups stay, unless somebody says another number.
const KEEP: u8 = 2;

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
