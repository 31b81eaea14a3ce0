//! The projector under test. Events are published as the todo service would.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream;
use async_nats::jetstream::consumer::{Info, PullConsumer};
use axum::http::StatusCode;
use contracts::events::todo::{self as event, Actor, ActorKind, Status};
use contracts::events::{EventType, todo::CreatedV1};
use contracts::{Envelope, EventId, TodoId, envelope, subject};
use proto::search::search_service_client::SearchServiceClient;
use proto::search::{SearchTodosRequest, SearchTodosResponse};
use search_projector::store::Index;
use search_projector::{Config, Program};
use service::config::{Common, Pages};
use service::secret::Secret;
use service::{Lifecycle, Process, Service as _, clock};
use testkit::{Backing, TestIssuer, TestNats, unique, until};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;
use tonic::{Request, Status as GrpcStatus};

/// One process of the service, once it is ready.
async fn run(config: &Config) -> (Lifecycle, Channel, SocketAddr) {
    let process = Process::new(Program::NAME, "test");
    let ops = service::ops::serve(&process, ([127, 0, 0, 1], 0).into(), None).await.unwrap();
    let address = Program::start(config, &process).await.unwrap();
    until("the projector is ready", || async { process.readiness.get().0 }).await;
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    (process.lifecycle, channel, ops)
}

/// The service and its backing services.
pub struct Harness {
    config: Config,
    lifecycle: Lifecycle,
    pub nats: TestNats,
    pub issuer: TestIssuer,
    pub index: String,
    pub channel: Channel,
    /// The operations port.
    pub ops: SocketAddr,
    /// How many rows the outbox of the todos would have.
    rows: AtomicUsize,
    producer: jetstream::Context,
    http: reqwest::Client,
}

impl Harness {
    pub async fn start() -> Self {
        Self::start_with(None, &Backing::shared().opensearch).await
    }

    /// With a proxy between the projector and OpenSearch.
    pub async fn start_behind(front: &Front) -> Self {
        Self::start_with(None, &front.url).await
    }

    /// With an index of an older release: its definition is ours except for this.
    pub async fn start_on(older: fn(&mut serde_json::Value)) -> Self {
        Self::start_with(Some(older), &Backing::shared().opensearch).await
    }

    async fn start_with(older: Option<fn(&mut serde_json::Value)>, opensearch: &str) -> Self {
        let nats = TestNats::start().await;
        let issuer = TestIssuer::new();
        let index = unique("todos-test-");
        Backing::remove_at_the_end(&format!("index {index}-v1"));
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        if let Some(older) = older {
            let url = &Backing::shared().opensearch;
            let mut definition = Index::new(
                &Process::new(Program::NAME, "test"),
                &url.as_str().into(),
                &index,
                Duration::from_millis(200),
            )
            .unwrap()
            .definition();
            older(&mut definition);
            definition["mappings"]["_meta"] = serde_json::json!({"filled_since": 1});
            definition["aliases"] = serde_json::json!({&index: {"is_write_index": true}});
            let made = http.put(format!("{url}/{index}-v1")).json(&definition).send().await.unwrap();
            assert!(made.status().is_success());
        }
        let producer = jetstream::new(nats.client("todo").await);
        let config = Config {
            common: Common::on_loopback(issuer.jwks(), devstack::issuer::ISSUER, devstack::issuer::AUDIENCE),
            nats: service::nats::Login {
                url: nats.address(),
                credentials: Secret::in_file(nats.credentials("search-projector")).unwrap(),
            },
            pages: Pages { page_token_key: "a key for page tokens".into() },
            opensearch_url: opensearch.to_owned().into(),
            todo_index: index.clone(),
            refresh_millis: 200,
        };
        let (lifecycle, channel, ops) = run(&config).await;
        Self { config, lifecycle, nats, issuer, index, channel, ops, rows: AtomicUsize::new(0), producer, http }
    }

    /// The backing service that a search lacked, by the search's trailer.
    pub async fn degraded(&self) -> Option<String> {
        let mut request = tonic::Request::new(SearchTodosRequest::default());
        request.metadata_mut().insert("authorization", self.issuer.bearer("acme", "ann").parse().unwrap());
        // While there is no index at all, there is no answer either.
        let answer = SearchServiceClient::new(self.channel.clone()).search_todos(request).await.ok()?;
        answer.metadata().get(service::DEGRADED).map(|part| part.to_str().unwrap().to_owned())
    }

