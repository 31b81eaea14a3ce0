//! Clients that write through the gateway, each its own todos. They retry a write with the same idempotency key until it is
//! acknowledged; what was acknowledged is remembered.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::Caller;
use crate::random::Random;

/// The instructions to the clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wishes {
    Write,
    /// Finish what has begun.
    Stop,
}

/// A todo as acknowledged to its client.
#[derive(Debug)]
pub struct Todo {
    pub id: String,
    pub version: i64,
    pub title: String,
    pub completed: bool,
    pub deleted: bool,
}

impl Todo {
    pub const fn status(&self) -> &'static str {
        if self.completed { "COMPLETED" } else { "OPEN" }
    }
}

pub struct Client {
    pub number: usize,
    pub todos: Vec<Todo>,
    pub acknowledged: usize,
    /// How often something was sent again.
    pub retries: usize,
    caller: Caller,
    random: Random,
}

impl Client {
    pub const fn new(number: usize, caller: Caller, random: Random) -> Self {
        Self { number, todos: Vec::new(), acknowledged: 0, retries: 0, caller, random }
    }

    /// Writes until asked to stop; returns itself with what it knows.
    pub async fn run(mut self, wishes: watch::Receiver<Wishes>, pace: Duration) -> Self {
        // This bounds the writes of a run as well.
        let mut pace = tokio::time::interval(pace);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while *wishes.borrow() == Wishes::Write {
            pace.tick().await;
            self.write().await;
            self.acknowledged += 1;
        }
        self
    }

    async fn write(&mut self) {
        let live: Vec<usize> = (0..self.todos.len()).filter(|&index| !self.todos[index].deleted).collect();
        let choice = self.random.below(10);
        if live.is_empty() || choice < 4 {
            let title = format!("client {} todo {}", self.number, self.todos.len());
            let answer = self.acknowledged(&Method::POST, "/v1/todos", Some(json!({"title": title})), None).await;
            let id = answer["id"].as_str().unwrap().to_owned();
            self.todos.push(Todo { id, version: 1, title, completed: false, deleted: false });
            return;
        }
        let index = live[self.random.below(live.len())];
        let (id, version, completed) =
            (self.todos[index].id.clone(), self.todos[index].version, self.todos[index].completed);
        let path = format!("/v1/todos/{id}");
        match choice {
            4..7 => {
                let title = format!("client {} at {}", self.number, self.acknowledged);
                // Every second one with an etag: no other writer is faster, not even its own retry.
                let guard = self.random.below(2) == 0;
                let body = Some(json!({"title": title}));
                let answer =
                    self.acknowledged(&Method::PATCH, &path, body, guard.then(|| format!("\"v{version}\""))).await;
                assert_eq!(answer["version"], version + 1, "{answer}");
                let todo = &mut self.todos[index];
                (todo.title, todo.version) = (title, version + 1);
            }
            7..9 => {
                let verb = if completed { "reopen" } else { "complete" };
                let path = format!("{path}:{verb}");
                let answer = self.acknowledged(&Method::POST, &path, Some(json!({})), None).await;
                assert_eq!(answer["version"], version + 1, "{answer}");
                let todo = &mut self.todos[index];
                (todo.completed, todo.version) = (!completed, version + 1);
            }
            _ => {
                self.acknowledged(&Method::DELETE, &path, None, None).await;
                self.todos[index].deleted = true;
            }
        }
    }

    /// Sends the same write under the same key until it is acknowledged.
    async fn acknowledged(&mut self, method: &Method, path: &str, body: Option<Value>, guard: Option<String>) -> Value {
        let key = format!("faults-{}-{}", self.number, self.acknowledged);
        loop {
            let mut request = self.caller.request(Method::GET, path);
            if let Some(body) = &body {
                request = request.json(body);
            }
            if let Some(guard) = &guard {
                request = request.header("if-match", guard);
            }
            let mut request = request.header("idempotency-key", &key).build().unwrap();
            *request.method_mut() = method.clone();
            // A request without an answer must not hold up its client for long.
            *request.timeout_mut() = Some(Duration::from_secs(10));
            match self.caller.execute(request).await {
                Err(_) => {}
                Ok(response) => match response.status().as_u16() {
                    200 => {
                        if let Ok(body) = response.json().await {
                            return body;
                        }
                    }
                    // Its first try is still running, or something is down.
                    409 | 429 | 500..=599 => {}
                    status => {
                        let why = response.text().await.unwrap_or_default();
                        panic!("client {}: {method} {path} is refused with {status}: {why}", self.number)
                    }
                },
            }
            self.retries += 1;
            let pause = 50 + self.random.below(400) as u64;
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Checks that each todo is as last acknowledged, seen by a caller of the same tenant.
    ///
    /// # Panics
    /// One is not.
    pub async fn finds_its_writes(&self, caller: &Caller) {
        for todo in &self.todos {
            let answer = caller.send(Method::GET, &format!("/v1/todos/{}", todo.id), None).await;
            if todo.deleted {
                assert_eq!(answer.status, 404, "{todo:?}");
                continue;
            }
            let is = (&answer.body["version"], &answer.body["title"], &answer.body["status"]);
            let wanted = (&todo.version.into(), &todo.title.clone().into(), &todo.status().into());
            assert_eq!(is, wanted, "{todo:?}");
        }
    }
}
