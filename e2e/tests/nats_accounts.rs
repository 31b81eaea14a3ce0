//! NATS is no open door: with each login everything is tried that it must not do, in every way that is known, and nothing
//! changes and nothing is heard. The same tries break one account with the same permissions: that is the control.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::{Client, Subscriber};
use bytes::Bytes;
use devstack::nats::teams::{self, Team};
use devstack::nats::{Layout, Wanted};
use fleet::{Login, RECORD_STREAMS};
use futures::{FutureExt as _, StreamExt as _};
use serde_json::{Value, json};
use testkit::{TestNats, until};

const TENANTS: [&str; 2] = ["acme", "globex"];
/// How long something that was set off may take to show. The control must show within it.
const SETTLES: Duration = Duration::from_millis(500);

struct World {
    nats: TestNats,
    /// The administration of each owner.
    admins: Vec<(&'static str, Client)>,
    logins: Vec<Login>,
}

impl World {
    /// Streams with something in them, and a program of each of two tenants.
    async fn new(layout: Layout) -> Self {
        let alone = matches!(layout, Layout::OneAccount);
        let nats = TestNats::laid_out(layout).await;
        nats.provision(Wanted::default()).await;
        let mut logins = fleet::logins();
        let admins = vec![("TODO", nats.client("todo-admin").await), ("RECORDS", nats.client("records-admin").await)];
        if !alone {
            for tenant in TENANTS {
                let team = team(tenant);
                teams::create(nats.home(), &nats.address(), &team).await.unwrap();
                logins.push(team.login());
            }
        }
        let world = Self { nats, admins, logins };
        for tenant in TENANTS {
            for _ in 0..3 {
                world.store("TODO", format!("evt.todo.created.v1.{tenant}")).await;
            }
        }
        for subject in ["dlq.search-projector.a", "replay.search-projector.a", "replayed.search-projector", "audit.a"] {
            world.store("RECORDS", subject.to_owned()).await;
        }
        // No one is told that this was stored.
        let advisory = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.SEED.seed";
        world.admin("RECORDS").publish(advisory, "{}".into()).await.unwrap();
        world.admin("RECORDS").flush().await.unwrap();
        world
    }

    fn admin(&self, owner: &str) -> &Client {
        &self.admins.iter().find(|(of, _)| *of == owner).unwrap().1
    }

    async fn store(&self, owner: &str, subject: String) {
        let js = async_nats::jetstream::new(self.admin(owner).clone());
        js.publish(subject, Bytes::from_static(b"{\"id\":1}")).await.unwrap().await.unwrap();
    }

    /// All there is: how each stream and each consumer is, and how many messages each subject has.
    async fn picture(&self) -> BTreeMap<(String, String), String> {
        let mut all = BTreeMap::new();
        for (_, admin) in &self.admins {
            let names = api(admin, "STREAM.NAMES", json!({})).await;
            for stream in names["streams"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                let info = api(admin, &format!("STREAM.INFO.{stream}"), json!({"subjects_filter": ">"})).await;
                let mut note = |what: String, is: &Value| all.insert((stream.to_owned(), what), is.to_string());
                note("config".to_owned(), &info["config"]);
                note("created".to_owned(), &info["created"]);
                note("first".to_owned(), &info["state"]["first_seq"]);
                note("deleted".to_owned(), &info["state"]["num_deleted"]);
                for (subject, count) in info["state"]["subjects"].as_object().into_iter().flatten() {
                    note(format!("subject {subject}"), count);
                }
                let consumers = api(admin, &format!("CONSUMER.LIST.{stream}"), json!({})).await;
                for consumer in consumers["consumers"].as_array().into_iter().flatten() {
                    let name = consumer["name"].as_str().unwrap();
                    note(format!("consumer {name}"), &json!([consumer["config"], consumer["created"]]));
                    let (delivered, floor) = (&consumer["delivered"], &consumer["ack_floor"]);
                    let state = json!([
                        delivered["stream_seq"],
                        floor["stream_seq"],
                        consumer["num_ack_pending"],
                        consumer["paused"]
                    ]);
                    note(format!("state {name}"), &state);
                }
            }
        }
        all
    }

