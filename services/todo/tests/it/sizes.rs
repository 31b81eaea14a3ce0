//! What an outbox of many rows costs: every statement of the relay and of operators goes by an index, and reads what it is about and
//! not the history. Counted in blocks, not in time.

use std::time::Duration;

use async_nats::jetstream::stream;
use chrono::{DateTime, TimeDelta, Utc};
use outbox::operate::{self, Act};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use testkit::until_within;

use crate::harness::Harness;

const ACT: Act<'static> = Act { actor: "ann", reason: "a test" };
const DAYS: i64 = 10;

/// What has been read of a day's partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Read {
    scans: i64,
    blocks: i64,
}

struct History {
    harness: Harness,
    today: DateTime<Utc>,
}

impl History {
    /// An outbox of so many rows of the last ten days, all of them published long ago; the service is down.
    async fn of(rows: i64) -> Self {
        let harness = Harness::start().await;
        harness.stop().await;
        let mut admin = harness.database.admin().await;
        let today: DateTime<Utc> = sqlx::query_scalar("select date_trunc('day', clock_timestamp(), 'UTC')")
            .fetch_one(&mut admin)
            .await
            .unwrap();
        let history = Self { harness, today };
        for back in 1..=DAYS {
            let name = history.partition(back);
            for sql in [
                // Autovacuum would be counted too.
                format!("create table {name} (like outbox including all) with (autovacuum_enabled = off)"),
                format!("alter table {name} owner to todo_owner"),
                format!(
                    "alter table outbox attach partition {name} for values from ('{}') to ('{}')",
                    history.day(back),
                    history.day(back - 1)
                ),
            ] {
                admin.execute(AssertSqlSafe(sql)).await.unwrap();
            }
        }
        sqlx::query(
            "insert into outbox (seq, created_at, event_id, tenant, aggregate_id, subject, payload) \
             select g, $2 + g * ($3 - $2) / ($1 + 1), gen_random_uuid(), 'acme', 'todo-' || g % 1000, \
             'evt.todo.updated.v1.acme', convert_to('twenty bytes of it..', 'UTF8') from generate_series(1::bigint, $1) g",
        )
        .bind(rows)
        .bind(history.day(DAYS))
        .bind(today)
        .execute(&mut admin)
        .await
        .unwrap();
        sqlx::query(
            "update outbox_relay set outbox_seq = $1, stream_seq = $1, stream_created_at = '2020-01-01', \
             outbox_created_at = (select max(created_at) from outbox where seq = $1)",
        )
        .bind(rows)
        .execute(&mut admin)
        .await
        .unwrap();
        sqlx::query("select setval('outbox_seq', $1)").bind(rows).execute(&mut admin).await.unwrap();
        history
    }

    fn day(&self, back: i64) -> DateTime<Utc> {
        self.today - TimeDelta::days(back)
    }

    fn partition(&self, back: i64) -> String {
        format!("outbox_{}", self.day(back).format("%Y%m%d"))
    }

    /// What has been read of a day, by connections that are closed.
    async fn read(&self, back: i64) -> Read {
        let mut admin = self.harness.database.admin().await;
        let (scans, blocks) = sqlx::query_as(
            "select t.seq_scan, (heap_blks_read + heap_blks_hit + coalesce(idx_blks_read + idx_blks_hit, 0))::bigint \
             from pg_stat_user_tables t join pg_statio_user_tables i using (relid) where t.relname = $1",
        )
        .bind(self.partition(back))
        .fetch_one(&mut admin)
        .await
        .unwrap();
        Read { scans, blocks }
    }

    async fn all_read(&self) -> Vec<Read> {
        // A connection's counts arrive when it ends.
        until_within(testkit::PATIENCE, "nobody else is connected", || async {
            let mut admin = self.harness.database.admin().await;
            let others: i64 = sqlx::query_scalar(
                "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()",
            )
            .fetch_one(&mut admin)
            .await
            .unwrap();
            admin.close().await.unwrap();
            others == 0
        })
        .await;
        let mut read = Vec::new();
        for back in 0..=DAYS {
            read.push(self.read(back).await);
        }
        read
    }

    /// Of each day, from today backwards, the blocks that were read since; none of it by a scan.
    async fn blocks_since(&self, before: &[Read]) -> Vec<i64> {
        let now = self.all_read().await;
        for (back, (before, now)) in before.iter().zip(&now).enumerate() {
            assert_eq!(now.scans, before.scans, "{} is scanned", self.partition(back.try_into().unwrap()));
        }
        before.iter().zip(now).map(|(before, now)| now.blocks - before.blocks).collect()
    }
}

