//! The faults, and how long the fleet takes to recover from each.

use std::time::Duration;

use devstack::State;
use devstack::process::signal;
use e2e::clients::Client;
use e2e::random::Random;
use e2e::{Caller, Fleet};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use testkit::until_within;
use tokio::time::Instant;

/// How long the fleet may take to recover.
const RECOVERED_WITHIN: Duration = Duration::from_secs(240);
/// The services: all, and those that are called.
fn services(wanted: fn(&fleet::Service) -> bool) -> Vec<&'static str> {
    fleet::SERVICES.iter().filter(|service| wanted(service)).map(|service| service.name).collect()
}
const INFRA: [&str; 3] = ["nats", "postgres", "opensearch"];

/// A fault of the fleet.
#[derive(Debug, Clone)]
pub enum Fault {
    /// SIGKILL; the supervisor starts it again.
    Kill(&'static str),
    /// SIGSTOP, and SIGCONT after this time.
    Pause(&'static str, Duration),
    /// The traffic through this proxy is disturbed for this time.
    Disturb(&'static str, Toxic, Duration),
    /// Killed, and everything that it stored is gone.
    Wipe(&'static str),
    /// Restored to its state of this long ago, as from a backup.
    Restore(&'static str, Duration),
    /// A row that nobody can publish gets into the outbox; an operator discards it.
    Poison,
}

/// What a fault proxy does to connections.
#[derive(Debug, Clone, Copy)]
pub enum Toxic {
    Latency,
    Reset,
    BlackHole,
    SlowClose,
}

impl Toxic {
    fn body(self) -> serde_json::Value {
        match self {
            Self::Latency => json!({"type": "latency", "attributes": {"latency": 300, "jitter": 300}}),
            Self::Reset => json!({"type": "reset_peer", "attributes": {"timeout": 200}}),
            Self::BlackHole => json!({"type": "timeout", "attributes": {"timeout": 0}}),
            Self::SlowClose => json!({"type": "slow_close", "attributes": {"delay": 2000}}),
        }
    }
}

impl Fault {
    /// The next one; each run begins with one of each kind, so that a short one has them all.
    fn choose(random: &mut Random, number: usize) -> Self {
        let seconds =
            |random: &mut Random, most: usize| Duration::from_millis(1_000 + random.below(most * 1_000) as u64);
        let kind = if number < 6 {
            [0, 2, 4, 1, 3, 5][number]
        } else {
            [0, 0, 0, 1, 1, 2, 2, 2, 3, 4, 4, 5][random.below(12)]
        };
        let targets = [&services(|_| true)[..], &INFRA[..]].concat();
        match kind {
            0 => Self::Kill(targets[random.below(targets.len())]),
            1 => {
                let target = targets[random.below(targets.len())];
                Self::Pause(target, seconds(random, 6))
            }
            2 => {
                let toxics = [Toxic::Latency, Toxic::Reset, Toxic::BlackHole, Toxic::SlowClose];
                let proxies = [&INFRA[..], &services(|service| !service.serves.is_empty())].concat();
                let (proxy, toxic) = (proxies[random.below(proxies.len())], toxics[random.below(toxics.len())]);
                Self::Disturb(proxy, toxic, seconds(random, 5))
            }
            3 => Self::Wipe(["nats", "opensearch"][random.below(2)]),
            5 => Self::Poison,
            _ => {
                let target = ["nats", "opensearch"][random.below(2)];
                Self::Restore(target, seconds(random, 4))
            }
        }
    }
}

/// One fault, and the recovery from it.
struct Done {
    fault: Fault,
    at: Duration,
    recovered: Duration,
}

/// What a run has done.
pub struct Report {
    done: Vec<Done>,
    /// How many todos were written to check the recovery.
    pub probes: usize,
}

impl Report {
    pub fn print(&self, written: &[Client]) {
        for Done { fault, at, recovered } in &self.done {
            println!("{:>7.1} s  {fault:?}: itself again after {:.1} s", at.as_secs_f64(), recovered.as_secs_f64());
        }
        let slowest = self.done.iter().map(|done| done.recovered).max().unwrap_or_default();
        let (operations, retries) = (written.iter().map(|c| c.acknowledged), written.iter().map(|c| c.retries));
        println!(
            "{} writes acknowledged, {} sent again, {} faults, as many recoveries, the slowest {:.1} s",
            operations.sum::<usize>(),
            retries.sum::<usize>(),
            self.done.len(),
            slowest.as_secs_f64()
        );
    }
}

/// Copies a folder with all that is in it.
fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, to) = (entry.as_ref().unwrap(), to.join(entry.as_ref().unwrap().file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), &to).unwrap();
        }
    }
}

pub struct Faults<'a> {
    fleet: &'a Fleet,
    random: Random,
    prober: Caller,
    http: reqwest::Client,
    /// The token of an operator, who resolves what waits for a person.
    operator: String,
    probes: usize,
}

