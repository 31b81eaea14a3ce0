//! A sequence that fell behind its table, a stream with a hole, with another configuration, or without its newest message:
//! detected, reported, and repaired.

use async_nats::jetstream::stream;
use devstack::nats::Wanted;
use outbox::operate;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use testkit::until;

use crate::fixture::{ACT, Fixture};

#[tokio::test]
async fn o2_a_sequence_that_fell_behind_the_stream_stops_the_relay_until_it_is_set_right() {
    let fixture = Fixture::new().await;
    fixture.write(10).await;
    fixture.until_checkpointed().await;
    // As after a failover by logical replication: the rows are all there, the sequence is not.
    let mut admin = fixture.database.admin().await;
    admin.execute("select setval('outbox_seq', 3)").await.unwrap();
    fixture.write(3).await;
    let halted = fixture.until_halted().await;
    assert!(halted.contains("stands at") && halted.contains("operate::renumber"), "{halted}");
    let stream = fixture.stream().await;
    assert_eq!(stream.get_info().await.unwrap().state.messages, 10);
    // The sequence alone is not enough: what is numbered behind would never go out.
    admin.execute("select setval('outbox_seq', 10)").await.unwrap();
    until("it still waits, and says why", || async {
        let halted = operate::overview(&mut fixture.database.admin().await).await.unwrap().halted;
        halted.is_some_and(|why| why.contains("3 rows, first 4"))
    })
    .await;
    let behind = operate::numbered_behind(&mut admin, &stream).await.unwrap();
    assert_eq!(behind.rows.iter().map(|row| row.seq).collect::<Vec<_>>(), [4, 5, 6]);
    assert_eq!(operate::renumber(&mut admin, &behind, ACT).await.unwrap(), 3);
    until("they are published", || async { stream.get_info().await.unwrap().state.messages == 13 }).await;
    fixture.write(2).await;
    until("what follows is published", || async { stream.get_info().await.unwrap().state.messages == 15 }).await;
    assert_eq!(fixture.stored().await, fixture.rows().await);
    assert!(matches!(operate::numbered_behind(&mut admin, &stream).await, Err(operate::Refused::NothingBehind)));
    fixture.stop().await;
}

#[tokio::test]
async fn o7_a_stream_whose_last_message_was_removed_goes_on_behind_the_one_before() {
    let fixture = Fixture::new().await;
    fixture.write(4).await;
    fixture.until_checkpointed().await;
    let stream = fixture.stream().await;
    stream.delete_message(4).await.unwrap();
    // A new lead takes its position from what is left, and publishes the last one again.
    let mut admin = fixture.database.admin().await;
    admin.execute("update outbox_relay set epoch = epoch + 1").await.unwrap();
    until("it is there again", || async { stream.get_info().await.unwrap().state.last_sequence == 5 }).await;
    assert_eq!(fixture.stored().await, fixture.rows().await);
    fixture.stop().await;
}

#[tokio::test]
async fn o2_rows_are_not_lost_though_writes_have_overtaken_the_stream_since_the_sequence_fell_back() {
    let fixture = Fixture::new().await;
    fixture.write(10).await;
    fixture.until_checkpointed().await;
    let mut admin = fixture.database.admin().await;
    // All of it before any relay checks.
    admin
        .execute(
            "select setval('outbox_seq', 3); insert into outbox (event_id, tenant, aggregate_id, subject, payload) \
             select gen_random_uuid(), 'acme', 'a' || n, 'evt.todo.created.v1.acme', '{}' from generate_series(1, 12) n",
        )
        .await
        .unwrap();
    let halted = fixture.until_halted().await;
    assert!(halted.contains("7 rows, first 4"), "{halted}");
    let stream = fixture.stream().await;
    let behind = operate::numbered_behind(&mut admin, &stream).await.unwrap();
    assert_eq!(operate::renumber(&mut admin, &behind, ACT).await.unwrap(), 7);
    until("all are published", || async { stream.get_info().await.unwrap().state.messages == 22 }).await;
    let (mut all, mut wanted) = (fixture.stored().await, fixture.rows().await);
    all.sort();
    wanted.sort();
    assert_eq!(all, wanted);
    fixture.stop().await;
}

