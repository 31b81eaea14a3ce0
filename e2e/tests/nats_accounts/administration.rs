//! What the administration makes, carries over and bounds.

use std::time::Duration;

use async_nats::jetstream::consumer::{FromConsumer as _, PullConsumer, pull};
use devstack::nats::{Layout, Wanted, changes, configurations};
use futures::StreamExt as _;
use serde_json::json;
use testkit::TestNats;

use crate::fixture::{Fixture, api};

#[tokio::test]
async fn a_data_folder_of_before_the_accounts_is_carried_over() {
    let mut nats = TestNats::alone().await;
    let js = nats.jetstream().await;
    let projector = fleet::PROJECTION.config(String::new());
    let events = fleet::stream("todo", Duration::from_secs(30 * 86_400), 1);
    outbox::administer::stream(&js, &events).await.unwrap();
    consumer::administer::streams(&js, &projector.records, 1).await.unwrap();
    consumer::administer::durables(&js, &js, &projector, None).await.unwrap();
    consumer::administer::letter_reader(&js, &projector.records, fleet::OPERATIONS).await.unwrap();
    // Letters, a running job whose replays wait, and a durable consumer that has read some and was paused.
    for subject in ["evt.todo.created.v1.acme", "dlq.search-projector.a", "replay.search-projector.a"] {
        for _ in 0..3 {
            js.publish(subject, "{}".into()).await.unwrap().await.unwrap();
        }
    }
    // An advisory, as the server gives one.
    let advisory = "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.EVENTS_TODO.gone";
    js.publish(advisory, "{}".into()).await.unwrap();
    let kept = js.get_stream("ADVISORIES").await.unwrap();
    testkit::until("it is kept", || async { kept.get_info().await.unwrap().state.messages == 1 }).await;
    let stream = js.get_stream("EVENTS_TODO").await.unwrap();
    let durable: PullConsumer = stream.get_consumer(fleet::PROJECTOR).await.unwrap();
    let mut batch = durable.fetch().max_messages(2).messages().await.unwrap();
    while let Some(message) = batch.next().await {
        message.unwrap().double_ack().await.unwrap();
    }
    let until = chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now()) + chrono::TimeDelta::hours(1);
    stream.pause_consumer(fleet::PROJECTOR, until).await.unwrap();
    let created = stream.get_info().await.unwrap().created;
    nats.lay_out(Layout::Fleet(Vec::new())).await;
    nats.provision(Wanted::default()).await;
    let stream = nats.jetstream().await.get_stream("EVENTS_TODO").await.unwrap();
    let is = stream.get_info().await.unwrap();
    assert_eq!((is.created, is.state.messages), (created, 3), "the same stream");
    let durable = stream.consumer_info(fleet::PROJECTOR).await.unwrap();
    assert_eq!((durable.ack_floor.stream_sequence, durable.num_pending, durable.paused), (2, 1, true));
    let records = nats.records().await;
    for (name, messages) in [("DLQ", 3), ("REPLAY", 3), ("ADVISORIES", 1)] {
        let stream = records.get_stream(name).await.unwrap();
        assert_eq!(stream.get_info().await.unwrap().state.messages, messages, "{name}");
    }
    let replays = records.get_stream("REPLAY").await.unwrap().consumer_info(fleet::PROJECTOR).await.unwrap();
    assert_eq!(replays.num_pending, 3, "they reach it yet");
    // No pull stays at the server for ever.
    let pulled = [stream.consumer_info(fleet::PROJECTOR).await.unwrap(), replays];
    assert!(pulled.iter().all(|durable| !durable.config.max_expires.is_zero()), "{pulled:?}");
    // A stream stored in both accounts is an error: nothing chooses between them.
    let before = nats.store().join("jetstream/$G/streams/DLQ");
    nats.kill().await;
    std::fs::create_dir_all(&before).unwrap();
    let layout = Layout::Fleet(Vec::new());
    let program = std::path::Path::new("nats-server");
    let twice = devstack::nats::Nats::prepare(nats.home(), program, (nats.port(), nats.port()), layout).unwrap_err();
    assert!(twice.to_string().contains("move the one elsewhere"), "{twice}");
}

