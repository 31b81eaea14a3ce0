//! The folders of a stack: `.flotilla` in the clone (data, logs, secrets, what runs), and the user's cache for
//! what all clones share.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};
use aws_lc_rs::rand;
use nix::unistd::{Uid, User};
use tokio::process::Command;

/// The folder above what root's stacks keep outside their own folders.
const OUTSIDE: &str = "/var/lib/flotilla";
/// The file there that names the stack's folder.
const OF: &str = "home";

/// One stack's folder.
#[derive(Debug, Clone)]
pub struct StackDir(PathBuf);

impl StackDir {
    /// Opens, and makes, the folder.
    ///
    /// # Errors
    /// The folder cannot be used: the error says which, and why.
    pub fn open(path: &Path) -> Result<Self, anyhow::Error> {
        let unusable = |what: &Path| {
            format!(
                "the data folder {} cannot be used: check its owner and rights, or set FLOTILLA_HOME",
                what.display()
            )
        };
        fs::create_dir_all(path).with_context(|| unusable(path))?;
        let home = Self(path.canonicalize().with_context(|| unusable(path))?);
        for (name, mode) in [("logs", 0o700), ("run", 0o755), ("data", 0o700), ("secrets", 0o700), ("conf", 0o700)] {
            let folder = home.0.join(name);
            fs::create_dir_all(&folder).with_context(|| unusable(&folder))?;
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).with_context(|| unusable(&folder))?;
            // Permission bits say little to root: try it.
            let probe = folder.join(format!(".probe-{}", std::process::id()));
            fs::write(&probe, b"").and_then(|()| fs::remove_file(&probe)).with_context(|| unusable(&folder))?;
        }
        Ok(home)
    }

    /// A folder that was given and is only read: secrets and keys that it lacks cannot be made.
    #[must_use]
    pub fn given(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// A path inside.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        self.0.join(inside)
    }

    /// The authorities by which this folder's fleet speaks TLS, as PEM; None where it does not.
    #[must_use]
    pub fn authorities(&self) -> Option<PathBuf> {
        Some(self.0.join("tls/ca.crt")).filter(|file| file.exists())
    }

    /// Where a program writes its log.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.0.join("logs").join(format!("{name}.log"))
    }

    /// A password or key that is made at the first call; of several lines the first.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn secret(&self, name: &str) -> Result<String, anyhow::Error> {
        Ok(self.lines(name, || random_hex(24))?.swap_remove(0))
    }

    /// The lines of a secret of which several may be valid: the first is used, and all are taken. The first is drawn at the first call.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn lines(
        &self,
        name: &str,
        draw: impl Fn() -> Result<String, anyhow::Error>,
    ) -> Result<Vec<String>, anyhow::Error> {
        // Only where there is none: another one would let nobody in.
        let Some(text) = self.read_secret(name)? else {
            let drawn = draw()?;
            self.write_secret(name, &drawn)?;
            return Ok(vec![drawn]);
        };
        let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        anyhow::ensure!(!lines.is_empty(), "{} is empty", self.0.join("secrets").join(name).display());
        Ok(lines.into_iter().map(ToOwned::to_owned).collect())
    }

    /// The line that is valid now, of a secret whose first line may be staged.
    ///
    /// # Errors
    /// As those of [`lines`](Self::lines).
    pub fn present(&self, name: &str) -> Result<String, anyhow::Error> {
        let lines = self.lines(name, || random_hex(24))?;
        let staged = self.read_secret(&staged_file(name))?;
        let present = lines.iter().find(|line| staged.as_ref() != Some(line)).or(lines.first());
        Ok(present.cloned().unwrap_or_default())
    }

    /// What a secret holds, without white space around it; None where there is none.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn read_secret(&self, name: &str) -> Result<Option<String>, anyhow::Error> {
        let path = self.0.join("secrets").join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Removes a secret, where there is one.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub(crate) fn remove_secret(&self, name: &str) -> Result<(), anyhow::Error> {
        let path = self.0.join("secrets").join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", path.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Writes a file that only its owner may read, and returns its path.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_secret(&self, name: &str, content: &str) -> Result<PathBuf, anyhow::Error> {
        let path = self.0.join("secrets").join(name);
        write_secret(&path, content.as_bytes())?;
        Ok(path)
    }

    /// The folder of data that another user must reach: inside, or below /var/lib when root starts the stack, because
    /// a clone in root's home is closed to everyone else.
    ///
    /// The path below /var/lib is drawn once and noted inside. A folder that was removed and made again at the same
    /// path never meets the data of the one before, whose passwords have gone with it.
    ///
    /// # Errors
    /// The path cannot be noted.
    pub fn data_of_user(&self, name: &str) -> Result<PathBuf, anyhow::Error> {
        let data = self.0.join("data");
        if !Uid::effective().is_root() {
            return Ok(data.join(name));
        }
        let note = data.join("outside");
        let outside = match fs::read_to_string(&note) {
            Ok(drawn) => self.drawn(&note, Path::new(&drawn))?,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let drawn = Path::new(OUTSIDE).join(random_hex(6)?);
                fs::create_dir_all(&drawn).with_context(|| format!("making {}", drawn.display()))?;
                fs::write(drawn.join(OF), self.0.as_os_str().as_encoded_bytes())?;
                write_secret(&note, drawn.as_os_str().as_encoded_bytes())?;
                drawn
            }
            Err(error) => return Err(error).with_context(|| format!("reading {}", note.display())),
        };
        Ok(outside.join(name))
    }

    /// The path that the note names, if it is this folder's.
    fn drawn(&self, note: &Path, place: &Path) -> Result<PathBuf, anyhow::Error> {
        let name = place.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let ours = place.parent() == Some(Path::new(OUTSIDE)) && name.bytes().all(|b| b.is_ascii_hexdigit());
        if !ours || name.is_empty() {
            bail!(
                "{} names {}, which no stack has drawn: remove that file to start empty",
                note.display(),
                place.display()
            );
        }
        // An operator sees there whose data it is; and a copy of a folder must not take the data of the first.
        let of = fs::read_to_string(place.join(OF)).unwrap_or_default();
        if Path::new(&of) != self.0 {
            if fs::read_to_string(Path::new(&of).join("data/outside")).is_ok_and(|other| Path::new(&other) == place) {
                bail!(
                    "{} is a copy of {of}, whose database is in {}: remove {} to start empty",
                    self.0.display(),
                    place.display(),
                    note.display()
                );
            }
            // It was moved.
            fs::create_dir_all(place)?;
            fs::write(place.join(OF), self.0.as_os_str().as_encoded_bytes())?;
        }
        Ok(place.to_owned())
    }

    /// Removes all data, secrets and logs.
    ///
    /// # Errors
    /// A folder cannot be removed.
    pub fn wipe(&self) -> Result<(), anyhow::Error> {
        let of_user = self.data_of_user("")?;
        for folder in [&of_user, &self.0] {
            if folder.exists() {
                fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
            }
        }
        Ok(())
    }
}

