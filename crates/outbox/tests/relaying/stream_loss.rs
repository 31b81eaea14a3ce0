//! O7: a broker that lost what it had acknowledged, and a Postgres that lost what was published.

use async_nats::jetstream::consumer::{PullConsumer, pull};
use devstack::nats::Wanted;
use futures::StreamExt as _;
use outbox::{EVENT_ID_HEADER, NewEvent, operate};
use sqlx::Executor as _;
use testkit::until;

use crate::fixture::{ACT, Fixture, STREAM, SUBJECT, event};

/// An ordinary durable consumer.
async fn consumer(fixture: &Fixture) -> PullConsumer {
    let config = pull::Config { durable_name: Some("reader".to_owned()), ..Default::default() };
    fixture.stream().await.get_or_create_consumer("reader", config).await.unwrap()
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
            read.push(message.headers.as_ref().unwrap().get(EVENT_ID_HEADER).unwrap().to_string());
        }
    }
    read
}

/// Cuts the newest blocks of a stopped server's stream off, as a power failure before the next fsync does.
fn cut_the_tail(fixture: &Fixture) {
    let folder = fixture.nats.streams("TODO").join(STREAM).join("msgs");
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
    let mut fixture = Fixture::new().await;
    fixture.write(40).await;
    fixture.until_checkpointed().await;
    let before = fixture.rows().await;
    assert_eq!(read(&consumer(&fixture).await, &before).await, before);
    fixture.nats.kill().await;
    cut_the_tail(&fixture);
    fixture.nats.restart().await;
    until("the tail is refilled", || async { !fixture.journal(&["refill"]).await.is_empty() }).await;
    fixture.write(1).await;
    fixture.until_whole().await;
    assert_eq!(fixture.stored().await, fixture.rows().await);
    let refill = &fixture.journal(&["refill"]).await[0];
    assert_eq!(refill.2, Some(40));
    let lost = usize::try_from(40 - refill.1.unwrap() + 1).unwrap();
    assert!(refill.3.contains("newest messages are gone") && lost > 0, "{refill:?}");
    // What was lost comes again, then what is new.
    let unread = &fixture.rows().await[40 - lost..];
    let after = read(&consumer(&fixture).await, unread).await;
    assert_eq!(after[after.len() - unread.len()..], *unread);
    fixture.stop().await;
}

#[tokio::test]
async fn o7_a_purged_stream_is_refilled() {
    let fixture = Fixture::new().await;
    fixture.write(10).await;
    fixture.until_checkpointed().await;
    fixture.stream().await.purge().await.unwrap();
    fixture.until_whole().await;
    fixture.write(1).await;
    assert_eq!(fixture.stored().await, fixture.rows().await);
    let refills = fixture.journal(&["refill"]).await;
    assert_eq!(refills.len(), 1, "{refills:?}");
    assert_eq!((refills[0].1, refills[0].2), (Some(1), Some(10)));
    assert!(refills[0].3.contains("purged"), "{refills:?}");
    // It is not refilled for ever.
    fixture.until_checkpointed().await;
    assert_eq!(fixture.journal(&["refill"]).await.len(), 1);
    fixture.stop().await;
}

#[tokio::test]
async fn o7_a_purge_is_noticed_though_a_write_follows_at_once() {
    let fixture = Fixture::new().await;
    fixture.write(10).await;
    fixture.until_checkpointed().await;
    fixture.stream().await.purge().await.unwrap();
    fixture.write(1).await;
    until("the purge is in the journal", || async { !fixture.journal(&["refill"]).await.is_empty() }).await;
    // The new event may be there already, before those that come again, and is then among them once more.
    until("all of it is there in order", || async {
        let stored = fixture.stored().await;
        let rows = fixture.rows().await;
        stored.len() >= rows.len() && stored[stored.len() - rows.len()..] == rows
    })
    .await;
    fixture.write(1).await;
    fixture.drain().await;
    assert_eq!(fixture.journal(&["refill"]).await.len(), 1, "once is enough");
    fixture.stop().await;
}

