//! A server with the fleet's logins, and the requests and attacks to try there.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::{Client, Subscriber};
use bytes::Bytes;
use devstack::nats::team::Team;
use devstack::nats::teams;
use devstack::nats::{Layout, Wanted};
use fleet::{Login, RECORD_STREAMS};
use futures::{FutureExt as _, StreamExt as _};
use serde_json::{Value, json};
use testkit::TestNats;

pub const TENANTS: [&str; 2] = ["acme", "globex"];
/// How long the effect of an attack may take to show. The control must show within it.
pub const SETTLES: Duration = Duration::from_millis(500);

pub struct Fixture {
    pub nats: TestNats,
    /// The administration of each owner.
    admins: Vec<(&'static str, Client)>,
    pub logins: Vec<Login>,
}

impl Fixture {
    /// Streams with something in them, and a program of each of two tenants.
    pub async fn new(layout: Layout) -> Self {
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
        let fixture = Self { nats, admins, logins };
        for tenant in TENANTS {
            for _ in 0..3 {
                fixture.store("TODO", format!("evt.todo.created.v1.{tenant}")).await;
            }
        }
        for subject in ["dlq.search-projector.a", "replay.search-projector.a", "replayed.search-projector", "audit.a"] {
            fixture.store("RECORDS", subject.to_owned()).await;
        }
        // Nobody receives an acknowledgement of this.
        let advisory = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.SEED.seed";
        fixture.admin("RECORDS").publish(advisory, "{}".into()).await.unwrap();
        fixture.admin("RECORDS").flush().await.unwrap();
        fixture
    }

    pub fn admin(&self, owner: &str) -> &Client {
        &self.admins.iter().find(|(of, _)| *of == owner).unwrap().1
    }

    pub async fn store(&self, owner: &str, subject: String) {
        let js = async_nats::jetstream::new(self.admin(owner).clone());
        js.publish(subject, Bytes::from_static(b"{\"id\":1}")).await.unwrap().await.unwrap();
    }

    /// The whole state: each stream, each consumer, and how many messages each subject has.
    pub async fn picture(&self) -> BTreeMap<(String, String), String> {
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
    pub fn harm(
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

/// What a producer's account publishes about its own stream's consumers is its own word: nobody takes it for more. And a service
/// may give up on what its own durable consumer has in hand, which JetStream publishes.
pub fn is_its_own_advisory(login: &Login, stream: &str, subject: &str) -> bool {
    let gave_up = |(of, durable): &(String, String)| subject.ends_with(&format!(".{of}.{durable}"));
    let is_program = login.name.starts_with("team-");
    stream == "ADVISORIES"
        && ((login.owns() && subject.contains(&format!(".EVENTS_{}.", login.account())))
            || (!is_program && login.pulls.iter().any(gave_up)))
}

pub fn team(tenant: &str) -> Team {
    let now: chrono::DateTime<chrono::Utc> = std::time::SystemTime::now().into();
    Team {
        tenant: tenant.parse().unwrap(),
        name: "reporting".to_owned(),
        events: "todo".to_owned(),
        created: now,
        expires: now + chrono::TimeDelta::days(1),
    }
}

pub async fn api(client: &Client, verb: &str, body: Value) -> Value {
    let answer = client.request(format!("$JS.API.{verb}"), body.to_string().into()).await.unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

pub fn matches(pattern: &str, subject: &str) -> bool {
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

pub fn may(login: &Login, subject: &str) -> bool {
    login.asked().iter().map(|asked| &asked.subject).chain(&login.local).any(|pattern| matches(pattern, subject))
}

pub fn streams() -> Vec<String> {
    let events = fleet::producers().into_iter().map(contracts::subject::stream);
    events.chain(RECORD_STREAMS.map(str::to_owned)).collect()
}

/// Every subject that this login must not reach, with what would do harm there.
pub fn targets(fixture: &Fixture, login: &Login) -> Vec<(String, Vec<u8>)> {
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
    for (stream, durable) in fixture.logins.iter().flat_map(|login| &login.pulls) {
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
        "live.evt.todo.created.v1.acme",
        "_R_.aaaaaa",
        "$JS.FC.EVENTS_TODO.search-projector.x",
    ] {
        raw.push((subject.to_owned(), b"{\"forged\":true}".to_vec()));
    }
    all.append(&mut raw);
    all.retain(|(subject, _)| !may(login, subject));
    all
}

/// Every request that this login may make and that is answered.
pub fn requests(login: &Login) -> Vec<(String, &'static [u8])> {
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
        } else if subject.contains("DIRECT.GET") {
            &[b"{\"seq\":1}", b"{\"seq\":1,\"batch\":3,\"next_by_subj\":\"evt.todo.>\"}", b"{\"seq\":1000000}", b""]
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

/// The subjects that a subscriber hears without permission.
pub async fn heard(subscriber: &mut Subscriber) -> Vec<String> {
    let mut heard = Vec::new();
    while let Some(Some(message)) = subscriber.next().now_or_never() {
        heard.push(message.subject.to_string());
    }
    heard
}
