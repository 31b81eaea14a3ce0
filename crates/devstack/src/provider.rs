//! Who knows the people, in place of the development provider; and a real OpenID provider beside the stack, the program of `e2e/provider`.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use tokio::process::Command;

use crate::process::{Program, Ready};
use crate::stack_dir::StackDir;

/// Who knows the people.
#[derive(Debug, Clone)]
pub enum Provider {
    /// One that is there, by its issuer's URL.
    Elsewhere(String),
    /// One that the stack runs, by this script.
    Beside(PathBuf),
}

impl Provider {
    /// One that the stack runs, by the script of the clone that this program was built in.
    ///
    /// # Errors
    /// It was built elsewhere.
    pub fn beside() -> Result<Self, anyhow::Error> {
        let program = std::env::current_exe()?;
        let clone = program.ancestors().find(|folder| folder.join("e2e/provider/provider.mjs").is_file());
        let script = clone.map(|clone| clone.join("scripts/provider.sh"));
        Ok(Self::Beside(script.context("the provider is of the repository: run a flotilla that was built in a clone")?))
    }
}

/// The program of a provider on this port, and its issuer's URL. What it needs is fetched once.
///
/// # Errors
/// It cannot be fetched.
pub(crate) async fn program(home: &StackDir, script: &Path, port: u16) -> Result<(Program, String), anyhow::Error> {
    // It says what it fetches, which takes minutes the first time.
    let checked = Command::new(script).arg("check").stdin(Stdio::null()).kill_on_drop(true).status().await?;
    if !checked.success() {
        bail!("there is no OpenID provider to run: {checked}");
    }
    let issuer = format!("http://127.0.0.1:{port}");
    let cache = std::env::var_os("XDG_CACHE_HOME").and_then(|folder| folder.into_string().ok());
    let cache = cache.map(|folder| ("XDG_CACHE_HOME".to_owned(), folder));
    let program = Program {
        name: "provider".to_owned(),
        path: script.to_owned(),
        args: vec!["run".to_owned(), port.to_string(), "stay".to_owned()],
        env: cache.into_iter().collect(),
        log: home.log("provider"),
        user: None,
        stop: Signal::SIGTERM,
        ready: Ready::Http(format!("{issuer}/.well-known/openid-configuration")),
        socket: None,
        alive: None,
    };
    Ok((program, issuer))
}
