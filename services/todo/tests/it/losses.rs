//! O7: a broker that lost what it had acknowledged, and a Postgres that lost what was published.

use async_nats::jetstream::consumer::{PullConsumer, pull};
use futures::StreamExt as _;
use outbox::operate::{self, Act};
use sqlx::{AssertSqlSafe, Executor as _};
use testkit::until;

use crate::harness::Fleet;
use crate::relay::{ids, rows, until_halted};

pub const STREAM: &str = "EVENTS_TODO";
pub const ACT: Act<'static> = Act { actor: "ann", reason: "a test" };

/// A durable consumer as anybody's.
async fn consumer(fleet: &Fleet) -> PullConsumer {
    let config = pull::Config { durable_name: Some("reader".to_owned()), ..Default::default() };
    fleet
        .nats
        .jetstream()
        .await
        .get_stream(STREAM)
        .await
        .unwrap()
        .get_or_create_consumer("reader", config)
        .await
        .unwrap()
}

/// Reads and acknowledges one event after the other until all of these were there; their ids. A consumer that lost what
/// it had acknowledged repeats some: its state is written as lazily as the stream's.
async fn read(consumer: &PullConsumer, wanted: &[String]) -> Vec<String> {
    let mut read = Vec::new();
    while !wanted.iter().all(|id| read.contains(id)) {
        let mut batch = consumer.fetch().max_messages(1).messages().await.unwrap();
        while let Some(message) = batch.next().await {
            let message = message.unwrap();
            message.double_ack().await.unwrap();
            read.push(message.headers.as_ref().unwrap().get("Outbox-Event-Id").unwrap().to_string());
        }
    }
    read
}

/// What the journal says of these kinds, oldest first, with the rows.
pub async fn journal(fleet: &Fleet, kinds: &[&str]) -> Vec<(String, Option<i64>, Option<i64>, String)> {
    let mut admin = fleet.database.admin().await;
    let mut lines = operate::journal(&mut admin, 100).await.unwrap();
    lines.reverse();
    lines.retain(|line| kinds.contains(&line.kind.as_str()));
    lines.into_iter().map(|line| (line.kind, line.from_seq, line.to_seq, line.detail)).collect()
}

/// Waits until the relay has written down how far it has come.
pub async fn until_checkpointed(fleet: &Fleet) {
    fleet.drain().await;
    until("the checkpoint is at the newest row", || async {
        let mut admin = fleet.database.admin().await;
        let at: bool = sqlx::query_scalar("select outbox_seq = (select max(seq) from outbox) from outbox_relay")
            .fetch_one(&mut admin)
            .await
            .unwrap();
        at
    })
    .await;
}

pub async fn until_whole(fleet: &Fleet) {
    let rows = rows(fleet).await;
    until("the stream holds every row", || async {
        let Ok(stream) = fleet.nats.jetstream().await.get_stream(STREAM).await else { return false };
        stream.get_info().await.is_ok_and(|info| info.state.messages >= rows.len() as u64)
    })
    .await;
}

/// Writes a number of todos.
pub async fn write(fleet: &Fleet, count: usize) {
    let ann = fleet.client("acme", "ann");
    for n in 0..count {
        ann.titled(&n.to_string()).await;
    }
}

/// Cuts the newest blocks of a stopped server's stream off, as a power failure before the next fsync does.
fn cut_the_tail(fleet: &Fleet) {
    let folder = fleet.nats.streams("TODO").join(STREAM).join("msgs");
    let mut blocks: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "blk"))
        .collect();
    blocks.sort();
    let newest = blocks.last().unwrap();
    let size = std::fs::metadata(newest).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(newest).unwrap().set_len(size * 4 / 5).unwrap();
    std::fs::remove_file(folder.join("index.db")).ok();
}

#[tokio::test]
async fn o7_a_lost_tail_is_refilled_and_reaches_consumers_that_were_ahead() {
    let mut fleet = Fleet::start().await;
    write(&fleet, 40).await;
    until_checkpointed(&fleet).await;
    let before = rows(&fleet).await;
    assert_eq!(read(&consumer(&fleet).await, &before).await, before);
    fleet.nats.kill().await;
    cut_the_tail(&fleet);
    fleet.nats.restart().await;
    until("the tail is refilled", || async { !journal(&fleet, &["refill"]).await.is_empty() }).await;
    write(&fleet, 1).await;
    until_whole(&fleet).await;
    assert_eq!(ids(&fleet.events().await), rows(&fleet).await);
    let refill = &journal(&fleet, &["refill"]).await[0];
    assert_eq!(refill.2, Some(40));
    let lost = usize::try_from(40 - refill.1.unwrap() + 1).unwrap();
    assert!(refill.3.contains("newest messages are gone") && lost > 0, "{refill:?}");
    // What was lost comes again, then what is new.
    let unread = &rows(&fleet).await[40 - lost..];
    let after = read(&consumer(&fleet).await, unread).await;
    assert_eq!(after[after.len() - unread.len()..], *unread);
}

