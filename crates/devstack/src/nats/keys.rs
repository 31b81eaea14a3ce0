//! The keys of accounts and users, and where credentials are.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::Context as _;
use nkeys::{KeyPair, KeyPairType};

use crate::stack_dir::{StackDir, write_secret};

/// The key of this name, made at the first call.
pub fn key(home: &StackDir, kind: KeyPairType, name: &str) -> Result<KeyPair, anyhow::Error> {
    let path = folder(home)?.join(format!("{name}.nk"));
    let reading = || format!("reading the key {}", path.display());
    match fs::read_to_string(&path) {
        Ok(seed) => KeyPair::from_seed(seed.trim()).with_context(reading),
        // Only then: another key is another account, with none of its streams.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let key = KeyPair::new(kind);
            write_secret(&path, key.seed()?.as_bytes())?;
            Ok(key)
        }
        Err(error) => Err(error).with_context(reading),
    }
}

/// The folder of keys and credentials.
pub fn folder(home: &StackDir) -> Result<PathBuf, anyhow::Error> {
    let folder = home.path("secrets/nats");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// The credentials file of a login.
#[must_use]
pub fn credentials_file(home: &StackDir, login: &str) -> PathBuf {
    home.path(&format!("secrets/nats/{login}.creds"))
}

/// Whether the folder has the key of the operator, by which accounts are signed.
#[must_use]
pub fn has_keys(home: &StackDir) -> bool {
    home.path("secrets/nats/operator.nk").exists()
}
