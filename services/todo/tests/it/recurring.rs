//! A completed recurring todo has its next occurrence: once, whatever happens.

use consumer::{RecordStreams, ReplayRequest, ReplayStatus, Replayer};
use contracts::events::EventType as _;
use contracts::events::todo::{CompletedV2, Event};
use prost_types::Timestamp;
use proto::todo::{Basis, ListTodosRequest, Recurrence, Todo};
use serde_json::json;
use sqlx::Executor as _;
use testkit::until;
use tonic::Code;

use async_nats::jetstream::stream::Stream;

use crate::harness::{Client, Harness, reason};

/// 2035-01-31 09:00 in Berlin: not due meanwhile.
const DUE: i64 = 2_053_843_200;
/// The durable consumer of the handlers.
const DURABLE: &str = "todo-recurrence";
const DAY: i64 = 86_400;

pub fn recurring(title: &str, rule: &str, basis: Basis) -> Todo {
    Todo {
        title: title.to_owned(),
        notes: "and more".to_owned(),
        labels: vec!["x".to_owned()],
        assignee: "ann".to_owned(),
        due_time: Some(Timestamp { seconds: DUE, nanos: 0 }),
        recurrence: Some(Recurrence {
            rule: rule.to_owned(),
            time_zone: "Europe/Berlin".to_owned(),
            basis: basis.into(),
            wall_time: String::new(),
        }),
        ..Todo::default()
    }
}

/// Waits until every event that is committed now is settled.
pub async fn drained(harness: &Harness) {
    harness.drain().await;
    settled(&harness.stream().await).await;
}

async fn all(client: &Client) -> Vec<Todo> {
    client.list(ListTodosRequest::default()).await.unwrap().todos
}

/// The todo that follows, once it is there.
pub async fn next(client: &Client, of: &Todo) -> Todo {
    let place = of.occurrence.clone().unwrap();
    let wanted = proto::todo::Occurrence { number: place.number + 1, ..place };
    let found = || async { all(client).await.into_iter().find(|todo| todo.occurrence.as_ref() == Some(&wanted)) };
    until("the next occurrence is there", || async { found().await.is_some() }).await;
    found().await.unwrap()
}

/// Waits until the consumer has settled every event of the stream.
async fn settled(stream: &Stream) {
    until("all is settled", || async {
        let info = stream.consumer_info(DURABLE).await.unwrap();
        info.num_pending == 0 && info.num_ack_pending == 0
    })
    .await;
}

#[tokio::test]
async fn a_completed_recurring_todo_brings_forth_its_next_occurrence() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let first = ann.create(recurring("Pay the berth", "FREQ=MONTHLY", Basis::Unspecified)).await.unwrap();
    assert_eq!(first.occurrence.as_ref().map(|place| (&place.series_id, place.number)), Some((&first.id, 1)));
    assert_eq!(first.recurrence.as_ref().unwrap().wall_time, "2035-01-31T09:00:00");
    ann.titled("something else").await;
    ann.complete(&first.id, "").await.unwrap();
    let second = next(&ann, &first).await;
    // The 31st: February has none. The wall clock stays, though summer time has begun by then.
    assert_eq!(second.due_time, Some(Timestamp { seconds: DUE + 59 * DAY - 3_600, nanos: 0 }));
    assert_ne!(second.id, first.id);
    let copied = |todo: &Todo| (todo.title.clone(), todo.notes.clone(), todo.labels.clone(), todo.assignee.clone());
    assert_eq!(copied(&second), copied(&first));
    assert_eq!((second.created_by.as_str(), second.complete_time, second.version), ("ann", None, 1));

    let events = harness.events().await;
    let [completed] =
        &*events.iter().filter(|stored| stored.envelope.event_type == CompletedV2::TYPE).collect::<Vec<_>>()
    else {
        panic!("one was completed");
    };
    let created = events.last().unwrap();
    assert!(matches!(&created.event, Event::Created(created) if created.todo.id.to_string() == second.id));
    let Some(cause) = created.envelope.causationid else { panic!("an event has caused it") };
    assert!([Some(completed.envelope.id), completed.envelope.twinof].contains(&Some(cause)));
    assert_eq!(created.envelope.correlationid, completed.envelope.correlationid);
    assert_eq!(created.envelope.actor.as_ref().unwrap().to_string(), "service:todo");
    assert_eq!(created.envelope.tenant.as_str(), "acme");
    let traces = [completed, created].map(|stored| stored.envelope.traceparent.clone());
    assert_eq!(traces[0].is_some(), traces[1].is_some());
}

