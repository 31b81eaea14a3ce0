//! What lists, and all other calls, read of tables: by the database's own counts.

use proto::todo::{Basis, ListTodosRequest, Status, Todo};
use sqlx::{Connection as _, Executor as _};

use crate::harness::Harness;
use crate::recurring::recurring;
use crate::tenancy::{call, rpcs};

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

/// The rows of todos that are read, by the database's statistics.
#[tokio::test]
async fn a_page_examines_a_bounded_number_of_rows_and_comes_short_with_a_token() {
    const EXAMINED: i64 = 2_000;
    const TODOS: i64 = 4_500;
    let harness = Harness::start().await;
    let mut admin = harness.database.admin().await;
    // Ids of time, as the service makes them; one of a thousand is what is looked for.
    admin
        .execute(
            "insert into todo (tenant, id, title, notes, status, labels, assignee, create_time, update_time, due_time, created_by, version) \
             select tenant, (lpad(to_hex(1700000000000 + n * 1000), 12, '0') || '7' || substr(md5(tenant || n), 1, 3) || '8' || substr(md5(tenant || n), 4, 15))::uuid, \
                    n::text, '', 'OPEN', array['x'], 'bob', to_timestamp(1700000000 + n), to_timestamp(1700000000 + n), \
                    case when n % 2 = 0 then to_timestamp(4000000000 + n) end, case when n % 1000 = 500 then 'zoe' else 'ann' end, 1 \
             from generate_series(1, 4500) n, unnest(array['acme', 'globex']) tenant; \
             insert into todo (tenant, id, title, notes, status, labels, assignee, create_time, update_time, created_by, version) \
             select 'tenant-' || n % 50, gen_random_uuid(), 'title', '', 'OPEN', array['x'], 'bob', now(), now(), 'ann', 1 \
             from generate_series(1, 50000) n; \
             insert into todo_label (tenant, label, todo_id) select tenant, label, id from todo, unnest(labels) label; \
             analyze todo, todo_label",
        )
        .await
        .unwrap();
    admin.close().await.unwrap();
    harness.database.admin().await.execute("select pg_stat_reset()").await.unwrap();
    let ann = harness.client("acme", "ann");
    let mut pages = 0;
    let orders = ["", "createTime", "dueTime", "dueTime desc", "updateTime", "updateTime desc"];
    let looks = ["", "labels:x AND ", "assignee = bob AND ", "status = OPEN AND ", "NOT labels:y AND "];
    for order_by in orders {
        for look in looks {
            let (mut found, mut short, mut page_token) = (0, 0, String::new());
            loop {
                let list = ListTodosRequest {
                    filter: format!("{look}createdBy = zoe"),
                    order_by: order_by.to_owned(),
                    page_token,
                    ..ListTodosRequest::default()
                };
                let page = ann.list(list).await.unwrap();
                (found, pages, page_token) = (found + page.todos.len(), pages + 1, page.next_page_token);
                if page_token.is_empty() {
                    break;
                }
                short += 1;
            }
            assert_eq!((found, short), (5, TODOS / EXAMINED), "{look} by {order_by}");
            // A full page reads no further.
            let first = ListTodosRequest {
                filter: format!("{look}createdBy = ann"),
                order_by: order_by.to_owned(),
                page_size: 10,
                ..ListTodosRequest::default()
            };
            assert_eq!(ann.list(first).await.unwrap().todos.len(), 10);
            // Nor does one that its own order bounds.
            for (bound, by) in [
                ("createTime < '2023-11-14T22:13:30Z'", "createTime"),
                ("updateTime <= '2023-11-14T22:13:30Z'", "updateTime"),
                ("dueTime < '2096-10-02T07:06:50Z'", "dueTime"),
                // Those that are never due stand behind it, and are not looked at.
                ("dueTime > '2096-10-02T08:21:30Z'", "dueTime"),
            ] {
                if !order_by.to_lowercase().contains(&by.to_lowercase()) {
                    continue;
                }
                let bounded = ListTodosRequest {
                    filter: format!("{look}{bound}"),
                    order_by: order_by.to_owned(),
                    ..ListTodosRequest::default()
                };
                let page = ann.list(bounded).await.unwrap();
                assert!(!page.todos.is_empty() && page.next_page_token.is_empty(), "{look}{bound} by {order_by}");
            }
        }
    }
    harness.stop().await;
    let read = read_of_todos(&harness).await;
    let walks = i64::try_from(orders.len() * looks.len()).unwrap();
    assert_eq!(i64::from(pages), walks * (TODOS / EXAMINED + 1));
    // Each walk reads each row once, and a row twice where one page ends and the next begins; by label, the labels too. The others are short.
    let by_label = 2 * (TODOS + 100);
    let most = walks * (TODOS + 100) + i64::from(pages) + by_label;
    assert!((walks * TODOS..=most).contains(&read), "{read} rows for {walks} walks: {} at most", most);
}

