//! The valid texts of the service. Pure.

use contracts::text::{TextError, is_misleading, line};

/// The most scopes of a key.
pub const MAX_SCOPES: usize = 20;

/// Why a text is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is too long, or holds what no line holds.
    #[error(transparent)]
    Text(#[from] TextError),
    /// It is no address.
    #[error("must be an e-mail address, such as ann@acme.example")]
    Email,
    /// It is no time zone.
    #[error("must be the name of a time zone, such as Europe/Berlin")]
    TimeZone,
    /// It is no country.
    #[error("must be two capitals of ISO 3166-1, such as DE")]
    Country,
    /// It is no currency.
    #[error("must be three capitals of ISO 4217, such as EUR")]
    Currency,
    /// They are no scopes.
    #[error("must be 1 to {MAX_SCOPES} scopes, such as todo:read")]
    Scopes,
}

/// A name: 1 to 200 characters, trimmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

/// An e-mail address of ASCII, in lower case: whoever has it in other letters is the same. Other letters are refused: they fold into these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Email(String);

/// A time zone, by its name in the IANA database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeZone(chrono_tz::Tz);

/// A country: the two capitals of ISO 3166-1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Country(String);

/// A currency: the three capitals of ISO 4217.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Currency(String);

/// The scopes of a key, each once, in the order of the alphabet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scopes(Vec<String>);

impl Name {
    /// # Errors
    /// See [`TextError`].
    pub fn parse(text: &str) -> Result<Self, Refused> {
        Ok(Self(line(text, 200)?))
    }

    /// The text in place of an erased name.
    #[must_use]
    pub fn erased() -> Self {
        Self("(deleted)".to_owned())
    }
}

impl Email {
    /// # Errors
    /// [`Refused::Email`]
    pub fn parse(text: &str) -> Result<Self, Refused> {
        let text = line(text, 254).map_err(|_| Refused::Email)?.to_ascii_lowercase();
        let well_formed = text.split_once('@').is_some_and(|(local, host)| {
            let label_is =
                |label: &str| !label.is_empty() && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
            let plain = |c: u8| c.is_ascii_graphic() && !b"\"(),:;<>@[\\]".contains(&c);
            (1..=64).contains(&local.len()) && local.bytes().all(plain) && host.split('.').all(label_is)
        });
        if well_formed { Ok(Self(text)) } else { Err(Refused::Email) }
    }

    /// An address as it is kept: of a member who was adopted it is not known.
    ///
    /// # Errors
    /// [`Refused::Email`]
    pub fn kept(text: &str) -> Result<Self, Refused> {
        if text.is_empty() { Ok(Self::unknown()) } else { Self::parse(text) }
    }

    /// What stands in the place of an address that is not known, or erased.
    #[must_use]
    pub const fn unknown() -> Self {
        Self(String::new())
    }
}

impl TimeZone {
    /// Coordinated universal time.
    pub const UTC: Self = Self(chrono_tz::UTC);

    /// # Errors
    /// [`Refused::TimeZone`]
    pub fn parse(text: &str) -> Result<Self, Refused> {
        text.parse().map(Self).map_err(|_| Refused::TimeZone)
    }

    /// Its name.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        self.0.name()
    }
}

fn capitals(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_uppercase())
}

impl Country {
    /// # Errors
    /// [`Refused::Country`]
    pub fn parse(text: &str) -> Result<Self, Refused> {
        if capitals(text, 2) { Ok(Self(text.to_owned())) } else { Err(Refused::Country) }
    }
}

impl Currency {
    /// # Errors
    /// [`Refused::Currency`]
    pub fn parse(text: &str) -> Result<Self, Refused> {
        if capitals(text, 3) { Ok(Self(text.to_owned())) } else { Err(Refused::Currency) }
    }
}

macro_rules! as_str {
    ($($name:ident),*) => {$(
        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
    )*};
}

as_str!(Name, Email, Country, Currency);

impl Scopes {
    /// # Errors
    /// [`Refused::Scopes`]
    pub fn parse(texts: &[String]) -> Result<Self, Refused> {
        // What RFC 6749, 3.3, allows, and nothing that needs quoting anywhere.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b":._-".contains(&byte);
        let is_one = |text: &String| (1..=100).contains(&text.len()) && text.bytes().all(plain);
        if !(1..=MAX_SCOPES).contains(&texts.len()) || !texts.iter().all(is_one) {
            return Err(Refused::Scopes);
        }
        let mut scopes = texts.to_vec();
        scopes.sort();
        scopes.dedup();
        Ok(Self(scopes))
    }

    /// The first that is not among these.
    #[must_use]
    pub fn beyond(&self, own: &[String]) -> Option<&str> {
        self.0.iter().find(|scope| !own.contains(scope)).map(String::as_str)
    }

    /// Each of them.
    #[must_use]
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

/// A text of the provider's that people see: what is too long, cannot stand in a line or looks like another one is left out.
#[must_use]
pub fn given(text: Option<&str>, most: usize) -> String {
    text.and_then(|text| line(text, most).ok()).filter(|text| !is_misleading(text)).unwrap_or_default()
}

/// What an agent is to do: 1 to 100 letters and digits of ASCII, and any of `. _ : - /`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task(String);

/// Why a text is no task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 100 letters, digits, and any of . _ : - /")]
pub struct TaskError;

impl Task {
    /// # Errors
    /// See [`TaskError`].
    pub fn parse(text: &str) -> Result<Self, TaskError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._:-/".contains(c);
        let is_one = (1..=100).contains(&text.len()) && text.chars().all(plain);
        if is_one { Ok(Self(text.to_owned())) } else { Err(TaskError) }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_form() {
        assert_eq!(Email::parse(" Ann@Acme.Example ").unwrap().as_str(), "ann@acme.example");
        for text in [
            "",
            "ann",
            "@acme.example",
            "ann@",
            "ann@acme..example",
            "a b@acme.example",
            "ann@acme.example,bob@x.y",
            "a@b@c.d",
            "\u{212a}ate@x.y",
            "a\u{200b}@x.y",
            "ann@\u{130}.y",
        ] {
            assert_eq!(Email::parse(text), Err(Refused::Email), "{text}");
        }
    }

    #[test]
    fn a_given_text_that_looks_like_another_one_is_left_out() {
        for (text, shown) in [("Ann", "Ann"), ("Ann\u{200b}", ""), ("\u{202e}nnA", ""), ("A\nnn", ""), ("", "")] {
            assert_eq!(given(Some(text), 200), shown, "{text:?}");
        }
    }

    #[test]
    fn codes_are_capitals_and_zones_have_names() {
        assert!(
            Country::parse("DE").is_ok() && Currency::parse("EUR").is_ok() && TimeZone::parse("Europe/Berlin").is_ok()
        );
        assert!(
            Country::parse("de").is_err() && Currency::parse("EURO").is_err() && TimeZone::parse("Berlin").is_err()
        );
    }

    #[test]
    fn scopes_are_each_there_once() {
        let scopes = |texts: &[&str]| Scopes::parse(&texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
        assert_eq!(scopes(&["todo:write", "todo:read", "todo:read"]).unwrap().as_slice(), ["todo:read", "todo:write"]);
        assert!(scopes(&[]).is_err() && scopes(&["todo read"]).is_err() && scopes(&["x"; 21]).is_err());
    }
}
