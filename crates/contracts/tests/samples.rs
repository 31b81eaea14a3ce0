//! Every released sample decodes for ever, and still fits the schema of its type. A sample is never changed: a new
//! version gets a new file.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use contracts::envelope::{self, CONTENT_TYPE, MAX_BYTES};
use contracts::events::todo::{ActorKind, Event};
use contracts::{Envelope, events};
use serde_json::Value;
use serde_json::value::RawValue;
use std::path::{Path, PathBuf};

fn schemas() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../schemas"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn samples() -> Vec<(String, String)> {
    let folder = std::fs::read_dir(schemas().join("samples")).unwrap();
    let mut all: Vec<_> = folder
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), read(&path)))
        .collect();
    all.sort();
    all
}

/// The type of a sample, as it is registered.
fn registered(event_type: &str) -> &'static events::Type {
    events::named(event_type).unwrap_or_else(|| panic!("{event_type} is not registered"))
}

/// What the envelope says of its aggregate is what its data says.
fn says_what_its_data_says(name: &str, text: &str) {
    let envelope: Envelope<Box<RawValue>> = serde_json::from_str(text).unwrap_or_else(|e| panic!("{name}: {e}"));
    let state = (registered(&envelope.event_type).state)(envelope.data.get()).unwrap();
    assert_eq!(envelope.subject, state.id, "{name}");
    assert_eq!(envelope.partitionkey, state.id, "{name}");
    assert_eq!(envelope.version(), Some(state.version), "{name}");
    assert_eq!(envelope.time, state.changed, "{name}");
    assert!(text.len() < MAX_BYTES);
}

#[test]
fn every_type_has_a_sample_and_every_sample_decodes() {
    let samples = samples();
    for event_type in events::all().map(|registered| registered.name) {
        assert!(samples.iter().any(|(name, _)| name.starts_with(event_type)), "{event_type} has no sample");
    }
    for (name, text) in samples {
        says_what_its_data_says(&name, &text);
    }
}

#[test]
fn every_sample_fits_its_schema_and_a_spoilt_one_does_not() {
    for (name, text) in samples() {
        let sample: Value = serde_json::from_str(&text).unwrap();
        let event_type = sample["type"].as_str().unwrap();
        let schema: Value = serde_json::from_str(&read(&schemas().join(format!("{event_type}.json")))).unwrap();
        assert_eq!(schema["$id"], sample["dataschema"], "{name}");
        assert_eq!(schema["$id"], envelope::schema_id(event_type));
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        validator.validate(&sample).unwrap_or_else(|e| panic!("{name}: {e}"));
        for field in sample["data"].as_object().unwrap().keys() {
            let mut spoilt = sample.clone();
            spoilt["data"][field] = 1.into();
            assert!(!validator.is_valid(&spoilt), "{name}: {field}");
            assert!((registered(event_type).state)(&spoilt["data"].to_string()).is_err(), "{name}: {field}");
        }
    }
    assert_eq!(CONTENT_TYPE, "application/cloudevents+json");
}

#[test]
fn a_sample_that_is_made_fits_its_schema_and_decodes() {
    for registered in events::all() {
        let Some(sample) = registered.sample else { continue };
        let sample = sample();
        assert!(jsonschema::draft202012::is_valid(&(registered.schema)(), &sample), "{sample}");
        assert_eq!(sample["type"], registered.name);
        says_what_its_data_says(registered.name, &sample.to_string());
    }
}

#[test]
fn version_1_of_completed_is_read_as_version_2() {
    let (_, text) = samples().into_iter().find(|(name, _)| name.starts_with("todo.completed.v1")).unwrap();
    let envelope: Envelope<Box<RawValue>> = serde_json::from_str(&text).unwrap();
    assert_eq!(envelope.supersededby.as_deref(), Some("todo.completed.v2"));
    let Some(Event::Completed(completed)) = Event::decode(&envelope.event_type, envelope.data.get()).unwrap() else {
        panic!("not a completed event")
    };
    assert_eq!(completed.actor.kind, ActorKind::User);
    assert_eq!(completed.actor.id.as_str(), "ann");
}

#[test]
fn an_unknown_type_is_skipped_and_wrong_data_is_an_error() {
    assert!(Event::decode("todo.exploded.v1", "{}").unwrap().is_none());
    let error = Event::decode("todo.created.v1", r#"{"todo": 1}"#).unwrap_err();
    assert!(error.to_string().contains("todo.created.v1"));
}
