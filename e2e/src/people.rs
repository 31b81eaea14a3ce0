//! A real OpenID provider (`e2e/provider`), and people who sign in at it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use devstack::sign_in::{Browser, SignedIn};

use crate::workspace;

/// What `scripts/provider.sh` ends with where Node or the package cannot be had.
const UNAVAILABLE: i32 = 69;

/// The provider, which ends with this value.
pub struct OpenIdProvider {
    /// Its issuer's URL.
    pub issuer: String,
    /// None where the stack runs it.
    program: Option<(Child, BufReader<ChildStdout>)>,
}

impl OpenIdProvider {
    /// Starts it; none, which it says loudly, where it cannot be had.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start() -> Option<Self> {
        if !Self::is_there() {
            return None;
        }
        let mut command = Command::new(script());
        command.args(["run", "0"]);
        let mut program = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(program.stdout.take().unwrap());
        let ready = line(&mut said);
        let issuer = ready.strip_prefix("ready ").unwrap_or_else(|| panic!("it says: {ready}")).to_owned();
        let mut provider = Self::at(&issuer);
        provider.program = Some((program, said));
        Some(provider)
    }

    /// Whether it can be had; where not, it says so loudly.
    ///
    /// # Panics
    /// What it needs is there, and broken.
    #[must_use]
    pub fn is_there() -> bool {
        let checked = Command::new(script()).arg("check").stdin(Stdio::null()).status().unwrap();
        if checked.code() == Some(UNAVAILABLE) {
            let mut stderr = std::io::stderr();
            writeln!(stderr, "SKIPPED: nobody signs in at a real OpenID provider, which cannot be had").unwrap();
            return false;
        }
        assert!(checked.success(), "{checked}");
        true
    }

    /// One that somebody else runs.
    #[must_use]
    pub fn at(issuer: &str) -> Self {
        Self { issuer: issuer.to_owned(), program: None }
    }

    /// Signs by a new key from now on; the old ones are published all the same.
    ///
    /// # Panics
    /// It has ended.
    pub fn rotate(&mut self) {
        self.command("rotate");
    }

    /// Publishes the newest key alone.
    ///
    /// # Panics
    /// It has ended.
    pub fn forget(&mut self) {
        self.command("forget");
    }

    fn command(&mut self, command: &str) {
        let (program, said) = self.program.as_mut().expect("a provider of the test");
        writeln!(program.stdin.as_mut().unwrap(), "{command}").unwrap();
        let done = line(said);
        assert!(done.starts_with("keys "), "{done}");
    }

    /// A person signs in with a browser.
    ///
    /// # Panics
    /// The provider refuses it.
    pub async fn sign_in(&self, login: &str) -> SignedIn {
        self.sign_in_by(login, "").await
    }

    /// The same by this class of authentication.
    ///
    /// # Panics
    /// The provider refuses it.
    pub async fn sign_in_by(&self, login: &str, acr: &str) -> SignedIn {
        self.browser().sign_in(login, acr).await.unwrap()
    }

    /// A person opens the link that a terminal shows, confirms its code, and signs in there.
    ///
    /// # Panics
    /// The provider refuses it.
    pub async fn confirm(&self, link: &str, login: &str) {
        self.browser().confirm(link, login).await.unwrap();
    }

    /// The next access token of a person who signed in.
    ///
    /// # Panics
    /// The provider refuses it.
    pub async fn refresh(&self, signed_in: &SignedIn) -> SignedIn {
        self.browser().refresh(signed_in).await.unwrap()
    }

    fn browser(&self) -> Browser {
        Browser::at(&self.issuer).unwrap()
    }
}

impl Drop for OpenIdProvider {
    fn drop(&mut self) {
        if let Some((program, _)) = &mut self.program {
            drop(program.stdin.take());
            program.wait().ok();
        }
    }
}

fn script() -> PathBuf {
    workspace().join("scripts/provider.sh")
}

fn line(said: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}