impl<'a> Faults<'a> {
    pub async fn new(fleet: &'a Fleet, random: Random) -> Self {
        let prober = fleet.caller("prober", "prober").await;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().unwrap();
        let operator = fleet.run(&["token", "--operator", "--user", "olga"]).await.stdout;
        let operator = String::from_utf8(operator).unwrap().trim().to_owned();
        Self { fleet, random, prober, http, operator, probes: 0 }
    }

    /// One fault after the other, now and then two at once, until then.
    pub async fn until(mut self, end: Instant) -> Report {
        let started = Instant::now();
        let mut done = Vec::new();
        while Instant::now() < end {
            let fault = Fault::choose(&mut self.random, done.len());
            let at = started.elapsed();
            self.inflict(&fault).await;
            if self.random.below(4) == 0 && Instant::now() < end {
                let second = Fault::choose(&mut self.random, done.len() + 4);
                self.inflict(&second).await;
                done.push(Done { fault: second, at: started.elapsed(), recovered: Duration::ZERO });
            }
            let ended = Instant::now();
            self.until_itself_again(&fault).await;
            println!("{:>7.1} s  {fault:?}: {:.1} s", at.as_secs_f64(), ended.elapsed().as_secs_f64());
            done.push(Done { fault, at, recovered: ended.elapsed() });
            let pause = Duration::from_millis(self.random.below(1_500) as u64);
            tokio::time::sleep(pause).await;
        }
        Report { done, probes: self.probes }
    }

    async fn inflict(&self, fault: &Fault) {
        match fault {
            Fault::Kill(unit) => drop(self.kill(unit, || {}).await),
            Fault::Pause(unit, length) => {
                let processes = self.processes(unit);
                processes.iter().for_each(|pid| drop(signal(*pid, Signal::SIGSTOP)));
                tokio::time::sleep(*length).await;
                processes.iter().for_each(|pid| drop(signal(*pid, Signal::SIGCONT)));
            }
            Fault::Disturb(proxy, toxic, length) => {
                for stream in ["upstream", "downstream"] {
                    let mut body = toxic.body();
                    (body["name"], body["stream"]) = (json!(stream), json!(stream));
                    self.proxy(&format!("proxies/{proxy}/toxics"), &body).await;
                }
                tokio::time::sleep(*length).await;
                self.proxy("reset", &json!({})).await;
            }
            Fault::Wipe(unit) => {
                let data = self.fleet.unit(unit).data_dir.unwrap();
                let gone = data.with_extension(testkit::unique("gone-"));
                std::fs::rename(&data, &gone).unwrap();
                // Before it is started again.
                self.kill(unit, || std::fs::create_dir_all(&data).unwrap()).await;
                std::fs::remove_dir_all(&gone).ok();
            }
            Fault::Poison => self.until_discarded(&self.poison().await).await,
            Fault::Restore("nats", ago) => {
                let data = self.fleet.unit("nats").data_dir.unwrap();
                let backup = data.with_extension(testkit::unique("backup-"));
                let copied = self.kill("nats", || copy(&data, &backup)).await;
                tokio::time::sleep(*ago).await;
                // An earlier fault killed it during a write: no backup.
                if copied {
                    let put_back = || {
                        std::fs::remove_dir_all(&data).unwrap();
                        std::fs::rename(&backup, &data).unwrap();
                    };
                    self.kill("nats", put_back).await;
                }
                std::fs::remove_dir_all(&backup).ok();
            }
            Fault::Restore(_, ago) => {
                let Some((index, backup)) = self.copy_of_the_index().await else { return };
                tokio::time::sleep(*ago).await;
                let actions = json!({"actions": [
                    {"remove_index": {"index": index}},
                    {"add": {"index": backup, "alias": "todos", "is_write_index": true}},
                ]});
                self.opensearch(Method::POST, "_aliases", &actions).await;
            }
        }
    }

    /// Puts a row into the outbox whose subject is none; its aggregate. Retried while the database is unavailable.
    async fn poison(&self) -> String {
        let aggregate = testkit::unique("poison-");
        let insert = "insert into outbox (event_id, tenant, aggregate_id, subject, payload) select gen_random_uuid(), \
                      'acme', $1, 'evt.todo.created.v1.*', '{}' where not exists (select from outbox where aggregate_id = $1)";
        until_within(RECOVERED_WITHIN, "the row is written", || async {
            let Some(mut db) = self.database().await else { return false };
            sqlx::query(insert).bind(&aggregate).execute(&mut db).await.is_ok()
        })
        .await;
        aggregate
    }