pub(crate) fn random_hex(bytes: usize) -> Result<String, anyhow::Error> {
    let mut drawn = vec![0_u8; bytes];
    rand::fill(&mut drawn)?;
    Ok(drawn.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The secret that holds a line of another, from when it is staged until it counts.
pub(crate) fn staged_file(name: &str) -> String {
    format!("{name}.next")
}

/// Writes a file with mode 0600, whole or not at all.
pub(crate) fn write_secret(path: &Path, content: &[u8]) -> Result<(), anyhow::Error> {
    put(path, content, |_| Ok(()))
}

/// The same for a file that a program of the unprivileged user reads. The folder is nobody else's to write.
pub(crate) fn give_secret(path: &Path, content: &[u8]) -> Result<(), anyhow::Error> {
    put(path, content, give)
}

/// The same for a file that every user of a container may read.
///
/// # Errors
/// It cannot be written.
pub fn write_for_all(path: &Path, content: &[u8]) -> Result<(), anyhow::Error> {
    put(path, content, |part| Ok(fs::set_permissions(part, fs::Permissions::from_mode(0o444))?))
}

fn put(path: &Path, content: &[u8], before: impl Fn(&Path) -> Result<(), anyhow::Error>) -> Result<(), anyhow::Error> {
    // Nobody else's: two may write at once, and where others may write, what is there may lead elsewhere.
    let part = path.with_added_extension(format!("{}.part", random_hex(4)?));
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part);
    file.and_then(|mut file| file.write_all(content)).with_context(|| format!("writing {}", part.display()))?;
    before(&part)?;
    fs::rename(&part, path).with_context(|| format!("writing {}", path.display()))
}

/// The same, and it is on the disk before anything relies on it.
pub(crate) fn sync_file(path: &Path, content: &[u8]) -> Result<(), anyhow::Error> {
    write_secret(path, content)?;
    let folder = path.parent().unwrap_or(path);
    let synced =
        fs::File::open(path).and_then(|file| file.sync_all()).and_then(|()| fs::File::open(folder)?.sync_all());
    synced.with_context(|| format!("writing {}", path.display()))
}

/// The folder that all clones of this user share.
///
/// # Errors
/// Neither XDG_CACHE_HOME nor HOME is set.
pub fn cache() -> Result<PathBuf, anyhow::Error> {
    let xdg = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = xdg.or(home).context("set HOME or XDG_CACHE_HOME: fetched programs are kept there")?.join("flotilla");
    fs::create_dir_all(&cache)
        .with_context(|| format!("the cache folder {} cannot be used: set XDG_CACHE_HOME", cache.display()))?;
    Ok(cache)
}

/// The user who owns the data of a program that refuses to run as root; `None` when no change is needed.
///
/// # Errors
/// Root, and no unprivileged user to become.
pub fn unprivileged() -> Result<Option<User>, anyhow::Error> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name)? {
            return Ok(Some(user));
        }
    }
    bail!("PostgreSQL refuses to run as root, and there is neither a user `postgres` nor `nobody`: run as another user")
}

