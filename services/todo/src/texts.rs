//! The valid texts of a todo. Pure.

use contracts::text::{TextError, block, line};

/// The most labels a todo may carry.
pub const MAX_LABELS: usize = 20;

/// Why labels are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelsError {
    /// One of them is invalid.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Too many labels.
    #[error("must be at most {MAX_LABELS}")]
    TooMany,
}

/// What is to be done: 1 to 500 characters, trimmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Title(String);

impl Title {
    /// # Errors
    /// See [`TextError`].
    pub fn parse(text: &str) -> Result<Self, TextError> {
        line(text, 500).map(Self)
    }

    /// The text that replaces an erased title.
    #[must_use]
    pub fn erased() -> Self {
        Self("(deleted)".to_owned())
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
        block(text, 10_000).map(Self)
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
        line(text, 50).map(Self)
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
    /// See [`LabelsError`].
    pub fn parse(texts: &[String]) -> Result<Self, LabelsError> {
        let mut labels: Vec<Label> = Vec::new();
        for text in texts {
            let label = Label::parse(text)?;
            if !labels.contains(&label) {
                if labels.len() == MAX_LABELS {
                    return Err(LabelsError::TooMany);
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
        assert_eq!(Labels::parse(&many), Err(LabelsError::TooMany));
        assert!(Labels::parse(&many[..20]).is_ok());
    }
}