#[tokio::test]
async fn there_is_one_next_occurrence_however_often_its_cause_comes() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let first = ann.create(recurring("Water the plants", "FREQ=DAILY", Basis::Completion)).await.unwrap();
    ann.complete(&first.id, "").await.unwrap();
    let second = next(&ann, &first).await;
    // Opened and completed once more, on what may be another day.
    ann.reopen(&first.id).await.unwrap();
    ann.complete(&first.id, "").await.unwrap();
    drained(&harness).await;
    assert_eq!(all(&ann).await.len(), 2);
    // Delivered again from the beginning, to a service that has forgotten what it has handled.
    let mut admin = harness.database.admin().await;
    admin.execute("truncate inbox").await.unwrap();
    let reset = format!("$JS.API.CONSUMER.RESET.EVENTS_TODO.{}", DURABLE);
    let answer = harness.nats.client("todo-admin").await.request(reset, r#"{"seq":1}"#.into()).await.unwrap();
    assert!(!String::from_utf8_lossy(&answer.payload).contains("error"), "{answer:?}");
    until("it is handled again", || async { harness.count("inbox").await >= 4 }).await;
    drained(&harness).await;
    assert_eq!(all(&ann).await.len(), 2);
    // Replayed by an operator.
    let replayer = Replayer::new(harness.nats.client("operations").await, RecordStreams::default());
    let sequence =
        harness.events().await.iter().position(|stored| stored.envelope.event_type == CompletedV2::TYPE).unwrap();
    let found = replayer.find("EVENTS_TODO", sequence as u64 + 1).await.unwrap().unwrap();
    let sending = ReplayRequest { consumer: DURABLE.to_owned(), id: "1.1.1".to_owned(), ..found };
    let replayed = replayer.send(&sending).await.unwrap();
    until("the replay is settled", || async {
        replayer.status(DURABLE, "1.1.1", replayed).await.unwrap() == ReplayStatus::Settled
    })
    .await;
    assert_eq!(all(&ann).await.len(), 2);
    // Deleted, it is not made a second time; and what follows it goes on.
    ann.complete(&second.id, "").await.unwrap();
    let third = next(&ann, &second).await;
    ann.delete(&third.id, "").await.unwrap();
    ann.reopen(&second.id).await.unwrap();
    ann.complete(&second.id, "").await.unwrap();
    drained(&harness).await;
    assert_eq!(all(&ann).await.len(), 2);
    assert_eq!(harness.count("todo_occurrence").await, 3);
}

#[tokio::test]
async fn a_process_that_is_killed_while_it_handles_loses_nothing_and_does_nothing_twice() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let first = ann.create(recurring("Feed the cat", "FREQ=DAILY", Basis::DueTime)).await.unwrap();
    // Its handler waits for the series' places, in the middle of its transaction.
    let mut admin = harness.database.admin().await;
    admin.execute("begin; lock table todo_occurrence in share mode").await.unwrap();
    ann.complete(&first.id, "").await.unwrap();
    let mut watcher = harness.database.admin().await;
    let waits = "select exists (select from pg_stat_activity where wait_event_type = 'Lock' and query like '%todo_occurrence%' \
                 and datname = current_database())";
    until("its handler waits", || async {
        sqlx::query_scalar(waits).fetch_one(&mut harness.database.admin().await).await.unwrap()
    })
    .await;
    // As a kill does it: its connections are gone, wherever it was.
    let killed = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'todo_app' and datname = current_database()";
    watcher.execute(killed).await.unwrap();
    harness.stop().await;
    admin.execute("rollback").await.unwrap();
    assert_eq!((harness.count("todo").await, harness.count("inbox").await), (1, 0), "nothing of it has happened");
    let (_app, lifecycle) = harness.second().await;
    until("the next occurrence is there", || async { harness.count("todo").await == 2 }).await;
    settled(&harness.stream().await).await;
    assert_eq!((harness.count("todo").await, harness.count("todo_occurrence").await), (2, 2));
    lifecycle.shut_down().await;
}

