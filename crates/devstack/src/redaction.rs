//! Secrets in a text that leaves the machine: those of a stack's folder by their values, others by their shape.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use regex::{Captures, Regex};

/// What stands in the place of a secret.
pub const SECRET: &str = "[secret]";
/// The shortest piece of a file of secrets that is looked for. Shorter ones are words.
const SHORTEST: usize = 16;
/// Passwords and tokens in URLs and headers, tokens, the seeds of NATS' keys, private keys, and what calls itself a secret.
const SHAPES: &str = r#"(?x)
    (?P<before> ://[^\s/:@"']* : ) [^\s/@"']+ (?P<after> @ )
  | eyJ[A-Za-z0-9_-]{8,} (?: \.[A-Za-z0-9_-]+ ){1,2}
  | \b S [UAOCNX] [A-Z2-7]{50,}
  | \b AGE-SECRET-KEY-1 [A-Z0-9]{50,}
  | -----BEGIN\ [A-Z\ ]*PRIVATE\ KEY----- [^-]* (?: -----END\ [A-Z\ ]*PRIVATE\ KEY----- )?
  | (?P<name> (?i: password | passwd | secret | token | api_?key | authorization ) ["']? \s* [:=] \s* (?i: bearer \s+ )? ["']? ) [^\s"',}\[]{6,}
"#;

/// The secrets to replace.
pub struct Redaction {
    values: Vec<String>,
    shapes: Regex,
}

impl Redaction {
    /// The secrets of a stack's folder, or of the keys of a profile. A folder without any has none.
    ///
    /// # Errors
    /// A file of secrets cannot be read.
    pub fn of(home: &Path) -> Result<Self, anyhow::Error> {
        let mut values = BTreeSet::new();
        for folder in ["secrets", "tls", "conf"] {
            pieces(&home.join(folder), folder == "secrets", &mut values)?;
        }
        let mut values: Vec<_> = values.into_iter().collect();
        // What holds another goes first.
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        Ok(Self { values, shapes: Regex::new(SHAPES)? })
    }

    /// The text without them.
    #[must_use]
    pub fn apply(&self, text: &str) -> String {
        let known = self.values.iter().fold(text.to_owned(), |text, value| text.replace(value, SECRET));
        let keep = |found: &Captures<'_>| {
            let part = |name| found.name(name).map_or("", |part| part.as_str());
            format!("{}{}{SECRET}{}", part("before"), part("name"), part("after"))
        };
        self.shapes.replace_all(&known, keep).into_owned()
    }
}

/// What the files of a folder are made of, those below it included.
fn pieces(folder: &Path, all: bool, values: &mut BTreeSet<String>) -> Result<(), anyhow::Error> {
    let entries = match folder.read_dir() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("reading {}", folder.display()))?,
    };
    for entry in entries {
        let path = entry?.path();
        let is_secret = all || path.extension().is_some_and(|end| end == "key") || path.ends_with("alertmanager.json");
        if path.is_dir() {
            pieces(&path, all, values)?;
        } else if is_secret {
            let content = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            let content = String::from_utf8_lossy(&content);
            let split = content.split(|c: char| c.is_whitespace() || "\"',:@{}[]".contains(c));
            // A word without a digit is a name.
            let long = split.filter(|piece| piece.len() >= SHORTEST && piece.bytes().any(|byte| byte.is_ascii_digit()));
            values.extend(long.map(ToOwned::to_owned));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_replaced_by_value_and_by_shape_and_the_rest_stays() {
        let folder = std::env::temp_dir().join(format!("flotilla-redaction-{}", std::process::id()));
        fs::create_dir_all(folder.join("secrets/nats")).unwrap();
        fs::create_dir_all(folder.join("tls")).unwrap();
        fs::write(folder.join("secrets/todo-url"), "postgres://todo_app:0123456789abcdef@127.0.0.1:15432/todo\n")
            .unwrap();
        fs::write(folder.join("secrets/nats/todo.creds"), "line one\nkey0key1key2key3key4\n").unwrap();
        fs::write(folder.join("tls/tls.key"), "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END").unwrap();
        let redaction = Redaction::of(&folder).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let seed = format!("SU{}", "A2".repeat(28));
        let token = ["eyJhbGciOiJFUzI1NiJ9", "eyJzdWIiOiJhbm4ifQ", "c2lnbmF0dXJl"].join(".");
        for (text, wanted) in [
            ("password 0123456789abcdef was refused", "password [secret] was refused"),
            ("half of key0key1key2key3key4 and MIGHAgEAMBMGByqGSM49", "half of [secret] and [secret]"),
            ("at postgres://other:pa%2Fss@db:5432/x", "at postgres://other:[secret]@db:5432/x"),
            (&format!("authorization: Bearer {token}"), "authorization: Bearer [secret]"),
            (&format!("{{\"trace\":\"{token}\",\"n\":1}}"), "{\"trace\":\"[secret]\",\"n\":1}"),
            (&seed, "[secret]"),
            (r#"{"password":"sunshine","user":"ann"}"#, r#"{"password":"[secret]","user":"ann"}"#),
            ("alter role x password = 'sunshine'", "alter role x password = '[secret]'"),
            (
                "search-projector handled 0123456789abcde of todo_app",
                "search-projector handled 0123456789abcde of todo_app",
            ),
            (
                r#"{"page_tokens":3,"trace_id":"4bf92f3577b34da6a3ce929d0e0e4736"}"#,
                r#"{"page_tokens":3,"trace_id":"4bf92f3577b34da6a3ce929d0e0e4736"}"#,
            ),
        ] {
            assert_eq!(redaction.apply(text), wanted);
        }
    }
}
