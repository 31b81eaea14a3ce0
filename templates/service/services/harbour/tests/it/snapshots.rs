//! What consumers see, whole, so that a change of it shows in review. `INSTA_UPDATE=always` writes it anew.

use proto::harbour::{Logbook, Vessel};
use testkit::assert_snapshot;

use crate::harness::Harness;

#[tokio::test]
async fn the_events_of_a_vessel_and_its_logbook() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let vessel = ann.named("Passat").await;
    let logbook = ann.logbook_of(&vessel).await;
    let notes = "all well".to_owned();
    ann.update_logbook(&logbook.id, Logbook { notes: notes.clone(), ..Logbook::default() }, &["notes"]).await.unwrap();
    ann.update_vessel(&vessel.id, Vessel { notes, ..Vessel::default() }, &["notes"]).await.unwrap();
    ann.delete_vessel(&vessel.id, "").await.unwrap();
    let events: Vec<_> = harness.events().await.into_iter().map(|stored| stored.text).collect();
    assert_snapshot!("events", &format!("[{}]", events.join(",")));
}