#[tokio::test]
async fn a_series_goes_on_when_whoever_began_it_is_gone() {
    let harness = Harness::start().await;
    // Her role is taken from her, and her tokens run out; another completes what she has begun.
    let ann = harness.client_as("acme", "ann", &json!({"role": "member"}));
    harness.join("acme", "bob").await;
    let his = Todo { assignee: "bob".to_owned(), ..recurring("Sweep the quay", "FREQ=WEEKLY", Basis::DueTime) };
    let first = ann.create(his).await.unwrap();
    let gone = harness.client_as("acme", "ann", &json!({}));
    assert_eq!(reason(gone.get(&first.id).await), "TODO_NOT_FOUND");
    let bob = harness.client_as("acme", "bob", &json!({"role": "member"}));
    bob.complete(&first.id, "").await.unwrap();
    let second = next(&bob, &first).await;
    assert_eq!((second.created_by.as_str(), second.assignee.as_str()), ("ann", "bob"));
    bob.complete(&second.id, "").await.unwrap();
    assert_eq!(next(&bob, &second).await.occurrence.unwrap().number, 3);
}

#[tokio::test]
async fn a_series_ends_when_its_recurrence_is_removed_and_by_its_count() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let twice = ann.create(recurring("Twice", "FREQ=DAILY;COUNT=2", Basis::DueTime)).await.unwrap();
    ann.complete(&twice.id, "").await.unwrap();
    let last = next(&ann, &twice).await;
    ann.complete(&last.id, "").await.unwrap();
    let stopped = ann.create(recurring("Stopped", "FREQ=DAILY", Basis::DueTime)).await.unwrap();
    let stopped = ann.update(&stopped.id, Todo::default(), &["recurrence"]).await.unwrap();
    assert_eq!((&stopped.recurrence, stopped.occurrence.as_ref().unwrap().number), (&None, 1));
    ann.complete(&stopped.id, "").await.unwrap();
    drained(&harness).await;
    assert_eq!(all(&ann).await.len(), 3);
}

#[tokio::test]
async fn what_no_todo_recurs_by_is_refused_with_the_field() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let good = || recurring("x", "FREQ=DAILY", Basis::DueTime);
    let with = |change: fn(&mut Recurrence)| {
        let mut todo = good();
        change(todo.recurrence.as_mut().unwrap());
        todo
    };
    for (todo, field) in [
        (with(|recurrence| recurrence.rule = "FREQ=HOURLY".to_owned()), "recurrence.rule"),
        (with(|recurrence| recurrence.rule = "every monday".to_owned()), "recurrence.rule"),
        (with(|recurrence| recurrence.rule = "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30".to_owned()), "recurrence.rule"),
        (with(|recurrence| recurrence.time_zone = "Mars/Olympus".to_owned()), "recurrence.time_zone"),
        (with(|recurrence| recurrence.basis = 7), "recurrence.basis"),
        (Todo { due_time: None, ..good() }, "recurrence"),
    ] {
        let refused = ann.create(todo).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{field}: {refused}");
        let details = tonic_types::StatusExt::get_details_bad_request(&refused).unwrap();
        assert_eq!(details.field_violations[0].field, field, "{refused}");
    }
    let todo = ann.create(good()).await.unwrap();
    assert_eq!(reason(ann.update(&todo.id, Todo::default(), &["due_time"]).await), "INVALID_ARGUMENT");
    assert_eq!(ann.get(&todo.id).await.unwrap(), todo);
}
