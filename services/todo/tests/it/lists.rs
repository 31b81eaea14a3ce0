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
    let ann = harness.client("acme", "ann");
    for n in 0..7 {
        let labels = if n % 2 == 0 { vec!["even".to_owned()] } else { Vec::new() };
        let assignee = if n < 3 { "ann" } else { "" };
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
    assert_eq!(by(|list| list.assignee = "ann".to_owned()).await, ["2", "1", "0"]);
    let all = |list: &mut ListTodosRequest| {
        list.label = "even".to_owned();
        list.set_status(Status::Open);
        list.assignee = "ann".to_owned();
        list.filter = "status = OPEN OR status = COMPLETED".to_owned();
    };
    assert_eq!(by(all).await, ["2", "0"]);
    assert!(by(|list| list.label = "odd".to_owned()).await.is_empty());
}

/// A day of December 2099: nothing comes due meanwhile.
fn day(day: i64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: 4_099_766_400 + (day - 1) * 86_400, nanos: 0 }
}

/// Titles 0 to 9, with due times, labels and an assignee that differ in each.
async fn ten(client: &Client) {
    for n in 0..10_i64 {
        let labels = [("home", n % 2 == 0), ("ship's \"log\"", n % 3 == 0)];
        let labels = labels.into_iter().filter(|(_, has)| *has).map(|(label, _)| label.to_owned()).collect();
        let due_time = (n % 4 != 3).then(|| day(10 - n));
        let assignee = if n < 5 { "ann" } else { "" };
        let todo = Todo { title: n.to_string(), labels, due_time, assignee: assignee.to_owned(), ..Todo::default() };
        let id = client.create(todo).await.unwrap().id;
        if n >= 7 {
            client.complete(&id, "").await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_filter_shows_what_it_holds_for() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    ten(&ann).await;
    for (filter, wanted) in [
        ("status = COMPLETED", "987"),
        ("status != COMPLETED AND NOT labels:home", "531"),
        ("labels:\"ship's \\\"log\\\"\" AND labels:'home'", "60"),
        ("labels:*", "9864320"),
        ("-labels:*", "751"),
        ("assignee = \"ann\"", "43210"),
        ("assignee = ''", "98765"),
        ("assignee != ann", "98765"),
        ("assignee:* AND createdBy = ann", "43210"),
        ("created_by != ann", ""),
        ("dueTime < \"2099-12-05T00:00:00Z\"", "986"),
        ("dueTime <= '2099-12-05T00:00:00Z'", "9865"),
        // 3 and 7 are never due.
        ("NOT dueTime > '2099-12-05T00:00:00Z'", "987653"),
        ("dueTime = '2099-12-05T01:00:00+01:00'", "5"),
        ("dueTime != '2099-12-05T00:00:00Z'", "987643210"),
        ("dueTime:*", "98654210"),
        ("completeTime:*", "987"),
        ("createTime > '2026-01-01T00:00:00Z' AND updateTime < '2100-01-01T00:00:00Z'", "9876543210"),
        ("createTime < '2026-01-01T00:00:00Z'", ""),
        ("createTime >= '9999-12-31T23:59:59Z'", ""),
        ("createTime > '0001-01-01T00:00:00Z'", "9876543210"),
        // OR first: otherwise 8 and 9 were there.
        ("status = OPEN AND labels:home OR assignee = ''", "65420"),
        ("(status = OPEN AND labels:home) OR assignee = ''", "98765420"),
        ("NOT (status = OPEN AND (labels:home OR dueTime:*))", "9873"),
    ] {
        let list = ListTodosRequest { page_size: 3, filter: filter.to_owned(), ..ListTodosRequest::default() };
        assert_eq!(walk(&ann, list).await.concat(), wanted, "{filter}");
    }
    for (order_by, wanted) in [
        ("", "9876543210"),
        ("createTime", "0123456789"),
        ("create_time desc", "9876543210"),
        // The undated are behind all others.
        ("dueTime", "9865421037"),
        ("due_time  desc", "7301245689"),
        ("updateTime asc", "0123456789"),
        ("updateTime desc", "9876543210"),
    ] {
        let list = |filter: &str| ListTodosRequest {
            page_size: 3,
            order_by: order_by.to_owned(),
            filter: filter.to_owned(),
            ..ListTodosRequest::default()
        };
        assert_eq!(walk(&ann, list("")).await.concat(), wanted, "{order_by}");
        let open: String = wanted.chars().filter(|n| *n < '7').collect();
        assert_eq!(walk(&ann, list("status = OPEN")).await.concat(), open, "{order_by}");
        let some: String = wanted.chars().filter(|n| "986".contains(*n)).collect();
        assert_eq!(walk(&ann, list("dueTime < '2099-12-05T00:00:00Z'")).await.concat(), some, "{order_by}");
        let home: String = wanted.chars().filter(|n| "02468".contains(*n)).collect();
        assert_eq!(walk(&ann, list("labels:home AND createTime:*")).await.concat(), home, "{order_by}");
    }
}

type Holds = Box<dyn Fn(&Todo) -> bool>;

/// Filters that nobody has thought of, against what they say.
#[tokio::test]
async fn filters_hold_for_what_they_say_however_they_are_put_together() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    ten(&ann).await;
    let all = ann.list(ListTodosRequest::default()).await.unwrap().todos;
    let seconds = |time: &Option<prost_types::Timestamp>| time.map(|time| time.seconds);
    let mut seed = 20_u64;
    let mut pick = move |of: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % of
    };
    for _ in 0..120 {
        // A stack of what was put together: its text, and the todos that it holds for.
        let mut made: Vec<(String, Vec<bool>)> = Vec::new();
        for _ in 0..=pick(6) {
            let of = pick(10).cast_signed() + 1;
            let at = day(of).seconds;
            let (text, holds): (String, Holds) = match pick(7) {
                0 => ("status = OPEN".to_owned(), Box::new(|todo| todo.status() == Status::Open)),
                1 => ("labels:home".to_owned(), Box::new(|todo| todo.labels.contains(&"home".to_owned()))),
                2 => ("assignee != \"ann\"".to_owned(), Box::new(|todo| todo.assignee != "ann")),
                3 => (
                    format!("dueTime < \"2099-12-{of:02}T00:00:00Z\""),
                    Box::new(move |todo| seconds(&todo.due_time).is_some_and(|due| due < at)),
                ),
                4 => (
                    format!("due_time >= '2099-12-{of:02}T00:00:00Z'"),
                    Box::new(move |todo| seconds(&todo.due_time).is_some_and(|due| due >= at)),
                ),
                5 => ("completeTime:*".to_owned(), Box::new(|todo| todo.complete_time.is_some())),
                _ => (
                    format!("dueTime != '2099-12-{of:02}T00:00:00Z'"),
                    Box::new(move |todo| seconds(&todo.due_time) != Some(at)),
                ),
            };
            made.push((text, all.iter().map(holds).collect()));
            while made.len() > 1 && pick(2) == 0 {
                let ((a, left), (b, right)) = (made.pop().unwrap(), made.pop().unwrap());
                let both = left.iter().zip(right);
                made.push(match pick(3) {
                    0 => (format!("({a} AND {b})"), both.map(|(left, right)| *left && right).collect()),
                    1 => (format!("({a} OR {b})"), both.map(|(left, right)| *left || right).collect()),
                    _ => (format!("({a} AND NOT ({b}))"), both.map(|(left, right)| *left && !right).collect()),
                });
            }
        }
        let filter = made.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>().join(" AND ");
        let holds = |index: usize| made.iter().all(|(_, holds)| holds[index]);
        let order_by = ["", "dueTime", "updateTime desc", "createTime"][usize::try_from(pick(4)).unwrap()];
        let list = ListTodosRequest {
            filter: filter.clone(),
            order_by: order_by.to_owned(),
            page_size: 4,
            ..ListTodosRequest::default()
        };
        let mut listed = walk(&ann, list).await;
        listed.sort();
        let titles = all.iter().enumerate().filter(|(index, _)| holds(*index)).map(|(_, todo)| todo.title.clone());
        let mut wanted: Vec<_> = titles.collect();
        wanted.sort();
        assert_eq!(listed, wanted, "{filter} by {order_by}");
    }
}

