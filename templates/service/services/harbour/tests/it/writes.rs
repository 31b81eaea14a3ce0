//! What the service does on request, and which events say so.

use contracts::events::harbour::Event;
use proto::harbour::{Logbook, Vessel};

use crate::harness::{Harness, reason};

#[tokio::test]
async fn a_vessel_lives_and_each_change_is_an_event_in_order() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let created = ann.named("  Passat ").await;
    assert_eq!((created.name.as_str(), created.version, created.created_by.as_str()), ("Passat", 1, "ann"));
    assert_eq!(ann.get_vessel(&created.id).await.unwrap(), created);
    let patch = Vessel { notes: "four masts".to_owned(), ..Vessel::default() };
    let updated = ann.update_vessel(&created.id, patch.clone(), &["notes"]).await.unwrap();
    assert_eq!((updated.name.as_str(), updated.notes.as_str(), updated.version), ("Passat", "four masts", 2));
    assert_eq!(ann.update_vessel(&created.id, patch, &[]).await.unwrap(), updated, "all is so already");
    assert_eq!(reason(ann.delete_vessel(&created.id, "v1").await), "ETAG_MISMATCH");
    ann.delete_vessel(&created.id, "v2").await.unwrap();
    assert_eq!(reason(ann.get_vessel(&created.id).await), "VESSEL_NOT_FOUND");
    assert_eq!(reason(ann.delete_vessel(&created.id, "").await), "VESSEL_NOT_FOUND");
    let events = harness.events().await;
    let of_it: Vec<_> = events.iter().filter(|stored| stored.envelope.subject == created.id).collect();
    let types: Vec<_> = of_it.iter().map(|stored| stored.envelope.event_type.as_str()).collect();
    assert_eq!(types, ["harbour.vessel_created.v1", "harbour.vessel_updated.v1", "harbour.vessel_deleted.v1"]);
    assert_eq!(of_it.iter().map(|stored| stored.envelope.version().unwrap()).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(matches!(&of_it[2].event, Event::VesselDeleted(event) if event.vessel.notes == "four masts"));
}

#[tokio::test]
async fn a_logbook_is_written_in() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let logbook = ann.logbook_of(&ann.named("Passat").await).await;
    let patch = Logbook { notes: "all well".to_owned(), etag: logbook.etag.clone(), ..Logbook::default() };
    let updated = ann.update_logbook(&logbook.id, patch.clone(), &[]).await.unwrap();
    assert_eq!((updated.notes.as_str(), updated.version), ("all well", 2));
    assert_eq!(ann.get_logbook(&logbook.id).await.unwrap(), updated);
    assert_eq!(reason(ann.update_logbook(&logbook.id, patch, &[]).await), "ETAG_MISMATCH");
}

#[tokio::test]
async fn what_is_no_vessel_is_refused_with_the_field_that_is_wrong() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    for name in [String::new(), "x".repeat(201), "a\0b".to_owned(), "a\u{202e}b".to_owned()] {
        let refused = ann.create_vessel(Vessel { name: name.clone(), ..Vessel::default() }).await;
        assert!(refused.as_ref().unwrap_err().message().starts_with("name must"), "{name:?}: {refused:?}");
        assert_eq!(reason(refused), "INVALID_ARGUMENT");
    }
    let notes = Vessel { name: "Passat".to_owned(), notes: "x".repeat(10_001), ..Vessel::default() };
    assert_eq!(reason(ann.create_vessel(notes).await), "INVALID_ARGUMENT");
    let vessel = ann.named("Passat").await;
    assert_eq!(reason(ann.update_vessel(&vessel.id, Vessel::default(), &["id"]).await), "INVALID_ARGUMENT");
    assert_eq!(reason(ann.get_vessel("no id").await), "INVALID_ARGUMENT");
    assert_eq!(harness.count("vessel").await, 1);
}
