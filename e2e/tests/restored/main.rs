//! What an operator does when Postgres was restored from an older backup: sees it, inspects what the stream has beyond the outbox,
//! saves it, and goes on behind it. And the everyday acts: parked rows, pauses. All by the command.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod backups;
mod drill;

use std::os::unix::fs::PermissionsExt as _;

use e2e::Fleet;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, PgConnection};
use testkit::until;

async fn outbox(fleet: &Fleet) -> Value {
    fleet.json(&["status"]).await["outboxes"]["todo"].clone()
}

async fn database(fleet: &Fleet) -> PgConnection {
    PgConnection::connect(fleet.login("postgres")["url"].as_str().unwrap()).await.unwrap()
}

/// Runs the command as an operator; returns its output.
async fn operate(fleet: &Fleet, token: &str, args: &[&str]) -> Result<String, String> {
    let mut command = fleet.command(&[args, &["--reason", "the test says so", "--yes", "--json"]].concat());
    let output = command.env("FLOTILLA_OPERATOR_TOKEN", token).output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

async fn token(fleet: &Fleet, args: &[&str]) -> String {
    String::from_utf8(fleet.run(args).await.stdout).unwrap().trim().to_owned()
}

async fn until_published(fleet: &Fleet) {
    until("everything is known to be stored", || async {
        let overview = outbox(fleet).await["overview"].clone();
        overview["storedSeq"].is_i64() && overview["storedSeq"] == overview["newestSeq"]
    })
    .await;
}

#[tokio::test]
async fn an_operator_works_with_the_outbox() {
    let fleet = Fleet::start(None).await;
    let ann = fleet.caller("acme", "ann").await;
    for n in 0..6 {
        ann.create(json!({"title": format!("before {n}")})).await;
    }
    until_published(&fleet).await;
    let operator = token(&fleet, &["token", "--operator", "--user", "olga"]).await;
    let user = token(&fleet, &["token", "--tenant", "acme", "--user", "ann"]).await;

    // A row that cannot be published, resolved by an operator.
    let mut db = database(&fleet).await;
    db.execute(
        "insert into outbox (event_id, tenant, aggregate_id, subject, payload) values \
         (gen_random_uuid(), 'acme', 'poisoned', 'evt.todo.created.v1.*', '{}'), \
         (gen_random_uuid(), 'acme', 'poisoned', 'evt.todo.nothing.v1.acme', '{}')",
    )
    .await
    .unwrap();
    until("two rows are parked", || async { outbox(&fleet).await["overview"]["parked"] == 2 }).await;
    let parked = fleet.json(&["outbox", "parked"]).await;
    assert_eq!(parked[0]["aggregateId"], "poisoned");
    let seq = parked[0]["seq"].to_string();
    let refused = operate(&fleet, &user, &["outbox", "discard", &seq]).await.unwrap_err();
    assert!(refused.contains("another audience"), "{refused}");
    let nobody = fleet.run(&["outbox", "discard", &seq, "--reason", "r", "--yes"]).await;
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("who acts?"), "{nobody:?}");
    operate(&fleet, &operator, &["outbox", "discard", &seq]).await.unwrap();
    let released = operate(&fleet, &operator, &["outbox", "release", "poisoned"]).await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&released).unwrap(), json!({"released": 1}));
    until("nothing is parked", || async { outbox(&fleet).await["overview"]["parked"] == 0 }).await;
    until_published(&fleet).await;

    // A consumer, paused and resumed.
    operate(&fleet, &operator, &["consumers", "pause", "search-projector", "--minutes", "5"]).await.unwrap();
    let consumers = fleet.json(&["consumers"]).await;
    let projector = consumers.as_array().unwrap().iter().find(|c| c["name"] == "search-projector").unwrap().clone();
    assert_eq!(projector["paused"], true, "{projector}");
    operate(&fleet, &operator, &["consumers", "resume", "search-projector"]).await.unwrap();

    // Postgres as it was before the last todo.
    for sql in [
        "delete from todo where title = 'before 5'",
        "delete from outbox where seq > 5",
        "delete from outbox_parked",
        "select setval('outbox_seq', 5)",
        "update outbox_relay set outbox_seq = 5, stream_seq = 5, outbox_created_at = \
         (select created_at from outbox where seq = 5)",
    ] {
        db.execute(sql).await.unwrap();
    }
    until("status says that the relay has halted", || async {
        let halted = outbox(&fleet).await["overview"]["halted"].clone();
        halted.as_str().is_some_and(|reason| reason.contains("older backup"))
    })
    .await;
    let said = String::from_utf8(fleet.run(&["status"]).await.stdout).unwrap();
    assert!(said.contains("THE RELAY OF todo HAS HALTED") && said.contains("flotilla outbox accept"), "{said}");
    ann.create(json!({"title": "written meanwhile"})).await;
    let export = fleet.home.join("divergence.jsonl");
    let accept = ["outbox", "accept", "--export", export.to_str().unwrap()];
    let accepted: Value = serde_json::from_str(&operate(&fleet, &operator, &accept).await.unwrap()).unwrap();
    assert_eq!(accepted["accepted"]["outboxSeq"], 5);
    assert_eq!(
        std::fs::metadata(&export).unwrap().permissions().mode() & 0o077,
        0,
        "what tenants wrote is for nobody else"
    );
    let saved = std::fs::read_to_string(&export).unwrap();
    assert_eq!(saved.lines().count() as u64, accepted["messages"].as_u64().unwrap());
    assert!(saved.contains("before 5"), "{saved}");
    until("what was written meanwhile is found", || async { !ann.search("meanwhile").await.is_empty() }).await;
    let journal = fleet.json(&["outbox", "journal"]).await;
    let said: Vec<(&str, &str)> = journal
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(|line| (line["kind"].as_str().unwrap(), line["actor"].as_str().unwrap()))
        .filter(|(kind, _)| *kind != "resumed")
        .collect();
    let by = |kind| said.iter().find(|(said, _)| *said == kind).map(|(_, actor)| *actor);
    assert_eq!(by("discarded"), Some("olga"));
    assert_eq!(by("released"), Some("olga"));
    assert_eq!(by("accepted"), Some("olga"));
    assert!(by("parked").unwrap().starts_with("relay") && by("halted").unwrap().starts_with("relay"), "{said:?}");
    let again = operate(&fleet, &operator, &accept).await.unwrap_err();
    assert!(again.contains("nothing to accept"), "{again}");
    // A rebuild removes what consumers made of it, and it does not come back.
    assert!(!ann.search("before 5").await.is_empty(), "the read model has seen it");
    operate(&fleet, &operator, &["rebuild", "search"]).await.unwrap();
    assert!(ann.search("before 5").await.is_empty(), "the lost timeline is gone");
    assert!(!ann.search("meanwhile").await.is_empty());

    // A hole in the stream, which `verify` names.
    let stream = fleet.jetstream().await.get_stream("EVENTS_TODO").await.unwrap();
    let before = stream.get_info().await.unwrap().state;
    let lost = stream.get_raw_message(before.first_sequence).await.unwrap();
    stream.delete_message(lost.sequence).await.unwrap();
    let seq = lost.headers.get("Outbox-Seq").unwrap().as_str();
    let requeued = operate(&fleet, &operator, &["outbox", "requeue", seq]).await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&requeued).unwrap(), json!({"requeued": 1}));
    until("it is in the stream again", || async {
        let last = stream.get_raw_message(before.last_sequence + 1).await;
        last.is_ok_and(|last| last.headers.get("Outbox-Event-Id") == lost.headers.get("Outbox-Event-Id"))
    })
    .await;

    // A sequence that fell behind, as after a failover by logical replication.
    db.execute("select setval('outbox_seq', 1)").await.unwrap();
    ann.create(json!({"title": "numbered behind"})).await;
    until("status says what is wrong", || async {
        let halted = outbox(&fleet).await["overview"]["halted"].clone();
        halted.as_str().is_some_and(|reason| reason.contains("outbox::operate::renumber"))
    })
    .await;
    operate(&fleet, &operator, &["outbox", "renumber"]).await.unwrap();
    until("it is found after all", || async { !ann.search("numbered").await.is_empty() }).await;
    fleet.stop().await;
}