#[tokio::test]
async fn o7_a_purged_stream_is_refilled() {
    let fleet = Fleet::start().await;
    write(&fleet, 10).await;
    until_checkpointed(&fleet).await;
    fleet.stream().await.purge().await.unwrap();
    until_whole(&fleet).await;
    write(&fleet, 1).await;
    assert_eq!(ids(&fleet.events().await), rows(&fleet).await);
    let refills = journal(&fleet, &["refill"]).await;
    assert_eq!(refills.len(), 1, "{refills:?}");
    assert_eq!((refills[0].1, refills[0].2), (Some(1), Some(10)));
    assert!(refills[0].3.contains("purged"), "{refills:?}");
    // It is not refilled for ever.
    until_checkpointed(&fleet).await;
    assert_eq!(journal(&fleet, &["refill"]).await.len(), 1);
}

#[tokio::test]
async fn o7_a_purge_is_noticed_though_a_write_follows_at_once() {
    let fleet = Fleet::start().await;
    write(&fleet, 10).await;
    until_checkpointed(&fleet).await;
    fleet.stream().await.purge().await.unwrap();
    write(&fleet, 1).await;
    until("the purge is in the journal", || async { !journal(&fleet, &["refill"]).await.is_empty() }).await;
    // The new event may be there already, before those that come again, and is then among them once more.
    until("all of it is there in order", || async {
        let stored = ids(&fleet.events().await);
        let rows = rows(&fleet).await;
        stored.len() >= rows.len() && stored[stored.len() - rows.len()..] == rows
    })
    .await;
    write(&fleet, 1).await;
    fleet.drain().await;
    assert_eq!(journal(&fleet, &["refill"]).await.len(), 1, "once is enough");
}

