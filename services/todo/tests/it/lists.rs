//! Lists: every todo once, in order, and none that was not asked for.

use proto::todo::{ListTodosRequest, Status, Todo};

use crate::harness::{Client, Harness, reason};

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
    for at in [0, token.len() / 2, token.len() - 2] {
        let mut changed = token.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert_eq!(reason(list(1, &changed).await), "INVALID_ARGUMENT", "another character at {at}");
    }
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