/// A tenant that has written much since the database last looked, and of which next to nothing is as elsewhere: one in 500 of its todos is open,
/// labelled and assigned, where nearly all others are.
#[tokio::test]
async fn a_list_reads_what_its_index_begins_with_whatever_the_statistics_say() {
    let harness = Harness::start().await;
    let mut admin = harness.database.admin().await;
    let insert = |tenants: &str, numbers: &str, usual: &str| {
        format!(
            "insert into todo (tenant, id, title, notes, status, complete_time, labels, assignee, create_time, update_time, created_by, version) \
             select {tenants}, gen_random_uuid(), 'title', '', case when usual then 'OPEN' else 'COMPLETED' end, case when not usual then now() end, \
                    array[case when usual then 'x' else 'y' end], case when usual then 'bob' end, now(), now(), 'ann', 1 \
             from generate_series({numbers}) n, lateral (select {usual}) v (usual); "
        )
    };
    let labels = |which: &str| {
        format!(
            "insert into todo_label (tenant, label, todo_id) select tenant, label, id from todo, unnest(labels) label where {which}; "
        )
    };
    let setup = [
        "alter table todo set (autovacuum_enabled = off); alter table todo_label set (autovacuum_enabled = off); "
            .to_owned(),
        insert("'tenant-' || n % 3000", "1, 60000", "true"),
        labels("true"),
        "analyze todo, todo_label; ".to_owned(),
        insert("'acme'", "1, 9500", "n % 500 = 0"),
        labels("tenant = 'acme'"),
    ];
    admin.execute(sqlx::AssertSqlSafe(setup.concat())).await.unwrap();
    admin.close().await.unwrap();
    harness.database.admin().await.execute("select pg_stat_reset()").await.unwrap();
    let ann = harness.client("acme", "ann");
    let mut lists = 0;
    for order_by in ["createTime", "createTime desc", "dueTime", "dueTime desc", "updateTime", "updateTime desc"] {
        for filter in
            ["", "status = OPEN", "labels:x", "assignee = bob", "labels:x AND createTime > '2020-01-01T00:00:00Z'"]
        {
            let by_index = match order_by.split(' ').next() {
                Some("createTime") => true,
                Some("dueTime") => filter == "status = OPEN",
                _ => false,
            };
            if filter.is_empty() || by_index {
                let list = ListTodosRequest {
                    page_size: 19,
                    filter: filter.to_owned(),
                    order_by: order_by.to_owned(),
                    ..ListTodosRequest::default()
                };
                let page = ann.list(list).await.unwrap();
                assert_eq!(
                    (page.todos.len(), page.next_page_token.is_empty()),
                    (19, !filter.is_empty()),
                    "{filter} by {order_by}"
                );
                lists += 1;
            }
        }
    }
    harness.stop().await;
    let read = read_of_todos(&harness).await;
    assert!((lists * 19..lists * 60).contains(&read), "{read} rows for {lists} lists of 19");
}

/// How many rows of todos were read, and none by a scan.
async fn read_of_todos(harness: &Harness) -> i64 {
    let close = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'todo_app' and datname = current_database()";
    testkit::until("its connections are closed", || async {
        let mut admin = harness.database.admin().await;
        sqlx::query_scalar::<_, bool>(close).fetch_all(&mut admin).await.unwrap().is_empty()
    })
    .await;
    let read = "select sum(seq_scan)::bigint, sum(idx_tup_read)::bigint from pg_stat_user_tables \
                join pg_stat_user_indexes using (relid) where pg_stat_user_tables.relname = any('{todo,todo_label}')";
    let (scans, read): (i64, i64) = sqlx::query_as(read).fetch_one(&mut harness.database.admin().await).await.unwrap();
    assert_eq!(scans, 0);
    read
}
