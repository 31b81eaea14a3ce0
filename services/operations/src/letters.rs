//! What a dead letter says of itself. Pure.

use std::collections::BTreeMap;

use contracts::envelope::MAX_BYTES;
use contracts::events::DecodeError;
use contracts::{Envelope, events};
use serde_json::Value;

/// A cause that many letters share: a reason without what differs from one event to the next (ids, numbers, texts in
/// quotes), at most 200 characters.
#[must_use]
pub fn error_class(reason: &str) -> String {
    let mut class = String::new();
    let mut word = String::new();
    let mut quote = None;
    for c in reason.chars().chain([' ']) {
        if let Some(end) = quote {
            if c == end {
                class.push('…');
                class.push(end);
                quote = None;
            }
            continue;
        }
        if c.is_alphanumeric() || (c == '-' && !word.is_empty()) {
            word.push(c);
            continue;
        }
        class.push_str(if word.chars().any(|c| c.is_ascii_digit()) { "#" } else { &word });
        word.clear();
        // A quote that nothing closes is an apostrophe.
        if matches!(c, '"' | '\'' | '`') && !class.ends_with(char::is_alphanumeric) {
            quote = Some(c);
        }
        class.push(c);
    }
    class.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect()
}

/// The trace that an event belongs to, by its `traceparent`; empty when it names none
/// (<https://www.w3.org/TR/trace-context/#traceparent-header>).
#[must_use]
pub fn trace_id(attributes: &BTreeMap<String, String>) -> String {
    consumer::trace_id(attributes.get("traceparent").map(String::as_str).unwrap_or_default()).to_owned()
}

/// Why an edited event cannot replace a dead one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotTheEvent {
    /// The text is not the JSON of a CloudEvent.
    #[error("it is not an event: {0}")]
    Malformed(String),
    /// The envelope says what happened to whom; an edit must keep it.
    #[error("`{0}` must stay as it is: {1}")]
    Changed(&'static str, String),
    /// The fleet has no such event.
    #[error("there is no event of the type {0}")]
    UnknownType(String),
    /// The event exceeds the size limit of every event.
    #[error("an event has {MAX_BYTES} bytes at most, this has {0}")]
    TooLarge(usize),
    /// The event violates its JSON Schema.
    #[error("it does not follow the schema of {0}: {1}")]
    Schema(String, String),
}

