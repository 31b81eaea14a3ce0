//! Credentials of programs that read one tenant's events.

use async_nats::jetstream::consumer::PullConsumer;
use bytes::Bytes;
use devstack::nats::Layout;
use devstack::nats::team::Team;
use devstack::nats::teams;
use fleet::Login;
use futures::{FutureExt as _, StreamExt as _};
use testkit::until;

use crate::fixture::{Fixture, SETTLES, team};

#[tokio::test]
async fn a_tenants_program_learns_nothing_of_others_and_is_cut_off_when_its_credential_is_revoked() {
    let mut fixture = Fixture::new(Layout::Fleet(Vec::new())).await;
    let acme = team("acme");
    let client = fixture.nats.client(&acme.durable()).await;
    let js = async_nats::jetstream::new(client.clone());
    let consumer: PullConsumer = js.get_consumer_from_stream(acme.durable(), "EVENTS_TODO").await.unwrap();
    let mut batch = consumer.fetch().max_messages(100).messages().await.unwrap();
    let mut read = Vec::new();
    while let Some(message) = batch.next().await {
        let message = message.unwrap();
        message.double_ack().await.unwrap();
        read.push(message.subject.to_string());
    }
    assert_eq!(read, ["evt.todo.created.v1.acme"; 3]);
    // All requests that it may make, and those of others: no answer names another tenant, or any total.
    let others = fixture.logins.iter().flat_map(Login::asked).map(|asked| asked.subject);
    let asks: Vec<String> = others
        .filter(|subject| subject.starts_with("$JS.API"))
        .chain(
            ["$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.CONSUMER.NAMES.EVENTS_TODO"]
                .map(str::to_owned),
        )
        .collect();
    let mut answers = client.subscribe("_INBOX.answers").await.unwrap();
    for subject in &asks {
        let body = Bytes::from_static(b"{\"subjects_filter\":\">\",\"batch\":1,\"no_wait\":true}");
        client.publish_with_reply(subject.clone(), "_INBOX.answers", body).await.unwrap();
    }
    client.flush().await.unwrap();
    tokio::time::sleep(SETTLES).await;
    let mut heard = 0;
    while let Some(Some(answer)) = answers.next().now_or_never() {
        heard += 1;
        let text = String::from_utf8_lossy(&answer.payload).into_owned();
        let about_itself = text.contains(&acme.durable());
        assert!(about_itself || text.is_empty() || text.contains("error"), "{text}");
        assert!(!text.contains("globex") && !text.contains("\"storage\""), "{text}");
    }
    assert!(heard > 0, "it hears of itself");
    // A wiped broker has its durable consumer again, like those of the services.
    fixture.nats.kill().await;
    fixture.nats.wipe();
    fixture.nats.restart().await;
    let stream = fixture.nats.jetstream().await.get_stream("EVENTS_TODO").await.unwrap();
    let again = stream.consumer_info(&acme.durable()).await.unwrap();
    assert_eq!(again.config.filter_subject, "evt.todo.*.*.acme");
    // Revoked, it is cut off, and its durable consumer is gone; the other's is not.
    until("it is there", || async { client.connection_state() == async_nats::connection::State::Connected }).await;
    teams::revoke(fixture.nats.home(), &fixture.nats.address(), &acme.tenant, &acme.name).await.unwrap();
    until("it is cut off", || async { client.connection_state() != async_nats::connection::State::Connected }).await;
    assert!(stream.consumer_info(&acme.durable()).await.is_err());
    assert!(stream.consumer_info(&team("globex").durable()).await.is_ok());
    // A later one of the same name is another credential.
    let file = teams::create(fixture.nats.home(), &fixture.nats.address(), &acme).await.unwrap();
    assert!(devstack::nats::connect(fixture.nats.home(), &fixture.nats.address(), &file).await.is_ok());
    let twice = teams::create(fixture.nats.home(), &fixture.nats.address(), &acme).await.unwrap_err().to_string();
    assert!(twice.contains("revoke it first"), "{twice}");
}

#[tokio::test]
async fn an_expired_credential_is_cut_off_and_refused() {
    let fixture = Fixture::new(Layout::Fleet(Vec::new())).await;
    let short = Team {
        name: "short".to_owned(),
        expires: team("acme").created + chrono::TimeDelta::seconds(5),
        ..team("acme")
    };
    let file = teams::create(fixture.nats.home(), &fixture.nats.address(), &short).await.unwrap();
    let client = devstack::nats::connect(fixture.nats.home(), &fixture.nats.address(), &file).await.unwrap();
    until("it is cut off", || async { client.connection_state() != async_nats::connection::State::Connected }).await;
    // Its second runs out first.
    until("it is refused", || async {
        devstack::nats::connect(fixture.nats.home(), &fixture.nats.address(), &file).await.is_err()
    })
    .await;
}
