//! The rules for a text: its length, and no characters that make it look like another text.

/// An invalid text; the message continues after the field's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Nothing but white space.
    #[error("must not be empty")]
    Empty,
    /// Too many characters.
    #[error("must have at most {0} characters")]
    TooLong(usize),
    /// A control character.
    #[error("must not contain control characters{0}")]
    Control(&'static str),
    /// The text looks like another one.
    #[error("must not contain what turns the direction of writing or cannot be seen")]
    Misleading,
}

/// Refuses a text with more characters than the limit, or with a character that is `control`; `except` names the exceptions.
///
/// # Errors
/// [`TextError::TooLong`], [`TextError::Control`].
fn check(text: &str, most: usize, control: fn(char) -> bool, except: &'static str) -> Result<(), TextError> {
    if text.chars().count() > most {
        return Err(TextError::TooLong(most));
    }
    if text.chars().any(control) { Err(TextError::Control(except)) } else { Ok(()) }
}

/// A text of several lines: up to so many characters, with line breaks and tabs.
///
/// # Errors
/// [`TextError::TooLong`], [`TextError::Control`].
pub fn block(text: &str, most: usize) -> Result<String, TextError> {
    let control = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    check(text, most, control, " except line breaks and tabs")?;
    Ok(text.to_owned())
}

/// A text of one line, trimmed: from 1 character to the limit.
///
/// # Errors
/// See [`TextError`]. Only new texts are checked for misleading characters ([`is_misleading`]): this also reads stored ones.
pub fn line(text: &str, most: usize) -> Result<String, TextError> {
    let text = text.trim();
    check(text, most, char::is_control, "")?;
    if text.is_empty() { Err(TextError::Empty) } else { Ok(text.to_owned()) }
}

/// Whether a character turns the direction of writing (Unicode's bidirectional controls), breaks a line unseen, or shows nothing:
/// default ignorable in Unicode, except the joiners and variation selectors that emojis and some scripts need.
#[must_use]
pub const fn misleads(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{3164}' | '\u{feff}'
            | '\u{ffa0}'
            | '\u{180e}'
            | '\u{200b}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e00ff}'
            | '\u{e01f0}'..='\u{e0fff}'
    )
}

/// The tags for `gbeng`, `gbsct` and `gbwls`, and the one that ends them (UTS 51, Annex C).
const FLAGS: [&str; 3] = [
    "\u{1f3f4}\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e0067}\u{e007f}",
    "\u{1f3f4}\u{e0067}\u{e0062}\u{e0073}\u{e0063}\u{e0074}\u{e007f}",
    "\u{1f3f4}\u{e0067}\u{e0062}\u{e0077}\u{e006c}\u{e0073}\u{e007f}",
];

/// Whether it joins or varies the character before it.
const fn joins(c: char) -> bool {
    matches!(c, '\u{200c}' | '\u{200d}' | '\u{fe00}'..='\u{fe0f}' | '\u{180b}'..='\u{180d}' | '\u{180f}' | '\u{e0100}'..='\u{e01ef}')
}

/// Whether a text of one line holds misleading characters, or a joiner (ZWJ, ZWNJ) or variation selector that has nothing to join or vary:
/// at the beginning, behind white space, or twice; a joiner at an end or before white space as well.
///
/// For new texts. Texts stored before this rule are still read.
#[must_use]
pub fn is_misleading(text: &str) -> bool {
    if text.is_ascii() {
        return false;
    }
    // The flags of England, Scotland and Wales are a black flag followed by tags, which are invisible by themselves.
    let flags = FLAGS.iter().fold(text.to_owned(), |text, flag| text.replace(flag, "\u{1f3f4}"));
    let text = flags.as_str();
    let mut before = ' ';
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let after = chars.peek().copied().unwrap_or(' ');
        let joiner = matches!(c, '\u{200c}' | '\u{200d}');
        let alone =
            before.is_whitespace() || matches!(before, '\u{200c}' | '\u{200d}') || (joiner && after.is_whitespace());
        let twice = !joiner && joins(before);
        if misleads(c) || (joins(c) && (alone || twice)) {
            return true;
        }
        before = c;
    }
    false
}

/// Whether a name that identifies somebody holds invisible characters: a name needs no joiners.
#[must_use]
pub fn is_misleading_name(name: &str) -> bool {
    name.chars().any(|c| misleads(c) || joins(c))
}

/// A program's message about a text that it refuses, without its quotations: everything from the first double quote to the
/// last, and what follows `Preview of`, is left out. For logs and letters, which hold nothing that a person wrote.
#[must_use]
pub fn without_quotations(said: &str) -> String {
    let said = said.split("Preview of").next().unwrap_or_default();
    match (said.find('"'), said.rfind('"')) {
        (Some(first), Some(last)) if first < last => format!("{}…{}", &said[..first], &said[last + 1..]),
        (Some(first), _) => format!("{}…", &said[..first]),
        _ => said.trim_end().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{is_misleading, is_misleading_name};

    #[test]
    fn what_is_refused_is_not_quoted() {
        for (said, wanted) in [
            (
                "invalid type: string \"Buy \\\"milk\\\"\", expected i32 at line 1",
                "invalid type: string …, expected i32 at line 1",
            ),
            ("missing field `title` at line 1", "missing field `title` at line 1"),
            (
                "failed to parse field [title] of type [integer] in document with id '7'. Preview of field's value: 'it's mine'",
                "failed to parse field [title] of type [integer] in document with id '7'.",
            ),
            ("an open \"quote", "an open …"),
        ] {
            assert_eq!(super::without_quotations(said), wanted);
        }
    }

    #[test]
    fn what_hides_or_turns_is_distinct_from_what_joins() {
        for text in [
            "",
            "plain é 漢 שלום مرحبا",
            "👩\u{200d}🚀 and 👩🏽\u{200d}🚀",
            "می\u{200c}خواهم",
            "क्\u{200d}ष",
            "\u{1f3f4}\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e0067}\u{e007f} wins",
            "葛\u{e0100}城 ❤\u{fe0f}\u{200d}🔥 1\u{fe0f}\u{20e3}",
        ] {
            assert!(!is_misleading(text), "{text:?}");
        }
        let hidden = "\u{ad}\u{34f}\u{61c}\u{115f}\u{1160}\u{17b4}\u{180e}\u{200b}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\
                      \u{202e}\u{2060}\u{2063}\u{2066}\u{2069}\u{206f}\u{3164}\u{feff}\u{ffa0}\u{fff9}\u{1d173}\u{e0001}\u{e0061}";
        for c in hidden.chars() {
            assert!(is_misleading(&format!("a{c}b")) && is_misleading_name(&format!("a{c}b")), "{c:?}");
        }
        for text in [
            "\u{200d}a",
            "a\u{200c}",
            "a \u{200d}b",
            "a\u{200d} b",
            "a\u{200d}\u{200d}b",
            "\u{200d}",
            "\u{fe0f}a",
            "a\u{fe0f}\u{fe0f}",
            "\u{1f3f4}\u{e0068}\u{e0069}",
            "\u{1f3f4}\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e0067}\u{e007f}\u{e0061}",
            "\u{e0100}a",
        ] {
            assert!(is_misleading(text), "{text:?}");
        }
        assert!(is_misleading_name("an\u{200d}n") && is_misleading_name("ann\u{fe0f}"));
        assert!(!is_misleading_name("auth0|Åsa Öberg"));
    }
}