/// What `rows` are about, in blocks: some rows fill one, and each lookup goes down an index of a few levels.
async fn is_bounded(rows: i64) {
    let history = History::of(rows).await;
    let before = history.all_read().await;
    // A wiped broker, and a stream that keeps its messages from an hour before midnight two days ago on.
    let harness = &history.harness;
    let oldest = history.day(1) - TimeDelta::hours(1);
    let mut admin = harness.database.admin().await;
    let now: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut admin).await.unwrap();
    let is = harness.stream().await.cached_info().config.clone();
    let max_age = (now - oldest).to_std().unwrap();
    harness.nats.jetstream().await.update_stream(stream::Config { max_age, ..is }).await.unwrap();
    let young: i64 = sqlx::query_scalar("select count(*) from outbox where created_at >= $1")
        .bind(oldest)
        .fetch_one(&mut admin)
        .await
        .unwrap();
    admin.close().await.unwrap();
    let counted = history.all_read().await;
    assert_ne!(counted, before, "what is read is counted");

    let (app, lifecycle) = harness.second().await;
    let mut status = app.relay.status();
    let done = status.wait_for(|status| status.done >= rows && status.stream_seq > 0);
    tokio::time::timeout(Duration::from_secs(600), done).await.expect("the stream is refilled").unwrap();
    // The first check queries for each day how far it is stored, and makes the days ahead.
    until_within(testkit::PATIENCE, "the relay has looked around", || async {
        let mut admin = harness.database.admin().await;
        let looked: i64 = sqlx::query_scalar("select count(*) from outbox_passed").fetch_one(&mut admin).await.unwrap();
        looked >= DAYS - 2
    })
    .await;
    assert_eq!(lifecycle.shut_down().await, None);
    let stored = i64::try_from(harness.stream().await.get_info().await.unwrap().state.messages).unwrap();
    // The clock has gone on since it was counted.
    assert!(stored <= young && stored > young - young / 100 - 100, "{stored} of {young} rows that are young enough");
    let blocks = history.blocks_since(&counted).await;
    let hour = rows / DAYS / 24;
    let fetched = |rows: i64| rows / 10 + 400;
    assert!(blocks[1] > 0 && blocks[2] > 0, "what is read is counted: {blocks:?}");
    assert!(blocks[1] < fetched(rows / DAYS), "yesterday was published once: {blocks:?}");
    assert!(
        blocks[2] < fetched(2 * hour),
        "of the day before an hour was published, and one looked through: {blocks:?}"
    );
    for (back, blocks) in blocks.iter().enumerate().skip(3) {
        assert!(*blocks < 400, "{back} days ago was looked up and no more: {blocks}");
    }

    // An operator releases an aggregate that was parked when all began.
    let mut admin = harness.database.admin().await;
    sqlx::query(
        "insert into outbox_parked (seq, created_at, event_id, tenant, aggregate_id, subject, reason, epoch) \
         select seq, created_at, event_id, tenant, aggregate_id, subject, 'a test', 1 from outbox where seq = 7",
    )
    .execute(&mut admin)
    .await
    .unwrap();
    admin.close().await.unwrap();
    let before = history.all_read().await;
    let mut admin = harness.database.admin().await;
    assert_eq!(operate::release(&mut admin, "todo-7", ACT).await.unwrap(), 1);
    assert_eq!(operate::requeue(&mut admin, &[8, 9], ACT).await.unwrap(), 2);
    admin.close().await.unwrap();
    let blocks = history.blocks_since(&before).await;
    let sum: i64 = blocks.iter().sum();
    assert!(sum > 0 && sum < 400, "{blocks:?}");

    // Retention drops days as a whole.
    let mut admin = harness.database.admin().await;
    admin.execute("update outbox_passed set at = at - interval '40 days'").await.unwrap();
    admin.close().await.unwrap();
    let before = history.all_read().await;
    let mut admin = harness.database.admin().await;
    let dropped: i32 = sqlx::query_scalar("select outbox_drop_partitions(5)").fetch_one(&mut admin).await.unwrap();
    admin.close().await.unwrap();
    assert_eq!(i64::from(dropped), DAYS - 5);
    for back in 1..=5 {
        let (before, now) = (before[usize::try_from(back).unwrap()], history.read(back).await);
        assert_eq!(now.scans, before.scans, "{} is scanned", history.partition(back));
        assert!(now.blocks - before.blocks < 400, "{back} days ago: {before:?}, {now:?}");
    }
}

#[tokio::test]
async fn o6_at_half_a_million_rows_nothing_reads_the_history() {
    Box::pin(is_bounded(500_000)).await;
}

/// `make sizes`.
#[tokio::test]
#[ignore = "twenty million rows take some minutes and gigabytes"]
async fn o6_at_twenty_million_rows_nothing_reads_the_history() {
    Box::pin(is_bounded(20_000_000)).await;
}
