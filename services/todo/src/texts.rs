//! The texts of a todo, as they may be. Pure.

/// The most labels a todo may carry.
pub const MAX_LABELS: usize = 20;

/// A text that cannot be taken; the message goes on after the field's name.
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
    /// It looks like another one.
    #[error("must not contain what turns the direction of writing or cannot be seen")]
    Misleading,
    /// Too many labels.
    #[error("must be at most {MAX_LABELS}")]
    TooMany,
}

fn check(text: &str, most: usize, control: fn(char) -> bool, except: &'static str) -> Result<(), TextError> {
    if text.chars().count() > most {
        return Err(TextError::TooLong(most));
    }
    if text.chars().any(control) { Err(TextError::Control(except)) } else { Ok(()) }
}

/// What is to be done: 1 to 500 characters, trimmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Title(String);

impl Title {
    /// # Errors
    /// See [`TextError`].
    pub fn parse(text: &str) -> Result<Self, TextError> {
        let text = text.trim();
        check(text, 500, char::is_control, "")?;
        if text.is_empty() { Err(TextError::Empty) } else { Ok(Self(text.to_owned())) }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// More about it: up to 10,000 characters, with line breaks and tabs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Notes(String);

impl Notes {
    /// # Errors
    /// See [`TextError`].
    pub fn parse(text: &str) -> Result<Self, TextError> {
        let control = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
        check(text, 10_000, control, " except line breaks and tabs")?;
        Ok(Self(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One label: 1 to 50 characters, trimmed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Label(String);

impl Label {
    /// # Errors
    /// See [`TextError`].
    pub fn parse(text: &str) -> Result<Self, TextError> {
        let text = text.trim();
        check(text, 50, char::is_control, "")?;
        if text.is_empty() { Err(TextError::Empty) } else { Ok(Self(text.to_owned())) }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Up to 20 different labels, in the order they were given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labels(Vec<Label>);

impl Labels {
    /// Takes each label once.
    ///
    /// # Errors
    /// See [`TextError`].
    pub fn parse(texts: &[String]) -> Result<Self, TextError> {
        let mut labels: Vec<Label> = Vec::new();
        for text in texts {
            let label = Label::parse(text)?;
            if !labels.contains(&label) {
                if labels.len() == MAX_LABELS {
                    return Err(TextError::TooMany);
                }
                labels.push(label);
            }
        }
        Ok(Self(labels))
    }

    /// In the order they were given.
    pub fn iter(&self) -> impl Iterator<Item = &Label> {
        self.0.iter()
    }

    /// The texts.
    #[must_use]
    pub fn to_strings(&self) -> Vec<String> {
        self.0.iter().map(|label| label.0.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_is_trimmed_and_never_empty() {
        assert_eq!(Title::parse("  a b ").unwrap().as_str(), "a b");
        assert_eq!(Title::parse(" \t "), Err(TextError::Empty));
        assert_eq!(Title::parse(&"é".repeat(501)), Err(TextError::TooLong(500)));
        assert!(Title::parse(&"é".repeat(500)).is_ok());
        assert_eq!(Title::parse("a\0b"), Err(TextError::Control("")));
    }

    #[test]
    fn notes_keep_line_breaks_and_refuse_other_control_characters() {
        assert!(Notes::parse("a\r\n\tb").is_ok());
        assert!(Notes::parse("a\u{1b}b").is_err());
        assert_eq!(Notes::parse(&"x".repeat(10_001)), Err(TextError::TooLong(10_000)));
    }

    #[test]
    fn labels_are_taken_once_and_bounded() {
        let strings = |labels: &[&str]| labels.iter().map(|&label| label.to_owned()).collect::<Vec<_>>();
        assert_eq!(Labels::parse(&strings(&["a", " a ", "b"])).unwrap().to_strings(), ["a", "b"]);
        let many: Vec<String> = (0..21).map(|n| n.to_string()).collect();
        assert_eq!(Labels::parse(&many), Err(TextError::TooMany));
        assert!(Labels::parse(&many[..20]).is_ok());
    }
}
