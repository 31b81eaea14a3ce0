//! A CloudEvent as it came, in structured or binary mode
//! (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/nats-protocol-binding.md>).

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use chrono::{DateTime, Utc};
use serde_json::Value;
use serde_json::value::RawValue;

/// An event and how it came.
#[derive(Debug, Clone)]
pub struct Event {
    /// The CloudEvents attributes and extensions, `data` left out.
    pub attributes: BTreeMap<String, String>,
    /// The `data`, as JSON.
    pub data: String,
    /// The subject it was published on.
    pub nats_subject: String,
    /// Its sequence in the stream.
    pub stream_sequence: u64,
    /// When the stream stored it.
    pub stored_at: DateTime<Utc>,
    /// How often it has been delivered, this time included.
    pub delivered: i64,
    /// The replay that it comes by, if it is not the stream's own delivery: to this consumer alone.
    pub replay: Option<Replay>,
}

/// The replay that delivers an event again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// Which one: the outcome of the event is reported under this name.
    pub id: String,
    /// An operator has discarded the event: it takes no effect, and holds up nothing any more.
    pub discarded: bool,
}

/// A message that is not a CloudEvent 1.0.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MalformedEvent {
    /// Structured mode, and the payload is not a JSON object with text attributes.
    #[error("the payload is not a CloudEvent in JSON: {0}")]
    Json(String),
    /// A header value is not percent-encoded UTF-8.
    #[error("the header {0} is not percent-encoded UTF-8")]
    Header(String),
    /// A required attribute is missing, or the version is another.
    #[error("the attribute {0} is missing or not acceptable")]
    Attribute(&'static str),
}

impl Event {
    /// An attribute or extension.
    #[must_use]
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    /// The aggregate it is about: its `partitionkey`, else its `subject`; an event that names neither stands alone.
    #[must_use]
    pub fn aggregate(&self) -> &str {
        aggregate(&self.attributes)
    }

    /// The CloudEvents `type`.
    #[must_use]
    pub fn event_type(&self) -> &str {
        self.attribute("type")
    }
}

/// See [`Event::aggregate`].
pub fn aggregate(attributes: &BTreeMap<String, String>) -> &str {
    ["partitionkey", "subject", "id"]
        .into_iter()
        .filter_map(|name| attributes.get(name).map(String::as_str))
        .find(|value| !value.is_empty())
        .unwrap_or_default()
}

type Parts = (BTreeMap<String, String>, String);

/// Takes a message's headers and payload apart.
pub fn parse(headers: Option<&HeaderMap>, payload: &[u8]) -> Result<Parts, MalformedEvent> {
    let content_type = headers.and_then(|headers| find(headers, "content-type"));
    let structured =
        content_type.is_some_and(|value| value.to_ascii_lowercase().starts_with("application/cloudevents"));
    let (attributes, data) = if structured { structured_mode(payload)? } else { binary_mode(headers, payload)? };
    for required in ["id", "source", "type"] {
        if attributes.get(required).is_none_or(String::is_empty) {
            return Err(MalformedEvent::Attribute(required));
        }
    }
    if attributes.get("specversion").map(String::as_str) != Some("1.0") {
        return Err(MalformedEvent::Attribute("specversion"));
    }
    Ok((attributes, data))
}

/// Header names are case-insensitive to CloudEvents, and not to NATS.
fn find<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(key, _)| AsRef::<str>::as_ref(key).eq_ignore_ascii_case(name))
        .and_then(|(_, values)| values.first())
        .map(|value| value.as_str())
}

fn structured_mode(payload: &[u8]) -> Result<Parts, MalformedEvent> {
    // Its own words may quote what was sent.
    let malformed = |error: serde_json::Error| {
        MalformedEvent::Json(format!("{:?} at line {}, column {}", error.classify(), error.line(), error.column()))
    };
    let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(payload).map_err(malformed)?;
    let mut attributes = BTreeMap::new();
    let mut data = "null".to_owned();
    for (name, value) in fields {
        if name == "data" {
            data = value.get().to_owned();
            continue;
        }
        match serde_json::from_str(value.get()).map_err(malformed)? {
            Value::String(text) => drop(attributes.insert(name, text)),
            Value::Null => {}
            other @ (Value::Bool(_) | Value::Number(_)) => drop(attributes.insert(name, other.to_string())),
            Value::Array(_) | Value::Object(_) => {
                return Err(MalformedEvent::Json(format!("the attribute {name} is not a simple value")));
            }
        }
    }
    Ok((attributes, data))
}

fn binary_mode(headers: Option<&HeaderMap>, payload: &[u8]) -> Result<Parts, MalformedEvent> {
    let mut attributes = BTreeMap::new();
    for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
        let name: &str = name.as_ref();
        if let (Some(attribute), Some(value)) = (name.to_ascii_lowercase().strip_prefix("ce-"), values.first()) {
            let value = percent_decode(value.as_str()).ok_or_else(|| MalformedEvent::Header(name.to_owned()))?;
            attributes.insert(attribute.to_owned(), value);
        }
    }
    let data = String::from_utf8(payload.to_vec()).map_err(|e| MalformedEvent::Json(e.to_string()))?;
    Ok((attributes, data))
}

/// One round of percent-decoding, quotes taken off first, as the binding asks.
fn percent_decode(text: &str) -> Option<String> {
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let (hex, tail) = tail.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.insert(*name, *value);
        }
        map
    }

    #[test]
    fn structured_mode_is_known_by_its_content_type_in_any_case() {
        let headers = headers(&[("Content-Type", "Application/CloudEvents+json; charset=utf-8")]);
        let payload = br#"{"specversion":"1.0","id":"1","source":"/s","type":"a.b.v1","n":7,"data":{"x": 1.50}}"#;
        let (attributes, data) = parse(Some(&headers), payload).unwrap();
        assert_eq!(attributes["type"], "a.b.v1");
        assert_eq!(attributes["n"], "7");
        assert_eq!(data, r#"{"x": 1.50}"#);
    }

    #[test]
    fn binary_mode_reads_percent_encoded_headers_in_any_case() {
        let headers = headers(&[
            ("ce-specversion", "1.0"),
            ("CE-Id", "1"),
            ("ce-source", "/s"),
            ("ce-type", "a.b.v1"),
            ("ce-subject", "Euro%20%E2%82%AC%20%f0%9f%98%80"),
        ]);
        let (attributes, data) = parse(Some(&headers), b"{}").unwrap();
        assert_eq!(attributes["subject"], "Euro € 😀");
        assert_eq!(data, "{}");
        let mut bad = headers;
        bad.insert("ce-subject", "%C0%A0");
        assert!(matches!(parse(Some(&bad), b"{}"), Err(MalformedEvent::Header(_))));
    }

    #[test]
    fn what_is_not_an_event_is_said_to_be_none() {
        let headers = headers(&[("content-type", "application/cloudevents+json")]);
        assert!(matches!(parse(Some(&headers), b"not json"), Err(MalformedEvent::Json(_))));
        assert!(matches!(parse(Some(&headers), b"[]"), Err(MalformedEvent::Json(_))));
        assert_eq!(parse(Some(&headers), b"{}"), Err(MalformedEvent::Attribute("id")));
        assert_eq!(parse(None, b""), Err(MalformedEvent::Attribute("id")));
        let old = br#"{"specversion":"0.3","id":"1","source":"/s","type":"a"}"#;
        assert_eq!(parse(Some(&headers), old), Err(MalformedEvent::Attribute("specversion")));
    }
}
