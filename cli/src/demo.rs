//! `flotilla demo`: the whole path, seen from outside: write, events, search, another tenant, and where the time goes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use chrono::{DateTime, Utc};
use contracts::TenantId;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use service::tail::From;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::adoption;
use crate::api::{Answer, Api};
use crate::context::Context;
use crate::events::{self, Received};

#[expect(clippy::disallowed_methods, reason = "a fresh key for each write of each run")]
fn key() -> String {
    Uuid::now_v7().to_string()
}

pub async fn run(context: &Context) -> Result<(), anyhow::Error> {
    adoption::of_this_machine(context).await?;
    let eve = Api::new(context, "globex", "eve").await?;
    let acme: TenantId = "acme".parse()?;
    let stream = events::of(context, contracts::events::todo::SERVICE).await?;
    let (sender, mut heard) = mpsc::unbounded_channel();
    let say = |text: &str| {
        if !context.json {
            println!("{text}");
        }
    };
    // Listen from the stream's present end, so that no event of the script is missed.
    let now = stream.extent().await?;
    let from = From::Behind(now.made, now.last);
    let listening = events::tail(stream, Some(&acme), from, move |event| sender.send(event).is_ok());
    let script = async {
        say("1. Ann signs up tenant acme, invites Bob, and gives a program a key");
        let Acme { ann, program, account } = sign_up(context, &acme, &say).await?;

        say("2. Ann writes three todos");
        let mut todos = Vec::new();
        for (title, labels) in [
            ("Splice the mooring line", json!(["harbour", "rope"])),
            ("Order tar and oakum", json!(["harbour"])),
            ("Repair the lighthouse lamp", json!(["urgent"])),
        ] {
            let answer = ann.write("/v1/todos", &key(), &json!({"title": title, "labels": labels})).await?;
            let todo = accepted(answer)?.0;
            say(&format!("   {}  {title}", text(&todo, "id")));
            todos.push(todo);
        }
        let first = text(&todos[0], "id").to_owned();
        accepted(ann.write(&format!("/v1/todos/{first}:complete"), &key(), &json!({})).await?)?;
        say(&format!("   {first}  completed"));

        say("3. The events, as any subscriber of evt.todo.*.*.acme hears them");
        for _ in 0..5 {
            say(&format!("   {}", events::line(&next(&mut heard).await?)));
        }

        say("4. One todo's way through the fleet");
        let way = follow(&ann, &mut heard).await?;
        say(&way.text());

        say("5. Ann searches");
        let hits = search(&ann, "lighthouse").await?;
        ensure!(!hits.is_empty(), "the search finds nothing");
        for hit in hits.iter().take(3) {
            say(&format!("   {}", hit["highlights"][0]["snippets"][0].as_str().unwrap_or_else(|| text(hit, "title"))));
        }

        say("6. The program reads one, and Ann lets it in no more");
        let path = format!("/v1/todos/{first}");
        let read = accepted(program.read(&path).await?)?.0;
        say(&format!("   {}", text(&read, "title")));
        let refused = program.write(&format!("{path}:complete"), &key(), &json!({})).await?;
        ensure!(refused.status == StatusCode::FORBIDDEN, "a key that may read has written: {}", refused.status);
        say(&format!("   it may not write: {} {}", refused.status, text(&refused.body, "code")));
        accepted(ann.call(Method::DELETE, &format!("/v1/serviceAccounts/{account}"), None, None).await?)?;

        say("7. Eve of tenant globex looks for the same");
        let foreign = eve.read(&path).await?;
        ensure!(foreign.status == StatusCode::NOT_FOUND, "another tenant got {} for Ann's todo", foreign.status);
        ensure!(search(&eve, "splice").await?.is_empty(), "another tenant finds Ann's todo");
        say(&format!("   by id: {} {}", foreign.status, text(&foreign.body, "code")));
        say("   by search: nothing");
        if context.json {
            println!("{}", way.json());
        }
        Ok(())
    };
    tokio::select! {
        result = script => result,
        ended = listening => ended.and_then(|()| bail!("the events have ended")),
    }
}

/// What Ann has made.
struct Acme {
    ann: Api,
    program: Api,
    /// The program's id.
    account: String,
}

