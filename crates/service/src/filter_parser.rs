//! Reads filters of lists, a subset of [AIP-160](https://google.aip.dev/160): `status = OPEN AND (labels:"home" OR NOT dueTime < "…")`.
//!
//! As there, OR binds more tightly than AND, and NOT (or `-`) more tightly than both. What the subset leaves out is refused: words without a
//! field, functions, fields of fields, and wildcards: in quotes `*` is itself.

use std::fmt;
use std::iter::Peekable;
use std::str::CharIndices;

use chrono::{DateTime, Datelike as _, SubsecRound as _, Utc};

use crate::Failure;
use crate::filter::{Field, Filter, How, Kind, Test, Value, camel};

/// The longest filter, in characters.
pub const MAX_CHARS: usize = 2_000;
/// How deep parentheses go.
const MAX_DEPTH: usize = 10;
/// How many tests a filter has.
const MAX_TESTS: usize = 50;

/// Reads a filter of these fields; an empty one holds for everything.
///
/// # Errors
/// INVALID_ARGUMENT: what is wrong, and at which character.
pub fn parse(fields: &'static [Field], text: &str) -> Result<Filter, Failure> {
    let wrong = |error: Wrong| Failure::invalid("filter", format_args!("is not one: {error}"));
    if text.chars().count() > MAX_CHARS {
        return Err(Failure::invalid("filter", format_args!("must have {MAX_CHARS} characters at most")));
    }
    let tokens = tokens(text).map_err(wrong)?;
    if tokens.is_empty() {
        return Ok(Filter::All(Vec::new()));
    }
    let end = text.chars().count() + 1;
    let mut parser = Parser { fields, tokens: tokens.into_iter().peekable(), end, depth: 0, tests: 0 };
    let filter = parser.expression().map_err(wrong)?;
    match parser.tokens.next() {
        None => Ok(filter),
        Some((at, Token::Close)) => Err(wrong(Wrong(at, "this parenthesis was not opened".to_owned()))),
        Some((at, _)) => Err(wrong(Wrong(at, "put AND or OR between two tests".to_owned()))),
    }
}

/// At which character, and what.
struct Wrong(usize, String);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at character {}, {}", self.0, self.1)
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Open,
    Close,
    Minus,
    How(How),
    /// Without quotes.
    Word(String),
    /// In quotes.
    Quoted(String),
}

/// The tokens, each with the number of its first character, from 1.
fn tokens(text: &str) -> Result<Vec<(usize, Token)>, Wrong> {
    let (mut all, mut chars) = (Vec::new(), text.char_indices().peekable());
    // Counted as people count: in characters.
    let place = |byte: usize| text.get(..byte).unwrap_or_default().chars().count() + 1;
    while let Some((byte, char)) = chars.next() {
        let at = place(byte);
        let token = match char {
            ' ' | '\t' | '\n' | '\r' => continue,
            '(' => Token::Open,
            ')' => Token::Close,
            '-' => Token::Minus,
            '=' => Token::How(How::Equal),
            ':' => Token::How(How::Has),
            '!' if next_is_equals(&mut chars) => Token::How(How::Unequal),
            '<' => Token::How(if next_is_equals(&mut chars) { How::AtMost } else { How::Less }),
            '>' => Token::How(if next_is_equals(&mut chars) { How::AtLeast } else { How::Greater }),
            '"' | '\'' => Token::Quoted(quoted(&mut chars, char).ok_or_else(|| {
                Wrong(
                    at,
                    format!(
                        "a text begins that does not end: close it with {char}; in it, write \\ before {char} and \\"
                    ),
                )
            })?),
            '!' => return Err(Wrong(at, "write NOT or !=".to_owned())),
            char if char.is_control() => return Err(Wrong(at, "there is a control character".to_owned())),
            char => {
                let mut word = String::from(char);
                while let Some((_, char)) = chars.next_if(|(_, char)| !ends_word(*char)) {
                    word.push(char);
                }
                Token::Word(word)
            }
        };
        all.push((at, token));
    }
    Ok(all)
}

fn ends_word(char: char) -> bool {
    char.is_whitespace() || char.is_control() || "()=:!<>\"'".contains(char)
}

