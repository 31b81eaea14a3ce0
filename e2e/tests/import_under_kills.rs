//! The promise of this project, in one test: 20,000 todos into two tenants while every service is killed at least once.
//! Afterwards nothing is lost, nothing is duplicated, and everything is found.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use e2e::Fleet;
use futures::StreamExt as _;
use serde_json::Value;
use sqlx::Connection as _;

const PER_TENANT: usize = 10_000;
/// How long a step may take on a busy machine.
const LONG: std::time::Duration = std::time::Duration::from_secs(300);
const TENANTS: [&str; 2] = ["kills-a", "kills-b"];

fn title(tenant: &str, number: usize) -> String {
    format!("Task {number:05} of {tenant} {}", ["hull", "rigging", "galley", "ledger"][number % 4])
}

/// Every event of the stream: its id, tenant, aggregate and version.
async fn stream(fleet: &Fleet) -> Vec<(String, String, String, i32)> {
    let js = fleet.jetstream().await;
    let stream = js.get_stream("EVENTS_TODO").await.unwrap();
    let total = stream.get_info().await.unwrap().state.messages;
    let config = pull::OrderedConfig { deliver_policy: DeliverPolicy::All, ..Default::default() };
    let mut messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
    let mut events = Vec::new();
    while (events.len() as u64) < total {
        let message = messages.next().await.unwrap().unwrap();
        let event: Value = serde_json::from_slice(&message.payload).unwrap();
        let text = |name: &str| event[name].as_str().unwrap().to_owned();
        events.push((text("id"), text("tenant"), text("subject"), text("sequence").parse().unwrap()));
    }
    events
}

/// How many live documents a tenant has.
async fn live_documents(fleet: &Fleet, tenant: &str) -> u64 {
    let url = format!("{}/todos/_count", fleet.unit("opensearch").login_url().unwrap());
    let query = serde_json::json!({"query": {"bool": {"filter": [{"term": {"tenant": tenant}}, {"term": {"deleted": false}}]}}});
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer: Value = http.post(url).json(&query).send().await.unwrap().json().await.unwrap();
    answer["count"].as_u64().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_of_20_000_todos_survives_the_death_of_every_service() {
    let fleet = Fleet::start(None).await;
    let mut imports = Vec::new();
    for tenant in TENANTS {
        let file = fleet.home.join(format!("{tenant}.txt"));
        let lines: Vec<String> = (0..PER_TENANT).map(|number| title(tenant, number)).collect();
        std::fs::write(&file, lines.join("\n")).unwrap();
        let mut command =
            fleet.command(&["import", &file.display().to_string(), "--tenant", tenant, "--user", "ann", "--json"]);
        imports.push(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    }
    let postgres = fleet.login("postgres")["url"].as_str().unwrap().to_owned();
    let mut db = sqlx::PgConnection::connect(&postgres).await.unwrap();
    // Each kill waits for many more writes, so that it hits the work and not the start or the end.
    for (round, victim) in
        ["todo", "search-projector", "gateway", "todo", "search-projector", "gateway"].iter().enumerate()
    {
        let enough = i64::try_from((round + 1) * PER_TENANT * TENANTS.len() / 8).unwrap();
        testkit::until_within(LONG, &format!("{enough} todos are written"), || async {
            let mut db = sqlx::PgConnection::connect(&postgres).await.unwrap();
            let rows: i64 = sqlx::query_scalar("select count(*) from todo").fetch_one(&mut db).await.unwrap();
            db.close().await.unwrap();
            rows >= enough
        })
        .await;
        for import in &mut imports {
            assert!(import.try_wait().unwrap().is_none_or(|status| status.success()), "an import gave up");
        }
        fleet.kill(victim).await;
    }
    for import in imports {
        let output = import.wait_with_output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let counts: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&counts["written"], &counts["refused"]), (&PER_TENANT.into(), &serde_json::json!([])));
    }
    for service in ["todo", "search-projector", "gateway"] {
        assert!(fleet.unit(service).restarts >= 2, "{service} was killed");
    }

    // The relay and the projector catch up.
    let rows: Vec<(String, String)> = sqlx::query_as("select event_id::text, aggregate_id from outbox order by seq")
        .fetch_all(&mut db)
        .await
        .unwrap();
    testkit::until_within(LONG, "everything is in the index", || async {
        let mut live = 0;
        for tenant in TENANTS {
            live += live_documents(&fleet, tenant).await;
        }
        live >= (PER_TENANT * TENANTS.len()) as u64
    })
    .await;

    let events = stream(&fleet).await;
    let published: BTreeSet<&str> = events.iter().map(|(id, ..)| id.as_str()).collect();
    let appended: BTreeSet<&str> = rows.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(published, appended, "event ids in the stream = outbox rows");
    assert_eq!(events.len(), rows.len(), "and each once");
    let mut newest = BTreeMap::new();
    for (_, _, aggregate, version) in &events {
        let before = newest.insert(aggregate, *version).unwrap_or(0);
        assert_eq!(*version, before + 1, "the versions of {aggregate} are in order");
    }
    for tenant in TENANTS {
        let rows: i64 = sqlx::query_scalar("select count(*) from todo where tenant = $1")
            .bind(tenant)
            .fetch_one(&mut db)
            .await
            .unwrap();
        let aggregates: BTreeSet<_> =
            events.iter().filter(|(_, of, ..)| of == tenant).map(|(_, _, aggregate, _)| aggregate).collect();
        let counts = (rows, aggregates.len() as i64, live_documents(&fleet, tenant).await as i64);
        assert_eq!(counts, (PER_TENANT as i64, PER_TENANT as i64, PER_TENANT as i64), "{tenant}");
        let ann = fleet.caller(tenant, "ann").await;
        let found = futures::stream::iter(0..PER_TENANT)
            .map(|number| {
                let ann = ann.clone();
                async move {
                    let title = title(tenant, number);
                    ann.search(&title).await == [title]
                }
            })
            .buffer_unordered(16)
            .filter(|found| std::future::ready(*found))
            .count()
            .await;
        assert_eq!(found, PER_TENANT, "every todo of {tenant} is found by its title");
    }
    db.close().await.unwrap();
    // The command that anyone can run confirms it.
    let verified = fleet.run(&["verify"]).await;
    let said = String::from_utf8_lossy(&verified.stdout);
    assert!(verified.status.success() && said.contains("20000 todos with 20000 documents"), "{said}");
    fleet.stop().await;
}
