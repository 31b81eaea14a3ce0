//! Characters by which a text looks like another one than it is.

/// Whether a character turns the direction of writing (Unicode's bidirectional controls) or has no width, but for the two
/// by which emojis and some scripts are joined.
#[must_use]
pub const fn misleads(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2060}'..='\u{2064}' | '\u{feff}')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{206f}')
}

/// Whether a text of one line holds what misleads, or a joiner (ZWJ, ZWNJ) that joins nothing: beside white space, at an
/// end, or beside another one.
///
/// For what is written newly. What was stored before this rule is still read.
#[must_use]
pub fn is_misleading(text: &str) -> bool {
    let joiner = |c: char| matches!(c, '\u{200c}' | '\u{200d}');
    let mut before = ' ';
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let after = chars.peek().copied().unwrap_or(' ');
        if misleads(c) || joiner(c) && [before, after].iter().any(|beside| beside.is_whitespace() || joiner(*beside)) {
            return true;
        }
        before = c;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::is_misleading;

    #[test]
    fn what_hides_or_turns_is_told_from_what_joins() {
        for text in [
            "",
            "plain é 漢 שלום مرحبا",
            "👩\u{200d}🚀 and 👩🏽\u{200d}🚀",
            "می\u{200c}خواهم",
            "क्\u{200d}ष",
            "❤\u{fe0f}\u{200d}🔥",
        ] {
            assert!(!is_misleading(text), "{text:?}");
        }
        for text in [
            "\u{202e}gpj.exe",
            "a\u{2066}b",
            "a\u{200b}b",
            "\u{feff}a",
            "a\u{200f}",
            "a\u{2060}b",
            "a\u{61c}",
            "a\u{2063}b",
            "\u{200d}a",
            "a\u{200c}",
            "a \u{200d}b",
            "a\u{200d}\u{200d}b",
            "\u{200d}",
        ] {
            assert!(is_misleading(text), "{text:?}");
        }
    }
}