#[tokio::test]
async fn a_hole_in_the_stream_is_filled_by_an_operator() {
    let fixture = Fixture::new().await;
    fixture.write(5).await;
    fixture.until_checkpointed().await;
    let stream = fixture.stream().await;
    let lost = fixture.stored().await[2].clone();
    stream.delete_message(3).await.unwrap();
    let mut admin = fixture.database.admin().await;
    assert!(matches!(operate::requeue(&mut admin, &[3, 99], ACT).await, Err(operate::Refused::NoRow(99))));
    assert_eq!(operate::requeue(&mut admin, &[3], ACT).await.unwrap(), 1);
    until("it is there again", || async { fixture.stored().await.last() == Some(&lost) }).await;
    let said = fixture.journal(&["refill"]).await;
    assert_eq!((said[0].1, said[0].2), (Some(3), Some(3)), "{said:?}");
    fixture.stop().await;
}

#[tokio::test]
async fn a_stream_that_is_not_as_it_was_asked_for_is_changed_and_what_aged_out_is_not_published_again() {
    let fixture = Fixture::new().await;
    fixture.write(4).await;
    fixture.until_checkpointed().await;
    let stream = fixture.stream().await;
    let as_asked = stream.get_info().await.unwrap().config;
    let js = fixture.nats.jetstream().await;
    let edited = stream::Config {
        max_age: std::time::Duration::from_millis(300),
        duplicate_window: std::time::Duration::from_millis(300),
        discard: stream::DiscardPolicy::Old,
        ..as_asked.clone()
    };
    js.update_stream(edited).await.unwrap();
    until("they have aged out", || async { stream.get_info().await.unwrap().state.messages == 0 }).await;
    // A new lead compares.
    let mut admin = fixture.database.admin().await;
    admin.execute("update outbox_relay set epoch = epoch + 1").await.unwrap();
    fixture.nats.provision(Wanted::default()).await;
    let is = stream.get_info().await.unwrap().config;
    assert_eq!(is.discard, stream::DiscardPolicy::New, "what may be changed is changed");
    assert_eq!(is.max_age, std::time::Duration::from_millis(300), "the age limit is an operator's to change");
    fixture.write(1).await;
    until("what is new is published", || async { stream.get_info().await.unwrap().state.last_sequence == 5 }).await;
    assert_eq!(fixture.journal(&["refill", "missing"]).await, []);
    fixture.stop().await;
}

#[tokio::test]
async fn a_purge_just_before_the_relay_stops_is_noticed_by_the_next_one() {
    let mut fixture = Fixture::new().await;
    fixture.write(4).await;
    fixture.until_checkpointed().await;
    let stream = fixture.stream().await;
    stream.purge().await.unwrap();
    fixture.write(1).await;
    fixture.anew().await;
    until("all is there again", || async { fixture.stored().await.len() >= 5 }).await;
    let all = fixture.stored().await;
    assert!(fixture.rows().await.iter().all(|row| all.contains(row)));
    fixture.stop().await;
}

#[tokio::test]
async fn o7_no_halt_is_written_down_while_an_operator_removes_what_it_is_about_and_one_that_stays_is() {
    let fixture = Fixture::new().await;
    fixture.write(10).await;
    fixture.until_checkpointed().await;
    // An operator is in the middle of it, and takes longer than the relay's check.
    let mut operator = fixture.database.admin().await;
    operator.execute(AssertSqlSafe(format!("select pg_advisory_lock({})", operate::ACCEPTING))).await.unwrap();
    fixture.restore_postgres(6).await;
    fixture.until_halted().await;
    let halts = || async { fixture.journal(&["halted"]).await.len() };
    assert_eq!(halts().await, 0);
    // An interrupted operator holds no lock, and the stream is ahead still.
    operator.close().await.unwrap();
    until("the halt is written down", || async { halts().await == 1 }).await;
    fixture.stop().await;
}
