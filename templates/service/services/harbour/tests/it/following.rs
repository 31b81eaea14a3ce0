//! The effects of events: once, however often they come.

use contracts::events::harbour::Event;
use service::{Call, Db, Failure, Outbox};

use crate::harness::{Harness, reason};

#[tokio::test]
async fn a_created_vessel_gets_one_logbook_and_a_deleted_one_loses_it() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let vessel = ann.named("Passat").await;
    let logbook = ann.logbook_of(&vessel).await;
    assert_eq!((logbook.vessel_id.as_str(), logbook.created_by.as_str()), (vessel.id.as_str(), "ann"));
    ann.delete_vessel(&vessel.id, "").await.unwrap();
    let events = harness.events().await;
    assert_eq!(reason(ann.get_logbook(&logbook.id).await), "LOGBOOK_NOT_FOUND");
    let [first, second] = &*events.iter().filter(|stored| stored.envelope.subject == logbook.id).collect::<Vec<_>>()
    else {
        panic!("it was created and deleted")
    };
    assert!(matches!((&first.event, &second.event), (Event::LogbookCreated(_), Event::LogbookDeleted(_))));
    for (stored, cause) in [(first, "harbour.vessel_created.v1"), (second, "harbour.vessel_deleted.v1")] {
        let cause = events.iter().find(|stored| stored.envelope.event_type == cause).unwrap();
        assert_eq!(stored.envelope.causationid, Some(cause.envelope.id));
        assert_eq!(stored.envelope.correlationid, cause.envelope.correlationid);
        assert_eq!(stored.envelope.actor.as_ref().unwrap().to_string(), "service:harbour");
    }
}

#[tokio::test]
async fn a_second_logbook_is_refused_by_the_database() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let vessel = ann.named("Passat").await;
    ann.logbook_of(&vessel).await;
    let db = Db::lazy(&harness.database.app.clone().into(), "test", 2).unwrap();
    let app = harbour::commands::App { db, outbox: Outbox::new(harness.app.relay.clone()) };
    let call = Call::of_schedule("acme".parse().unwrap(), "harbour".parse().unwrap());
    let again = harbour::commands::create_logbook(&app, &call, vessel.id.parse().unwrap()).await;
    assert_eq!(Failure::from(again.unwrap_err()).reason, "LOGBOOK_EXISTS");
    harness.settled().await;
    assert_eq!(harness.count("logbook").await, 1);
}

#[tokio::test]
async fn processes_come_and_go_and_each_vessel_gets_one_logbook() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    for round in 0..3 {
        let second = harness.second().await;
        for number in 0..10 {
            ann.named(&format!("{round} {number}")).await;
        }
        // In the middle of it: NATS redelivers what the process holds.
        second.stopping().cancel();
    }
    harness.settled().await;
    assert_eq!((harness.count("vessel").await, harness.count("logbook").await), (30, 30));
}
