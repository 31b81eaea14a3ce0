//! Secrets in a text that leaves the machine: those of a stack's folder by their values, others by their shape.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use regex::{Captures, Regex};

/// What stands in the place of a secret.
pub const SECRET: &str = "[secret]";
/// The shortest piece of a file of secrets that is looked for, and the shortest whole line. Shorter ones are words.
const SHORTEST: usize = 16;
const SHORTEST_LINE: usize = 8;
/// A longer line is left out: nothing of ours writes one, and a hostile one must not take minutes.
const LONGEST_LINE: usize = 16 << 10;
/// Private keys, over several lines.
const KEYS: &str = r"-----BEGIN [A-Z ]*PRIVATE KEY-----[A-Za-z0-9+/=\s\\]{0,8192}(?:-----END [A-Z ]*PRIVATE KEY-----)?";
/// Passwords in URLs, tokens, schemes of HTTP, the seeds of NATS and age, drawn passwords, a line of a key that was cut, and what is called
/// a secret: quoted, of a debug print, in SQL, or bare.
const SHAPES: &str = r#"(?x)
    (?P<url> ://[^\s/:@"']* : ) [^\s"']+ (?P<host> @ )
  | (?P<login> :// ) [^\s/:@"']{8,} (?P<at> @ )
  | eyJ[A-Za-z0-9_-]{8,} (?: \.[A-Za-z0-9_-]+ ){1,2}
  | (?P<scheme> \b (?i: basic | bearer | apikey | digest ) \s+ ) [A-Za-z0-9+/=._~-]{8,}
  | S [UAOCNX] [A-Z2-7]{50,}
  | AGE-SECRET-KEY-1 [A-Z0-9]{50,}
  | \b [0-9a-fA-F]{48} \b
  | ^ [A-Za-z0-9+/]{60,} ={0,2} $
  | (?P<name>
      [\w-]* (?i: password | passwd | secret | token | api[_-]?key | access[_-]?key | authorization ) [\w-]*
      (?: \\*["'] )? (?: \s* [:=] \s* (?: \w+ \( )? | \s+ ' ) (?: \\*["'] )?
      (?: (?i: basic | bearer | apikey | digest ) \s+ )?
    ) [^\s"'\\}\])]{5,}
"#;

/// The secrets to replace.
pub struct Redaction {
    values: Vec<String>,
    keys: Regex,
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
        Ok(Self { values, keys: Regex::new(KEYS)?, shapes: Regex::new(SHAPES)? })
    }

    /// The text without them.
    #[must_use]
    pub fn apply(&self, text: &str) -> String {
        let known = self.values.iter().fold(text.to_owned(), |text, value| text.replace(value, SECRET));
        let known = self.keys.replace_all(&known, SECRET);
        known.split_inclusive('\n').map(|line| self.line(line)).collect()
    }

    fn line(&self, line: &str) -> String {
        let (text, end) = line.strip_suffix('\n').map_or((line, ""), |text| (text, "\n"));
        if text.len() > LONGEST_LINE {
            return format!("[a line of {} bytes]{end}", text.len());
        }
        let keep = |found: &Captures<'_>| {
            let part = |name| found.name(name).map_or("", |part| part.as_str());
            let before = ["url", "login", "scheme", "name"].map(part).concat();
            format!("{before}{SECRET}{}{}", part("host"), part("at"))
        };
        format!("{}{end}", self.shapes.replace_all(text, keep))
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
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_public = [".team", ".crt", ".json"].iter().any(|end| name.ends_with(end));
        let is_webhook = name == "alertmanager.json";
        if path.is_dir() {
            pieces(&path, all, values)?;
        } else if is_webhook || name.ends_with(".key") || all {
            let content = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            let content = String::from_utf8_lossy(&content);
            passwords(&content, values);
            if is_webhook {
                parts_of_addresses(&content, values);
            } else if !is_public {
                words(&content, values);
            }
        }
    }
    Ok(())
}

/// The passwords of URLs, alone and as HTTP sends them.
fn passwords(content: &str, values: &mut BTreeSet<String>) {
    let logins = content.split("://").skip(1).filter_map(|rest| rest.split_once('@')?.0.split_once(':'));
    for (user, password) in logins.filter(|(_, password)| password.len() >= SHORTEST_LINE) {
        values.extend([password.to_owned(), BASE64.encode(format!("{user}:{password}"))]);
    }
}

/// The paths of the addresses in a JSON text: of a webhook its key is a part of it.
fn parts_of_addresses(content: &str, values: &mut BTreeSet<String>) {
    let paths = content.split('"').filter_map(|text| text.split_once("://")?.1.split_once('/'));
    for (_, path) in paths {
        values.insert(path.to_owned());
        values.extend(path.split(['/', '?', '&', '=']).filter(|part| part.len() >= 12).map(ToOwned::to_owned));
    }
}

/// Whole lines and what they are made of, as they are and in base64. Of an address only the password is a secret.
fn words(content: &str, values: &mut BTreeSet<String>) {
    for line in content.lines().map(str::trim).filter(|line| !line.contains("://")) {
        let split = line.split(|c: char| c.is_whitespace() || "\"',:@{}[]".contains(c));
        // A word without a digit is a name.
        let long = split.filter(|piece| piece.len() >= SHORTEST && piece.bytes().any(|byte| byte.is_ascii_digit()));
        let is_whole = line.len() >= SHORTEST_LINE && !line.contains(char::is_whitespace);
        for value in long.chain(is_whole.then_some(line)) {
            values.extend([value.to_owned(), BASE64.encode(value)]);
        }
    }
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
        fs::write(folder.join("secrets/short"), "sunshine\n").unwrap();
        fs::write(folder.join("secrets/elsewhere-url"), "https://search:moonlight@search:9200").unwrap();
        fs::write(folder.join("secrets/nats/todo.creds"), "line one\nkey0key1key2key3key4\n").unwrap();
        fs::write(folder.join("tls/tls.key"), "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END").unwrap();
        let redaction = Redaction::of(&folder).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let seed = format!("SU{}", "A2".repeat(28));
        let token = ["eyJhbGciOiJFUzI1NiJ9", "eyJzdWIiOiJhbm4ifQ", "c2lnbmF0dXJl"].join(".");
        for (text, wanted) in [
            (r#"{"message":"{\"password\": \"hunter22hunter22\"}"}"#, r#"{"message":"{\"password\": \"[secret]\"}"}"#),
            ("Authorization: Basic Zmxvd=GlsbGE6", "Authorization: Basic [secret]"),
            (
                "STATEMENT:  ALTER ROLE todo_app PASSWORD 'starless'",
                "STATEMENT:  ALTER ROLE todo_app PASSWORD '[secret]'",
            ),
            ("password: Some(\"starless\")", "password: Some(\"[secret]\")"),
            ("postgres://u:p@ss/word77@db", "postgres://u:[secret]@db"),
            ("nats://tok3ntok3n@db", "nats://[secret]@db"),
            (
                "X-Api-Key: starless, AWS_SECRET_ACCESS_KEY=starless",
                "X-Api-Key: [secret] AWS_SECRET_ACCESS_KEY=[secret]",
            ),
            ("Q2hhcnQgdGhlIHJlZWYgYW5kIHNvdW5kIHRoZSBzaG9hbCBiZWZvcmUgZGF3biBjb21l", "[secret]"),
            ("-----BEGIN PRIVATE KEY-----\nabc=\nand 2026-11-28 it goes on", "[secret]-11-28 it goes on"),
            ("c3Vuc2hpbmU=", "[secret]"),
            ("http://127.0.0.1:8080/operations", "http://127.0.0.1:8080/operations"),
            ("neither sunshine nor moonlight", "neither [secret] nor [secret]"),
            ("password 0123456789abcdef was refused", "password [secret] was refused"),
            ("half of key0key1key2key3key4 and MIGHAgEAMBMGByqGSM49", "half of [secret] and [secret]"),
            ("at postgres://other:pa%2Fss@db:5432/x", "at postgres://other:[secret]@db:5432/x"),
            (&format!("authorization: Bearer {token}"), "authorization: Bearer [secret]"),
            (&format!("{{\"trace\":\"{token}\",\"n\":1}}"), "{\"trace\":\"[secret]\",\"n\":1}"),
            (&seed, "[secret]"),
            (r#"{"password":"starless","user":"ann"}"#, r#"{"password":"[secret]","user":"ann"}"#),
            ("alter role x password = 'starless'", "alter role x password = '[secret]'"),
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