fn next_is_equals(chars: &mut Peekable<CharIndices<'_>>) -> bool {
    chars.next_if(|(_, char)| *char == '=').is_some()
}

/// The rest of a text in quotes.
fn quoted(chars: &mut Peekable<CharIndices<'_>>, quote: char) -> Option<String> {
    let mut text = String::new();
    loop {
        match chars.next()?.1 {
            '\\' => text.push(chars.next().map(|(_, char)| char).filter(|char| ['\\', '"', '\''].contains(char))?),
            char if char == quote => return Some(text),
            // PostgreSQL has no text with it.
            '\0' => return None,
            char => text.push(char),
        }
    }
}

struct Parser {
    fields: &'static [Field],
    tokens: Peekable<std::vec::IntoIter<(usize, Token)>>,
    /// The number of the character behind the last.
    end: usize,
    depth: usize,
    tests: usize,
}

impl Parser {
    fn takes(&mut self, word: &str) -> bool {
        self.tokens.next_if(|(_, token)| matches!(token, Token::Word(is) if is == word)).is_some()
    }

    fn here(&mut self) -> usize {
        self.tokens.peek().map_or(self.end, |(at, _)| *at)
    }

    fn expression(&mut self) -> Result<Filter, Wrong> {
        let mut all = vec![self.factor()?];
        while self.takes("AND") {
            all.push(self.factor()?);
        }
        Ok(one_or(all, Filter::All))
    }

    fn factor(&mut self) -> Result<Filter, Wrong> {
        let mut any = vec![self.term()?];
        while self.takes("OR") {
            any.push(self.term()?);
        }
        Ok(one_or(any, Filter::Any))
    }

    fn term(&mut self) -> Result<Filter, Wrong> {
        let not = self.takes("NOT") || self.tokens.next_if(|(_, token)| *token == Token::Minus).is_some();
        let simple = self.simple()?;
        Ok(if not { Filter::Not(Box::new(simple)) } else { simple })
    }

    fn simple(&mut self) -> Result<Filter, Wrong> {
        let at = self.here();
        if self.tokens.next_if(|(_, token)| *token == Token::Open).is_none() {
            return self.test().map(Filter::Is);
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Wrong(at, format!("more than {MAX_DEPTH} parentheses are open")));
        }
        let inner = self.expression()?;
        self.depth -= 1;
        let behind = self.here();
        match self.tokens.next() {
            Some((_, Token::Close)) => Ok(inner),
            None => Err(Wrong(at, "this parenthesis is not closed".to_owned())),
            Some(_) => Err(Wrong(behind, "put AND or OR between two tests, or close the parenthesis".to_owned())),
        }
    }

    fn test(&mut self) -> Result<Test, Wrong> {
        let at = self.here();
        self.tests += 1;
        if self.tests > MAX_TESTS {
            return Err(Wrong(at, format!("there are more than {MAX_TESTS} tests")));
        }
        let names = || self.fields.iter().map(|field| camel(field.name)).collect::<Vec<_>>().join(", ");
        let name = match self.tokens.next() {
            Some((_, Token::Word(word))) if !["AND", "OR", "NOT"].contains(&word.as_str()) => word,
            _ => return Err(Wrong(at, format!("a field is missing: {}", names()))),
        };
        let Some(field) = self.fields.iter().find(|field| field.name == name || camel(field.name) == name) else {
            let short: String = name.chars().take(100).collect();
            return Err(Wrong(at, format!("there is no field {short:?} to filter by: there are {}", names())));
        };
        let at = self.here();
        let wanted = || format!("{} takes {}", camel(field.name), field.kind.takes());
        let Some((_, Token::How(how))) = self.tokens.next() else { return Err(Wrong(at, wanted())) };
        let value_at = self.here();
        let (value, in_quotes) = match self.tokens.next() {
            Some((_, Token::Word(word))) => (word, false),
            Some((_, Token::Quoted(text))) => (text, true),
            _ => return Err(Wrong(value_at, "a value is missing: put texts and times in quotes".to_owned())),
        };
        if matches!(self.tokens.peek(), Some((_, Token::How(_)))) {
            return Err(Wrong(value_at, "put texts and times in quotes".to_owned()));
        }
        let how = if how == How::Has && value == "*" && !in_quotes { How::Present } else { how };
        if how != How::Present && value.contains('*') && !in_quotes {
            return Err(Wrong(value_at, "there are no wildcards: put a * that is meant in quotes".to_owned()));
        }
        let fits = match field.kind {
            Kind::Choice(_) => matches!(how, How::Equal | How::Unequal),
            Kind::Text => matches!(how, How::Equal | How::Unequal | How::Present),
            Kind::Texts => matches!(how, How::Has | How::Present),
            Kind::Time => how != How::Has,
        };
        if !fits {
            return Err(Wrong(at, wanted()));
        }
        let value = match field.kind {
            _ if how == How::Present => Value::None,
            Kind::Choice(of) if !of.contains(&value.as_str()) => {
                return Err(Wrong(value_at, format!("{} is {}", camel(field.name), of.join(" or "))));
            }
            Kind::Choice(_) | Kind::Text | Kind::Texts => Value::Text(value),
            Kind::Time => Value::Time(time(&value).ok_or_else(|| {
                Wrong(
                    value_at,
                    "write times as in \"2026-12-24T18:00:00.123456Z\", no finer, between the years 1 and 9999"
                        .to_owned(),
                )
            })?),
        };
        Ok(Test { field, how, value })
    }
}