/// Signs acme up, with Bob in it, and makes a key. What an earlier run has made is there already.
async fn sign_up(context: &Context, acme: &TenantId, say: &impl Fn(&str)) -> Result<Acme, anyhow::Error> {
    let (ann, bob) = (Api::person(context, "ann").await?, Api::person(context, "bob").await?);
    let tenant = json!({"id": acme, "name": "Acme Shipping", "country": "DE", "currency": "EUR"});
    let made = ann.write("/v1/tenants", &key(), &tenant).await?;
    if made.body["code"] == "TENANT_EXISTS" {
        say("   the tenant is there");
    } else {
        say(&format!("   tenant {}, {}", acme, text(&accepted(made)?.0, "name")));
    }
    let ann =
        ann.of(acme.as_str()).await.context("acme may be of people of another provider: start the fleet as before")?;
    let members = accepted(ann.read("/v1/members?pageSize=200").await?)?.0;
    let members = members["members"].as_array().cloned().unwrap_or_default();
    if !members.iter().any(|member| text(member, "email") == "bob@people.example") {
        let invitation = json!({"email": "bob@people.example", "role": "MEMBER"});
        let invitation = accepted(ann.write("/v1/invitations", &key(), &invitation).await?)?.0;
        let accept = format!("/v1/invitations/{}:accept", text(&invitation, "id"));
        let member = accepted(bob.write(&accept, &key(), &json!({})).await?)?.0;
        say(&format!("   {} is a {}", text(&member, "name"), text(&member, "role")));
    }
    let account = json!({"name": "the demo's report", "role": "VIEWER"});
    let account = text(&accepted(ann.write("/v1/serviceAccounts", &key(), &account).await?)?.0, "id").to_owned();
    let draft = json!({"serviceAccount": account, "name": "the demo's key", "scopes": ["todo:read"]});
    let made = accepted(ann.write("/v1/apiKeys", &key(), &draft).await?)?.0;
    say(&format!("   service account {account}, with a key"));
    Ok(Acme { ann, program: Api::by(context, text(&made, "key").to_owned())?, account })
}

/// The stages of one write.
struct Way {
    id: String,
    trace_id: String,
    answered: Duration,
    stages: Vec<(&'static str, f64)>,
}

impl Way {
    fn text(&self) -> String {
        let mut text = format!("   todo {}\n   trace {}\n", self.id, self.trace_id);
        text.push_str(&format!("   {:>8.1} ms  the client has its answer\n", self.answered.as_secs_f64() * 1e3));
        for (stage, millis) in &self.stages {
            text.push_str(&format!("   {millis:>8.1} ms  {stage}\n"));
        }
        text.trim_end().to_owned()
    }

    fn json(&self) -> Value {
        let stages: Vec<Value> =
            self.stages.iter().map(|(stage, millis)| json!({"stage": stage, "milliseconds": millis})).collect();
        let answered = self.answered.as_secs_f64() * 1e3;
        json!({"id": self.id, "traceId": self.trace_id, "answeredMilliseconds": answered, "stages": stages})
    }
}

/// Writes one todo and follows it through each stage, timed from the moment it was sent.
async fn follow(api: &Api, heard: &mut mpsc::UnboundedReceiver<Received>) -> Result<Way, anyhow::Error> {
    let sent = (Instant::now(), devstack::supervisor::now());
    // A unique word, so that the search has one hit however often the demo is run.
    let title = &format!("Trace this todo through the fleet, run {}", key());
    let (todo, trace_id) = accepted(api.write("/v1/todos", &key(), &json!({"title": title})).await?)?;
    let answered = sent.0.elapsed();
    let id = text(&todo, "id").to_owned();
    let since = |time: DateTime<Utc>| (time - sent.1).num_microseconds().unwrap_or_default() as f64 / 1e3;
    let event = loop {
        let event = next(heard).await?;
        if event.envelope.subject == id {
            break event;
        }
    };
    let mut stages = vec![
        ("decided in the todo service (the event's time)", since(event.envelope.time)),
        ("stored in the stream by the relay", since(event.stored_at)),
    ];
    let deadline = Instant::now() + events::WAIT;
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    loop {
        tick.tick().await;
        let hits = search(api, title).await?;
        if let Some(hit) = hits.iter().find(|hit| text(hit, "id") == id) {
            let indexed: DateTime<Utc> = text(hit, "indexTime").parse()?;
            stages.push(("written to the index by the projector", since(indexed)));
            stages.push(("found by a search", sent.0.elapsed().as_secs_f64() * 1e3));
            break;
        }
        ensure!(Instant::now() < deadline, "the todo was not found within {:?}", events::WAIT);
    }
    let traced = event.envelope.traceparent.as_deref().and_then(|parent| parent.split('-').nth(1)).unwrap_or_default();
    ensure!(traced == trace_id, "the event carries trace {traced}, the request had {trace_id}");
    Ok(Way { id, trace_id, answered, stages })
}

async fn next(heard: &mut mpsc::UnboundedReceiver<Received>) -> Result<Received, anyhow::Error> {
    let event = tokio::time::timeout(events::WAIT, heard.recv()).await;
    event.with_context(|| format!("no event within {:?}", events::WAIT))?.context("the events have ended")
}

/// Searches; returns every hit of the first page.
async fn search(api: &Api, words: &str) -> Result<Vec<Value>, anyhow::Error> {
    let query: String = words.replace(' ', "+");
    let answer = api.read(&format!("/v1/todos:search?query={query}&pageSize=100")).await?;
    let body = accepted(answer)?.0;
    Ok(body["hits"].as_array().cloned().unwrap_or_default())
}

fn accepted(answer: Answer) -> Result<(Value, String), anyhow::Error> {
    if !answer.status.is_success() {
        bail!("the fleet answers {}: {}", answer.status, answer.body);
    }
    Ok((answer.body, answer.trace_id))
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}