    /// What changed that this login may not change. `written` is what the test itself has published since.
    fn harm(
        &self,
        login: &Login,
        before: &BTreeMap<(String, String), String>,
        after: &BTreeMap<(String, String), String>,
        written: &[&str],
    ) -> Vec<String> {
        let keys = before.keys().chain(after.keys());
        let mut harm: Vec<String> = keys
            .filter(|key| before.get(*key) != after.get(*key))
            .filter(|(stream, what)| {
                let (kind, name) = what.split_once(' ').unwrap_or((what, ""));
                match kind {
                    "subject" => {
                        !(may(login, name) || written.contains(&name) || is_its_own_advisory(login, stream, name))
                    }
                    "state" => !login.pulls.iter().any(|(of, durable)| of == stream && durable == name),
                    _ => true,
                }
            })
            .map(|key| format!("{key:?}: {:?} became {:?}", before.get(key), after.get(key)))
            .collect();
        harm.sort();
        harm.dedup();
        harm
    }
}

/// What a producer's account says about its own stream's consumers is its own word: nobody takes it for more. And a service may
/// give up on what its own durable consumer has in hand, which is told.
fn is_its_own_advisory(login: &Login, stream: &str, subject: &str) -> bool {
    let gave_up = |(of, durable): &(String, String)| subject.ends_with(&format!(".{of}.{durable}"));
    let is_program = login.name.starts_with("team-");
    stream == "ADVISORIES"
        && ((login.owns() && subject.contains(&format!(".EVENTS_{}.", login.account())))
            || (!is_program && login.pulls.iter().any(gave_up)))
}

fn team(tenant: &str) -> Team {
    let now: chrono::DateTime<chrono::Utc> = std::time::SystemTime::now().into();
    Team {
        tenant: tenant.parse().unwrap(),
        name: "reporting".to_owned(),
        events: "todo".to_owned(),
        created: now,
        expires: now + chrono::TimeDelta::days(1),
    }
}

async fn api(client: &Client, verb: &str, body: Value) -> Value {
    let answer = client.request(format!("$JS.API.{verb}"), body.to_string().into()).await.unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

fn matches(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) => return true,
            (Some(wanted), Some(is)) if wanted == "*" || wanted == is => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

fn may(login: &Login, subject: &str) -> bool {
    login.asked().iter().map(|asked| &asked.subject).chain(&login.local).any(|pattern| matches(pattern, subject))
}

fn streams() -> Vec<String> {
    let events = fleet::PRODUCERS.iter().map(|service| contracts::subject::stream(service));
    events.chain(RECORD_STREAMS.map(str::to_owned)).collect()
}

/// Every subject that this login must not reach, with what would do harm there.
fn targets(world: &World, login: &Login) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    let mut raw: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |subject: String, body: Value| {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        all.push((subject, body));
    };
    for stream in streams() {
        for verb in ["PURGE", "DELETE", "LEADER.STEPDOWN"] {
            add(format!("$JS.API.STREAM.{verb}.{stream}"), Value::Null);
        }
        add(format!("$JS.API.STREAM.PEER.REMOVE.{stream}"), json!({"peer": "flotilla"}));
        add(format!("$JS.API.STREAM.SNAPSHOT.{stream}"), json!({"deliver_subject": "evt.todo.snapshot"}));
        add(format!("$JS.API.STREAM.RESTORE.{stream}"), json!({"config": {"name": stream}}));
        add(format!("$JS.API.STREAM.MSG.DELETE.{stream}"), json!({"seq": 1}));
        add(format!("$JS.API.STREAM.UPDATE.{stream}"), json!({"name": stream, "subjects": ["taken.>"], "max_msgs": 1}));
        for consumer in ["own", "search-projector", &login.name] {
            let config = json!({"stream_name": stream, "config": {
                "name": consumer, "deliver_subject": "$JS.API.STREAM.PURGE.DLQ", "headers_only": true, "ack_policy": "none",
            }});
            add(format!("$JS.API.CONSUMER.CREATE.{stream}.{consumer}"), config.clone());
            add(format!("$JS.API.CONSUMER.CREATE.{stream}.{consumer}.evt.todo.>"), config.clone());
            add(format!("$JS.API.CONSUMER.DURABLE.CREATE.{stream}.{consumer}"), config);
        }
        let push = json!({"stream_name": stream, "config": {"deliver_subject": "dlq.search-projector.pushed", "ack_policy": "none"}});
        add(format!("$JS.API.CONSUMER.CREATE.{stream}"), push);
    }
    let evil = json!({"name": "EVIL", "subjects": ["evil.>"], "republish": {"src": ">", "dest": "evt.todo.forged.>"}});
    add("$JS.API.STREAM.CREATE.EVIL".to_owned(), evil);
    let mirror =
        json!({"name": "MIRROR", "mirror": {"name": "EVENTS_TODO"}, "republish": {"src": ">", "dest": "dlq.x.>"}});
    add("$JS.API.STREAM.CREATE.MIRROR".to_owned(), mirror);
    for subject in [
        "$JS.API.META.LEADER.STEPDOWN",
        "$JS.API.ACCOUNT.PURGE.TODO",
        "$JS.API.ACCOUNT.STREAM.MOVE.TODO.EVENTS_TODO",
        "$JS.API.SERVER.REMOVE",
        "$SYS.REQ.CLAIMS.DELETE",
        "$SYS.REQ.CLAIMS.UPDATE",
        "$SYS.REQ.SERVER.PING.CONFIGZ",
    ] {
        add(subject.to_owned(), Value::Null);
    }
    for (stream, durable) in world.logins.iter().flat_map(|login| &login.pulls) {
        for (verb, body) in [
            ("DELETE", Value::Null),
            ("PAUSE", json!({"pause_until": "2099-01-01T00:00:00Z"})),
            ("RESET", json!({"seq": 1})),
            ("UNPIN", json!({"group": "g"})),
            ("LEADER.STEPDOWN", Value::Null),
        ] {
            add(format!("$JS.API.CONSUMER.{verb}.{stream}.{durable}"), body);
        }
        add(format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"), json!({"batch": 5, "no_wait": true}));
        for sequence in 1..=3 {
            let ack = format!("$JS.ACK.{stream}.{durable}.1.{sequence}.{sequence}.1764000000000000000.5");
            raw.extend([&b"+ACK"[..], b"+TERM", b"-NAK", b"+NXT 3"].map(|body| (ack.clone(), body.to_vec())));
        }
    }
    for subject in [
        "evt.todo.created.v1.acme",
        "evt.todo.forged.v1.globex",
        "dlq.search-projector.forged",
        "dlq.someone.forged",
        "replay.search-projector.forged",
        "replayed.search-projector",
        "audit.forged",
        "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.EVENTS_TODO.search-projector",
        "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.EVENTS_BILLING.billing",
        "hint.outbox.todo",
        "_R_.aaaaaa",
        "$JS.FC.EVENTS_TODO.search-projector.x",
    ] {
        raw.push((subject.to_owned(), b"{\"forged\":true}".to_vec()));
    }
    all.append(&mut raw);
    all.retain(|(subject, _)| !may(login, subject));
    all
}

/// Everything that this login may ask and that is answered.
fn requests(login: &Login) -> Vec<(String, &'static [u8])> {
    let mut all: Vec<(String, &'static [u8])> = Vec::new();
    for asked in login.asked() {
        let subject = asked.subject;
        let bodies: &[&'static [u8]] = if subject.starts_with("$JS.ACK") {
            &[b"+ACK", b"+WPI", b"+TERM and why", b"-NAK", b"+NXT 2", b"+NXT {\"batch\":2,\"no_wait\":true}"]
        } else if subject.contains("MSG.NEXT") {
            &[
                b"{\"batch\":1,\"no_wait\":true}",
                b"1",
                b"{\"batch\":2,\"expires\":300000000,\"idle_heartbeat\":100000000}",
                b"nonsense",
                b"{\"batch\":100000,\"expires\":1}",
            ]
        } else if subject.contains("MSG.GET") {
            &[b"{\"seq\":1}", b"{\"last_by_subj\":\"evt.todo.>\"}", b""]
        } else {
            &[b""]
        };
        let rest = if subject.starts_with("$JS.ACK") { ".1.1.1.1764000000000000000.5" } else { ".mine" };
        let subject = subject.replace(".>", rest).replace('*', "search-projector");
        all.extend(bodies.iter().map(|body| (subject.clone(), *body)));
    }
    all
}

/// The ways in which something is tried.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// It is published.
    Subject,
    /// It is the reply subject of whatever may be asked.
    Reply,
    /// It is the reply subject of a pull that is answered later, when others write.
    Late,
    /// It is where the server is to tell of a message's way.
    Trace,
    /// It is where a consumer is to deliver to.
    Deliver,
}

/// What is written while pulls wait: something for each durable consumer.
const LATE: [&str; 4] =
    ["evt.todo.created.v1.acme", "replay.search-projector.a", "replayed.search-projector", "dlq.search-projector.a"];

async fn attack(world: &World, login: &Login, way: Way) -> usize {
    let client = world.nats.client(&login.name).await;
    let (targets, requests) = (targets(world, login), requests(login));
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
            // One for each that waits. Without a body, which is what PURGE and DELETE want; and nobody waits for an answer: what
            // was set off may have taken the stream away.
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("x", "y");
            for _ in &targets {
                for subject in LATE {
                    let owner = if subject.starts_with("evt.") { "TODO" } else { "RECORDS" };
                    world.admin(owner).publish_with_headers(subject, headers.clone(), Bytes::new()).await.unwrap();
                }
            }
            world.admin("TODO").flush().await.unwrap();
            world.admin("RECORDS").flush().await.unwrap();
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

/// What somebody hears without being meant to.
async fn heard(subscriber: &mut Subscriber) -> Vec<String> {
    let mut heard = Vec::new();
    while let Some(Some(message)) = subscriber.next().now_or_never() {
        heard.push(message.subject.to_string());
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn no_login_changes_anything_but_its_own_in_any_way() {
    let world = World::new(Layout::Fleet(Vec::new())).await;
    let mut hints = world.nats.client("todo").await.subscribe("hint.outbox.todo").await.unwrap();
    let mut tries = 0;
    for login in &world.logins {
        for way in [Way::Subject, Way::Reply, Way::Late, Way::Trace, Way::Deliver] {
            let before = world.picture().await;
            tries += attack(&world, login, way).await;
            let after = world.picture().await;
            let written: &[&str] = if matches!(way, Way::Late) { &LATE } else { &[] };
            let harm = world.harm(login, &before, &after, written);
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
        let world = World::new(Layout::OneAccount).await;
        let login = world.logins.iter().find(|one| one.name == login).unwrap();
        let before = world.picture().await;
        attack(&world, login, way).await;
        let harm = world.harm(login, &before, &world.picture().await, &LATE);
        assert!(!harm.is_empty(), "{} by {way:?}: the tries do what they claim to", login.name);
    }
}

#[tokio::test]
async fn nobody_hears_what_others_are_answered_or_publish() {
    let world = World::new(Layout::Fleet(Vec::new())).await;
    for login in &world.logins {
        let client = world.nats.client(&login.name).await;
        let mut all = Vec::new();
        for subject in [">", "*.>", "_INBOX.>", "_R_.>", "$JS.>", "evt.>", "dlq.>", "_INBOX_search-projector.>"] {
            if !(login.name == "search-projector" && subject.starts_with("_INBOX_s")) {
                all.push(client.subscribe(subject).await.unwrap());
            }
        }
        client.flush().await.unwrap();
        for other in world.logins.iter().filter(|other| other.name != login.name) {
            let asks = world.nats.client(&other.name).await;
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
    let world = World::new(Layout::Fleet(Vec::new())).await;
    for login in &world.logins {
        let client = world.nats.client(&login.name).await;
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
async fn a_tenants_program_learns_nothing_of_others_and_is_cut_off_when_its_credential_is_revoked() {
    let mut world = World::new(Layout::Fleet(Vec::new())).await;
    let acme = team("acme");
    let client = world.nats.client(&acme.durable()).await;
    let js = async_nats::jetstream::new(client.clone());
    let consumer: async_nats::jetstream::consumer::PullConsumer =
        js.get_consumer_from_stream(acme.durable(), "EVENTS_TODO").await.unwrap();
    let mut batch = consumer.fetch().max_messages(100).messages().await.unwrap();
    let mut read = Vec::new();
    while let Some(message) = batch.next().await {
        let message = message.unwrap();
        message.double_ack().await.unwrap();
        read.push(message.subject.to_string());
    }
    assert_eq!(read, ["evt.todo.created.v1.acme"; 3]);
    // All that it may ask, and what others may: no answer names another tenant, or how much there is in all.
    let others = world.logins.iter().flat_map(Login::asked).map(|asked| asked.subject);
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
    let mut told = 0;
    while let Some(Some(answer)) = answers.next().now_or_never() {
        told += 1;
        let text = String::from_utf8_lossy(&answer.payload).into_owned();
        let about_itself = text.contains(&acme.durable());
        assert!(about_itself || text.is_empty() || text.contains("error"), "{text}");
        assert!(!text.contains("globex") && !text.contains("\"storage\""), "{text}");
    }
    assert!(told > 0, "it is told about itself");
    // A wiped broker has its durable consumer again, like those of the services.
    world.nats.kill().await;
    world.nats.wipe();
    world.nats.restart().await;
    let stream = world.nats.jetstream().await.get_stream("EVENTS_TODO").await.unwrap();
    let again = stream.consumer_info(&acme.durable()).await.unwrap();
    assert_eq!(again.config.filter_subject, "evt.todo.*.*.acme");
    // Revoked, it is cut off, and its durable consumer is gone; the other's is not.
    until("it is there", || async { client.connection_state() == async_nats::connection::State::Connected }).await;
    teams::revoke(world.nats.home(), &world.nats.address(), &acme.tenant, &acme.name).await.unwrap();
    until("it is cut off", || async { client.connection_state() != async_nats::connection::State::Connected }).await;
    assert!(stream.consumer_info(&acme.durable()).await.is_err());
    assert!(stream.consumer_info(&team("globex").durable()).await.is_ok());
    // One of the same name that is given later is another credential.
    let file = teams::create(world.nats.home(), &world.nats.address(), &acme).await.unwrap();
    assert!(devstack::nats::connect(&world.nats.address(), &file).await.is_ok());
    let twice = teams::create(world.nats.home(), &world.nats.address(), &acme).await.unwrap_err().to_string();
    assert!(twice.contains("revoke it first"), "{twice}");
}

#[tokio::test]
async fn an_expired_credential_is_cut_off_and_refused() {
    let world = World::new(Layout::Fleet(Vec::new())).await;
    let short = Team {
        name: "short".to_owned(),
        expires: team("acme").created + chrono::TimeDelta::seconds(5),
        ..team("acme")
    };
    let file = teams::create(world.nats.home(), &world.nats.address(), &short).await.unwrap();
    let client = devstack::nats::connect(&world.nats.address(), &file).await.unwrap();
    until("it is cut off", || async { client.connection_state() != async_nats::connection::State::Connected }).await;
    // Its second runs out first.
    until("it is refused", || async { devstack::nats::connect(&world.nats.address(), &file).await.is_err() }).await;
}

#[tokio::test]
async fn a_data_folder_of_before_the_accounts_is_carried_over() {
    let mut nats = TestNats::alone().await;
    let js = nats.jetstream().await;
    let projector = fleet::projector(fleet::PROJECTOR, String::new());
    let events = fleet::stream("todo", Duration::from_secs(30 * 86_400), 1);
    outbox::administer::stream(&js, &events).await.unwrap();
    consumer::administer::streams(&js, 1).await.unwrap();
    consumer::administer::durables(&js, &js, &projector, None).await.unwrap();
    consumer::administer::keeper(&js, fleet::OPERATIONS).await.unwrap();
    // Letters, a job under way whose replays wait, and a durable consumer that has read some and was paused.
    for subject in ["evt.todo.created.v1.acme", "dlq.search-projector.a", "replay.search-projector.a"] {
        for _ in 0..3 {
            js.publish(subject, "{}".into()).await.unwrap().await.unwrap();
        }
    }
    let stream = js.get_stream("EVENTS_TODO").await.unwrap();
    let durable: async_nats::jetstream::consumer::PullConsumer = stream.get_consumer(fleet::PROJECTOR).await.unwrap();
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
    for (name, messages) in [("DLQ", 3), ("REPLAY", 3)] {
        let stream = records.get_stream(name).await.unwrap();
        assert_eq!(stream.get_info().await.unwrap().state.messages, messages, "{name}");
    }
    let replays = records.get_stream("REPLAY").await.unwrap().consumer_info(fleet::PROJECTOR).await.unwrap();
    assert_eq!(replays.num_pending, 3, "they reach it yet");
    // What is stored in both is nobody's to choose between.
    let before = nats.store().join("jetstream/$G/streams/DLQ");
    nats.kill().await;
    std::fs::create_dir_all(&before).unwrap();
    let layout = Layout::Fleet(Vec::new());
    let program = std::path::Path::new("nats-server");
    let twice = devstack::nats::Nats::prepare(nats.home(), program, (nats.port(), nats.port()), layout).unwrap_err();
    assert!(twice.to_string().contains("move the one elsewhere"), "{twice}");
}

#[tokio::test]
async fn an_advisory_of_an_owner_is_kept_and_nothing_is_said_where_it_asks_for() {
    let world = World::new(Layout::Fleet(Vec::new())).await;
    // As JetStream tells it in the owner's account; with a subject for the acknowledgement that is another stream's.
    let subject = "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.EVENTS_TODO.search-projector";
    world.admin("TODO").publish_with_reply(subject, "audit.forged", "{}".into()).await.unwrap();
    world.admin("TODO").flush().await.unwrap();
    let kept = |stream: &'static str, what: String| {
        let world = &world;
        async move { world.picture().await.contains_key(&(stream.to_owned(), what)) }
    };
    until("it is kept", || kept("ADVISORIES", format!("subject {subject}"))).await;
    tokio::time::sleep(SETTLES).await;
    assert!(!kept("AUDIT", "subject audit.forged".to_owned()).await);
    // Nor does an owner speak about another's stream.
    let foreign = "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.EVENTS_BILLING.billing";
    world.admin("TODO").publish(foreign, "{}".into()).await.unwrap();
    world.admin("TODO").flush().await.unwrap();
    tokio::time::sleep(SETTLES).await;
    assert!(!kept("ADVISORIES", format!("subject {foreign}")).await);
}

#[tokio::test]
async fn an_account_has_its_limits_and_takes_nothing_from_another() {
    let world = World::new(Layout::Fleet(Vec::new())).await;
    let mut made = 0;
    let refused = loop {
        let name = format!("MORE_{made}");
        let answer =
            api(world.admin("TODO"), &format!("STREAM.CREATE.{name}"), json!({"name": name, "subjects": [name]})).await;
        if !answer["error"].is_null() {
            break answer;
        }
        made += 1;
        assert!(made < 100, "there is no limit");
    };
    assert_eq!(refused["error"]["err_code"], 10027, "{refused}");
    let too_large = json!({"name": "LARGE", "subjects": ["large"], "max_bytes": 1_u64 << 40});
    let refused = api(world.admin("RECORDS"), "STREAM.CREATE.LARGE", too_large).await;
    assert!(!refused["error"].is_null(), "{refused}");
    world.store("RECORDS", "dlq.search-projector.b".to_owned()).await;
    // Nor more connections than it is given.
    let mut clients = Vec::new();
    let file = world.nats.credentials("search-projector");
    let refused = loop {
        match devstack::nats::connect(&world.nats.address(), &file).await {
            Ok(client) => clients.push(client),
            Err(error) => break format!("{error:#}"),
        }
        assert!(clients.len() < 100, "there is no limit");
    };
    assert!(clients.len() >= 20, "{} and then {refused}", clients.len());
    world.nats.client("operations").await;
}