    /// Waits until the row is parked, while everything else goes on, and discards it as an operator does.
    async fn until_discarded(&self, aggregate: &str) {
        let parked = "select seq from outbox_parked where aggregate_id = $1 and state = 'parked'";
        until_within(RECOVERED_WITHIN, "the row is parked and discarded", || async {
            let Some(mut db) = self.database().await else { return false };
            let seq: Option<i64> =
                sqlx::query_scalar(parked).bind(aggregate).fetch_optional(&mut db).await.unwrap_or(None);
            let Some(seq) = seq.map(|seq| seq.to_string()) else { return false };
            let mut discard = self.fleet.command(&["outbox", "discard", &seq, "--reason", "poison", "--yes"]);
            discard.env("FLOTILLA_OPERATOR_TOKEN", &self.operator).output().await.unwrap().status.success()
        })
        .await;
    }

    async fn database(&self) -> Option<PgConnection> {
        let login = self.fleet.login("postgres");
        tokio::time::timeout(Duration::from_secs(5), PgConnection::connect(login["url"].as_str()?)).await.ok()?.ok()
    }

    /// The index that is searched, and a copy of it as it is now; none while OpenSearch is unavailable.
    async fn copy_of_the_index(&self) -> Option<(String, String)> {
        let answer = self.opensearch(Method::GET, "_alias/todos", &json!(null)).await?;
        let index = answer.as_object()?.keys().next()?.clone();
        let backup = testkit::unique("todos-backup-");
        let block = |block| json!({"index.blocks.write": block});
        self.opensearch(Method::PUT, &format!("{index}/_settings"), &block(true)).await?;
        let settings = json!({"settings": {"index.blocks.write": null}});
        let copied = self.opensearch(Method::POST, &format!("{index}/_clone/{backup}"), &settings).await;
        testkit::until("the index takes writes again", || async {
            self.opensearch(Method::PUT, &format!("{index}/_settings"), &block(false)).await.is_some()
        })
        .await;
        copied.map(|_| (index, backup))
    }

    /// OpenSearch's answer; none if there is none, or a refusal.
    async fn opensearch(&self, method: Method, path: &str, body: &serde_json::Value) -> Option<serde_json::Value> {
        let url = format!("{}/{path}", self.fleet.unit("opensearch").login_url().ok()?);
        let answer = self.http.request(method, url).json(body).send().await.ok()?;
        answer.error_for_status().ok()?.json().await.ok()
    }

    /// Kills a unit, does something at once, and waits until the supervisor has noticed. If the
    /// fault before killed it already, returns false.
    async fn kill(&self, unit: &str, then: impl FnOnce()) -> bool {
        let before = self.fleet.unit(unit);
        let killed = before.pid.is_some_and(|pid| signal(pid, Signal::SIGKILL).is_ok());
        then();
        if killed {
            testkit::until("its death is noticed", || async { self.fleet.unit(unit).restarts > before.restarts }).await;
        }
        killed
    }

    /// The processes of a unit: PostgreSQL has one for each connection.
    fn processes(&self, unit: &str) -> Vec<u32> {
        let Some(pid) = self.fleet.unit(unit).pid else { return Vec::new() };
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|child| child.parse().ok());
        std::iter::once(pid).chain(children).collect()
    }

    async fn proxy(&self, path: &str, body: &serde_json::Value) {
        let url = format!("{}/{path}", self.fleet.unit("toxiproxy").url.unwrap());
        let answer = self.http.post(url).json(body).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.text().await.unwrap());
    }

    /// Every unit is ready, a write is acknowledged, and a search finds it.
    async fn until_itself_again(&mut self, fault: &Fault) {
        let deadline = Instant::now() + RECOVERED_WITHIN;
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        let what = format!("after {fault:?} the fleet is not itself again within {RECOVERED_WITHIN:?}");
        let names = [&services(|_| true)[..], &INFRA[..]].concat();
        while !names.iter().all(|name| self.fleet.unit(name).state == State::Ready) {
            tick.tick().await;
            assert!(Instant::now() < deadline, "{what}");
        }
        let title = testkit::unique("probe");
        let key = testkit::unique("probe-");
        loop {
            assert!(Instant::now() < deadline, "{what}: no write is acknowledged");
            let request = self.prober.request(Method::PUT, "/v1/todos").header("idempotency-key", &key);
            let mut request = request.json(&json!({"title": title})).timeout(Duration::from_secs(5)).build().unwrap();
            *request.method_mut() = Method::POST;
            if self.prober.execute(request).await.is_ok_and(|response| response.status() == 200) {
                break;
            }
            tick.tick().await;
        }
        self.probes += 1;
        while !self.finds(&title).await {
            assert!(Instant::now() < deadline, "{what}: what was written is not found");
            tick.tick().await;
        }
    }

    async fn finds(&self, title: &str) -> bool {
        let request = self.prober.request(Method::GET, "/v1/todos:search").query(&[("query", title)]);
        let Ok(response) = self.prober.execute(request.timeout(Duration::from_secs(5)).build().unwrap()).await else {
            return false;
        };
        response.text().await.is_ok_and(|text| text.contains(title))
    }
}
