//! Days of the outbox that are over: what is dropped of them, and what is not.

use chrono::{DateTime, Utc};
use devstack::nats::Wanted;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};

use crate::fixture::{Fixture, STREAM};

/// Puts a row into the outbox as of a day that many days ago, in a partition of its own; when that day began.
async fn written_days_ago(admin: &mut PgConnection, back: i32, seq: i64) -> DateTime<Utc> {
    let begins = "select date_trunc('day', clock_timestamp(), 'UTC') - make_interval(days => $1)";
    let from: DateTime<Utc> = sqlx::query_scalar(begins).bind(back).fetch_one(&mut *admin).await.unwrap();
    let (to, name) = (from + chrono::TimeDelta::days(1), from.format("%Y%m%d"));
    for sql in [
        format!("create table outbox_{name} (like outbox including all)"),
        format!("alter table outbox_{name} owner to todo_owner"),
        format!("alter table outbox attach partition outbox_{name} for values from ('{from}') to ('{to}')"),
        format!(
            "insert into outbox (seq, created_at, event_id, tenant, aggregate_id, subject, payload) \
             values ({seq}, '{from}', gen_random_uuid(), 'acme', 'a', 'evt.todo.created.v1.acme', '')"
        ),
    ] {
        admin.execute(AssertSqlSafe(sql)).await.unwrap();
    }
    from
}

/// As after a halt of weeks, which somebody ended today: what was written then has been in the stream for no time at all.
#[tokio::test]
async fn o7_what_was_published_long_after_it_was_written_comes_again_into_a_stream_that_was_lost() {
    let fixture = Fixture::new().await;
    let mut admin = fixture.database.admin().await;
    admin.execute("select setval('outbox_seq', 1)").await.unwrap();
    let kept = i32::try_from(Wanted::default().max_age.as_secs() / 86_400).unwrap();
    written_days_ago(&mut admin, kept + 10, 1).await;
    fixture.write(3).await;
    fixture.until_checkpointed().await;
    let all = fixture.rows().await;
    assert_eq!((all.len(), fixture.stored().await), (4, all.clone()));
    // Retention's check, which notes when the day was stored.
    admin.execute("select outbox_drop_partitions(1)").await.unwrap();
    fixture.nats.jetstream().await.delete_stream(STREAM).await.unwrap();
    fixture.nats.provision(Wanted::default()).await;
    fixture.until_whole().await;
    assert_eq!(fixture.stored().await, all);
    fixture.stop().await;
}

#[tokio::test]
async fn retention_drops_only_what_is_old_and_safely_stored() {
    let fixture = Fixture::new().await;
    fixture.write(2).await;
    fixture.until_checkpointed().await;
    let mut admin = fixture.database.admin().await;
    // Three days long gone: stored, stored, and parked on.
    let mut days = Vec::new();
    for (back, seq) in [(9, -3), (8, -2), (7, -1)] {
        days.push(written_days_ago(&mut admin, back, seq).await);
    }
    admin
        .execute(AssertSqlSafe(format!(
            "insert into outbox_parked (seq, created_at, event_id, tenant, aggregate_id, subject, reason, epoch) \
             values (-1, '{}', gen_random_uuid(), 'acme', 'a', 's', 'r', 1)",
            days[2]
        )))
        .await
        .unwrap();
    let drop = async |keep: i32| -> i32 {
        let mut admin = fixture.database.admin().await;
        sqlx::query_scalar("select outbox_drop_partitions($1)").bind(keep).fetch_one(&mut admin).await.unwrap()
    };
    assert_eq!(drop(1).await, 0, "old as they are, they were seen to be stored only now");
    admin.execute("update outbox_passed set at = at - interval '8 days'").await.unwrap();
    assert_eq!(drop(8).await, 1, "older than eight days after its end, and stored as long ago: one");
    assert_eq!(drop(1).await, 1, "not the day with a parked row, and nothing behind it");
    admin.execute("update outbox_parked set state = 'discarded'").await.unwrap();
    assert_eq!(drop(1).await, 1);
    assert_eq!(drop(1).await, 0, "today stays, whatever is asked");
    let left: i64 = sqlx::query_scalar("select min(seq) from outbox").fetch_one(&mut admin).await.unwrap();
    assert_eq!(left, 1);
    // A row that is not known to be stored holds its day.
    written_days_ago(&mut admin, 5, 1_000_000).await;
    // And a partition under a name of somebody's own is not retention's.
    for sql in [
        "create table outbox_kept (like outbox including all)",
        "alter table outbox attach partition outbox_kept for values from ('2020-01-01 00:00+00') to ('2020-01-02 00:00+00')",
    ] {
        admin.execute(sql).await.unwrap();
    }
    assert_eq!(drop(1).await, 0);
    assert_eq!(fixture.journal(&["dropped"]).await.len(), 3);
    fixture.stop().await;
}