    /// Has JetStream deliver nothing to the projector until then.
    pub async fn pause(&self, until: &str) {
        let subject = "$JS.API.CONSUMER.PAUSE.EVENTS_TODO.search-projector";
        let request = serde_json::json!({"pause_until": until}).to_string();
        let answer = self.nats.client("todo-admin").await.request(subject, request.into()).await.unwrap();
        assert!(!String::from_utf8_lossy(&answer.payload).contains("error"), "{answer:?}");
    }

    /// Stops the projector; nothing more may happen.
    pub async fn stop(&self) {
        assert_eq!(self.lifecycle.shut_down().await, None);
    }

    /// Starts it again, as another process.
    pub async fn start_again(&mut self) {
        (self.lifecycle, self.channel, self.ops) = run(&self.config).await;
    }

    /// Publishes an event whose envelope says that it is about this todo.
    pub async fn publish<D: EventType + Clone>(&self, tenant: &str, data: &D, todo: &event::Todo, newer: Option<&str>) {
        let id = EventId::new(clock::new_id());
        let envelope = Envelope {
            subject: todo.id.to_string(),
            partitionkey: todo.id.to_string(),
            sequence: contracts::envelope::sequence(todo.version),
            time: todo.update_time,
            supersededby: newer.map(ToOwned::to_owned),
            ..Envelope::new(id, tenant.parse().unwrap(), data.clone())
        };
        let subject = subject::of(D::TYPE, &envelope.tenant);
        self.publish_raw(&subject, serde_json::to_vec(&envelope).unwrap()).await;
    }

    pub async fn publish_raw(&self, subject: &str, payload: Vec<u8>) {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", envelope::CONTENT_TYPE);
        headers.insert("Outbox-Seq", (self.rows.fetch_add(1, Ordering::Relaxed) + 1).to_string());
        let sent = self.producer.publish_with_headers(subject.to_owned(), headers, payload.into()).await.unwrap();
        sent.await.unwrap();
    }

    /// Publishes that such a todo was created.
    pub async fn created(&self, tenant: &str, todo: &event::Todo) {
        self.publish(tenant, &CreatedV1 { todo: todo.clone(), actor: ann() }, todo, None).await;
    }

    /// Waits until every event is acknowledged, and makes what was written visible.
    pub async fn drain(&self) {
        until("every event is acknowledged", || async {
            self.consumer().await.is_some_and(|info| info.num_pending == 0 && info.num_ack_pending == 0)
        })
        .await;
        let url = format!("{}/{}/_refresh", Backing::shared().opensearch, self.index);
        assert!(self.http.post(url).send().await.unwrap().status().is_success());
    }

    /// JetStream's state of the projector's durable consumer, once there is one.
    async fn consumer(&self) -> Option<Info> {
        let stream = self.nats.jetstream().await.get_stream("EVENTS_TODO").await.unwrap();
        let consumer: PullConsumer = stream.get_consumer("search-projector").await.ok()?;
        Some(consumer.cached_info().clone())
    }

    /// Waits until so many events were delivered and not acknowledged.
    pub async fn until_in_hand(&self, count: usize) {
        until("events are in hand", || async { self.consumer().await.unwrap().num_ack_pending == count }).await;
    }

    /// How many deliveries there were, repeated ones included.
    pub async fn deliveries(&self) -> u64 {
        self.consumer().await.unwrap().delivered.consumer_sequence
    }

    /// The mapping differences between the index and this release.
    pub async fn behind(&self) -> Vec<String> {
        let index = Index::new(
            &Process::new(Program::NAME, "test"),
            &Backing::shared().opensearch.as_str().into(),
            &self.index,
            Duration::from_millis(200),
        )
        .unwrap();
        let (searched, _) = index.named().await.unwrap().unwrap();
        index.add_fields(&searched).await.unwrap()
    }

    /// Makes the index refuse writes, or take them again.
    pub async fn block_writes(&self, block: bool) {
        let url = format!("{}/{}/_settings", Backing::shared().opensearch, self.index);
        let body = serde_json::json!({"index.blocks.write": block});
        assert!(self.http.put(url).json(&body).send().await.unwrap().status().is_success());
    }

    /// Removes the index, as a node does that lost its data.
    pub async fn lose_index(&self) {
        let url = format!("{}/{}-v1", Backing::shared().opensearch, self.index);
        assert!(self.http.delete(url).send().await.unwrap().status().is_success());
    }

    /// The event of the stream from which the index says to be filled.
    pub async fn filled_since(&self) -> Option<u64> {
        let url = format!("{}/{}-v1/_mapping", Backing::shared().opensearch, self.index);
        let answer: serde_json::Value = self.http.get(url).send().await.unwrap().json().await.unwrap();
        answer[format!("{}-v1", self.index)]["mappings"]["_meta"]["filled_since"].as_u64()
    }

