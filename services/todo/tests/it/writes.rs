//! What the service does on a command, and what it publishes.

use contracts::events::todo::{Event, Status};
use futures::future::join_all;
use prost_types::Timestamp;
use proto::todo::Todo;
use testkit::nats::member;
use testkit::until;
use tonic::Code;

use crate::harness::{Harness, reason};

pub fn full() -> Todo {
    Todo {
        title: "  Splice the line ".to_owned(),
        notes: "Eye splice\n14 mm".to_owned(),
        labels: vec!["rope".to_owned(), "harbour".to_owned(), "rope".to_owned()],
        assignee: "bob".to_owned(),
        due_time: Some(Timestamp { seconds: 4_135_000_000, nanos: 123_456_789 }),
        ..Todo::default()
    }
}

#[tokio::test]
async fn a_todo_lives_and_each_change_is_published_in_order() {
    let harness = Harness::start().await;
    harness.join("acme", "bob").await;
    let ann = harness.client("acme", "ann");
    let created = ann.create(full()).await.unwrap();
    assert_eq!((created.title.as_str(), created.version, created.etag.as_str()), ("Splice the line", 1, "v1"));
    assert_eq!((created.labels.len(), created.created_by.as_str()), (2, "ann"));
    assert_eq!(created.due_time.unwrap().nanos, 123_456_000, "kept to the microsecond");
    assert_eq!(ann.get(&created.id).await.unwrap(), created);

    let patch = Todo { title: "Splice it".to_owned(), ..Todo::default() };
    let updated = ann.update(&created.id, patch, &["title", "assignee"]).await.unwrap();
    assert_eq!((updated.title.as_str(), updated.assignee.as_str(), updated.version), ("Splice it", "", 2));
    assert_eq!(updated.notes, created.notes, "what the mask does not name stays");
    let completed = ann.complete(&created.id, "v2").await.unwrap();
    assert_eq!(completed.status(), proto::todo::Status::Completed);
    assert!(completed.complete_time.is_some());
    assert_eq!(reason(ann.complete(&created.id, "").await), "TODO_ALREADY_COMPLETED");
    let reopened = ann.reopen(&created.id).await.unwrap();
    assert_eq!((reopened.version, reopened.complete_time), (4, None));
    assert_eq!(reason(ann.reopen(&created.id).await), "TODO_ALREADY_OPEN");
    ann.delete(&created.id, "v4").await.unwrap();
    for result in [ann.get(&created.id).await, ann.reopen(&created.id).await, ann.complete(&created.id, "").await] {
        assert_eq!(reason(result), "TODO_NOT_FOUND");
    }
    assert_eq!(reason(ann.delete(&created.id, "").await), "TODO_NOT_FOUND");

    let events = harness.events().await;
    let published: Vec<_> =
        events.iter().map(|stored| (stored.envelope.event_type.as_str(), stored.envelope.version().unwrap())).collect();
    assert_eq!(
        published,
        [
            ("todo.created.v1", 1),
            ("todo.updated.v1", 2),
            ("todo.completed.v1", 3),
            ("todo.completed.v2", 3),
            ("todo.reopened.v1", 4),
            ("todo.deleted.v1", 5),
        ]
    );
    assert_eq!(events[2].envelope.supersededby.as_deref(), Some("todo.completed.v2"));
    assert_ne!(events[2].envelope.id, events[3].envelope.id, "twins have ids of their own");
    assert!(matches!(&events[5].event, Event::Deleted(deleted) if deleted.todo.title == "Splice it"));
}

#[tokio::test]
async fn an_event_is_a_cloudevent_with_the_full_state() {
    let harness = Harness::start().await;
    harness.join("acme", "bob").await;
    let created = harness.client("acme", "ann").create(full()).await.unwrap();
    let stored = harness.events().await.remove(0);
    assert_eq!(stored.subject, "evt.todo.created.v1.acme");
    assert_eq!(stored.headers.get("content-type").unwrap().as_str(), "application/cloudevents+json");
    assert!(stored.headers.get("Nats-Msg-Id").is_none(), "the chain does without");
    let envelope = &stored.envelope;
    assert_eq!((envelope.specversion.as_str(), envelope.source.as_str()), ("1.0", "/flotilla/todo"));
    assert_eq!((&envelope.subject, &envelope.partitionkey), (&created.id, &created.id));
    assert_eq!(envelope.sequence, "00000000000000000001");
    let Event::Created(event) = &stored.event else { panic!("{:?}", stored.event) };
    assert_eq!((event.todo.title.as_str(), event.todo.status), ("Splice the line", Status::Open));
    assert_eq!(event.todo.notes, created.notes);
    assert_eq!(event.actor.id.as_str(), "ann");
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../schemas/todo.created.v1.json"));
    let schema: serde_json::Value = serde_json::from_str(&text.unwrap()).unwrap();
    let instance = serde_json::to_value(envelope).unwrap();
    jsonschema::draft202012::new(&schema).unwrap().validate(&instance).unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test]