#[tokio::test]
async fn o7_a_deleted_stream_is_made_anew_and_refilled() {
    let fleet = Fleet::start().await;
    write(&fleet, 10).await;
    until_checkpointed(&fleet).await;
    fleet.nats.jetstream().await.delete_stream(STREAM).await.unwrap();
    fleet.nats.provision(devstack::nats::Wanted::default()).await;
    until_whole(&fleet).await;
    write(&fleet, 1).await;
    assert_eq!(ids(&fleet.events().await), rows(&fleet).await);
    assert!(journal(&fleet, &["refill"]).await[0].3.contains("wiped or deleted"));
    // A consumer that is made anew has everything again.
    let all = rows(&fleet).await;
    assert_eq!(read(&consumer(&fleet).await, &all).await, all);
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// A copy of what the broker has stored, taken while it is down for a moment.
async fn back_up(fleet: &mut Fleet) -> std::path::PathBuf {
    fleet.nats.kill().await;
    let backup = fleet.nats.store().with_extension("backup");
    copy(fleet.nats.store(), &backup);
    fleet.nats.restart().await;
    backup
}

/// Has the broker hold what it held then; it is left stopped.
async fn put_back(fleet: &mut Fleet, backup: &std::path::Path) {
    fleet.nats.kill().await;
    fleet.nats.wipe();
    copy(backup, fleet.nats.store());
}

#[tokio::test]
async fn o7_a_stream_restored_from_an_older_backup_is_brought_up_to_date() {
    let mut fleet = Fleet::start().await;
    write(&fleet, 10).await;
    until_checkpointed(&fleet).await;
    read(&consumer(&fleet).await, &rows(&fleet).await[..5]).await;
    let backup = back_up(&mut fleet).await;
    write(&fleet, 10).await;
    until_checkpointed(&fleet).await;
    put_back(&mut fleet, &backup).await;
    fleet.nats.restart().await;
    until_whole(&fleet).await;
    assert_eq!(ids(&fleet.events().await), rows(&fleet).await);
    let refill = &journal(&fleet, &["refill"]).await[0];
    assert_eq!((refill.1, refill.2), (Some(11), Some(20)));
    // The consumer came back as it was then, and has what it had not handled by then.
    let unread = &rows(&fleet).await[5..];
    let after = read(&consumer(&fleet).await, unread).await;
    assert_eq!(after[after.len() - unread.len()..], *unread);
}

/// Takes Postgres back to where it was after so many rows, as a restore from a backup does.
pub async fn restore_postgres(fleet: &Fleet, rows: i64) {
    let mut admin = fleet.database.admin().await;
    for sql in [
        format!("delete from outbox where seq > {rows}"),
        format!("select setval('outbox_seq', {rows})"),
        "delete from todo_label".to_owned(),
        "delete from todo".to_owned(),
        format!(
            "update outbox_relay set outbox_seq = {rows}, stream_seq = {rows}, \
             outbox_created_at = (select created_at from outbox where seq = {rows})"
        ),
        "delete from outbox_journal".to_owned(),
    ] {
        admin.execute(AssertSqlSafe(sql)).await.unwrap();
    }
}

#[tokio::test]
async fn o7_a_postgres_restored_from_an_older_backup_stops_the_relay_until_somebody_vouches() {
    let fleet = Fleet::start().await;
    write(&fleet, 10).await;
    until_checkpointed(&fleet).await;
    restore_postgres(&fleet, 6).await;
    let halted = until_halted(&fleet).await;
    assert!(halted.contains("ahead of the outbox") && halted.contains("older backup"), "{halted}");
    // Writes go on meanwhile, under numbers that were given out before; none is published.
    write(&fleet, 3).await;
    let stream = fleet.stream().await;
    assert_eq!(stream.get_info().await.unwrap().state.messages, 10);
    let mut admin = fleet.database.admin().await;
    assert!(operate::overview(&mut admin).await.unwrap().halted.is_some());
    let beyond = operate::beyond(&mut admin, &stream).await.unwrap();
    assert_eq!((beyond.from, beyond.to, beyond.outbox_seq), (7, 10, 6));
    operate::accept(&mut admin, &stream, &beyond, ACT).await.unwrap();
    until("the new rows are published", || async { stream.get_info().await.unwrap().state.messages == 9 }).await;
    // Whoever reads the stream from its beginning has what the outbox has, and nothing of the lost timeline.
    assert_eq!(stored(&fleet).await, rows(&fleet).await);
    assert!(matches!(operate::beyond(&mut admin, &stream).await, Err(operate::Refused::NotAhead)));
    let said: Vec<_> =
        journal(&fleet, &["halted", "accepted", "refill"]).await.into_iter().map(|line| line.0).collect();
    assert_eq!(said, ["halted", "accepted"]);
}

#[tokio::test]
async fn o7_what_neither_stream_nor_outbox_holds_is_named() {
    let mut fleet = Fleet::start().await;
    write(&fleet, 5).await;
    until_checkpointed(&fleet).await;
    let backup = back_up(&mut fleet).await;
    write(&fleet, 10).await;
    until_checkpointed(&fleet).await;
    put_back(&mut fleet, &backup).await;
    // Retention has dropped the first twelve rows meanwhile.
    let mut admin = fleet.database.admin().await;
    admin.execute("delete from outbox where seq <= 12; update outbox_relay set dropped_seq = 12").await.unwrap();
    fleet.nats.restart().await;
    let stream = fleet.stream().await;
    until("the rest is refilled", || async { stream.get_info().await.is_ok_and(|info| info.state.messages == 8) })
        .await;
    let said = journal(&fleet, &["missing", "refill"]).await;
    assert_eq!((said[0].0.as_str(), said[0].1, said[0].2), ("missing", Some(6), Some(12)), "{said:?}");
    assert_eq!((said[1].0.as_str(), said[1].1, said[1].2), ("refill", Some(13), Some(15)), "{said:?}");
    write(&fleet, 1).await;
    assert_eq!(ids(&fleet.events().await)[5..], rows(&fleet).await);
}

#[tokio::test]
async fn numbers_of_a_rollback_that_are_given_out_again_are_not_passed_over() {
    let fleet = Fleet::start().await;
    write(&fleet, 1).await;
    let mut admin = fleet.database.admin().await;
    // Numbers taken and rolled back, seen by the relay; then the database crashes and gives them out again.
    admin.execute("begin; select nextval('outbox_seq') from generate_series(1, 5); rollback").await.unwrap();
    until_checkpointed(&fleet).await;
    fleet.app.relay.wake();
    let mut status = fleet.app.relay.status();
    tokio::time::timeout(testkit::PATIENCE, status.wait_for(|status| status.done >= 6)).await.unwrap().unwrap();
    admin.execute("select setval('outbox_seq', 1)").await.unwrap();
    write(&fleet, 3).await;
    assert_eq!(ids(&fleet.events().await), rows(&fleet).await);
    assert_eq!(rows(&fleet).await.len(), 4);
}

/// A row that cannot be published, and two of the same aggregate behind it.
async fn poison(fleet: &Fleet) {
    let mut admin = fleet.database.admin().await;
    for subject in ["evt.todo.created.v1.*", "evt.todo.updated.v1.acme", "evt.todo.updated.v1.acme"] {
        sqlx::query(
            "insert into outbox (event_id, tenant, aggregate_id, subject, payload) \
             values (gen_random_uuid(), 'acme', 'poisoned', $1, '{}')",
        )
        .bind(subject)
        .execute(&mut admin)
        .await
        .unwrap();
    }
    fleet.app.relay.wake();
}

/// The event ids that the stream holds, in order.
pub async fn stored(fleet: &Fleet) -> Vec<String> {
    fleet.drain().await;
    let stream = fleet.stream().await;
    let mut ids = Vec::new();
    for sequence in 1..=stream.get_info().await.unwrap().state.last_sequence {
        // What was purged or deleted has left a hole.
        if let Ok(message) = stream.get_raw_message(sequence).await {
            ids.push(message.headers.get("Outbox-Event-Id").unwrap().to_string());
        }
    }
    ids
}

#[tokio::test]
async fn o8_released_rows_go_out_in_their_order_with_their_ids() {
    let fleet = Fleet::start().await;
    poison(&fleet).await;
    write(&fleet, 1).await;
    fleet.drain().await;
    let before = rows(&fleet).await;
    assert_eq!(stored(&fleet).await, before[3..], "the neighbour passed");
    let mut admin = fleet.database.admin().await;
    assert_eq!(operate::parked(&mut admin).await.unwrap().len(), 3);
    // Released as it is, the first is parked again, with those behind it.
    assert_eq!(operate::release(&mut admin, "poisoned", ACT).await.unwrap(), 3);
    fleet.app.relay.wake();
    until("they are parked again", || async {
        let mut admin = fleet.database.admin().await;
        let parked = operate::parked(&mut admin).await.unwrap();
        parked.len() == 3 && parked[0].seq > 4
    })
    .await;
    // Without the first, the others go out, and later ones behind them.
    let first = operate::parked(&mut admin).await.unwrap()[0].seq;
    operate::discard(&mut admin, first, ACT).await.unwrap();
    sqlx::query(
        "insert into outbox (event_id, tenant, aggregate_id, subject, payload) \
         values (gen_random_uuid(), 'acme', 'poisoned', 'evt.todo.updated.v1.acme', '{}')",
    )
    .execute(&mut admin)
    .await
    .unwrap();
    assert_eq!(operate::release(&mut admin, "poisoned", ACT).await.unwrap(), 3);
    fleet.app.relay.wake();
    let newest: String = sqlx::query_scalar("select event_id::text from outbox order by seq desc limit 1")
        .fetch_one(&mut admin)
        .await
        .unwrap();
    let wanted = [before[3].clone(), before[1].clone(), before[2].clone(), newest];
    assert_eq!(stored(&fleet).await, wanted);
    assert!(operate::parked(&mut admin).await.unwrap().is_empty());
    let said: Vec<_> =
        journal(&fleet, &["parked", "released", "discarded"]).await.into_iter().map(|line| line.0).collect();
    assert_eq!(said, ["parked", "released", "parked", "discarded", "released"]);
}

#[tokio::test]
async fn o8_a_refill_after_a_release_repeats_what_was_published_and_nothing_else() {
    let mut fleet = Fleet::start().await;
    write(&fleet, 1).await;
    poison(&fleet).await;
    fleet.drain().await;
    let mut admin = fleet.database.admin().await;
    let first = operate::parked(&mut admin).await.unwrap()[0].seq;
    operate::discard(&mut admin, first, ACT).await.unwrap();
    operate::release(&mut admin, "poisoned", ACT).await.unwrap();
    fleet.app.relay.wake();
    until_checkpointed(&fleet).await;
    let before = stored(&fleet).await;
    assert_eq!(before.len(), 3);
    fleet.nats.kill().await;
    fleet.nats.wipe();
    fleet.nats.restart().await;
    until("the stream is refilled", || async {
        let Ok(stream) = fleet.nats.jetstream().await.get_stream(STREAM).await else { return false };
        stream.get_info().await.is_ok_and(|info| info.state.messages >= 3)
    })
    .await;
    assert_eq!(stored(&fleet).await, before);
}

#[tokio::test]
async fn what_is_not_parked_cannot_be_worked() {
    let fleet = Fleet::start().await;
    write(&fleet, 1).await;
    let mut admin = fleet.database.admin().await;
    let refused = operate::release(&mut admin, "nobody", ACT).await.unwrap_err().to_string();
    assert!(refused.contains("nobody is not parked"), "{refused}");
    let refused = operate::discard(&mut admin, 1, ACT).await.unwrap_err().to_string();
    assert!(refused.contains("row 1 is not parked"), "{refused}");
    until_checkpointed(&fleet).await;
    let stream = fleet.stream().await;
    let refused = operate::beyond(&mut admin, &stream).await.unwrap_err().to_string();
    assert!(refused.contains("nothing to accept"), "{refused}");
    assert!(journal(&fleet, &["released", "discarded", "accepted"]).await.is_empty());
}