#[tokio::test]
async fn what_somebody_has_changed_is_shown_and_put_right() {
    let fixture = Fixture::new(Layout::Fleet(Vec::new())).await;
    let nats = &fixture.nats;
    // The first of the servers that it names is not there.
    let addresses = format!("nats://127.0.0.1:1,{}", nats.address());
    let now = || async { configurations(nats.home(), &addresses).await.unwrap() };
    let made = now().await;
    nats.provision(Wanted::default()).await;
    assert_eq!(changes(&made, &now().await), [], "a second time it changes nothing");

    let stream = nats.jetstream().await.get_stream("EVENTS_TODO").await.unwrap();
    let durable: PullConsumer = stream.get_consumer(fleet::PROJECTOR).await.unwrap();
    let config = pull::Config::try_from_consumer_config(durable.cached_info().config.clone()).unwrap();
    let asked = config.max_ack_pending;
    stream.update_consumer(pull::Config { max_ack_pending: 7, ..config }).await.unwrap();
    stream.delete_consumer("todo-recurrence").await.unwrap();
    let before = now().await;
    nats.provision(Wanted::default()).await;
    let changed = changes(&before, &now().await);
    let [setting, new] = &changed[..] else { panic!("{changed:#?}") };
    assert_eq!(
        (setting.name.as_str(), setting.setting.as_deref()),
        ("EVENTS_TODO/search-projector", Some("max_ack_pending"))
    );
    assert_eq!((setting.before.as_i64(), setting.after.as_i64()), (Some(7), Some(asked)));
    assert_eq!((new.name.as_str(), &new.setting), ("EVENTS_TODO/todo-recurrence", &None));
    assert_eq!(now().await, made, "as it was");
}

#[tokio::test]
async fn a_login_that_a_release_brings_works_without_a_restart() {
    let fixture = Fixture::new(Layout::Fleet(Vec::new())).await;
    let new = fleet::reader("printer", &[("EVENTS_TODO", "printer")]);
    devstack::nats::announce(fixture.nats.home(), &fixture.nats.address(), std::slice::from_ref(&new)).await.unwrap();
    let config = consumer::Config { durable: "printer".to_owned(), ..fleet::PROJECTION.config(String::new()) };
    let (events, records) = (fixture.nats.jetstream().await, fixture.nats.records().await);
    consumer::administer::durables(&events, &records, &config, None).await.unwrap();
    let js = async_nats::jetstream::new(fixture.nats.client("printer").await);
    let durable: PullConsumer = js.get_consumer_from_stream("printer", "EVENTS_TODO").await.unwrap();
    let mut batch = durable.fetch().max_messages(6).messages().await.unwrap();
    let mut read = 0;
    while let Some(message) = batch.next().await {
        message.unwrap().double_ack().await.unwrap();
        read += 1;
    }
    assert_eq!(read, 6);
    // The clients that were connected go on.
    fixture.nats.client("search-projector").await;
}

#[tokio::test]
async fn an_account_has_its_limits_and_takes_nothing_from_another() {
    let fixture = Fixture::new(Layout::Fleet(Vec::new())).await;
    let mut made = 0;
    let refused = loop {
        let name = format!("MORE_{made}");
        let answer =
            api(fixture.admin("TODO"), &format!("STREAM.CREATE.{name}"), json!({"name": name, "subjects": [name]}))
                .await;
        if !answer["error"].is_null() {
            break answer;
        }
        made += 1;
        assert!(made < 100, "there is no limit");
    };
    assert_eq!(refused["error"]["err_code"], 10027, "{refused}");
    let too_large = json!({"name": "LARGE", "subjects": ["large"], "max_bytes": 1_u64 << 40});
    let refused = api(fixture.admin("RECORDS"), "STREAM.CREATE.LARGE", too_large).await;
    assert!(!refused["error"].is_null(), "{refused}");
    // What the server does not know is refused, not passed over.
    let unknown = api(fixture.admin("TODO"), "STREAM.INFO.EVENTS_TODO", json!({"no_such_field": true})).await;
    assert!(!unknown["error"].is_null(), "{unknown}");
    fixture.store("RECORDS", "dlq.search-projector.b".to_owned()).await;
    // Nor more connections than its limit.
    let mut clients = Vec::new();
    let file = fixture.nats.credentials("search-projector");
    let refused = loop {
        match devstack::nats::connect(fixture.nats.home(), &fixture.nats.address(), &file).await {
            Ok(client) => clients.push(client),
            Err(error) => break format!("{error:#}"),
        }
        assert!(clients.len() < 100, "there is no limit");
    };
    assert!(clients.len() >= 20, "{} and then {refused}", clients.len());
    fixture.nats.client("operations").await;
}