    /// How far the searched index says to be filled.
    pub async fn floor(&self) -> Option<u64> {
        self.noted("sequence").await
    }

    /// The same for replays.
    pub async fn floor_of_replays(&self) -> Option<u64> {
        self.noted("replays").await
    }

    /// How many events the index notes as missing, because they were trimmed before they were read.
    pub async fn trimmed_unread(&self) -> Option<u64> {
        self.notes().await?["trimmed_unread"].as_u64()
    }

    /// Replaces the index that was searched before the last swap by one of an older release.
    pub async fn searched_before_the_swap(&self, older: fn(&mut serde_json::Value)) {
        let (url, name) = (&Backing::shared().opensearch, format!("{}-older", self.index));
        Backing::remove_at_the_end(&format!("index {name}"));
        let previous = Index::new(
            &Process::new(Program::NAME, "test"),
            &url.as_str().into(),
            &self.index,
            Duration::from_millis(200),
        )
        .unwrap()
        .previous();
        let mut definition = previous.definition();
        older(&mut definition);
        definition["aliases"] = serde_json::json!({previous.alias(): {}});
        let made = self.http.put(format!("{url}/{name}")).json(&definition).send().await.unwrap();
        assert!(made.status().is_success());
    }

    /// Whether that index takes this field.
    pub async fn has_field_before_the_swap(&self, field: &str) -> bool {
        let url = format!("{}/{}-older/_mapping", Backing::shared().opensearch, self.index);
        let answer: serde_json::Value = self.http.get(url).send().await.unwrap().json().await.unwrap();
        answer[format!("{}-older", self.index)]["mappings"]["properties"][field].is_object()
    }

    /// The sequence of the event that the index notes as handled.
    pub async fn anchor(&self) -> Option<u64> {
        self.notes().await?["anchor"]["sequence"].as_u64()
    }

    async fn noted(&self, what: &str) -> Option<u64> {
        self.notes().await?["floor"][what].as_u64()
    }

    async fn notes(&self) -> Option<serde_json::Value> {
        let url = format!("{}/{}/_mapping", Backing::shared().opensearch, self.index);
        let answer: serde_json::Value = self.http.get(url).send().await.unwrap().json().await.unwrap();
        Some(answer.as_object()?.values().next()?["mappings"]["_meta"].clone())
    }

    /// Removes the newest event from the stream, as `outbox accept` does with what a restore of the rows has undone.
    pub async fn undo_newest(&self) {
        let stream = self.nats.jetstream().await.get_stream("EVENTS_TODO").await.unwrap();
        stream.delete_message(stream.cached_info().state.last_sequence).await.unwrap();
    }

    /// A copy of the index, notes and all, as a snapshot has it.
    pub async fn copy_of_index(&self) -> String {
        let copy = format!("{}-copy", self.index);
        Backing::remove_at_the_end(&format!("index {copy}"));
        self.block_writes(true).await;
        let url = format!("{}/{}-v1/_clone/{copy}?wait_for_active_shards=1", Backing::shared().opensearch, self.index);
        let body = serde_json::json!({"settings": {"index.blocks.write": null}});
        let cloned = self.http.post(url).json(&body).send().await.unwrap();
        assert!(cloned.status().is_success(), "{}", cloned.text().await.unwrap());
        self.block_writes(false).await;
        copy
    }

    /// Replaces the index by the copy, as a restore does.
    pub async fn restore_index(&self, copy: &str) {
        let (index, url) = (format!("{}-v1", self.index), format!("{}/_aliases", Backing::shared().opensearch));
        let body = serde_json::json!({"actions": [
            {"remove": {"index": index, "alias": self.index}},
            {"add": {"index": copy, "alias": self.index, "is_write_index": true}},
        ]});
        assert!(self.http.post(url).json(&body).send().await.unwrap().status().is_success());
    }

    /// Has the stream forget everything before this event.
    pub async fn forget_before(&self, sequence: u64) {
        let stream = self.nats.jetstream().await.get_stream("EVENTS_TODO").await.unwrap();
        stream.purge().sequence(sequence).await.unwrap();
    }

    /// What the index holds of a todo, tombstones included.
    pub async fn document(&self, tenant: &str, id: TodoId) -> serde_json::Value {
        let url = format!("{}/{}/_doc/{id}?routing={tenant}", Backing::shared().opensearch, self.index);
        self.http.get(url).send().await.unwrap().json().await.unwrap()
    }

