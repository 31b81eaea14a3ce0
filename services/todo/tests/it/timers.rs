//! What happens to a todo by itself when its time comes: once, whatever happens, and in each tenant's turn.

use std::collections::{BTreeMap, HashSet};

use contracts::events::todo::Event;
use futures::future::join_all;
use prost_types::Timestamp;
use proto::todo::Todo;
use service::members::Directory;
use service::{Call, Db, Outbox};
use sqlx::{Connection as _, Executor as _, PgConnection};
use testkit::{TestDatabase, until};
use todo::commands::{self, App};
use todo::store::{CLAIM_DUE, DUE_LATE};
use uuid::Uuid;

use crate::harness::{Client, Harness, Stored, reason};
use crate::recurring::recurring;

/// 2001 and 2101.
const LONG_AGO: Option<Timestamp> = Some(Timestamp { seconds: 1_000_000_000, nanos: 0 });
const FAR_OFF: Option<Timestamp> = Some(Timestamp { seconds: 4_135_000_000, nanos: 0 });

fn due(title: &str, due_time: Option<Timestamp>) -> Todo {
    Todo { title: title.to_owned(), due_time, ..Todo::default() }
}

async fn timers(harness: &Harness, kind: &str) -> i64 {
    let mut admin = harness.database.admin().await;
    let sql = "select count(*) from todo_timer where kind = $1";
    sqlx::query_scalar(sql).bind(kind).fetch_one(&mut admin).await.unwrap()
}

/// The announcements, once no due time waits for one.
async fn announced(harness: &Harness) -> Vec<Stored> {
    until("all that is due is announced", || async {
        let mut admin = harness.database.admin().await;
        let sql = "select not exists (select from todo_timer where kind = 'DUE' and time < now())";
        sqlx::query_scalar(sql).fetch_one(&mut admin).await.unwrap()
    })
    .await;
    // Whichever process relays.
    let rows = u64::try_from(harness.count("outbox").await).unwrap();
    let stream = harness.stream().await;
    until("all is stored", || async { stream.get_info().await.unwrap().state.messages >= rows }).await;
    harness.stored().await.into_iter().filter(|stored| matches!(stored.event, Event::BecameDue(_))).collect()
}

async fn titles(harness: &Harness) -> Vec<String> {
    let mut titles: Vec<_> = announced(harness).await.iter().map(|stored| stored.todo().title.clone()).collect();
    titles.sort();
    titles
}

#[tokio::test]
async fn of_two_processes_one_announces_each_due_time_that_comes() {
    let harness = Harness::start().await;
    let (_second, lifecycle) = harness.second().await;
    let mut ids = HashSet::new();
    for n in 0..60 {
        let client = harness.client(["acme", "globex"][n % 2], "ann");
        ids.insert(client.create(due(&n.to_string(), LONG_AGO)).await.unwrap().id);
    }
    harness.client("acme", "ann").create(due("later", FAR_OFF)).await.unwrap();
    let announced = announced(&harness).await;
    assert_eq!(announced.len(), 60);
    assert_eq!(announced.iter().map(|stored| stored.todo().id.to_string()).collect::<HashSet<_>>(), ids);
    for stored in &announced {
        let todo = stored.todo();
        assert_eq!((todo.version, todo.due_time.unwrap().timestamp()), (2, 1_000_000_000));
        assert_eq!(stored.envelope.actor.as_ref().unwrap().to_string(), "service:todo");
        assert!(stored.subject.ends_with(&format!("became_due.v1.{}", stored.envelope.tenant)), "{}", stored.subject);
    }
    assert_eq!(timers(&harness, "DUE").await, 1, "the one that comes later");
    assert_eq!(lifecycle.shut_down().await, None);
}

