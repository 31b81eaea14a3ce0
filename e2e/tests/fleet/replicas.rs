//! Two replicas of a service behind a gateway, of which one is killed.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use e2e::Fleet;
use futures::future::join_all;
use nix::sys::signal::Signal;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use testkit::{backing, unique, until};
use tokio::process::{Child, Command};

use crate::with_fleet;

/// One more process of a service, like the fleet's own except for its ports and these variables.
pub async fn one_more(fleet: &Fleet, service: &str, more: &[(&str, &str)]) -> (Child, String, String) {
    let own = std::fs::read(format!("/proc/{}/environ", fleet.unit(service).pid.unwrap())).unwrap();
    let own = String::from_utf8(own).unwrap();
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (listen, ops) = (free(), free());
    let mut command = Command::new(backing::programs().join(service));
    command.arg("serve").kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.env_clear().envs(own.split('\0').filter_map(|pair| pair.split_once('=')));
    command.env("FLOTILLA_LISTEN", &listen).env("FLOTILLA_OPS_LISTEN", &ops).envs(more.iter().copied());
    let child = command.spawn().unwrap();
    let http = Client::builder().no_proxy().build().unwrap();
    until("it is ready", || async {
        let ready = http.get(format!("http://{ops}/readyz")).send().await;
        ready.is_ok_and(|ready| ready.status().is_success())
    })
    .await;
    (child, listen, ops)
}

#[test]
fn of_two_replicas_one_is_killed_under_load_and_no_idempotent_call_fails() {
    with_fleet(|fleet, _| async {
        let (mut victim, first, _) = one_more(fleet, "todo", &[]).await;
        let (_survivor, second, _) = one_more(fleet, "todo", &[]).await;
        let [search, identity] = ["search-projector", "identity"].map(|unit| fleet.unit(unit).address);
        let todo = "flotilla.todo.v1.TodoService";
        let upstreams = format!(
            "{todo}=http://{first},{todo}=http://{second},flotilla.search.v1.SearchService=http://{search},flotilla.identity.v1.IdentityService=http://{identity}"
        );
        let (_gateway, address, ops) = one_more(fleet, "gateway", &[("FLOTILLA_UPSTREAMS", &upstreams)]).await;
        let ann = fleet.caller("replicas", "ann").await.at(&address);
        let shown = ann.create(json!({"title": "shown"})).await;
        let path = format!("/v1/todos/{}", shown["id"].as_str().unwrap());

        let (stop, done, killed) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        let client = async |n: usize| {
            let mut created = Vec::new();
            while !stop.load(Ordering::SeqCst) {
                if n.is_multiple_of(2) {
                    // Each with its own key.
                    let title = unique("written-");
                    let answer = ann.send(Method::POST, "/v1/todos", Some(json!({"title": title}))).await;
                    assert_eq!(answer.status, 200, "a write: {}", answer.body);
                    created.push(title);
                } else {
                    let answer = ann.send(Method::GET, &path, None).await;
                    assert_eq!(answer.status, 200, "a read: {}", answer.body);
                }
                done.fetch_add(1, Ordering::SeqCst);
            }
            created
        };
        let load = join_all((0..12).map(client));
        let kill = async {
            until("both are at work", || async { done.load(Ordering::SeqCst) > 300 }).await;
            devstack::process::signal(victim.id().unwrap(), Signal::SIGKILL).unwrap();
            victim.wait().await.unwrap();
            killed.store(done.load(Ordering::SeqCst), Ordering::SeqCst);
            until("the load goes on", || async { done.load(Ordering::SeqCst) > killed.load(Ordering::SeqCst) + 600 })
                .await;
            stop.store(true, Ordering::SeqCst);
        };
        let (created, ()) =
            tokio::time::timeout(Duration::from_secs(120), async { tokio::join!(load, kill) }).await.unwrap();
        let metrics = reqwest::get(format!("http://{ops}/metrics")).await.unwrap().text().await.unwrap();
        let metric = |start: &str, label: &str| {
            let line = metrics.lines().find(|line| line.starts_with(start) && line.contains(label)).unwrap();
            line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
        };
        let outcome = |outcome: &str| {
            metric(&format!(r#"upstream_attempts_total{{upstream="{todo}""#), &format!(r#"outcome="{outcome}""#))
        };
        assert!(outcome("lost") + outcome("not_sent") > 0.0 && outcome("repeated") > 0.0, "{metrics}");
        let state = |replica: &str| metric("upstream_breaker_state", &format!(r#"replica="{replica}""#));
        assert!(state(&first) > 0.0 && state(&second) == 0.0, "{metrics}");
        // Each write happened, and none twice.
        let mut wanted: Vec<String> = created.into_iter().flatten().chain(["shown".to_owned()]).collect();
        let (mut there, mut page) = (Vec::new(), String::new());
        loop {
            let answer = ann.send(Method::GET, &format!("/v1/todos?pageSize=200&pageToken={page}"), None).await;
            let titles =
                answer.body["todos"].as_array().unwrap().iter().map(|todo| todo["title"].as_str().unwrap().to_owned());
            there.extend(titles);
            match &answer.body["nextPageToken"] {
                Value::String(next) if !next.is_empty() => page.clone_from(next),
                _ => break,
            }
        }
        wanted.sort();
        there.sort();
        assert_eq!(there, wanted);
    });
}
