//! Streams that were stored before each owner had an account: they lie in the one account that there was, `$G`. JetStream
//! keeps each account in a folder of its own, so they are carried over as folders, messages, consumers and all, while the
//! server is down. Dead letters, replays, audit and advisories have no other source.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use nkeys::KeyPairType;

use super::accounts::key;
use crate::home::Home;

/// Where JetStream keeps the streams of an owner.
///
/// # Errors
/// The account's key cannot be read.
pub fn streams(home: &Home, store: &Path, owner: &str) -> Result<PathBuf, anyhow::Error> {
    let account = key(home, KeyPairType::Account, owner)?.public_key();
    Ok(store.join("jetstream").join(account).join("streams"))
}

/// Moves every stream to the account that owns it. What is there already is left, and an error.
pub fn over(home: &Home, store: &Path) -> Result<(), anyhow::Error> {
    let before = store.join("jetstream/$G/streams");
    if !before.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(&before)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = fleet::owner(&name);
        ensure!(
            fleet::owners().contains(&owner),
            "{} is a stream that no service of the fleet owns: move it elsewhere to go on",
            entry.path().display()
        );
        let after = streams(home, store, &owner)?;
        fs::create_dir_all(&after)?;
        let to = after.join(&name);
        ensure!(
            !to.exists(),
            "the stream {name} is in {} and in {}: move the one elsewhere that is not wanted",
            entry.path().display(),
            to.display()
        );
        fs::rename(entry.path(), &to)
            .with_context(|| format!("moving {} to {}", entry.path().display(), to.display()))?;
        eprintln!("the stream {name} is in the account {owner} now");
    }
    fs::remove_dir_all(store.join("jetstream/$G")).context("removing the emptied account")
}