#[tokio::test]
async fn a_walk_has_every_todo_once_that_was_there_before_while_others_are_made_and_deleted() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    for n in 0..12_i64 {
        ann.create(Todo { title: format!("{n:02}"), due_time: Some(day(n % 3 + 1)), ..Todo::default() }).await.unwrap();
    }
    for order_by in ["createTime", "createTime desc", "dueTime", "dueTime desc", "updateTime", "updateTime desc"] {
        let (mut listed, mut page_token) = (Vec::new(), String::new());
        loop {
            let list = ListTodosRequest {
                page_size: 2,
                order_by: order_by.to_owned(),
                page_token,
                ..ListTodosRequest::default()
            };
            let page = ann.list(list).await.unwrap();
            listed.extend(page.todos.into_iter().map(|todo| todo.title).filter(|title| title != "new"));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
            for day_of in [1, 2, 3] {
                let new = Todo { title: "new".to_owned(), due_time: Some(day(day_of)), ..Todo::default() };
                let id = ann.create(new).await.unwrap().id;
                if day_of != 2 || listed.len() > 6 {
                    ann.delete(&id, "").await.unwrap();
                }
            }
        }
        listed.sort();
        let wanted: Vec<_> = (0..12).map(|n| format!("{n:02}")).collect();
        assert_eq!(listed, wanted, "{order_by}");
    }
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
    let with = |change: fn(&mut ListTodosRequest)| {
        let mut other = ListTodosRequest { page_token: token.clone(), ..ListTodosRequest::default() };
        change(&mut other);
        other
    };
    for other in [
        with(|list| list.label = "x".to_owned()),
        with(|list| list.set_status(Status::Open)),
        with(|list| list.filter = "status = OPEN".to_owned()),
        with(|list| list.order_by = "createTime desc".to_owned()),
    ] {
        let refused = ann.list(other.clone()).await;
        assert_eq!(reason(refused), "INVALID_ARGUMENT", "another question's token: {other:?}");
    }
    for (filter, order_by, wanted) in [
        ("colour = red", "", "filter is not one: at character 1, there is no field \"colour\""),
        ("labels:a\0", "", "filter is not one: at character 9, there is a control character"),
        ("", "title", "order_by must be one of createTime, dueTime, updateTime, with desc behind it or not"),
        ("", "dueTime, createTime", "order_by must be one of"),
        ("", "dueTime down", "order_by must be one of"),
    ] {
        let (filter, order_by) = (filter.to_owned(), order_by.to_owned());
        let refused = ann.list(ListTodosRequest { filter, order_by, ..ListTodosRequest::default() }).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(refused.message().starts_with(wanted), "{}", refused.message());
    }
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