/// A program as that user.
///
/// # Errors
/// Root, and no unprivileged user to become.
pub fn as_unprivileged(program: &Path) -> Result<Command, anyhow::Error> {
    let mut command = Command::new("setpriv");
    // It does not outlive who waits for it.
    command.args(["--pdeathsig", "TERM"]);
    if let Some(user) = unprivileged()? {
        command.args(["--reuid", &user.uid.to_string(), "--regid", &user.gid.to_string(), "--clear-groups"]);
    }
    // A folder that every user may enter.
    command.arg("--").arg(program).current_dir("/").stdin(Stdio::null());
    Ok(command)
}

/// Gives a file or folder to that user.
///
/// # Errors
/// It cannot be given.
pub fn give(path: &Path) -> Result<(), anyhow::Error> {
    if let Some(user) = unprivileged()? {
        std::os::unix::fs::lchown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
            .with_context(|| format!("giving {} to {}", path.display(), user.name))?;
    }
    Ok(())
}

/// Closes a folder to everybody but its owner.
///
/// # Errors
/// It is not ours.
pub fn private(path: &Path) -> Result<(), anyhow::Error> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("closing {} to others", path.display()))
}

/// What the name of a folder ends with in which a restore makes a store.
pub(crate) const RESTORING: &str = "restoring";

/// Checks that no restore was cut off: its store may be in no place, or beside one of another time.
///
/// # Errors
/// One was: the error says what to do.
pub fn no_half_restore(store: &Path) -> Result<(), anyhow::Error> {
    let half = store.with_extension(RESTORING);
    if half.exists() {
        let aside = store.with_extension("before-*");
        bail!(
            "a restore was cut off: run it again. Or go on without it: remove {}, and where {} is missing move {} back to it",
            half.display(),
            store.display(),
            aside.display()
        );
    }
    Ok(())
}

/// Checks that the disk that holds `path` has room.
///
/// # Errors
/// Less than 1 GiB is free.
pub fn check_disk(path: &Path) -> Result<(), anyhow::Error> {
    let disk = nix::sys::statvfs::statvfs(path).with_context(|| format!("looking at {}", path.display()))?;
    let free = disk.blocks_available() * disk.fragment_size() / (1 << 20);
    if free < 1024 {
        bail!(
            "the disk of {} has {free} MiB free, the stack needs 1024: free some, or set FLOTILLA_HOME to a folder on another disk",
            path.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_made_anew_does_not_meet_the_data_of_the_one_before() {
        let folder = std::env::temp_dir().join(format!("flotilla-home-{}", random_hex(6).unwrap()));
        let first = StackDir::open(&folder).unwrap();
        let before = first.data_of_user("postgres").unwrap();
        fs::create_dir_all(&before).unwrap();
        assert_eq!(StackDir::open(&folder).unwrap().data_of_user("postgres").unwrap(), before, "the place stays");

        // A copy does not take the data of the first; what was moved does.
        if Uid::effective().is_root() {
            let copy = folder.with_extension("copy");
            fs::create_dir_all(copy.join("data")).unwrap();
            fs::copy(folder.join("data/outside"), copy.join("data/outside")).unwrap();
            let refused = StackDir::open(&copy).unwrap().data_of_user("postgres").unwrap_err().to_string();
            assert!(refused.contains("is a copy of"), "{refused}");
            fs::rename(folder.join("data/outside"), folder.join("data/kept")).unwrap();
            assert_eq!(StackDir::open(&copy).unwrap().data_of_user("postgres").unwrap(), before);
            fs::rename(folder.join("data/kept"), folder.join("data/outside")).unwrap();
            fs::remove_dir_all(&copy).unwrap();
        }

        // What `cargo clean`, a fresh checkout or `rm -r` does.
        fs::remove_dir_all(&folder).unwrap();
        let second = StackDir::open(&folder).unwrap();
        assert!(!second.data_of_user("postgres").unwrap().exists());
        second.wipe().unwrap();
        if before.exists() {
            fs::remove_dir_all(before.parent().unwrap()).unwrap();
        }
    }
}
