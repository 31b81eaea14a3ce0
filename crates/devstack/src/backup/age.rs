//! Encryption by the program `age`: whole files, authenticated, to the public half of one key.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::stack_dir::{StackDir, write_secret};

/// The secret that opens every backup: an identity of age.
pub const KEY: &str = "backup-key";

/// The key of a stack's backups.
pub struct Key {
    /// The line that opens everything.
    pub(super) secret: String,
    recipient: String,
    file: PathBuf,
}

impl Key {
    /// The key in the stack's folder; made at the first call.
    ///
    /// # Errors
    /// It cannot be made or read.
    pub async fn make(home: &StackDir) -> Result<Self, anyhow::Error> {
        if !path(home).exists() {
            let made = Command::new("age-keygen").stdin(Stdio::null()).output().await.context("running age-keygen")?;
            ensure!(made.status.success(), "age-keygen: {}", String::from_utf8_lossy(&made.stderr).trim());
            write_secret(&path(home), &made.stdout)?;
        }
        Self::of(home).await
    }

    /// The key in a file, else in the stack's folder.
    ///
    /// # Errors
    /// There is none.
    pub async fn given(home: &StackDir, file: Option<&Path>) -> Result<Self, anyhow::Error> {
        match file {
            Some(file) => Self::read(file).await,
            None => Self::of(home).await,
        }
    }

    /// The key in the stack's folder.
    ///
    /// # Errors
    /// There is none.
    pub async fn of(home: &StackDir) -> Result<Self, anyhow::Error> {
        let file = path(home);
        ensure!(file.exists(), "{} is missing: copy the key of the backups there, or say --key FILE", file.display());
        Self::read(&file).await
    }

    async fn read(file: &Path) -> Result<Self, anyhow::Error> {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let secret = text.lines().find(|line| line.starts_with("AGE-SECRET-KEY-"));
        let secret = secret.with_context(|| format!("{} holds no key of backups", file.display()))?.to_owned();
        let public = Command::new("age-keygen").arg("-y").arg(file).stdin(Stdio::null()).output().await;
        let public = public.context("running age-keygen")?;
        ensure!(public.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&public.stderr).trim());
        let recipient = String::from_utf8(public.stdout)?.trim().to_owned();
        Ok(Self { secret, recipient, file: file.to_owned() })
    }

    /// Checks that the stack's folder has no other key, which would be lost for this one.
    pub(super) async fn check(&self, home: &StackDir) -> Result<(), anyhow::Error> {
        let file = path(home);
        let same = !file.exists() || Self::read(&file).await.is_ok_and(|has| has.secret == self.secret);
        ensure!(same, "{} is another key: move it to where it is kept, then say this again", file.display());
        Ok(())
    }

    /// The key, as its file has it.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}\n", self.secret)
    }

    /// Keeps it in the stack's folder.
    pub(super) fn keep(&self, home: &StackDir) -> Result<(), anyhow::Error> {
        write_secret(&path(home), self.text().as_bytes())
    }

    /// Encrypts what is written into a file.
    pub fn encrypt(&self, to: &Path) -> Result<(Child, ChildStdin), anyhow::Error> {
        let mut age = Command::new("age");
        age.args(["--encrypt", "--recipient", &self.recipient, "--output"]).arg(to);
        age.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = age.spawn().context("running age")?;
        let input = child.stdin.take().context("age takes no input")?;
        Ok((child, input))
    }

    /// Decrypts a file.
    pub fn decrypt(&self, from: &Path) -> Result<(Child, ChildStdout), anyhow::Error> {
        let mut age = Command::new("age");
        age.args(["--decrypt", "--identity"]).arg(&self.file).arg(from);
        age.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = age.spawn().context("running age")?;
        let output = child.stdout.take().context("age has no output")?;
        Ok((child, output))
    }
}

fn path(home: &StackDir) -> PathBuf {
    home.path("secrets").join(KEY)
}

/// Waits for the end of one of these programs. Only then is a file whole.
pub async fn ended(mut age: Child, file: &Path) -> Result<(), anyhow::Error> {
    let mut said = String::new();
    if let Some(mut errors) = age.stderr.take() {
        errors.read_to_string(&mut said).await?;
    }
    let status = age.wait().await?;
    ensure!(status.success(), "{}: {}", file.display(), said.trim().lines().next().unwrap_or("age failed"));
    Ok(())
}
