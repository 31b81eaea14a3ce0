//! What no login can do or hear, and the control.

use std::time::Duration;

use bytes::Bytes;
use devstack::nats::Layout;
use fleet::Login;
use futures::StreamExt as _;
use serde_json::{Value, json};
use testkit::until;

use crate::fixture::{Fixture, SETTLES, heard, requests, streams, targets};

/// The ways of an attack.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// It is published.
    Subject,
    /// It is the reply subject of every permitted request.
    Reply,
    /// It is the reply subject of a pull that is answered later, when others write.
    Late,
    /// It is where the server is to publish a message's trace.
    Trace,
    /// It is the delivery subject of a consumer.
    Deliver,
}

/// What is written while pulls wait: something for each durable consumer.
const LATE: [&str; 4] =
    ["evt.todo.created.v1.acme", "replay.search-projector.a", "replayed.search-projector", "dlq.search-projector.a"];

async fn attack(fixture: &Fixture, login: &Login, way: Way) -> usize {
    let client = fixture.nats.client(&login.name).await;
    let (targets, requests) = (targets(fixture, login), requests(login));
    let mut tries = 0;
    match way {
        Way::Subject => {
            for (target, body) in &targets {
                let mut forged = async_nats::HeaderMap::new();
                forged.insert("Nats-Request-Info", r#"{"acc":"RECORDS","svc":"RECORDS","user":"records-admin"}"#);
                client.publish(target.clone(), body.clone().into()).await.unwrap();
                client.publish_with_headers(target.clone(), forged, body.clone().into()).await.unwrap();
                let reply = format!("_INBOX_{}.x", login.name);
                client.publish_with_reply(target.clone(), reply, body.clone().into()).await.unwrap();
                tries += 3;
            }
        }
        Way::Reply => {
            for (request, body) in &requests {
                for (target, _) in &targets {
                    client.publish_with_reply(request.clone(), target.clone(), Bytes::from_static(body)).await.unwrap();
                    tries += 1;
                }
                client.flush().await.unwrap();
            }
        }
        Way::Late => {
            for (stream, durable) in &login.pulls {
                for (target, _) in &targets {
                    let next = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}");
                    let body = Bytes::from_static(b"{\"batch\":1,\"expires\":900000000}");
                    client.publish_with_reply(next, target.clone(), body).await.unwrap();
                    tries += 1;
                }
            }
            client.flush().await.unwrap();
            // One for each that waits. Without a body, as PURGE and DELETE require; and without waiting for an answer: an
            // attack may have deleted the stream.
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("x", "y");
            for _ in &targets {
                for subject in LATE {
                    let owner = if subject.starts_with("evt.") { "TODO" } else { "RECORDS" };
                    fixture.admin(owner).publish_with_headers(subject, headers.clone(), Bytes::new()).await.unwrap();
                }
            }
            fixture.admin("TODO").flush().await.unwrap();
            fixture.admin("RECORDS").flush().await.unwrap();
        }
        Way::Trace => {
            for (request, body) in &requests {
                for (target, _) in &targets {
                    let mut headers = async_nats::HeaderMap::new();
                    headers.insert("Nats-Trace-Dest", target.as_str());
                    headers.insert("Nats-Trace-Only", "true");
                    client.publish_with_headers(request.clone(), headers, Bytes::from_static(body)).await.unwrap();
                    tries += 1;
                }
                client.flush().await.unwrap();
            }
        }
        Way::Deliver => {
            for stream in streams() {
                for (target, _) in &targets {
                    let config = json!({"stream_name": stream, "config": {
                        "name": "own", "deliver_subject": target, "headers_only": true, "ack_policy": "none", "mem_storage": true,
                    }});
                    let create = format!("$JS.API.CONSUMER.CREATE.{stream}.own");
                    client.publish(create, config.to_string().into()).await.unwrap();
                    tries += 1;
                }
            }
        }
    }
    client.flush().await.unwrap();
    tokio::time::sleep(SETTLES).await;
    tries
}

