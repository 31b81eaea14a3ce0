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

/// The name of a login's key.
pub fn user_key(login: &str) -> String {
    format!("user-{login}")
}

/// Removes a login's key: the next one is another.
pub fn forget_user(home: &StackDir, login: &str) -> Result<(), anyhow::Error> {
    home.remove_secret(&format!("nats/{}.nk", user_key(login)))
}

/// The time up to which logins are revoked, in seconds since 1970.
const REVOKED: &str = "nats/revoked";
/// The same, not yet made known to servers.
const RETIRING: &str = "nats/retiring";

/// Notes that credentials that were signed until then are to be revoked.
pub fn retire(home: &StackDir, until: i64) -> Result<(), anyhow::Error> {
    home.write_secret(RETIRING, &until.to_string()).map(drop)
}

/// Up to when they are to be revoked, where that is noted.
pub fn retiring(home: &StackDir) -> Result<Option<i64>, anyhow::Error> {
    time(home, RETIRING)
}

/// Has the next JWTs of accounts revoke what was noted. What was revoked before stays so.
///
/// # Errors
/// A file cannot be read or written.
pub fn revoke(home: &StackDir) -> Result<(), anyhow::Error> {
    let Some(until) = retiring(home)? else { return Ok(()) };
    home.write_secret(REVOKED, &until.max(revoked(home)?.unwrap_or_default()).to_string())?;
    home.remove_secret(RETIRING)
}

/// Up to when logins are revoked.
pub fn revoked(home: &StackDir) -> Result<Option<i64>, anyhow::Error> {
    time(home, REVOKED)
}

fn time(home: &StackDir, name: &str) -> Result<Option<i64>, anyhow::Error> {
    let text = home.read_secret(name)?;
    text.map(|text| text.parse().with_context(|| format!("reading secrets/{name}"))).transpose()
}