fn one_or(mut all: Vec<Filter>, of: fn(Vec<Filter>) -> Filter) -> Filter {
    match all.len() {
        1 => all.remove(0),
        _ => of(all),
    }
}

fn time(text: &str) -> Option<DateTime<Utc>> {
    let time = DateTime::parse_from_rfc3339(text).ok()?.to_utc();
    // What PostgreSQL holds.
    ((1..=9_999).contains(&time.year()) && time.trunc_subsecs(6) == time).then_some(time)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIELDS: &[Field] = &[
        Field { name: "status", kind: Kind::Choice(&["OPEN", "COMPLETED"]), column: "t.status" },
        Field { name: "labels", kind: Kind::Texts, column: "t.labels" },
        Field { name: "assignee", kind: Kind::Text, column: "t.assignee" },
        Field { name: "due_time", kind: Kind::Time, column: "t.due_time" },
    ];

    /// Written with all its parentheses.
    fn shown(filter: &Filter) -> String {
        let joined = |all: &[Filter], by: &str| format!("({})", all.iter().map(shown).collect::<Vec<_>>().join(by));
        match filter {
            Filter::All(all) => joined(all, " & "),
            Filter::Any(any) => joined(any, " | "),
            Filter::Not(not) => format!("!{}", shown(not)),
            Filter::Is(Test { field, how, value }) => {
                let value = match value {
                    Value::Text(text) => text.clone(),
                    Value::Time(time) => time.to_rfc3339(),
                    Value::None => "*".to_owned(),
                };
                format!("{}{}{value}", field.name, how.operator())
            }
        }
    }

    fn read(text: &str) -> String {
        parse(FIELDS, text).map_or_else(|failure| failure.message, |filter| shown(&filter))
    }

    #[test]
    fn filters_are_read_as_aip_160_has_them() {
        for (text, wanted) in [
            ("", "()"),
            (" \t\n", "()"),
            ("status = OPEN", "status=OPEN"),
            ("status=\"OPEN\"", "status=OPEN"),
            ("labels:\"home\"", "labels:home"),
            ("labels:home AND labels : *", "(labels:home & labels:*)"),
            ("labels:\"*\"", "labels:*"),
            ("assignee = 'a \\'b\\' \\\\ \"c\"'", "assignee=a 'b' \\ \"c\""),
            ("assignee = \"\"", "assignee="),
            ("assignee != ann-b", "assignee!=ann-b"),
            ("dueTime < \"2026-12-24T18:00:00+02:00\"", "due_time<2026-12-24T16:00:00+00:00"),
            ("due_time>='2026-12-24T18:00:00.123456Z'", "due_time>=2026-12-24T18:00:00.123456+00:00"),
            ("dueTime:*", "due_time:*"),
            // OR binds more tightly than AND.
            ("status = OPEN AND labels:a OR labels:b AND labels:c", "(status=OPEN & (labels:a | labels:b) & labels:c)"),
            ("(status = OPEN AND labels:a) OR labels:b", "((status=OPEN & labels:a) | labels:b)"),
            ("NOT labels:a OR -labels:b", "(!labels:a | !labels:b)"),
            ("NOT (labels:a AND labels:b)", "!(labels:a & labels:b)"),
            ("labels:and", "labels:and"),
            (
                "labels:ship's",
                "filter is not one: at character 12, a text begins that does not end: close it with '; in it, write \\ before ' and \\",
            ),
        ] {
            assert_eq!(read(text), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, wanted) in [
            (
                "colour = red",
                "1, there is no field \"colour\" to filter by: there are status, labels, assignee, dueTime",
            ),
            ("𠮷", "1, there is no field \"𠮷\""),
            ("labels:𠮷 AND x:1", "14, there is no field \"x\""),
            ("status", "7, status takes = or !="),
            ("status < OPEN", "8, status takes = or !="),
            ("status:*", "7, status takes = or !="),
            ("status = DONE", "10, status is OPEN or COMPLETED"),
            ("labels = x", "8, labels takes :"),
            ("assignee:x", "9, assignee takes =, != or :*"),
            ("assignee =", "11, a value is missing"),
            ("dueTime < 2026-12-24T18:00:00Z", "11, put texts and times in quotes"),
            ("dueTime < \"tomorrow\"", "11, write times as in"),
            ("dueTime < \"2026-12-24T18:00:00.1234567Z\"", "11, write times as in"),
            ("labels:ho*", "8, there are no wildcards"),
            ("dueTime < \"0000-01-01T00:00:00Z\"", "11, write times as in"),
            ("dueTime : \"2026-12-24T18:00:00Z\"", "9, dueTime takes"),
            ("labels:a labels:b", "10, put AND or OR between"),
            ("(labels:a labels:b)", "11, put AND or OR between two tests, or close"),
            ("(labels:a", "1, this parenthesis is not closed"),
            ("labels:a)", "9, this parenthesis was not opened"),
            ("()", "2, a field is missing"),
            ("labels:a AND", "13, a field is missing"),
            ("NOT NOT labels:a", "5, a field is missing"),
            ("labels:a & labels:b", "10, put AND or OR"),
            ("!labels:a", "1, write NOT or !="),
            ("labels:\"a", "8, a text begins that does not end"),
            ("labels:\"\\n\"", "8, a text begins that does not end"),
            ("labels:\"a\0\"", "8, a text begins"),
            ("\u{1}", "1, there is a control character"),
        ] {
            let is = read(text);
            let wanted = format!("filter is not one: at character {wanted}");
            assert!(is.starts_with(&wanted), "{text}: {is}\n{wanted}");
        }
        let deep = |depth: usize| format!("{}labels:a{}", "(".repeat(depth), ")".repeat(depth));
        assert_eq!(read(&deep(MAX_DEPTH)), "labels:a");
        assert!(read(&deep(MAX_DEPTH + 1)).contains("at character 11, more than 10 parentheses are open"));
        let many = |tests: usize| vec!["labels:a"; tests].join(" OR ");
        assert!(read(&many(MAX_TESTS)).starts_with("(labels:a | "));
        assert!(read(&many(MAX_TESTS + 1)).contains("more than 50 tests"));
        assert_eq!(read(&" ".repeat(MAX_CHARS + 1)), "filter must have 2000 characters at most");
    }

    #[test]
    fn a_certain_test_holds_wherever_its_filter_does() {
        let certain = |text| {
            let filter = parse(FIELDS, text).unwrap();
            filter.certain().map(|test| test.field.name).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(certain("status = OPEN AND (labels:a AND assignee = x)"), "status labels assignee");
        assert_eq!(certain("status = OPEN OR labels:a AND NOT assignee = x"), "");
        assert_eq!(certain(""), "");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_fail(text in "([a-zA-Z]{1,8}|status|labels|OPEN|AND|OR|NOT|[ ():=!<>\"'\\\\*-]|\\PC){0,40}") {
            let _ = parse(FIELDS, &text);
        }
    }
}