async fn bad_input_is_refused_with_the_field_that_is_wrong() {
    use tonic_types::StatusExt as _;
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let with = |change: fn(&mut Todo)| {
        let mut todo = full();
        change(&mut todo);
        todo
    };
    for (field, todo) in [
        ("title", with(|t| t.title = " ".to_owned())),
        ("title", with(|t| t.title = "x".repeat(501))),
        ("title", with(|t| t.title = "nul \0".to_owned())),
        ("title", with(|t| t.title = "\u{202e}gpj.exe".to_owned())),
        ("title", with(|t| t.title = "pay\u{200b}roll".to_owned())),
        ("labels", with(|t| t.labels = vec!["good".to_owned(), "a \u{200d}b".to_owned()])),
        ("assignee", with(|t| t.assignee = "ann\u{2060}".to_owned())),
        ("notes", with(|t| t.notes = "x".repeat(10_001))),
        ("labels", with(|t| t.labels = (0..21).map(|n| n.to_string()).collect())),
        ("labels", with(|t| t.labels = vec!["x".repeat(51)])),
        ("assignee", with(|t| t.assignee = "x".repeat(201))),
        ("assignee", with(|t| t.assignee = "stranger".to_owned())),
        ("due_time", with(|t| t.due_time = Some(Timestamp { seconds: i64::MAX, nanos: 0 }))),
        ("due_time", with(|t| t.due_time = Some(Timestamp { seconds: 0, nanos: -1 }))),
        ("due_time", with(|t| t.due_time = Some(Timestamp { seconds: 59, nanos: 1_000_000_000 }))),
    ] {
        let status = ann.create(todo).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, field, "{status}");
    }
    let id = ann.titled("x").await.id;
    assert_eq!(reason(ann.get("not-an-id").await), "INVALID_ARGUMENT");
    assert_eq!(reason(ann.update(&id, full(), &["version"]).await), "INVALID_ARGUMENT");
    assert_eq!(harness.count("todo").await, 1);
}

#[tokio::test]
async fn a_new_assignee_is_a_member_of_the_tenant_and_one_that_was_there_stays() {
    let harness = Harness::start().await;
    let (ann, eve) = (harness.client("acme", "ann"), harness.client("globex", "eve"));
    let of = |assignee: &str| Todo { assignee: assignee.to_owned(), ..full() };
    let refused = async |assignee: &str| reason(ann.create(of(assignee)).await) == "INVALID_ARGUMENT";
    // The caller is a member by the token; a program is none.
    let own = ann.create(of("ann")).await.unwrap();
    let program = harness.client_as("acme", "robot", &serde_json::json!({"role": "member", "kind": "service_account"}));
    assert_eq!(reason(program.create(of("robot")).await), "INVALID_ARGUMENT");
    assert!(refused("bob").await);
    let bob = harness.join("acme", "bob").await;
    assert_eq!(reason(eve.create(of("bob")).await), "INVALID_ARGUMENT", "he is another tenant's");
    let todo = ann.create(of("bob")).await.unwrap();
    let patch = ann.update(&own.id, of("bob"), &["assignee"]).await.unwrap();
    assert_eq!((todo.assignee.as_str(), patch.assignee.as_str()), ("bob", "bob"));
    // He leaves: his todos stay his, and he gets no other. An event from before does not bring him back.
    let free = ann.titled("free").await;
    harness.nats.remove_member("acme", member(bob, "bob", 5)).await;
    until("he is known to have left", || async { !harness.knows("acme", "bob").await }).await;
    harness.nats.add_member("acme", member(bob, "bob", 4)).await;
    harness.join("acme", "kim").await;
    assert!(!harness.knows("acme", "bob").await);
    assert!(refused("bob").await);
    assert_eq!(reason(ann.update(&free.id, of("bob"), &["assignee"]).await), "INVALID_ARGUMENT");
    assert_eq!(ann.update(&todo.id, of("bob"), &["assignee", "notes"]).await.unwrap().assignee, "bob");
    assert_eq!(ann.rename(&todo.id, "still his").await.unwrap().assignee, "bob");
    // He comes again, as another member; what is said of the first one changes nothing.
    harness.join("acme", "bob").await;
    harness.nats.remove_member("acme", member(bob, "bob", 6)).await;
    harness.join("acme", "lea").await;
    assert_eq!(ann.update(&free.id, of("bob"), &["assignee"]).await.unwrap().assignee, "bob");
}

