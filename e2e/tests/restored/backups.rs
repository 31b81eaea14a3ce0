//! Backups of the three stores, all taken at one moment, and any of them put back later, as an operator who restores
//! volumes does: the files, while every other process still runs.

use std::path::PathBuf;
use std::time::Duration;

use devstack::State;
use devstack::process::signal;
use e2e::{Caller, Fleet};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use testkit::{unique, until, until_within};
use tokio::process::Command;

use crate::{database, operate, outbox, token, until_published};

const STORES: [&str; 3] = ["postgres", "nats", "opensearch"];
const RESTORED_WITHIN: Duration = Duration::from_secs(240);

/// The fleet after these stores are put back.
async fn restore(fleet: &Fleet, operator: &str, restored: &[&str]) {
    let ann = fleet.caller("acme", "ann").await;
    let word = unique("w");
    let changed = ann.create(json!({"title": format!("{word} before")})).await["id"].as_str().unwrap().to_owned();
    until_settled(fleet, &ann, &format!("{word} before")).await;

    let letters = die(fleet).await;

    let backups = backup(fleet).await;
    let title = json!({"title": format!("{word} changed")});
    let answer = ann.send(Method::PATCH, &format!("/v1/todos/{changed}"), Some(title)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let made = ann.create(json!({"title": format!("{word} made")})).await["id"].as_str().unwrap().to_owned();
    until_settled(fleet, &ann, &format!("{word} made")).await;
    assert_eq!(die(fleet).await, letters + 1);

    put_back(fleet, restored, backups).await;
    let after = format!("{word} after");
    until_within(RESTORED_WITHIN, "the fleet takes writes", || async {
        let create = ann.request(Method::POST, "/v1/todos").json(&json!({"title": after})).build().unwrap();
        ann.execute(create).await.is_ok_and(|answer| answer.status() == 200)
    })
    .await;

    // An acknowledged write that is in no store any more is lost with the backup; what still shows it must be named.
    let is_lost = restored.contains(&"postgres");
    let stream_is_newer = !restored.iter().any(|store| store.contains("nats"));
    if is_lost && stream_is_newer {
        until_within(RESTORED_WITHIN, "the relay has halted", || async {
            outbox(fleet).await["overview"]["halted"].as_str().is_some_and(|why| why.contains("older backup"))
        })
        .await;
        // An index that was put back first reads what it lacks, the lost time included.
        until_within(RESTORED_WITHIN, "the index has what the stream has", || index_is_level(fleet)).await;
        let export = fleet.home.join(unique("divergence-"));
        operate(fleet, operator, &["outbox", "accept", "--export", export.to_str().unwrap()]).await.unwrap();
    }
    let index_is_newer = !restored.contains(&"opensearch") || stream_is_newer;
    if is_lost && index_is_newer {
        // Not only for the moment of a refill: also once everything is there and was checked.
        until_published(fleet).await;
        until_within(RESTORED_WITHIN, "the index is filled", || has_reached_the_end(fleet, "floor")).await;
        let says = "the search index holds what its stream does not";
        until_within(RESTORED_WITHIN, says, || async { degraded(fleet).await.iter().any(|line| line.contains(says)) })
            .await;
        operate(fleet, operator, &["rebuild", "search"]).await.unwrap();
    }
    until_within(RESTORED_WITHIN, "everything is as it should be", || async { degraded(fleet).await.is_empty() }).await;
    until_settled(fleet, &ann, &after).await;

    // A letter is in the stream of letters and in the database of operations: one of them suffices.
    let kept = if is_lost && !stream_is_newer { letters } else { letters + 1 };
    until_within(RESTORED_WITHIN, "the letters are there", || async { letters_of(fleet).await == kept }).await;

    let found = ann.search(&word).await;
    let finds = |title: &str| found.contains(&format!("{word} {title}"));
    assert!(finds("after"), "{restored:?}: {found:?}");
    assert_eq!(finds("made"), !is_lost, "{restored:?}: {found:?}");
    assert_eq!((finds("before"), finds("changed")), (is_lost, !is_lost), "{restored:?}: {found:?}");
    let made = ann.send(Method::GET, &format!("/v1/todos/{made}"), None).await;
    assert_eq!(made.status, if is_lost { 404 } else { 200 }, "{restored:?}");
    let kept = ann.send(Method::GET, &format!("/v1/todos/{changed}"), None).await;
    assert_eq!(kept.body["version"], if is_lost { 1 } else { 2 }, "{restored:?}: {kept:?}");
    assert_eq!(degraded(fleet).await, Vec::<String>::new(), "{restored:?}");
    let verified = fleet.run(&["verify", "--patience", "60"]).await;
    assert!(verified.status.success(), "{restored:?}: {}", String::from_utf8_lossy(&verified.stdout));
}

/// The problems that `flotilla status` reports.
async fn degraded(fleet: &Fleet) -> Vec<String> {
    let status = fleet.json(&["status"]).await;
    let lines = status["degraded"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned());
    lines.filter(|line| !line.contains("dead letters wait")).collect()
}

/// How many letters of the projector there are; a rebuild has its own of the same events.
async fn letters_of(fleet: &Fleet) -> usize {
    let letters = fleet.json(&["dlq", "list", "--consumer", "search-projector", "--limit", "1000"]).await;
    letters.as_array().unwrap().len()
}

/// Publishes an event with invalid data and waits for its dead letter; returns how many letters there are then.
async fn die(fleet: &Fleet) -> usize {
    let before = letters_of(fleet).await;
    let aggregate = unique("dies-");
    let event = json!({
        "specversion": "1.0", "id": aggregate, "source": "/flotilla/todo", "type": "todo.created.v1", "subject": aggregate,
        "partitionkey": aggregate, "sequence": format!("{:020}", 1), "tenant": "acme", "time": "2026-11-26T00:00:00Z",
        "datacontenttype": "application/json", "dataschema": "https://flotilla.example/none", "data": {},
    });
    sqlx::query(
        "insert into outbox (event_id, tenant, aggregate_id, subject, payload) \
         values (gen_random_uuid(), 'acme', $1, 'evt.todo.created.v1.acme', convert_to($2, 'UTF8'))",
    )
    .bind(&aggregate)
    .bind(event.to_string())
    .execute(&mut database(fleet).await)
    .await
    .unwrap();
    until("its letter is kept", || async { letters_of(fleet).await == before + 1 }).await;
    until("the index has noted it", || index_is_level(fleet)).await;
    before + 1
}

/// A todo of this title is published and found.
async fn until_settled(fleet: &Fleet, caller: &Caller, title: &str) {
    until("it is found", || async {
        let request = caller.request(Method::GET, "/v1/todos:search").query(&[("query", title)]).build().unwrap();
        let Ok(answer) = caller.execute(request).await else { return false };
        answer.text().await.is_ok_and(|text| text.contains(title))
    })
    .await;
    until_published(fleet).await;
    // The index notes how far it is filled every few seconds: a backup from before that holds an older index.
    until("the index has noted it", || index_is_level(fleet)).await;
}

/// Whether the index notes the stream's newest event as handled.
async fn index_is_level(fleet: &Fleet) -> bool {
    has_reached_the_end(fleet, "floor").await && has_reached_the_end(fleet, "anchor").await
}

/// Whether a note of the index names the stream's newest sequence, or a later one.
async fn has_reached_the_end(fleet: &Fleet, note: &str) -> bool {
    let Some(notes) = notes(fleet).await else { return false };
    let stream = fleet.jetstream().await.get_stream("EVENTS_TODO").await.unwrap();
    notes[note]["sequence"].as_u64() >= Some(stream.cached_info().state.last_sequence)
}

/// The notes in the searched index.
async fn notes(fleet: &Fleet) -> Option<Value> {
    let url = format!("{}/todos/_mapping", fleet.unit("opensearch").login_url().unwrap());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer: Value = client.get(url).send().await.ok()?.json().await.ok()?;
    Some(answer.as_object()?.values().next()?["mappings"]["_meta"].clone())
}

/// All processes of a unit: PostgreSQL has one for each connection, OpenSearch is behind those of its network namespace.
fn processes(fleet: &Fleet, unit: &str) -> Vec<u32> {
    let mut all: Vec<u32> = fleet.unit(unit).pid.into_iter().collect();
    let mut next = 0;
    while let Some(&pid) = all.get(next) {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        next += 1;
    }
    all
}

fn all(fleet: &Fleet, units: &[&str], what: Signal) {
    units.iter().flat_map(|unit| processes(fleet, unit)).for_each(|pid| drop(signal(pid, what)));
}

/// The files of all three stores, as a power failure at one moment would leave them.
async fn backup(fleet: &Fleet) -> Vec<(&'static str, PathBuf)> {
    let folders = STORES.map(|store| {
        let data = fleet.unit(store).data_dir.unwrap();
        (store, data.with_extension(unique("backup-")), data)
    });
    all(fleet, &STORES, Signal::SIGSTOP);
    let mut copied = Vec::new();
    for (_, backup, data) in &folders {
        copied.push(Command::new("cp").arg("-a").arg(data).arg(backup).status().await);
    }
    // Before anything may fail: a stopped process of PostgreSQL would outlive its fleet.
    all(fleet, &STORES, Signal::SIGCONT);
    assert!(copied.iter().all(|copied| copied.as_ref().is_ok_and(std::process::ExitStatus::success)), "{copied:?}");
    folders.map(|(store, backup, _)| (store, backup)).into()
}

/// Puts the files of these stores back, while all services are stopped. One that is `lost` had no backup.
async fn put_back(fleet: &Fleet, restored: &[&str], backups: Vec<(&str, PathBuf)>) {
    let services: Vec<_> = fleet::SERVICES.iter().map(|service| service.name).collect();
    all(fleet, &services, Signal::SIGSTOP);
    for (store, backup) in backups {
        let is_lost = restored.contains(&format!("{store} lost").as_str());
        if is_lost || !restored.contains(&store) {
            std::fs::remove_dir_all(&backup).unwrap();
        }
        if is_lost {
            std::fs::create_dir(&backup).unwrap();
        } else if !restored.contains(&store) {
            continue;
        }
        let before = fleet.unit(store);
        let data = before.data_dir.unwrap();
        let gone = data.with_extension(unique("gone-"));
        // Stopped first, so that it is started again on what was put back.
        all(fleet, &[store], Signal::SIGSTOP);
        let processes = processes(fleet, store);
        std::fs::rename(&data, &gone).unwrap();
        std::fs::rename(&backup, &data).unwrap();
        processes.into_iter().for_each(|pid| drop(signal(pid, Signal::SIGKILL)));
        until_within(RESTORED_WITHIN, "it runs again", || async {
            let now = fleet.unit(store);
            now.restarts > before.restarts && now.state == State::Ready
        })
        .await;
        std::fs::remove_dir_all(&gone).unwrap();
    }
    all(fleet, &services, Signal::SIGCONT);
}

/// Where a write was lost with both the rows and the events, only the index still knows of it.
#[tokio::test]
async fn an_index_that_is_newer_than_its_restored_stream_is_said_to_be() {
    run(&[&["postgres", "nats"]]).await;
}

#[tokio::test]
#[ignore = "some minutes: make faults"]
async fn whatever_stores_are_restored_the_end_is_right_or_said() {
    run(&[
        &["postgres"],
        &["nats"],
        &["opensearch"],
        &["postgres", "nats"],
        &["postgres", "opensearch"],
        &["nats", "opensearch"],
        &["postgres", "nats", "opensearch"],
        &["postgres", "nats lost"],
        &["postgres", "opensearch lost"],
        &["nats lost", "opensearch"],
    ])
    .await;
}

async fn run(sets: &[&[&str]]) {
    let fleet = Fleet::start(None).await;
    let operator = token(&fleet, &["token", "--operator", "--user", "olga"]).await;
    for restored in sets {
        println!("restored: {restored:?}");
        restore(&fleet, &operator, restored).await;
    }
    fleet.stop().await;
}
