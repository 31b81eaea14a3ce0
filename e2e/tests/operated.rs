//! What an operator does at night: sees the dead letters, finds the cause, repairs it, replays; and checks that all is well, or
//! what is not. By the command, on a fleet of its own, with faults planted behind its back.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self, message::StreamMessage};
use e2e::{Caller, Fleet};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _};
use testkit::until;
use tokio::sync::watch;

const KINDS: [&str; 5] = ["lost", "duplicated", "outOfOrder", "foreign", "diverged"];

struct Fixture {
    fleet: Fleet,
    token: String,
    http: reqwest::Client,
}

impl Fixture {
    async fn new() -> Self {
        let fleet = Fleet::start(None).await;
        let token = fleet.run(&["token", "--operator", "--user", "olga"]).await;
        let token = String::from_utf8(token.stdout).unwrap().trim().to_owned();
        Self { fleet, token, http: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    /// Runs the command as an operator; returns its exit code and output.
    async fn operate(&self, args: &[&str]) -> (i32, Value) {
        let mut command = self.fleet.command(&[args, &["--reason", "the test says so", "--yes", "--json"]].concat());
        let output = command.env("FLOTILLA_OPERATOR_TOKEN", &self.token).output().await.unwrap();
        let json = serde_json::from_slice(&output.stdout);
        let said = || panic!("{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), json.unwrap_or_else(|_| said()))
    }

    /// The exit code of `verify`, how many it found of each kind, and the whole report.
    async fn verify(&self, more: &[&str]) -> (i32, [u64; 5], Value) {
        let output = self.fleet.run(&[&["verify", "--json"], more].concat()).await;
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), KINDS.map(|kind| report[kind]["count"].as_u64().unwrap()), report)
    }

    async fn is_well(&self) {
        let (code, found, report) = self.verify(&[]).await;
        assert_eq!((code, found), (0, [0; 5]), "{report}");
    }

    async fn todo_database(&self) -> sqlx::PgConnection {
        let login = self.fleet.login("postgres");
        let (server, _) = login["url"].as_str().unwrap().rsplit_once('/').unwrap();
        sqlx::PgConnection::connect(&format!("{server}/todo")).await.unwrap()
    }

    /// Makes a copy of all todos take longer than any caller waits; returns the SQL that ends this.
    async fn hold_up_copies(&self) -> String {
        let mut db = self.todo_database().await;
        let is = "select pg_get_functiondef('todo_next_tenant(text)'::regprocedure)";
        let is: String = sqlx::query_scalar(is).fetch_one(&mut db).await.unwrap();
        let sleeps = "create or replace function todo_next_tenant(after_tenant text) returns text language sql security definer \
                      as $$ select null::text from pg_sleep(60) $$";
        db.execute(sleeps).await.unwrap();
        is
    }

    /// Gives the lead of todo's outbox to an idle holder, until then.
    async fn hold_the_lead(&self, until: &str) {
        let mut db = self.todo_database().await;
        sqlx::query(
            "update outbox_relay set holder = gen_random_uuid(), epoch = epoch + 1, expires_at = $1::timestamptz",
        )
        .bind(until)
        .execute(&mut db)
        .await
        .unwrap();
    }

    async fn opensearch(&self, method: Method, path: &str, body: Value) -> Value {
        let url = format!("{}/{path}", self.fleet.unit("opensearch").login_url().unwrap());
        let response = self.http.request(method, url).json(&body).send().await.unwrap();
        assert!(response.status().is_success(), "{path}: {}", response.text().await.unwrap());
        response.json().await.unwrap()
    }

    async fn stream(&self) -> (jetstream::Context, Stream) {
        let js = self.fleet.jetstream().await;
        let stream = js.get_stream("EVENTS_TODO").await.unwrap();
        (js, stream)
    }
}

/// The message of a todo at a version.
async fn message(stream: &Stream, id: &Value, version: i32) -> StreamMessage {
    for sequence in 1..=stream.get_info().await.unwrap().state.last_sequence {
        let Ok(message) = stream.get_raw_message(sequence).await else { continue };
        let event: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
        if event["subject"] == *id && event["sequence"] == format!("{version:020}") {
            return message;
        }
    }
    panic!("no message of {id} at {version}");
}

async fn publish(js: &jetstream::Context, message: &StreamMessage) {
    let mut headers = async_nats::HeaderMap::new();
    for (name, values) in message.headers.iter() {
        // Leave out the relay's `Nats-` headers.
        if !AsRef::<str>::as_ref(name).starts_with("Nats-") {
            values.iter().for_each(|value| headers.append(name.clone(), value.clone()));
        }
    }
    let publish = PublishMessage::build().headers(headers).payload(message.payload.clone());
    js.send_publish(message.subject.to_string(), publish).await.unwrap().await.unwrap();
}

#[tokio::test]
async fn verify_finds_what_was_planted_and_nothing_else() {
    let fixture = Fixture::new().await;
    let ann = fixture.fleet.caller("acme", "ann").await;
    let mut ids = Vec::new();
    for n in 0..8 {
        let todo = ann.create(json!({"title": format!("todo {n}")})).await;
        let id = todo["id"].clone();
        let path = format!("/v1/todos/{}", id.as_str().unwrap());
        let body = json!({"notes": "a second version"});
        assert_eq!(ann.send(Method::PATCH, &path, Some(body)).await.status, 200);
        ids.push(id);
    }
    let path = format!("/v1/todos/{}", ids[7].as_str().unwrap());
    assert_eq!(ann.send(Method::DELETE, &path, None).await.status, 200);
    let (code, found, report) = fixture.verify(&[]).await;
    assert_eq!((code, found), (0, [0; 5]), "{report}");
    // The tenant and its owner, eight todos twice, and one deleted.
    assert_eq!(["outboxRows", "messages", "todos"].map(|part| report[part].as_u64().unwrap()), [19, 19, 8], "{report}");

    // The read model: one document changed, one gone, one that is no todo, one deleted todo shown again.
    let text = |n: usize| ids[n].as_str().unwrap().to_owned();
    let get =
        async |id: &str| fixture.opensearch(Method::GET, &format!("todos/_doc/{id}?routing=acme"), json!(null)).await;
    let mut changed = get(&text(0)).await["_source"].clone();
    changed["title"] = json!("something else");
    let put =
        |id: &str, version: u64| format!("todos/_doc/{id}?routing=acme&version={version}&version_type=external_gte");
    fixture.opensearch(Method::PUT, &put(&text(0), 2), changed.clone()).await;
    fixture.opensearch(Method::DELETE, &format!("todos/_doc/{}?routing=acme", text(1)), json!(null)).await;
    let nobody = "01a1ffff-0000-7000-8000-000000000001";
    let mut extra = changed.clone();
    extra["id"] = json!(nobody);
    fixture.opensearch(Method::PUT, &put(nobody, 2), extra).await;
    let mut raised = changed;
    (raised["id"], raised["version"]) = (ids[7].clone(), json!(3));
    fixture.opensearch(Method::PUT, &put(&text(7), 3), raised).await;
    fixture.opensearch(Method::POST, "todos/_refresh", json!(null)).await;
    let (code, found, report) = fixture.verify(&[]).await;
    assert_eq!((code, found), (4, [0, 0, 0, 0, 4]), "{report}");
    let mut named: Vec<&str> =
        report["diverged"]["examples"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    named.sort_unstable();
    let mut planted = vec![ids[0].as_str().unwrap(), ids[1].as_str().unwrap(), ids[7].as_str().unwrap(), nobody];
    planted.sort_unstable();
    assert_eq!(named, planted);
    assert_eq!(fixture.verify(&["--tenant", "another"]).await.0, 0, "it is none of that tenant's");

    // The stream, while the relay cannot repair anything: a message gone; back, behind a newer one of its todo; one twice;
    // one that the outbox does not know.
    // (The relay cannot catch up: do not wait for it.)
    let soon = ["--patience", "2"];
    fixture.hold_the_lead("infinity").await;
    let (js, stream) = fixture.stream().await;
    let taken = message(&stream, &ids[2], 1).await;
    let twice = message(&stream, &ids[3], 2).await;
    stream.delete_message(taken.sequence).await.unwrap();
    let (_, found, report) = fixture.verify(&soon).await;
    assert_eq!(found, [1, 0, 0, 0, 4], "{report}");
    let event: Value = serde_json::from_slice(&taken.payload).unwrap();
    assert_eq!(report["lost"]["examples"][0]["event"], event["id"]);
    publish(&js, &taken).await;
    let (_, found, report) = fixture.verify(&soon).await;
    assert_eq!(found, [0, 0, 1, 0, 4], "{report}");
    assert_eq!(report["outOfOrder"]["examples"][0]["aggregate"], ids[2]);
    publish(&js, &twice).await;
    js.publish("evt.todo.created.v1.acme", "{}".into()).await.unwrap().await.unwrap();
    let mut forged = twice;
    forged.headers.insert("Outbox-Seq", "1000000");
    publish(&js, &forged).await;
    let (code, found, report) = fixture.verify(&soon).await;
    assert_eq!((code, found), (4, [0, 1, 1, 2, 4]), "{report}");
    let text = String::from_utf8(fixture.fleet.run(&["verify", "--patience", "2"]).await.stdout).unwrap();
    assert!(text.contains("1 out of order") && text.contains(ids[2].as_str().unwrap()), "{text}");

    // What is unavailable is reported and does not count as well: a stopped process holds up no caller.
    let stopped = async |service: &str, more: &[&str]| {
        let process = fixture.fleet.unit(service).pid.unwrap();
        devstack::process::signal(process, Signal::SIGSTOP).unwrap();
        let (code, _, report) = fixture.verify(more).await;
        devstack::process::signal(process, Signal::SIGCONT).unwrap();
        assert!(report["unchecked"][0].as_str().unwrap().contains("does not answer"), "{report}");
        code
    };
    assert_eq!(stopped("search-projector", &soon).await, 4, "what was found is said");
    let future = ["--from", "2126-01-01T00:00:00Z"];
    assert_eq!(stopped("search-projector", &future).await, 5, "nothing found, and not everything checked");
    fixture.hold_the_lead("-infinity").await;
    assert_eq!(stopped("todo", &future).await, 5, "nor here");
    fixture.fleet.stop().await;
}

/// A mapping that is wrong: it takes no title that is not a number.
fn wrong_mapping() -> Value {
    let kept = ["tenant", "id", "status", "assignee", "created_by", "notes", "labels"];
    let times = ["index_time", "due_time", "create_time", "update_time", "complete_time"];
    let mut properties =
        json!({"title": {"type": "integer"}, "version": {"type": "integer"}, "deleted": {"type": "boolean"}});
    kept.iter().for_each(|name| properties[name] = json!({"type": "keyword"}));
    times.iter().for_each(|name| properties[name] = json!({"type": "date"}));
    json!({"_meta": {"filled_since": 1}, "_routing": {"required": true}, "properties": properties})
}

impl Fixture {
    /// Points the alias to a new index with this mapping, in one step; the one before is removed.
    async fn put_in_place(&self, name: &str, mapping: &Value) {
        let before = searched(self).await;
        let index = self.opensearch(Method::GET, &format!("{before}/_settings"), json!(null)).await;
        let analysis = &index[&before]["settings"]["index"]["analysis"];
        let settings = json!({"number_of_replicas": 0, "refresh_interval": "100ms", "analysis": analysis});
        self.opensearch(Method::PUT, name, json!({"settings": settings, "mappings": mapping})).await;
        let actions = json!([
            {"remove_index": {"index": before}},
            {"add": {"index": name, "alias": "todos", "is_write_index": true}},
        ]);
        self.opensearch(Method::POST, "_aliases", json!({"actions": actions})).await;
    }
}

#[tokio::test]
async fn an_incident_is_worked_from_the_first_letter_to_the_last() {
    let fixture = Fixture::new().await;
    let (ann, bob) = (fixture.fleet.caller("acme", "ann").await, fixture.fleet.caller("globex", "bob").await);
    let mut right =
        fixture.opensearch(Method::GET, "todos-v1/_mapping", json!(null)).await["todos-v1"]["mappings"].clone();
    assert_eq!(right["_meta"]["filled_since"], 1, "{right}");
    // An index that notes how far it was filled would be filled up from there by itself.
    right["_meta"] = json!({"filled_since": 1});
    fixture.put_in_place("todos-wrong", &wrong_mapping()).await;
    for n in 0..5 {
        let todo = ann.create(json!({"title": format!("ann's {n}")})).await;
        bob.create(json!({"title": format!("bob's {n}")})).await;
        let path = format!("/v1/todos/{}:complete", todo["id"].as_str().unwrap());
        assert_eq!(ann.send(Method::POST, &path, Some(json!({}))).await.status, 200);
    }
    until("fifteen letters", || async { fixture.fleet.json(&["dlq", "stats"]).await["letters"] == 15 }).await;
    let groups = fixture.fleet.json(&["dlq", "groups"]).await;
    let created = groups.as_array().unwrap().iter().find(|group| group["eventType"] == "todo.created.v1").unwrap();
    assert_eq!((&created["letters"], &created["tenants"]), (&json!(10), &json!(2)), "{groups}");
    assert!(created["errorClass"].as_str().unwrap().contains("mapper_parsing_exception"), "{groups}");
    let listed = fixture.fleet.json(&["dlq", "list", "--tenant", "globex"]).await;
    assert_eq!(listed.as_array().unwrap().len(), 5);
    let id = listed[0]["id"].to_string();
    let shown = fixture.fleet.json(&["dlq", "show", &id]).await;
    assert_eq!(shown["event"]["tenant"], "globex");
    assert_eq!(shown["traceId"].as_str().unwrap().len(), 32);
    assert!(shown["failures"][0]["version"].as_str().unwrap().starts_with("search-projector "), "{shown}");
    assert_eq!(fixture.verify(&[]).await.1[4], 10, "the read model lacks them");

    let status = fixture.fleet.json(&["status"]).await;
    let degraded: Vec<&str> =
        status["degraded"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    assert!(degraded.iter().any(|line| line.starts_with("15 dead letters")), "{degraded:?}");
    let ops = fixture.fleet.unit("operations").ops.unwrap();
    until("the metrics tell of the letters, for the alerts", || async {
        let text = fixture.http.get(format!("http://{ops}/metrics")).send().await.unwrap().text().await.unwrap();
        ["dlq_unsettled_letters", "dlq_oldest_unsettled_seconds", "dlq_deaths_total"]
            .iter()
            .all(|metric| text.lines().any(|line| line.starts_with(metric) && !line.ends_with(" 0")))
    })
    .await;

    // Too early: the canary fails, and everything stays where it was.
    let (code, job) = fixture.operate(&["dlq", "replay", "--consumer", "search-projector"]).await;
    assert_eq!((code, &job["state"], &job["failed"], &job["skipped"]), (3, &json!("aborted"), &json!(1), &json!(14)));
    // Nobody replays everything by omitting an option, and nobody acts without an operator's token.
    let without = fixture.fleet.run(&["dlq", "replay", "--reason", "r", "--yes"]).await;
    assert!(String::from_utf8_lossy(&without.stderr).contains("--all"), "{without:?}");
    let nobody = fixture.fleet.run(&["dlq", "replay", "--all", "--reason", "r", "--yes"]).await;
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("who acts?"), "{nobody:?}");
    let (_, edited) = fixture.operate(&["dlq", "replay", "--all", "--dry-run"]).await;
    assert_eq!(edited["letters"].as_array().unwrap().len(), 15);
    assert_eq!(fixture.fleet.json(&["dlq", "stats"]).await["failedAgain"], 1);

    // One is discarded, the index is repaired, the rest is replayed.
    let (code, discarded) = fixture.operate(&["dlq", "discard", &id]).await;
    assert_eq!((code, &discarded["discarded"]), (0, &json!(1)));
    fixture.put_in_place("todos-mended", &right).await;
    let (code, job) = fixture.operate(&["dlq", "replay", "--all", "--rate", "500"]).await;
    assert_eq!((code, &job["state"], &job["handled"]), (0, &json!("done"), &json!(14)), "{job}");
    let stats = fixture.fleet.json(&["dlq", "stats"]).await;
    let of = |state: &str| stats[state].as_i64().unwrap();
    assert_eq!([of("letters"), of("open"), of("failedAgain"), of("handled"), of("discarded")], [15, 0, 0, 14, 1]);
    let (_, found, report) = fixture.verify(&[]).await;
    assert_eq!((found[4], &report["diverged"]["examples"][0]["tenant"]), (1, &json!("globex")), "{report}");
    until("what was replayed is found", || async { ann.search("ann's").await.len() == 5 }).await;

    // The discarded one comes by a replay of its stream, to that consumer alone.
    let range = [
        "replay",
        "--consumer",
        "search-projector",
        "--subject",
        "evt.todo.*.*.globex",
        "--from",
        "2026-01-01T00:00:00Z",
    ];
    let (code, job) = fixture.operate(&range).await;
    assert_eq!((code, &job["handled"]), (0, &json!(5)), "{job}");
    fixture.is_well().await;
    let audit = fixture.fleet.json(&["dlq", "audit"]).await;
    let acts: Vec<&str> = audit.as_array().unwrap().iter().rev().map(|line| line["action"].as_str().unwrap()).collect();
    assert_eq!(acts[..3], ["replay", "aborted itself", "discard"], "{audit}");
    assert!(acts.contains(&"range") && audit[0]["at"].is_string(), "{audit}");
    let who: Vec<&str> = audit.as_array().unwrap().iter().map(|line| line["actor"].as_str().unwrap()).collect();
    assert!(who.iter().all(|who| ["olga", "operations"].contains(who)), "{audit}");
    fixture.fleet.stop().await;
}

/// A client writes and searches all the while: no search fails, and none goes back in time; returns how many writes. (Searches are
/// the projector's: while that is down they are refused.)
async fn used(caller: Caller, id: String, title: &'static str, phases: watch::Receiver<&'static str>) -> usize {
    let (mut shown, mut writes) = (0, 0);
    while *phases.borrow() != "over" {
        writes += 1;
        let strict = *phases.borrow() == "strict";
        let change = json!({"title": title, "notes": format!("change {writes}")});
        assert_eq!(caller.send(Method::PATCH, &format!("/v1/todos/{id}"), Some(change)).await.status, 200);
        let query = format!("/v1/todos:search?query={}", title.replace(' ', "%20"));
        let answer = caller.send(Method::GET, &query, None).await;
        if !strict && answer.status == 503 {
            continue;
        }
        assert_eq!(answer.status, 200, "{}", answer.body);
        let hit = answer.body["hits"].as_array().unwrap().iter().find(|hit| hit["title"] == title).cloned();
        let version = hit.unwrap_or_else(|| panic!("not found: {}", answer.body))["version"].as_i64().unwrap();
        assert!(version >= shown, "version {version} after {shown}");
        shown = version;
    }
    writes
}

/// The index that is searched.
async fn searched(fixture: &Fixture) -> String {
    let aliases = fixture.opensearch(Method::GET, "_alias/todos", json!(null)).await;
    aliases.as_object().unwrap().keys().next().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_model_is_rebuilt_while_it_is_used() {
    let fixture = Fixture::new().await;
    let ann = fixture.fleet.caller("acme", "ann").await;
    let mut ids = Vec::new();
    for n in 0..40 {
        ids.push(ann.create(json!({"title": format!("todo {n}")})).await["id"].as_str().unwrap().to_owned());
    }
    let gone = ann.send(Method::DELETE, &format!("/v1/todos/{}", ids[1]), None).await;
    assert_eq!(gone.status, 200);
    until("it is found", || async { !ann.search("todo 0").await.is_empty() }).await;

    let (phase, phases) = watch::channel("the projector may be dead");
    let mut live = tokio::task::JoinSet::new();
    live.spawn(used(ann, ids[0].clone(), "todo 0", phases));

    // The command and the projector die in the middle; run again, the command goes on.
    let before = searched(&fixture).await;
    let copies = fixture.hold_up_copies().await;
    let args = ["rebuild", "search", "--from", "database", "--reason", "the mapping changed", "--yes", "--json"];
    let mut tool = fixture.fleet.command(&args).env("FLOTILLA_OPERATOR_TOKEN", &fixture.token).spawn().unwrap();
    let next = || async {
        let url = format!("{}/_alias/todos-rebuild", fixture.fleet.unit("opensearch").login_url().unwrap());
        fixture.http.get(url).send().await.unwrap().status().is_success()
    };
    until("the rebuild has begun", next).await;
    tool.kill().await.unwrap();
    fixture.fleet.kill("search-projector").await;
    fixture.todo_database().await.execute(sqlx::AssertSqlSafe(copies)).await.unwrap();
    phase.send("strict").unwrap();
    assert_eq!(searched(&fixture).await, before, "nothing is swapped by halves");
    let (code, rebuilt) = fixture.operate(&["rebuild", "search"]).await;
    assert_eq!((code, &rebuilt["todos"], &rebuilt["tenants"]["acme"]["differing"]), (0, &json!(40), &json!(0)));
    let after = searched(&fixture).await;
    assert_eq!(rebuilt["index"], after);
    assert_ne!(after, before);
    fixture.is_well().await;

    // Back to the one before, which has missed what was written since; then a new one, from the stream.
    let (code, back) = fixture.operate(&["rebuild", "search", "--rollback"]).await;
    assert_eq!((code, &back["index"]), (0, &json!(before)));
    fixture.is_well().await;
    let (code, again) = fixture.operate(&["rebuild", "search", "--from", "stream"]).await;
    assert_eq!((code, &again["todos"]), (0, &json!(40)), "{again}");
    fixture.is_well().await;
    phase.send("over").unwrap();
    assert!(live.join_next().await.unwrap().unwrap() > 3);
    let indices = fixture.opensearch(Method::GET, "_cat/indices/todos*?format=json", json!(null)).await;
    assert_eq!(indices.as_array().unwrap().len(), 2, "the one that is searched, and one to go back to: {indices}");

    // A pause of an operator's own outlasts that of the swap.
    let pause = ["consumers", "pause", "search-projector", "--minutes", "5"];
    assert_eq!(fixture.operate(&pause).await.0, 0);
    let (code, again) = fixture.operate(&["rebuild", "search"]).await;
    assert_eq!(code, 0, "{again}");
    let consumers = fixture.fleet.json(&["consumers"]).await;
    let projector = consumers.as_array().unwrap().iter().find(|c| c["name"] == "search-projector").unwrap().clone();
    assert_eq!(projector["paused"], true, "{projector}");
    assert_eq!(fixture.operate(&["consumers", "resume", "search-projector"]).await.0, 0);
    fixture.is_well().await;

    // An index that differs is not swapped in, and can be abandoned.
    let copies = fixture.hold_up_copies().await;
    let mut tool = fixture.fleet.command(&args).env("FLOTILLA_OPERATOR_TOKEN", &fixture.token).spawn().unwrap();
    until("another has begun", next).await;
    tool.kill().await.unwrap();
    let (code, _) = fixture.operate(&["rebuild", "search", "--abandon"]).await;
    fixture.todo_database().await.execute(sqlx::AssertSqlSafe(copies)).await.unwrap();
    assert_eq!(code, 0);
    assert_eq!(searched(&fixture).await, again["index"].as_str().unwrap());
    fixture.is_well().await;
    fixture.fleet.stop().await;
}

/// Todos with their events, written by SQL: many, and fast.
const MANY: &str = "with made as (insert into todo (tenant, id, title, notes, status, labels, create_time, update_time, created_by, version) \
    select 'many', gen_random_uuid(), 'todo number ' || n, '', 'OPEN', '{}', clock_timestamp(), clock_timestamp(), 'ann', 1 \
    from generate_series(1, $1) n returning *) \
    insert into outbox (event_id, tenant, aggregate_id, subject, payload) \
    select e.id, tenant, m.id::text, 'evt.todo.created.v1.many', convert_to(jsonb_build_object('specversion', '1.0', 'id', e.id, \
    'source', '/flotilla/todo', 'type', 'todo.created.v1', 'subject', m.id, 'time', create_time, 'datacontenttype', 'application/json', \
    'dataschema', 'https://flotilla.example/schemas/todo.created.v1.json', 'sequence', lpad('1', 20, '0'), 'partitionkey', m.id, \
    'tenant', tenant, 'data', jsonb_build_object('todo', jsonb_build_object('id', m.id, 'title', title, 'notes', notes, 'status', status, \
    'labels', labels, 'create_time', create_time, 'update_time', update_time, 'created_by', created_by, 'version', 1), \
    'actor', jsonb_build_object('kind', 'user', 'id', 'ann')))::text, 'UTF8') \
    from made m cross join lateral (select gen_random_uuid() as id where m.id is not null) e";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "200,000 todos take minutes; docs/performance.md has what it printed"]
async fn two_hundred_thousand_todos_are_rebuilt_while_they_are_used() {
    let fixture = Fixture::new().await;
    let ann = fixture.fleet.caller("acme", "ann").await;
    let id = ann.create(json!({"title": "changed all the while"})).await["id"].as_str().unwrap().to_owned();
    let mut db = sqlx::PgConnection::connect(fixture.fleet.login("postgres")["url"].as_str().unwrap()).await.unwrap();
    for _ in 0..20 {
        sqlx::query(MANY).bind(10_000).execute(&mut db).await.unwrap();
    }
    let long = std::time::Duration::from_secs(600);
    testkit::until_within(long, "all are found", || async {
        let count = fixture.opensearch(Method::GET, "todos/_count", json!({"query": {"match_all": {}}})).await;
        count["count"].as_u64().unwrap() >= 200_001
    })
    .await;
    let (phase, phases) = watch::channel("strict");
    let mut live = tokio::task::JoinSet::new();
    live.spawn(used(ann, id, "changed all the while", phases));
    for args in [
        &["rebuild", "search", "--from", "stream"][..],
        &["rebuild", "search", "--from", "database"],
        &["rebuild", "search", "--rollback"],
    ] {
        let started = std::time::Instant::now();
        let (code, rebuilt) = fixture.operate(args).await;
        assert_eq!((code, &rebuilt["todos"]), (0, &json!(200_001)), "{rebuilt}");
        println!("{args:?}: {:.1} s", started.elapsed().as_secs_f64());
    }
    let started = std::time::Instant::now();
    fixture.is_well().await;
    println!("verify: {:.1} s", started.elapsed().as_secs_f64());
    phase.send("over").unwrap();
    println!("{} writes and as many searches meanwhile", live.join_next().await.unwrap().unwrap());
    fixture.fleet.stop().await;
}
