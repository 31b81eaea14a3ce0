//! JSON for snapshots.

use std::collections::HashMap;

use chrono::DateTime;
use uuid::Uuid;

/// A text of JSON, laid out, its members in their order. What differs from run to run is replaced by what it is, and by which of its kind:
/// `<id 1>`, `<time 2>`, `<trace 1>`.
///
/// # Panics
/// It is no JSON.
#[must_use]
pub fn stable(json: &str) -> String {
    serde_json::from_str::<serde::de::IgnoredAny>(json).unwrap();
    let (mut laid_out, mut depth, mut names) = (String::new(), 0_usize, Names::default());
    let mut rest = json;
    while let Some(sign) = rest.chars().next() {
        let mut after = &rest[sign.len_utf8()..];
        let line = |depth| format!("\n{}", "  ".repeat(depth));
        match sign {
            '"' => {
                let text = &rest[..end_of_text(rest)];
                laid_out.push_str(&names.of(text));
                after = &rest[text.len()..];
            }
            '{' | '[' => {
                laid_out.push(sign);
                if !after.trim_start().starts_with(['}', ']']) {
                    depth += 1;
                    laid_out.push_str(&line(depth));
                }
            }
            '}' | ']' => {
                if !laid_out.ends_with(['{', '[']) {
                    depth -= 1;
                    laid_out.push_str(&line(depth));
                }
                laid_out.push(sign);
            }
            ',' => {
                laid_out.push(sign);
                laid_out.push_str(&line(depth));
            }
            ':' => laid_out.push_str(": "),
            sign if sign.is_whitespace() => {}
            sign => laid_out.push(sign),
        }
        rest = after;
    }
    laid_out
}

/// Where a text in quotes ends that begins here.
fn end_of_text(json: &str) -> usize {
    let mut escaped = false;
    let quote = json.char_indices().skip(1).find(|(_, sign)| {
        let ends = *sign == '"' && !escaped;
        escaped = *sign == '\\' && !escaped;
        ends
    });
    quote.map_or(json.len(), |(at, _)| at + 1)
}

/// Compares JSON, made [`stable`](crate::stable()), with the snapshot of this name beside the test. `INSTA_UPDATE=always` writes it anew.
#[macro_export]
macro_rules! assert_snapshot {
    ($name:expr, $json:expr) => {
        $crate::insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
            $crate::insta::assert_snapshot!($name, $crate::stable($json));
        });
    };
}

/// The names that were given to what differs.
#[derive(Default)]
struct Names {
    given: HashMap<String, String>,
    count: HashMap<&'static str, usize>,
}

impl Names {
    fn of(&mut self, text: &str) -> String {
        let bare = text.trim_matches('"');
        let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let kind = match bare {
            _ if bare.len() == 36 && Uuid::parse_str(bare).is_ok() => "id",
            _ if bare.len() >= 20 && DateTime::parse_from_rfc3339(bare).is_ok() => "time",
            _ if bare.len() == 55 && hex(&bare.replace('-', "")) || bare.len() == 32 && hex(bare) => "trace",
            _ => return text.to_owned(),
        };
        let Self { given, count } = self;
        let name = given.entry(bare.to_owned()).or_insert_with(|| {
            let number = count.entry(kind).or_default();
            *number += 1;
            format!("\"<{kind} {number}>\"")
        });
        name.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::stable;

    #[test]
    fn what_differs_is_named_and_all_else_stays_in_its_order() {
        let json = r#"{"z":1.50,"a":"say \"{,}\"","id":"0199a0e0-0000-7000-8000-000000000000","of":["0199a0e0-0000-7000-8000-000000000000","0199a0e0-0000-7000-8000-000000000001"],
            "time":"2026-11-27T12:00:00Z","none":{},"empty":[],"trace":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#;
        let expected = r#"{
  "z": 1.50,
  "a": "say \"{,}\"",
  "id": "<id 1>",
  "of": [
    "<id 1>",
    "<id 2>"
  ],
  "time": "<time 1>",
  "none": {},
  "empty": [],
  "trace": "<trace 1>"
}"#;
        assert_eq!(stable(json), expected);
    }
}
