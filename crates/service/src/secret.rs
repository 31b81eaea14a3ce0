//! A secret of a process: a text, or what a file holds or a command prints, read again when that changes. No message or log line repeats
//! it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context as _, ensure};
use clap::builder::{ValueParser, ValueParserFactory};
pub use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;

use crate::reread::{Reread, Source};

/// A secret. Clones are the same: what one has read again, all have.
#[derive(Clone)]
pub struct Secret(Reread<SecretString>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Secret").field(&self.0).finish()
    }
}

impl Secret {
    /// Reads it. Of what is there, white space at the end does not count. What `check` refuses later does not take the place of what was
    /// there before.
    ///
    /// # Errors
    /// It cannot be read, is empty, is no text, or is refused: the error names where it is.
    pub fn open(
        source: Source,
        check: impl Fn(&str) -> Result<(), anyhow::Error> + Send + Sync + 'static,
    ) -> Result<Self, anyhow::Error> {
        let read = move |read: &[Vec<u8>]| {
            let text = text(&read[0])?;
            check(text.expose_secret())?;
            Ok(text)
        };
        Reread::open(vec![source], read).map(Self)
    }

    /// Reads it from where the text of an argument says.
    ///
    /// # Errors
    /// As those of [`open`](Self::open).
    pub fn given(
        text: &str,
        check: impl Fn(&str) -> Result<(), anyhow::Error> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let source = match (text.strip_prefix(MARKS[0]), text.strip_prefix(MARKS[1])) {
            (Some(path), _) => Source::File(path.into()),
            (_, Some(command)) => Source::Command(command.to_owned()),
            (None, None) => Source::Text(text.as_bytes().to_vec()),
        };
        Self::open(source, check).map_err(|error| format!("{error:#}"))
    }

    /// Reads it from a file.
    ///
    /// # Errors
    /// As those of [`open`](Self::open).
    pub fn in_file(path: impl Into<PathBuf>) -> Result<Self, anyhow::Error> {
        Self::open(Source::File(path.into()), |_| Ok(()))
    }

    /// What it was when it was read last.
    #[must_use]
    pub fn get(&self) -> SecretString {
        self.0.get().as_ref().clone()
    }

    /// The same as a text, which no log line may have.
    #[must_use]
    pub fn expose(&self) -> String {
        self.0.get().expose_secret().to_owned()
    }

    /// Its lines, of which each is a secret that is valid; an empty one is none.
    #[must_use]
    pub fn lines(&self) -> Vec<SecretString> {
        lines(self.0.get().expose_secret()).map(|line| line.to_owned().into()).collect()
    }

    /// Where it is.
    #[must_use]
    pub fn source(&self) -> Source {
        let source = self.0.sources().first();
        source.cloned().unwrap_or_else(|| Source::Text(self.expose().into_bytes()))
    }

    /// Reads it again, if it is in a file that has changed.
    pub fn look(&self) {
        self.0.look();
    }

    /// Reads it again, also from a command: what it was is refused.
    pub async fn look_now(&self) {
        self.0.look_now().await;
    }

    /// Looks whether it has changed every few seconds, until `stop`.
    pub async fn look_until(&self, stop: &CancellationToken) {
        self.0.look_until(stop).await;
    }
}

/// The lines of a secret that hold something.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty())
}

/// A secret as bytes.
///
/// # Errors
/// It is empty, or no text.
pub fn text(bytes: &[u8]) -> Result<SecretString, anyhow::Error> {
    let text = std::str::from_utf8(bytes).ok().context("what is there is no text")?.trim_end();
    ensure!(!text.is_empty(), "it is empty");
    Ok(text.to_owned().into())
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Reread::fixed(text.into()))
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// What marks the name of a file and a command, among the texts that [`arguments`](crate::arguments) hands to a parser. It refuses a text
/// that begins so.
const MARKS: [char; 2] = ['\u{1}', '\u{2}'];

/// A file as the text of an argument.
pub(crate) fn file(path: &str) -> String {
    format!("{}{path}", MARKS[0])
}

/// A command as the text of an argument.
pub(crate) fn command(command: &str) -> String {
    format!("{}{command}", MARKS[1])
}

impl FromStr for Secret {
    type Err = String;

    fn from_str(given: &str) -> Result<Self, String> {
        Self::given(given, |_| Ok(()))
    }
}

/// Of an argument without a parser of its own; `clap` would take [`From`] for it.
impl ValueParserFactory for Secret {
    type Parser = ValueParser;

    fn value_parser() -> ValueParser {
        ValueParser::new(|given: &str| given.parse::<Self>())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn folder() -> PathBuf {
        let folder = std::env::temp_dir().join(testkit::unique("flotilla-secret-"));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn refused(given: &str) -> String {
        given.parse::<Secret>().unwrap_err()
    }

    #[tokio::test]
    async fn a_file_and_a_command_are_read_again_and_nothing_shows_what_they_hold() {
        let folder = folder();
        let path = folder.join("key");
        std::fs::write(&path, "hunter2\n").unwrap();
        let by_file = Secret::in_file(&path).unwrap();
        let prints: Secret = command(&format!("cat {}", path.display())).parse().unwrap();
        let both = [&by_file, &prints, &prints.clone()];
        assert_eq!(both.map(Secret::expose), ["hunter2"; 3]);
        assert!(!format!("{both:?}").contains("hunter2"));

        // What is there between two steps of whoever changes it.
        for unusable in [&b""[..], b"\n", b"\xff"] {
            std::fs::write(&path, unusable).unwrap();
            by_file.look();
            assert_eq!(by_file.expose(), "hunter2");
        }
        std::fs::write(&path, "hunter3").unwrap();
        by_file.look();
        assert_eq!(by_file.expose(), "hunter3");
        std::fs::write(&path, "\n hunter3\n\nhunter2 \n").unwrap();
        by_file.look();
        let lines: Vec<_> = by_file.lines().iter().map(|line| line.expose_secret().to_owned()).collect();
        assert_eq!(lines, ["hunter3", "hunter2"], "nobody is let in by an empty line");
        // A command that was run just now is not run again.
        prints.look();
        prints.look_now().await;
        assert_eq!(prints.expose(), "hunter2");
        prints.0.look_as_if_later().await;
        assert!(prints.expose().starts_with("\n hunter3"));
        // One that fails changes nothing.
        std::fs::remove_file(&path).unwrap();
        prints.0.look_as_if_later().await;
        assert!(prints.expose().starts_with("\n hunter3"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_cannot_be_read_is_named_without_what_it_holds() {
        let folder = folder();
        let gone = refused(&file(folder.join("gone").to_str().unwrap()));
        assert!(gone.contains("gone: No such file"), "{gone}");
        assert_eq!(refused(""), "in a variable: it is empty");
        let failed = refused(&command("sh -c 'echo hunter2; exit 3'"));
        assert_eq!(failed, "what a command prints: it failed (exit status: 3)");
        assert!(refused(&command("true")).contains("it is empty"));
        // What it has begun does not hold it up once it has ended its output.
        assert_eq!(command("sleep 60 >/dev/null & echo hunter2").parse::<Secret>().unwrap().expose(), "hunter2");
        assert!(refused(&command("yes")).contains("it failed"), "nobody reads without an end");
        let checked = Secret::given("hunter2", |_| anyhow::bail!("is no key")).unwrap_err();
        assert_eq!(checked, "in a variable: is no key");
        assert!(Path::new("/dev/zero").exists() && refused(&file("/dev/zero")).contains("larger than"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
