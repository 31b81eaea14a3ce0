//! Lists: every todo once, in order, by indexes only.

use proto::todo::{ListTodosRequest, Status, Todo};
use sqlx::{Connection as _, Executor as _};

use proto::todo::Basis;

use crate::harness::{Client, Harness, reason};
use crate::recurring::recurring;
use crate::tenancy::{call, rpcs};

async fn walk(client: &Client, list: ListTodosRequest) -> Vec<String> {
    let mut titles = Vec::new();
    let mut page_token = String::new();
    loop {
        let page = client.list(ListTodosRequest { page_token, ..list.clone() }).await.unwrap();
        titles.extend(page.todos.into_iter().map(|todo| todo.title));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return titles;
        }
    }
}

#[tokio::test]
async fn a_walk_shows_each_todo_once_newest_first() {
    let harness = Harness::start().await;
    harness.join("acme", "bob").await;
    let ann = harness.client("acme", "ann");
    for n in 0..7 {
        let labels = if n % 2 == 0 { vec!["even".to_owned()] } else { Vec::new() };
        let assignee = if n < 3 { "bob" } else { "" };
        let todo = Todo { title: n.to_string(), labels, assignee: assignee.to_owned(), ..Todo::default() };
        let id = ann.create(todo).await.unwrap().id;
        match n {
            4 => drop(ann.complete(&id, "").await.unwrap()),
            5 => ann.delete(&id, "").await.unwrap(),
            _ => {}
        }
    }
    let by = |change: fn(&mut ListTodosRequest)| {
        let mut list = ListTodosRequest { page_size: 2, ..ListTodosRequest::default() };
        change(&mut list);
        walk(&ann, list)
    };
    assert_eq!(by(|_| {}).await, ["6", "4", "3", "2", "1", "0"]);
    assert_eq!(by(|list| list.label = "even".to_owned()).await, ["6", "4", "2", "0"]);
    assert_eq!(by(|list| list.set_status(Status::Completed)).await, ["4"]);
    assert_eq!(by(|list| list.assignee = "bob".to_owned()).await, ["2", "1", "0"]);
    assert_eq!(
        by(|list| {
            list.label = "even".to_owned();
            list.set_status(Status::Open);
            list.assignee = "bob".to_owned();
        })
        .await,
        ["2", "0"]
    );
    assert!(by(|list| list.label = "odd".to_owned()).await.is_empty());
}

#[tokio::test]
async fn a_page_fits_into_an_answer_whatever_is_written() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    for n in 0..60 {
        ann.create(Todo { title: n.to_string(), notes: "𠮷".repeat(10_000), ..Todo::default() }).await.unwrap();
    }
    let first = ann.list(ListTodosRequest { page_size: 200, ..ListTodosRequest::default() }).await.unwrap();
    assert!(!first.next_page_token.is_empty() && first.todos.len() > 40, "{}", first.todos.len());
    assert_eq!(walk(&ann, ListTodosRequest { page_size: 200, ..ListTodosRequest::default() }).await.len(), 60);
}

#[tokio::test]
async fn page_sizes_and_tokens_are_checked() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    for n in 0..3 {
        ann.titled(&n.to_string()).await;
    }
    let list = |page_size, page_token: &str| {
        let request = ListTodosRequest { page_size, page_token: page_token.to_owned(), ..ListTodosRequest::default() };
        let ann = ann.clone();
        async move { ann.list(request).await }
    };
    assert_eq!(list(0, "").await.unwrap().todos.len(), 3);
    assert_eq!(list(i32::MAX, "").await.unwrap().todos.len(), 3, "too large is taken as the largest");
    assert_eq!(reason(list(-1, "").await), "INVALID_ARGUMENT");
    let token = list(1, "").await.unwrap().next_page_token;
    assert_eq!(list(1, &token).await.unwrap().todos[0].title, "1");
    assert_eq!(reason(list(1, "garbage").await), "INVALID_ARGUMENT");
    let other = ListTodosRequest { page_token: token.clone(), label: "x".to_owned(), ..ListTodosRequest::default() };
    assert_eq!(reason(ann.list(other).await), "INVALID_ARGUMENT", "another question's token");
    let foreign = ListTodosRequest { page_token: token, ..ListTodosRequest::default() };
    assert_eq!(reason(harness.client("globex", "bob").list(foreign).await), "INVALID_ARGUMENT");
}