/// Checks that an edited event may replace a dead one. It must follow the schema of its type and be of the tenant of
/// its subject. Its envelope must be that of the original, where the original had one.
///
/// # Errors
/// See [`NotTheEvent`].
pub fn check_edit(subject: &str, original: Option<&[u8]>, edited: &[u8]) -> Result<(), NotTheEvent> {
    if edited.len() > MAX_BYTES {
        return Err(NotTheEvent::TooLarge(edited.len()));
    }
    let malformed = |error: serde_json::Error| NotTheEvent::Malformed(error.to_string());
    let value: Value = serde_json::from_slice(edited).map_err(malformed)?;
    let envelope: Envelope<Value> = serde_json::from_slice(edited).map_err(malformed)?;
    let wanted = contracts::subject::of(&envelope.event_type, &envelope.tenant);
    if wanted != subject {
        return Err(NotTheEvent::Changed(
            "type` and `tenant",
            format!("the event failed on {subject}, this is {wanted}"),
        ));
    }
    let registered =
        events::named(&envelope.event_type).ok_or_else(|| NotTheEvent::UnknownType(envelope.event_type.clone()))?;
    let schema = (registered.schema)();
    let wrong = |error: String| NotTheEvent::Schema(envelope.event_type.clone(), error);
    let validator = jsonschema::validator_for(&schema).map_err(|error| wrong(error.to_string()))?;
    let errors: Vec<String> =
        validator.iter_errors(&value).take(5).map(|error| format!("{} at {}", error, error.instance_path())).collect();
    if !errors.is_empty() {
        return Err(wrong(errors.join("; ")));
    }
    let original: Value = original.and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default();
    for name in [
        "id",
        "source",
        "type",
        "subject",
        "sequence",
        "partitionkey",
        "tenant",
        "time",
        "actor",
        "causationid",
        "correlationid",
        "twinof",
        "supersededby",
        "supersedes",
    ] {
        if let Some(was) = original.get(name)
            && value.get(name) != Some(was)
        {
            return Err(NotTheEvent::Changed(name, format!("it was {was}")));
        }
    }
    // Consumers read the data too: its aggregate must be the envelope's, at the envelope's version.
    let state = (registered.state)(&value["data"].to_string())
        .map_err(|DecodeError::Data { source, .. }| wrong(source.to_string()))?;
    if state.id != envelope.subject {
        return Err(NotTheEvent::Changed("the id in `data`", format!("the event is about {}", value["subject"])));
    }
    if envelope.sequence.parse() != Ok(state.version) {
        return Err(NotTheEvent::Changed("the version in `data`", format!("its `sequence` is {}", envelope.sequence)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{NotTheEvent, check_edit, error_class, trace_id};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn letters_that_died_alike_share_a_class() {
        let one = error_class("400: mapper_parsing_exception: failed to parse field [title] of document 'a1' at 3:14");
        let two = error_class("401: mapper_parsing_exception: failed to parse field [title] of document 'b2' at 9:1");
        assert_eq!(one, two);
        assert_eq!(one, "#: mapper_parsing_exception: failed to parse field [title] of document '…' at #:#");
        assert_ne!(one, error_class("400: mapper_parsing_exception: failed to parse field [notes] of document 'a1'"));
        assert_eq!(error_class("no account 0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2e4f"), "no account #");
        assert_eq!(error_class("doesn't go"), "doesn't go");
    }

    proptest! {
        #[test]
        fn a_class_is_short_and_hides_every_number(reason in "\\PC{0,300}") {
            let class = error_class(&reason);
            prop_assert!(class.chars().count() <= 200);
            prop_assert!(!class.chars().any(|c| c.is_ascii_digit()), "{class}");
        }
    }

    #[test]
    fn a_trace_is_found_in_its_traceparent() {
        let attributes = |value: &str| [("traceparent".to_owned(), value.to_owned())].into();
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(trace_id(&attributes(&format!("00-{id}-00f067aa0ba902b7-01"))), id);
        assert_eq!(trace_id(&attributes("nonsense")), "");
    }

    fn event() -> Value {
        let text = include_str!("../../../schemas/samples/todo.created.v1.json");
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn an_edit_must_follow_the_schema_and_keep_the_envelope() {
        let original = event();
        let subject = format!("evt.todo.created.v1.{}", original["tenant"].as_str().unwrap());
        let bytes = |value: &Value| serde_json::to_vec(value).unwrap();
        let check = |edited: &Value| check_edit(&subject, Some(&bytes(&original)), &bytes(edited));
        let edit = |pointer: &str, value: Value| {
            let mut edited = original.clone();
            *edited.pointer_mut(pointer).unwrap() = value;
            edited
        };
        check(&edit("/data/todo/title", json!("mended"))).unwrap();
        assert!(matches!(check(&edit("/data/todo/title", json!(7))), Err(NotTheEvent::Schema(..))));
        assert!(matches!(check(&edit("/data/todo", json!({}))), Err(NotTheEvent::Schema(..))));
        assert!(matches!(
            check(&edit("/sequence", json!("00000000000000000009"))),
            Err(NotTheEvent::Changed("sequence", _))
        ));
        assert!(matches!(check(&edit("/tenant", json!("other"))), Err(NotTheEvent::Changed(..))));
        assert!(matches!(check(&edit("/data/todo/version", json!(999))), Err(NotTheEvent::Changed(..))));
        assert!(matches!(check(&edit("/data/todo/version", json!(-1))), Err(NotTheEvent::Schema(..))));
        let foreign = edit("/data/todo/id", json!("0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2e50"));
        assert!(matches!(check(&foreign), Err(NotTheEvent::Changed(..))));
        assert!(matches!(check_edit(&subject, None, b"{}"), Err(NotTheEvent::Malformed(_))));
        check_edit(&subject, Some(b"no event at all"), &bytes(&original)).unwrap();
        let long = edit("/data/todo/notes", json!("x".repeat(70_000)));
        assert!(matches!(check(&long), Err(NotTheEvent::TooLarge(_))));
    }
}