#[tokio::test(flavor = "multi_thread")]
async fn no_login_changes_anything_but_its_own_in_any_way() {
    let fixture = Fixture::new(Layout::Fleet(Vec::new())).await;
    let mut hints = fixture.nats.client("todo").await.subscribe("hint.outbox.todo").await.unwrap();
    let mut tries = 0;
    for login in &fixture.logins {
        for way in [Way::Subject, Way::Reply, Way::Late, Way::Trace, Way::Deliver] {
            let before = fixture.picture().await;
            tries += attack(&fixture, login, way).await;
            let after = fixture.picture().await;
            let written: &[&str] = if matches!(way, Way::Late) { &LATE } else { &[] };
            let harm = fixture.harm(login, &before, &after, written);
            assert!(harm.is_empty(), "{} by {way:?}: {harm:#?}", login.name);
            assert!(login.owns() || heard(&mut hints).await.is_empty(), "{} hints by {way:?}", login.name);
        }
    }
    println!("{tries} tries");
    assert!(tries > 20_000, "{tries}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_tries_break_one_account_with_the_same_permissions() {
    for (login, way) in [
        ("todo", Way::Reply),
        ("search-projector", Way::Reply),
        ("operations", Way::Reply),
        ("search-projector", Way::Late),
        ("operations", Way::Late),
    ] {
        let fixture = Fixture::new(Layout::OneAccount).await;
        let login = fixture.logins.iter().find(|one| one.name == login).unwrap();
        let before = fixture.picture().await;
        attack(&fixture, login, way).await;
        let harm = fixture.harm(login, &before, &fixture.picture().await, &LATE);
        assert!(!harm.is_empty(), "{} by {way:?}: the tries do what they claim to", login.name);
    }
}

#[tokio::test]
async fn nobody_hears_what_others_are_answered_or_publish() {
    let fixture = Fixture::new(Layout::Fleet(Vec::new())).await;
    for login in &fixture.logins {
        let client = fixture.nats.client(&login.name).await;
        let mut all = Vec::new();
        for subject in [">", "*.>", "_INBOX.>", "_R_.>", "$JS.>", "evt.>", "dlq.>", "_INBOX_search-projector.>"] {
            if !(login.name == "search-projector" && subject.starts_with("_INBOX_s")) {
                all.push(client.subscribe(subject).await.unwrap());
            }
        }
        client.flush().await.unwrap();
        for other in fixture.logins.iter().filter(|other| other.name != login.name) {
            let asks = fixture.nats.client(&other.name).await;
            for (request, body) in requests(other) {
                let reply = format!("_INBOX_{}.secret", other.name);
                asks.publish_with_reply(request, reply, Bytes::from_static(body)).await.unwrap();
            }
            asks.flush().await.unwrap();
        }
        client.flush().await.unwrap();
        tokio::time::sleep(SETTLES).await;
        for subscriber in &mut all {
            assert_eq!(heard(subscriber).await, [""; 0], "{}", login.name);
        }
    }
}

#[tokio::test]
async fn whatever_is_asked_is_answered_once() {
    let fixture = Fixture::new(Layout::Fleet(Vec::new())).await;
    for login in &fixture.logins {
        let client = fixture.nats.client(&login.name).await;
        for asked in login.asked().iter().filter(|asked| asked.subject.contains(".INFO.")) {
            let subject = asked.subject.replace('*', "search-projector");
            let inbox = format!("_INBOX_{}.once", login.name);
            let mut answers = client.subscribe(inbox.clone()).await.unwrap();
            client.publish_with_reply(subject.clone(), inbox, Bytes::new()).await.unwrap();
            let answer = tokio::time::timeout(testkit::PATIENCE, answers.next()).await.expect(&subject).unwrap();
            let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
            // There is none between rebuilds.
            let rebuilds = subject.ends_with(fleet::REBUILDER);
            assert!(answer["error"].is_null() || rebuilds, "{} asks {subject}: {answer}", login.name);
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(heard(&mut answers).await, [""; 0], "{} asks {subject}", login.name);
        }
    }
}

#[tokio::test]
async fn an_advisory_of_an_owner_is_kept_and_nothing_is_said_where_it_asks_for() {
    let fixture = Fixture::new(Layout::Fleet(Vec::new())).await;
    // As JetStream publishes it in the owner's account; with another stream's subject for the acknowledgement.
    let subject = "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.EVENTS_TODO.search-projector";
    fixture.admin("TODO").publish_with_reply(subject, "audit.forged", "{}".into()).await.unwrap();
    fixture.admin("TODO").flush().await.unwrap();
    let kept = |stream: &'static str, what: String| {
        let fixture = &fixture;
        async move { fixture.picture().await.contains_key(&(stream.to_owned(), what)) }
    };
    until("it is kept", || kept("ADVISORIES", format!("subject {subject}"))).await;
    tokio::time::sleep(SETTLES).await;
    assert!(!kept("AUDIT", "subject audit.forged".to_owned()).await);
    // Nor does an owner publish about another's stream.
    let foreign = "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.EVENTS_BILLING.billing";
    fixture.admin("TODO").publish(foreign, "{}".into()).await.unwrap();
    fixture.admin("TODO").flush().await.unwrap();
    tokio::time::sleep(SETTLES).await;
    assert!(!kept("ADVISORIES", format!("subject {foreign}")).await);
}