#[tokio::test]
async fn a_due_time_is_that_of_the_todo_as_it_is() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let set_due = async |id: &str, due_time| ann.update(id, due("", due_time), &["due_time"]).await.unwrap();
    let made = async |title: &str| ann.create(due(title, FAR_OFF)).await.unwrap().id;
    let (completed, deleted, none, moved) = (made("a").await, made("b").await, made("c").await, made("d").await);
    ann.complete(&completed, "").await.unwrap();
    ann.delete(&deleted, "").await.unwrap();
    set_due(&none, None).await;
    assert_eq!(timers(&harness, "DUE").await, 1);
    // Not of one that is open no more.
    set_due(&completed, LONG_AGO).await;
    set_due(&moved, LONG_AGO).await;
    assert_eq!(titles(&harness).await, ["d"]);
    // Other changes of it announce nothing again.
    ann.rename(&moved, "d again").await.unwrap();
    assert_eq!(timers(&harness, "DUE").await, 0);
    // It is open again, and overdue.
    ann.reopen(&completed).await.unwrap();
    assert_eq!(titles(&harness).await, ["a", "d"]);
    assert_eq!(ann.get(&moved).await.unwrap().version, 4);
}

#[tokio::test]
async fn what_a_process_left_undone_when_it_died_is_done_by_another() {
    let mut harness = Harness::start().await;
    let id = harness.client("acme", "ann").create(due("x", FAR_OFF)).await.unwrap().id;
    let mut admin = harness.database.admin().await;
    // A lock keeps the announcement in the middle of its transaction, where its connection is cut.
    let mut lock = harness.database.admin().await;
    lock.execute("begin; select from todo for update").await.unwrap();
    admin.execute("update todo_timer set time = now(), claim_time = now()").await.unwrap();
    until("the announcement waits for the lock", || async {
        let mut admin = harness.database.admin().await;
        // One that has waited too long for it is claimed again.
        admin
            .execute("update todo_timer set claim_time = now() where claim_time > now() + interval '2 seconds'")
            .await
            .unwrap();
        let sql = "select coalesce(bool_or(pg_terminate_backend(pid)), false) from pg_stat_activity \
                   where datname = current_database() and usename = 'todo_app' and wait_event_type = 'Lock'";
        sqlx::query_scalar(sql).fetch_one(&mut admin).await.unwrap()
    })
    .await;
    lock.execute("rollback").await.unwrap();
    harness.stop().await;
    assert_eq!(timers(&harness, "DUE").await, 1, "it was claimed, and not done");
    // The claim's minute has passed.
    admin.execute("update todo_timer set claim_time = claim_time - interval '1 minute'").await.unwrap();
    let (second, lifecycle) = harness.second().await;
    until("it is announced", || async { timers(&harness, "DUE").await == 0 }).await;
    harness.app = second;
    let announced = announced(&harness).await;
    assert_eq!(announced.iter().map(|stored| stored.todo().id.to_string()).collect::<Vec<_>>(), [id]);
    assert_eq!(lifecycle.shut_down().await, None);
}

#[tokio::test]
async fn a_claim_keeps_others_away_for_its_minute() {
    let harness = Harness::start().await;
    harness.stop().await;
    let mut admin = harness.database.admin().await;
    insert_timers(&mut admin, "acme", 3, 1).await;
    let db = Db::lazy(&harness.database.app.clone().into(), contracts::events::todo::SERVICE, 2).unwrap();
    assert_eq!(claimed(&db, "", 10).await, (vec![of("acme", 3)], String::new()));
    assert_eq!(claimed(&db, "", 10).await, (vec![], String::new()));
    admin.execute("update todo_timer set claim_time = claim_time - interval '1 minute'").await.unwrap();
    // One that is being done is passed over, not waited for.
    let mut done = harness.database.admin().await;
    done.execute("begin; delete from todo_timer where todo_id = (select min(todo_id::text)::uuid from todo_timer)")
        .await
        .unwrap();
    assert_eq!(claimed(&db, "", 10).await, (vec![of("acme", 2)], String::new()));
}

/// The commands that processes run, without their schedule.
fn app(harness: &Harness) -> (App, Call) {
    let db = Db::lazy(&harness.database.app.clone().into(), contracts::events::todo::SERVICE, 4).unwrap();
    let call = Call::of_schedule("acme".parse().unwrap(), contracts::events::todo::SERVICE.parse().unwrap());
    (App { db, outbox: Outbox::new(harness.app.relay.clone()), directory: Directory::default() }, call)
}

