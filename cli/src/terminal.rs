//! The only output to a person's terminal. It may hold text that a stranger sent: none of it steers the terminal, turns
//! the direction of writing, or hides. The reader may stop: a closed pipe is no failure.

use std::borrow::Cow;
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use contracts::text::misleads;

/// As std's, by way of [`out`].
macro_rules! println {
    () => { $crate::terminal::out("\n") };
    ($($text:tt)*) => { $crate::terminal::out(&(format!($($text)*) + "\n")) };
}

/// As std's, by way of [`out`].
macro_rules! print {
    ($($text:tt)*) => { $crate::terminal::out(&format!($($text)*)) };
}

/// As std's, by way of [`error`].
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::terminal::error(&(format!($($text)*) + "\n")) };
}

static CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether nobody reads standard output any more.
pub fn is_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

/// Writes to standard output, harmlessly. Once that is closed, nothing.
pub fn out(text: &str) {
    write(std::io::stdout().lock(), &harmless(text), &CLOSED);
}

/// Writes to standard error, harmlessly.
pub fn error(text: &str) {
    write(std::io::stderr().lock(), &harmless(text), &AtomicBool::new(false));
}

/// Clears the screen, if there is one.
pub fn clear() {
    use std::io::IsTerminal as _;
    if std::io::stdout().is_terminal() {
        write(std::io::stdout().lock(), "\x1b[H\x1b[J", &CLOSED);
    }
}

fn write(mut to: impl Write, text: &str, closed: &AtomicBool) {
    if closed.load(Ordering::Relaxed) {
        return;
    }
    if let Err(error) = to.write_all(text.as_bytes()).and_then(|()| to.flush()) {
        closed.store(true, Ordering::Relaxed);
        if error.kind() != ErrorKind::BrokenPipe {
            std::io::stderr().write_all(format!("flotilla: standard output: {error}\n").as_bytes()).ok();
        }
    }
}

/// A text in which nothing but line breaks and tabs steers a terminal: everything else that does is written as in JSON, `\u001b`.
pub fn harmless(text: &str) -> Cow<'_, str> {
    escaped(text, |c| matches!(c, '\n' | '\t'))
}

/// The same on one line.
pub fn on_one_line(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

fn escaped(text: &str, kept: fn(char) -> bool) -> Cow<'_, str> {
    let harmful = |c: char| steers(c) && !kept(c);
    if !text.contains(harmful) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if harmful(c) {
            safe.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// Control characters, and what turns, breaks or hides text.
fn steers(c: char) -> bool {
    c.is_control() || misleads(c)
}

#[cfg(test)]
mod tests {
    use super::{harmless, on_one_line};

    #[test]
    fn nothing_that_a_stranger_has_sent_steers_a_terminal() {
        for (text, wanted) in [
            ("plain, é, 漢, 👩\u{200d}🚀\tand\nmore", "plain, é, 漢, 👩\u{200d}🚀\tand\nmore"),
            ("\x1b[41mPWNED\x1b]0;t\x07", "\\u001b[41mPWNED\\u001b]0;t\\u0007"),
            ("a\rb\0\u{7f}\u{9b}31m", "a\\u000db\\u0000\\u007f\\u009b31m"),
            ("\u{202e}gpj.exe\u{2066}\u{200b}\u{feff}", "\\u202egpj.exe\\u2066\\u200b\\ufeff"),
        ] {
            assert_eq!(harmless(text), wanted);
        }
        assert_eq!(on_one_line("a\nb\tc"), "a\\u000ab\\u0009c");
        // What was JSON is the same JSON.
        let json = serde_json::json!({"title": "a\u{202e}b\u{85}"}).to_string();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&harmless(&json)).unwrap()["title"], "a\u{202e}b\u{85}");
    }
}