#[tokio::test]
async fn the_largest_todo_is_an_event_that_fits() {
    let harness = Harness::start().await;
    let wide = |count: usize| "🚢".repeat(count);
    let todo = Todo {
        title: wide(500),
        notes: wide(10_000),
        labels: (0..20).map(|n| format!("{n:02}{}", wide(48))).collect(),
        assignee: wide(200),
        ..Todo::default()
    };
    harness.join("acme", &wide(200)).await;
    let claims = serde_json::json!({"role": "owner", "act": {"sub": wide(200), "kind": "agent"}});
    harness.client_as("acme", &wide(200), &claims).create(todo).await.unwrap();
    assert_eq!(harness.events().await.len(), 1);
}

#[tokio::test]
async fn a_stale_etag_changes_nothing() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let id = ann.titled("x").await.id;
    let stale = |title: &str| Todo { title: title.to_owned(), etag: "v1".to_owned(), ..Todo::default() };
    ann.update(&id, stale("first"), &[]).await.unwrap();
    assert_eq!(reason(ann.update(&id, stale("second"), &[]).await), "ETAG_MISMATCH");
    assert_eq!(reason(ann.delete(&id, "v1").await), "ETAG_MISMATCH");
    assert_eq!(ann.get(&id).await.unwrap().title, "first");
    // What changes nothing is no change: no version, no event.
    assert_eq!(ann.update(&id, Todo { title: "first".to_owned(), ..Todo::default() }, &[]).await.unwrap().version, 2);
    assert_eq!(harness.events().await.len(), 2);
}

#[tokio::test]
async fn changes_at_once_happen_one_after_the_other() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let id = ann.titled("x").await.id;
    let updates =
        (0..20).map(|n| {
            let (ann, id) = (ann.clone(), id.clone());
            async move {
                ann.update(&id, Todo { title: format!("title {n}"), ..Todo::default() }, &[]).await.unwrap().version
            }
        });
    let mut versions = join_all(updates).await;
    versions.sort_unstable();
    assert_eq!(versions, (2..=21).collect::<Vec<_>>());
    let published: Vec<_> = harness.events().await.iter().map(|stored| stored.envelope.version().unwrap()).collect();
    assert_eq!(published, (1..=21).collect::<Vec<_>>(), "in the order of the versions");
}

#[tokio::test]
async fn a_database_that_only_reads_is_away_until_another_one_writes() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    ann.titled("before").await;
    // As after a switchover: a new connection meets a server that only reads.
    let mut admin = harness.database.admin().await;
    let name: String = sqlx::query_scalar("select current_database()").fetch_one(&mut admin).await.unwrap();
    let only_reads = |how: &str| sqlx::AssertSqlSafe(format!("alter database \"{name}\" {how}"));
    sqlx::query(only_reads("set default_transaction_read_only = on")).execute(&mut admin).await.unwrap();
    let end = "select pg_terminate_backend(pid) from pg_stat_activity \
               where datname = current_database() and pid <> pg_backend_pid()";
    sqlx::query(end).execute(&mut admin).await.unwrap();
    for _ in 0..30 {
        let todo = Todo { title: "meanwhile".to_owned(), ..Todo::default() };
        assert_eq!(reason(ann.create(todo).await), "UNAVAILABLE");
    }
    sqlx::query(only_reads("reset default_transaction_read_only")).execute(&mut admin).await.unwrap();
    testkit::until("it writes again by itself", || async {
        ann.create(Todo { title: "after".to_owned(), ..Todo::default() }).await.is_ok()
    })
    .await;
    harness.drain().await;
}

/// The lengths that the contract states for a field of a todo: the most characters, and the most items.
fn stated(field: &str) -> (usize, usize) {
    let todo = proto::POOL.get_message_by_name("flotilla.todo.v1.Todo").unwrap();
    let option = proto::POOL.get_extension_by_name("flotilla.edge.v1.field").unwrap();
    let options = todo.get_field_by_name(field).unwrap().options();
    let said = options.get_extension(&option);
    let number = |name: &str| said.as_message().unwrap().get_field_by_name(name).unwrap().as_u32().unwrap() as usize;
    (number("max_length"), number("max_items"))
}

#[tokio::test]
async fn the_lengths_that_the_contract_states_are_the_service_s() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let todo = || Todo { title: "x".to_owned(), ..Todo::default() };
    let long = |field: &str, more: usize| "x".repeat(stated(field).0 + more);
    let labels = |more: usize| (0..stated("labels").1 + more).map(|number| format!("label {number}")).collect();
    for more in [0, 1] {
        for (field, todo) in [
            ("title", Todo { title: long("title", more), ..todo() }),
            ("notes", Todo { notes: long("notes", more), ..todo() }),
            ("labels", Todo { labels: vec![long("labels", more)], ..todo() }),
            ("labels", Todo { labels: labels(more), ..todo() }),
        ] {
            let created = ann.create(todo).await;
            assert_eq!(created.is_ok(), more == 0, "{field} with {more} more than stated: {created:?}");
        }
    }
}