#[tokio::test]
async fn who_comes_second_to_a_due_time_finds_it_announced() {
    let harness = Harness::start().await;
    let id = harness.client("acme", "ann").create(due("x", LONG_AGO)).await.unwrap().id.parse().unwrap();
    let (app, call) = app(&harness);
    // Beside the service itself, which claims it as well.
    for outcome in join_all((0..4).map(|_| commands::become_due(&app, &call, id))).await {
        outcome.unwrap();
    }
    assert_eq!(announced(&harness).await.len(), 1);
}

#[tokio::test]
async fn a_due_time_that_was_moved_after_the_claim_is_not_announced() {
    let harness = Harness::start().await;
    let id = harness.client("acme", "ann").create(due("x", FAR_OFF)).await.unwrap().id.parse().unwrap();
    let (app, call) = app(&harness);
    commands::become_due(&app, &call, id).await.unwrap();
    assert_eq!((announced(&harness).await.len(), timers(&harness, "DUE").await), (0, 1));
}

#[tokio::test]
async fn what_cannot_be_done_is_in_nobody_s_way() {
    let harness = Harness::start().await;
    let stuck = harness.client("acme", "ann").create(due("stuck", FAR_OFF)).await.unwrap().id;
    let mut lock = harness.database.admin().await;
    lock.execute("begin; select from todo for update").await.unwrap();
    let mut admin = harness.database.admin().await;
    admin.execute("update todo_timer set time = '2001-01-01', claim_time = '2001-01-01'").await.unwrap();
    let unreadable =
        "insert into todo_timer values ('No Tenant', 'DUE', gen_random_uuid(), '2002-01-01', '2002-01-01')";
    admin.execute(unreadable).await.unwrap();
    harness.client("acme", "ann").create(due("free", LONG_AGO)).await.unwrap();
    until("the other one is announced", || async { timers(&harness, "DUE").await == 2 }).await;
    lock.execute("rollback").await.unwrap();
    assert_eq!(harness.client("acme", "ann").get(&stuck).await.unwrap().version, 1);
    admin.execute("update todo_timer set claim_time = '2001-01-01'").await.unwrap();
    until("it is tried again", || async { timers(&harness, "DUE").await == 1 }).await;
    assert_eq!(harness.client("acme", "ann").get(&stuck).await.unwrap().version, 2);
}

#[tokio::test]
async fn what_came_due_while_no_process_ran_is_announced_when_one_does() {
    let mut harness = Harness::start().await;
    harness.client("acme", "ann").create(due("of a todo", FAR_OFF)).await.unwrap();
    harness.stop().await;
    // More than are claimed at once. The hand of an older release, or a person's, sets timers as well.
    let mut admin = harness.database.admin().await;
    admin
        .execute(
            "insert into todo (tenant, id, title, notes, status, labels, create_time, update_time, created_by, version, due_time) \
             select 'acme', gen_random_uuid(), 'by hand', '', 'OPEN', '{}', now(), now(), 'ann', 1, now() - interval '1 day' \
             from generate_series(1, 250); \
             update todo set due_time = now() - interval '1 hour' where title = 'of a todo'",
        )
        .await
        .unwrap();
    assert_eq!(timers(&harness, "DUE").await, 251);
    let (second, lifecycle) = harness.second().await;
    harness.app = second;
    let announced = announced(&harness).await;
    assert_eq!(announced.len(), 251);
    assert_eq!(announced.iter().map(|stored| stored.todo().id).collect::<HashSet<_>>().len(), 251);
    assert_eq!(lifecycle.shut_down().await, None);
}

/// Timers of due times that have come, those of the day of January one after the other.
async fn insert_timers(admin: &mut PgConnection, tenant: &str, count: i32, day: i32) {
    sqlx::query(
        "insert into todo_timer (tenant, kind, todo_id, time, claim_time) select $1, 'DUE', gen_random_uuid(), at, at \
         from generate_series(1, $2) n, lateral (select make_timestamptz(2026, 1, $3, 0, 0, 0) + n * interval '1 ms') t (at)",
    )
    .bind(tenant)
    .bind(count)
    .bind(day)
    .execute(admin)
    .await
    .unwrap();
}