/// Every statement of the service, by the database's statistics of them.
#[tokio::test]
async fn no_call_scans_a_table() {
    let harness = Harness::start().await;
    let mut admin = harness.database.admin().await;
    // Large enough that a scan would be chosen for none of them.
    admin
        .execute(
            "insert into todo (tenant, id, title, notes, status, labels, create_time, update_time, created_by, version) \
             select 'tenant-' || n % 50, gen_random_uuid(), 'title', '', 'OPEN', array['x'], now(), now(), 'ann', 1 \
             from generate_series(1, 50000) n; \
             insert into todo_label (tenant, label, todo_id) select tenant, labels[1], id from todo; \
             insert into todo_occurrence (tenant, series_id, occurrence, todo_id) select tenant, id, 1, id from todo; \
             insert into todo_timer (tenant, kind, todo_id, time, claim_time) \
             select tenant, kind, id, time, time from todo, unnest('{DUE,PURGE}'::text[]) kind, (values (timestamptz '2100-01-01')) t (time); \
             insert into idempotency (tenant, principal, method, key, fingerprint, response) \
             select 'acme', 'ann', 'CreateTodo', n::text, '', '' from generate_series(1, 50000) n; \
             insert into known_tenant (tenant, status, time) select 'tenant-' || n, 'active', now() from generate_series(1, 50000) n; \
             insert into known_member (tenant, id, user_id, time) \
             select 'tenant-' || n % 50, gen_random_uuid(), 'user-' || n, now() from generate_series(1, 50000) n; \
             insert into inbox (consumer, source, event_id) select 'todo-recurrence', '/flotilla/todo', n::text from generate_series(1, 50000) n; \
             analyze todo, todo_label, todo_occurrence, todo_timer, idempotency, inbox, known_member, known_tenant",
        )
        .await
        .unwrap();
    // A connection's counts are whole when it has ended.
    admin.close().await.unwrap();
    let mut admin = harness.database.admin().await;
    admin.execute("select pg_stat_reset()").await.unwrap();
    let ann = harness.client("tenant-7", "ann");
    for rpc in rpcs() {
        let todo = Todo { assignee: "user-7".to_owned(), ..recurring("x", "FREQ=DAILY", Basis::DueTime) };
        let todo = ann.create(todo).await.unwrap();
        if rpc == "ReopenTodo" {
            ann.complete(&todo.id, "").await.unwrap();
        }
        call(&ann, &rpc, &todo.id).await.unwrap();
        let labels = Todo { labels: vec!["y".to_owned()], ..Todo::default() };
        ann.update(&todo.id, labels, &["labels", "recurrence"]).await.ok();
    }
    for status in [Status::Unspecified, Status::Open, Status::Completed] {
        for (label, assignee) in [("", ""), ("x", ""), ("", "user-7"), ("x", "user-7")] {
            let (label, assignee) = (label.to_owned(), assignee.to_owned());
            let list = ListTodosRequest { page_size: 1, status: status.into(), label, assignee, ..Default::default() };
            let page_token = ann.list(list.clone()).await.unwrap().next_page_token;
            ann.list(ListTodosRequest { page_token, ..list }).await.unwrap();
        }
    }
    // Not by the tables: that would be a scan.
    testkit::until("the handler has run", || async {
        let assigned = ListTodosRequest { assignee: "user-7".to_owned(), ..ListTodosRequest::default() };
        let todos = ann.list(assigned).await.unwrap().todos;
        todos.iter().any(|todo| todo.occurrence.as_ref().is_some_and(|place| place.number == 2))
    })
    .await;
    harness.drain().await;
    harness.stop().await;
    let close = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'todo_app' and datname = current_database()";
    testkit::until("its connections are closed", || async {
        let mut admin = harness.database.admin().await;
        sqlx::query_scalar::<_, bool>(close).fetch_all(&mut admin).await.unwrap().is_empty()
    })
    .await;
    let counted: Vec<(String, i64, i64)> = sqlx::query_as(
        "select relname::text, coalesce(seq_scan, 0), coalesce(idx_scan, 0) from pg_stat_user_tables \
         where relname = any('{todo,todo_label,todo_occurrence,todo_timer,idempotency,inbox,known_member,known_tenant}') order by relname",
    )
    .fetch_all(&mut admin)
    .await
    .unwrap();
    let scanned: Vec<_> = counted.iter().filter(|(_, scans, _)| *scans > 0).collect();
    assert!(scanned.is_empty(), "{counted:?}");
    let read = counted.iter().filter(|(_, _, by_index)| *by_index > 0).map(|(table, ..)| table.as_str());
    assert_eq!(
        read.collect::<Vec<_>>(),
        ["idempotency", "inbox", "known_member", "known_tenant", "todo", "todo_label", "todo_timer"],
        "{counted:?}"
    );
}
