//! Streams that were stored before each owner had an account: they are in the only account of that time, `$G`. JetStream
//! keeps each account in a folder of its own, so they are carried over as folders, messages, consumers and all, while the
//! server is down. Dead letters, replays, audit and advisories have no other source.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use nkeys::KeyPairType;

use super::keys::key;
use crate::stack_dir::StackDir;

/// The folder in which JetStream stores an owner's streams.
///
/// # Errors
/// The account's key cannot be read.
pub fn streams(home: &StackDir, store: &Path, owner: &str) -> Result<PathBuf, anyhow::Error> {
    let account = key(home, KeyPairType::Account, owner)?.public_key();
    Ok(store.join("jetstream").join(account).join("streams"))
}

/// Moves every stream to the account that owns it, or none. A stream without an owner, or one that is there already, is an
/// error.
pub fn over(home: &StackDir, store: &Path, cluster: bool) -> Result<(), anyhow::Error> {
    let before = store.join("jetstream/$G/streams");
    if !before.exists() {
        return Ok(());
    }
    ensure!(
        !cluster,
        "{} holds streams of before the accounts. A cluster knows them by that account: back them up, and restore them",
        before.display()
    );
    let mut moves = Vec::new();
    for entry in fs::read_dir(&before)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = fleet::producers().iter().any(|producer| contracts::subject::stream(producer) == name)
            || fleet::RECORD_STREAMS.contains(&name.as_str());
        ensure!(ours, "{} is a stream of nobody in the fleet: move it elsewhere to go on", entry.path().display());
        let to = streams(home, store, &fleet::owner(&name))?.join(&name);
        ensure!(
            !to.exists(),
            "the stream {name} is in {} and in {}: move the one elsewhere that is not wanted",
            entry.path().display(),
            to.display()
        );
        moves.push((name, entry.path(), to));
    }
    for (name, from, to) in moves {
        to.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::rename(&from, &to).with_context(|| format!("moving {} to {}", from.display(), to.display()))?;
        eprintln!("the stream {name} is in the account {} now", fleet::owner(&name));
    }
    fs::remove_dir_all(store.join("jetstream/$G")).context("removing the emptied account")
}