fn of(tenant: &str, count: i64) -> (String, i64) {
    (tenant.to_owned(), count)
}

/// Claims, and counts by tenant; and the tenant to go on behind.
async fn claimed(db: &Db, behind: &str, at_most: i32) -> (Vec<(String, i64)>, String) {
    let mut tx = db.begin_operator("a test").await.unwrap();
    let rows: Vec<(String, Option<Uuid>)> =
        sqlx::query_as(CLAIM_DUE).bind(0.0).bind(behind).bind(at_most).fetch_all(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    let (mut counts, mut cursor) = (BTreeMap::new(), String::new());
    for (tenant, id) in rows {
        match id {
            Some(_) => *counts.entry(tenant).or_default() += 1,
            None => cursor = tenant,
        }
    }
    (counts.into_iter().collect(), cursor)
}

#[tokio::test]
async fn a_tenant_with_very_much_to_do_lets_others_have_their_turn() {
    let harness = Harness::start().await;
    harness.stop().await;
    let mut admin = harness.database.admin().await;
    for (day, (tenant, count)) in (1..).zip([("acme", 5_000), ("globex", 30), ("initech", 5_000), ("zoo", 1)]) {
        insert_timers(&mut admin, tenant, count, day).await;
    }
    let db = Db::lazy(&harness.database.app.clone().into(), contracts::events::todo::SERVICE, 1).unwrap();
    // Half of it the oldest; of the other half ten of each.
    let first = vec![of("acme", 40), of("globex", 10), of("initech", 10)];
    assert_eq!(claimed(&db, "", 60).await, (first, "initech".to_owned()));
    let mut doing = harness.database.admin().await;
    doing.execute("begin; delete from todo_timer where tenant = 'zoo'").await.unwrap();
    assert_eq!(claimed(&db, "initech", 60).await, (vec![of("acme", 30)], String::new()), "it is being done");
    doing.execute("rollback").await.unwrap();
    assert_eq!(claimed(&db, "initech", 60).await, (vec![of("acme", 30), of("zoo", 1)], String::new()));
    // Tenants with nothing due are passed, so many at once.
    admin
        .execute(
            "insert into todo_timer (tenant, kind, todo_id, time, claim_time) \
             select 'b' || lpad(n::text, 4, '0'), 'DUE', gen_random_uuid(), '2100-01-01', '2100-01-01' from generate_series(1, 2500) n",
        )
        .await
        .unwrap();
    assert_eq!(claimed(&db, "acme", 60).await, (vec![of("acme", 30)], "b1000".to_owned()));
    assert_eq!(claimed(&db, "b2000", 60).await.0, [of("acme", 30), of("globex", 10), of("initech", 10)]);
    let mut tx = db.begin_operator("a test").await.unwrap();
    let late: f64 = sqlx::query_scalar("select todo_timer_late('DUE', 0)").fetch_one(&mut *tx).await.unwrap();
    assert!(late > 86_400.0, "{late}");
}

/// The walk and the rest read by an index whatever the statistics say, as those of before an import.
#[tokio::test]
async fn a_claim_reads_little_of_a_table_that_is_not_as_it_was_analyzed() {
    let harness = Harness::start().await;
    harness.stop().await;
    let mut admin = harness.database.admin().await;
    admin
        .execute(
            "insert into todo_timer (tenant, kind, todo_id, time, claim_time) \
             select 'tenant-' || n, 'DUE', gen_random_uuid(), '2100-01-01', '2100-01-01' from generate_series(1, 20000) n; \
             analyze todo_timer",
        )
        .await
        .unwrap();
    insert_timers(&mut admin, "importer", 50_000, 1).await;
    let db = Db::lazy(&harness.database.app.clone().into(), contracts::events::todo::SERVICE, 1).unwrap();
    let mut tx = db.begin_operator("a test").await.unwrap();
    for behind in ["", "tenant-1"] {
        sqlx::query(CLAIM_DUE).bind(0.0).bind(behind).bind(50).fetch_all(&mut *tx).await.unwrap();
    }
    sqlx::query(DUE_LATE).bind(0.0).fetch_all(&mut *tx).await.unwrap();
    let (scans, fetched): (i64, i64) = sqlx::query_as(
        "select coalesce(seq_scan, 0), coalesce(idx_tup_fetch, 0) from pg_stat_xact_user_tables where relname = 'todo_timer'",
    )
    .fetch_one(&mut *tx)
    .await
    .unwrap();
    assert!(scans == 0 && fetched < 10_000, "{scans} scans, {fetched} rows");
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn what_a_todo_held_goes_when_it_was_deleted_long_ago() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let deleted = async |client: &Client, todo| {
        let todo = client.create(todo).await.unwrap();
        client.delete(&todo.id, "").await.unwrap();
        todo.id
    };
    let old = deleted(&ann, recurring("old", "FREQ=DAILY", proto::todo::Basis::DueTime)).await;
    deleted(&ann, due("new", None)).await;
    ann.titled("not deleted").await;
    let mut admin = harness.database.admin().await;
    // Neither does a timer without its todo stay.
    let orphan = "insert into todo_timer values ('acme', 'PURGE', gen_random_uuid(), '2001-01-01', '2001-01-01')";
    admin.execute(orphan).await.unwrap();
    let long_ago = "update todo set delete_time = delete_time - interval '31 days' where title = 'old'";
    admin.execute(long_ago).await.unwrap();
    until("both timers have gone", || async { timers(&harness, "PURGE").await == 1 }).await;
    let titles: Vec<String> =
        sqlx::query_scalar("select title from todo order by title").fetch_all(&mut admin).await.unwrap();
    assert_eq!(titles, ["(deleted)", "new", "not deleted"]);
    let held: String =
        sqlx::query_scalar("select t::text from todo t where title = '(deleted)'").fetch_one(&mut admin).await.unwrap();
    assert!(!["ann", "bob", "old", "more", "DAILY", "Berlin"].iter().any(|word| held.contains(word)), "{held}");
    assert_eq!(harness.count("todo_occurrence").await, 1, "the occurrence stays taken");
    assert_eq!(reason(ann.get(&old).await), "TODO_NOT_FOUND");
}

#[tokio::test]
async fn todos_of_before_the_timers_have_theirs() {
    // Through 0014 as the releases before went: the first of the migrations that are squashed now.
    let before = async |owner: String| {
        let mut owner = PgConnection::connect(&owner).await.unwrap();
        todo::MIGRATIONS.own.run_to(14, &mut owner).await.unwrap();
    };
    let database = TestDatabase::of("todo", "up_to_14", before).await;
    let mut admin = database.admin().await;
    admin
        .execute(
            "insert into todo (tenant, id, title, notes, status, labels, create_time, update_time, complete_time, created_by, version, due_time, delete_time) \
             select 'acme', gen_random_uuid(), title, '', case when completed is null then 'OPEN' else 'COMPLETED' end, '{}', now(), now(), completed, 'ann', 1, due, deleted \
             from (values ('to come', now() + interval '1 day', null::timestamptz, null::timestamptz), ('overdue', now() - interval '1 day', null, null), \
                   ('completed', now() + interval '1 day', now(), null), ('deleted', now() + interval '1 day', null, now()), ('none', null, null, null)) \
             t (title, due, completed, deleted)",
        )
        .await
        .unwrap();
    // As the owner, whom row-level security binds as well.
    todo::MIGRATIONS.run("todo", &database.owner.clone().into()).await.unwrap();
    let timers: Vec<(String, String)> = sqlx::query_as(
        "select title, kind from todo_timer join todo on (todo.tenant, id) = (todo_timer.tenant, todo_id) order by title",
    )
    .fetch_all(&mut admin)
    .await
    .unwrap();
    let timers: Vec<_> = timers.iter().map(|(title, kind)| (title.as_str(), kind.as_str())).collect();
    assert_eq!(timers, [("deleted", "PURGE"), ("to come", "DUE")]);
}