#[tokio::test]
async fn o7_a_deleted_stream_is_made_anew_and_refilled() {
    let fixture = Fixture::new().await;
    fixture.write(10).await;
    fixture.until_checkpointed().await;
    fixture.nats.jetstream().await.delete_stream(STREAM).await.unwrap();
    fixture.nats.provision(Wanted::default()).await;
    fixture.until_whole().await;
    fixture.write(1).await;
    assert_eq!(fixture.stored().await, fixture.rows().await);
    assert!(fixture.journal(&["refill"]).await[0].3.contains("wiped or deleted"));
    // A new consumer receives everything again.
    let all = fixture.rows().await;
    assert_eq!(read(&consumer(&fixture).await, &all).await, all);
    fixture.stop().await;
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
async fn back_up(fixture: &mut Fixture) -> std::path::PathBuf {
    fixture.nats.kill().await;
    let backup = fixture.nats.store().with_extension("backup");
    copy(fixture.nats.store(), &backup);
    fixture.nats.restart().await;
    backup
}

/// Has the broker hold what it held then; it is left stopped.
async fn put_back(fixture: &mut Fixture, backup: &std::path::Path) {
    fixture.nats.kill().await;
    fixture.nats.wipe();
    copy(backup, fixture.nats.store());
}

#[tokio::test]
async fn o7_a_stream_restored_from_an_older_backup_is_brought_up_to_date() {
    let mut fixture = Fixture::new().await;
    fixture.write(10).await;
    fixture.until_checkpointed().await;
    read(&consumer(&fixture).await, &fixture.rows().await[..5]).await;
    let backup = back_up(&mut fixture).await;
    fixture.write(10).await;
    fixture.until_checkpointed().await;
    put_back(&mut fixture, &backup).await;
    fixture.nats.restart().await;
    fixture.until_whole().await;
    assert_eq!(fixture.stored().await, fixture.rows().await);
    let refill = &fixture.journal(&["refill"]).await[0];
    assert_eq!((refill.1, refill.2), (Some(11), Some(20)));
    // The consumer came back as it was then, and has what it had not handled by then.
    let unread = &fixture.rows().await[5..];
    let after = read(&consumer(&fixture).await, unread).await;
    assert_eq!(after[after.len() - unread.len()..], *unread);
    fixture.stop().await;
}

#[tokio::test]
async fn o7_a_postgres_restored_from_an_older_backup_stops_the_relay_until_somebody_vouches() {
    let fixture = Fixture::new().await;
    fixture.write(10).await;
    fixture.until_checkpointed().await;
    fixture.restore_postgres(6).await;
    let halted = fixture.until_halted().await;
    assert!(halted.contains("ahead of the outbox") && halted.contains("older backup"), "{halted}");
    // Writes go on meanwhile, under numbers that were given out before; none is published.
    fixture.write(3).await;
    let stream = fixture.stream().await;
    assert_eq!(stream.get_info().await.unwrap().state.messages, 10);
    let mut admin = fixture.database.admin().await;
    assert!(operate::overview(&mut admin).await.unwrap().halted.is_some());
    let divergence = operate::divergence(&mut admin, &stream).await.unwrap();
    assert_eq!((divergence.from, divergence.to, divergence.outbox_seq), (7, 10, 6));
    operate::accept(&mut admin, &divergence, ACT, operate::remove(&stream, &divergence)).await.unwrap();
    until("the new rows are published", || async { stream.get_info().await.unwrap().state.messages == 9 }).await;
    // A reader from the beginning of the stream has what the outbox has, and nothing of the lost timeline.
    assert_eq!(fixture.stored().await, fixture.rows().await);
    assert!(matches!(operate::divergence(&mut admin, &stream).await, Err(operate::Refused::NotAhead)));
    let said: Vec<_> =
        fixture.journal(&["halted", "accepted", "refill"]).await.into_iter().map(|line| line.0).collect();
    assert_eq!(said, ["halted", "accepted"]);
    fixture.stop().await;
}

#[tokio::test]
async fn o7_what_neither_stream_nor_outbox_holds_is_named() {
    let mut fixture = Fixture::new().await;
    fixture.write(5).await;
    fixture.until_checkpointed().await;
    let backup = back_up(&mut fixture).await;
    fixture.write(10).await;
    fixture.until_checkpointed().await;
    put_back(&mut fixture, &backup).await;
    // Retention has dropped the first twelve rows meanwhile.
    let mut admin = fixture.database.admin().await;
    admin.execute("delete from outbox where seq <= 12; update outbox_relay set dropped_seq = 12").await.unwrap();
    fixture.nats.restart().await;
    let stream = fixture.stream().await;
    until("the rest is refilled", || async { stream.get_info().await.is_ok_and(|info| info.state.messages == 8) })
        .await;
    let said = fixture.journal(&["missing", "refill"]).await;
    assert_eq!((said[0].0.as_str(), said[0].1, said[0].2), ("missing", Some(6), Some(12)), "{said:?}");
    assert_eq!((said[1].0.as_str(), said[1].1, said[1].2), ("refill", Some(13), Some(15)), "{said:?}");
    fixture.write(1).await;
    assert_eq!(fixture.stored().await[5..], fixture.rows().await);
    fixture.stop().await;
}

#[tokio::test]
async fn numbers_of_a_rollback_that_are_given_out_again_are_not_passed_over() {
    let fixture = Fixture::new().await;
    fixture.write(1).await;
    let mut admin = fixture.database.admin().await;
    // Numbers taken and rolled back, seen by the relay; then the database crashes and gives them out again.
    admin.execute("begin; select nextval('outbox_seq') from generate_series(1, 5); rollback").await.unwrap();
    fixture.until_checkpointed().await;
    fixture.relay.wake();
    fixture.until_done(6).await;
    admin.execute("select setval('outbox_seq', 1)").await.unwrap();
    fixture.write(3).await;
    // The relay has been further than they are numbered.
    fixture.until_holds(4).await;
    assert_eq!(fixture.stored().await, fixture.rows().await);
    assert_eq!(fixture.rows().await.len(), 4);
    fixture.stop().await;
}

/// A row that cannot be published, and two of the same aggregate behind it.
async fn poison(fixture: &Fixture) {
    for subject in ["evt.todo.created.v1.*", SUBJECT, SUBJECT] {
        fixture.append(NewEvent { subject: subject.to_owned(), ..event("poisoned") }).await;
    }
    fixture.relay.wake();
}

#[tokio::test]
async fn o8_released_rows_go_out_in_their_order_with_their_ids() {
    let fixture = Fixture::new().await;
    poison(&fixture).await;
    fixture.write(1).await;
    fixture.drain().await;
    let before = fixture.rows().await;
    assert_eq!(fixture.stored().await, before[3..], "the neighbour passed");
    let mut admin = fixture.database.admin().await;
    assert_eq!(operate::parked(&mut admin).await.unwrap().len(), 3);
    // Released as it is, the first is parked again, with those behind it.
    assert_eq!(operate::release(&mut admin, "poisoned", ACT).await.unwrap(), 3);
    fixture.relay.wake();
    until("they are parked again", || async {
        let mut admin = fixture.database.admin().await;
        let parked = operate::parked(&mut admin).await.unwrap();
        parked.len() == 3 && parked[0].seq > 4
    })
    .await;
    // Without the first, the others go out, and later ones behind them.
    let first = operate::parked(&mut admin).await.unwrap()[0].seq;
    operate::discard(&mut admin, first, ACT).await.unwrap();
    fixture.append(event("poisoned")).await;
    assert_eq!(operate::release(&mut admin, "poisoned", ACT).await.unwrap(), 3);
    fixture.relay.wake();
    let newest: String = sqlx::query_scalar("select event_id::text from outbox order by seq desc limit 1")
        .fetch_one(&mut admin)
        .await
        .unwrap();
    let wanted = [before[3].clone(), before[1].clone(), before[2].clone(), newest];
    assert_eq!(fixture.stored().await, wanted);
    assert!(operate::parked(&mut admin).await.unwrap().is_empty());
    let said: Vec<_> =
        fixture.journal(&["parked", "released", "discarded"]).await.into_iter().map(|line| line.0).collect();
    assert_eq!(said, ["parked", "released", "parked", "discarded", "released"]);
    fixture.stop().await;
}

#[tokio::test]
async fn o8_a_refill_after_a_release_repeats_what_was_published_and_nothing_else() {
    let mut fixture = Fixture::new().await;
    fixture.write(1).await;
    poison(&fixture).await;
    fixture.drain().await;
    let mut admin = fixture.database.admin().await;
    let first = operate::parked(&mut admin).await.unwrap()[0].seq;
    operate::discard(&mut admin, first, ACT).await.unwrap();
    operate::release(&mut admin, "poisoned", ACT).await.unwrap();
    fixture.relay.wake();
    fixture.until_checkpointed().await;
    let before = fixture.stored().await;
    assert_eq!(before.len(), 3);
    fixture.nats.kill().await;
    fixture.nats.wipe();
    fixture.nats.restart().await;
    fixture.until_holds(3).await;
    assert_eq!(fixture.stored().await, before);
    fixture.stop().await;
}

#[tokio::test]
async fn what_is_not_parked_cannot_be_worked() {
    let fixture = Fixture::new().await;
    fixture.write(1).await;
    let mut admin = fixture.database.admin().await;
    let refused = operate::release(&mut admin, "nobody", ACT).await.unwrap_err().to_string();
    assert!(refused.contains("nobody is not parked"), "{refused}");
    let refused = operate::discard(&mut admin, 1, ACT).await.unwrap_err().to_string();
    assert!(refused.contains("row 1 is not parked"), "{refused}");
    fixture.until_checkpointed().await;
    let stream = fixture.stream().await;
    let refused = operate::divergence(&mut admin, &stream).await.unwrap_err().to_string();
    assert!(refused.contains("nothing to accept"), "{refused}");
    assert!(fixture.journal(&["released", "discarded", "accepted"]).await.is_empty());
    fixture.stop().await;
}