    pub async fn ask(&self, tenant: &str, request: SearchTodosRequest) -> Result<SearchTodosResponse, GrpcStatus> {
        let mut request = Request::new(request);
        request.metadata_mut().insert("authorization", self.issuer.bearer(tenant, "ann").parse().unwrap());
        self.send(request).await
    }

    pub async fn send(&self, request: Request<SearchTodosRequest>) -> Result<SearchTodosResponse, GrpcStatus> {
        Ok(SearchServiceClient::new(self.channel.clone()).search_todos(request).await?.into_inner())
    }

    /// The titles that a search finds.
    pub async fn find(&self, tenant: &str, query: &str) -> Vec<String> {
        let request = SearchTodosRequest { query: query.to_owned(), ..SearchTodosRequest::default() };
        self.ask(tenant, request).await.unwrap().hits.into_iter().map(|hit| hit.title).collect()
    }

    /// The dead letters, with their reasons.
    pub async fn letters(&self) -> Vec<(String, async_nats::HeaderMap, Vec<u8>)> {
        let stream = self.nats.records().await.get_stream("DLQ").await.unwrap();
        let last = stream.get_info().await.unwrap().state.last_sequence;
        let mut letters = Vec::new();
        for sequence in 1..=last {
            let letter = stream.get_raw_message(sequence).await.unwrap();
            letters.push((letter.subject.to_string(), letter.headers, letter.payload.to_vec()));
        }
        letters
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.lifecycle.stopping().cancel();
    }
}

/// A proxy before OpenSearch: it passes on what is not too large, and what it finds nothing wrong with.
pub struct Front {
    pub url: String,
    /// Requests with this word in them are wrong; without a word, all are.
    pub wrong: Arc<Mutex<Option<&'static str>>>,
    /// How many were.
    pub refused: Arc<AtomicUsize>,
    /// How many milliseconds each search was given.
    pub given: Arc<Mutex<Vec<u64>>>,
    server: JoinHandle<()>,
}

impl Front {
    pub async fn new(most_bytes: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let wrong = Arc::<Mutex<Option<&'static str>>>::default();
        let (http, finds) = (reqwest::Client::builder().no_proxy().build().unwrap(), Arc::clone(&wrong));
        let refused = Arc::<AtomicUsize>::default();
        let counts = Arc::clone(&refused);
        let given = Arc::<Mutex<Vec<u64>>>::default();
        let notes = Arc::clone(&given);
        let pass = move |request: axum::extract::Request| {
            let (http, wrong, refused) = (http.clone(), *finds.lock().unwrap(), Arc::clone(&counts));
            let notes = Arc::clone(&notes);
            async move {
                let (parts, body) = request.into_parts();
                let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
                if body.len() > most_bytes {
                    return (StatusCode::PAYLOAD_TOO_LARGE, "too large".into());
                }
                if wrong.is_some_and(|wrong| String::from_utf8_lossy(&body).contains(wrong)) {
                    refused.fetch_add(1, Ordering::SeqCst);
                    return (StatusCode::BAD_REQUEST, "illegal".into());
                }
                let search: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
                let within: Option<u64> =
                    search["timeout"].as_str().and_then(|within| within.strip_suffix("ms")?.parse().ok());
                notes.lock().unwrap().extend(within);
                let url = format!("{}{}", Backing::shared().opensearch, parts.uri);
                let sent = http.request(parts.method, url).headers(parts.headers).body(body).send().await.unwrap();
                (sent.status(), sent.bytes().await.unwrap())
            }
        };
        let app = axum::Router::new().fallback(pass);
        let server = TaskTracker::new().spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, wrong, refused, given, server }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.server.abort();
    }
}

pub fn ann() -> Actor {
    Actor { kind: ActorKind::User, id: "ann".parse().unwrap() }
}

/// An open todo at version 1.
pub fn todo(title: &str) -> event::Todo {
    let now = clock::now();
    event::Todo {
        id: TodoId::new(clock::new_id()),
        title: title.to_owned(),
        notes: String::new(),
        status: Status::Open,
        due_time: None,
        labels: Vec::new(),
        assignee: None,
        recurrence: None,
        occurrence: None,
        create_time: now,
        update_time: now,
        complete_time: None,
        created_by: "ann".parse().unwrap(),
        version: 1,
    }
}

/// The same todo, at another version and with another title.
pub fn at(todo: &event::Todo, version: i32, title: &str) -> event::Todo {
    event::Todo { version, title: title.to_owned(), ..todo.clone() }
}
