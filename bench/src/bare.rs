//! The path of a write through the edge with its libraries alone: HTTP in, a gRPC call, seven round trips with sqlx, a
//! publish. No tokens, spans, metrics, checks, JSON by descriptor, or relay: the most that the fleet could reach.

use anyhow::Context as _;
use async_nats::jetstream::{self, stream};
use axum::http::HeaderMap;
use axum::routing::post;
use axum::{Json, Router};
use bytes::Bytes;
use clap::Args;
use devstack::ports::Ports;
use proto::todo as pb;
use proto::todo::todo_service_client::TodoServiceClient;
use proto::todo::todo_service_server::{TodoService, TodoServiceServer};
use serde_json::{Value, json};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgConnection, PgPool};
use tokio::process::{Child, Command};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::process::listens;
use crate::relays::TRACEPARENT;
use crate::stack::{Bench, Database, NatsLogin, connect};

pub const METHOD: &str = "flotilla.todo.v1.TodoService/CreateTodo";
pub const SUBJECT: &str = "evt.todo.created.v1.bench";
const ANSWER: [u8; 150] = [b'x'; 150];
const STREAM: &str = "BARE";
const KEY: &str = "idempotency-key";

#[derive(Args)]
pub struct TodoArgs {
    #[arg(long, env = "BENCH_DATABASE_URL", hide_env_values = true)]
    database: String,
    #[command(flatten)]
    nats: NatsLogin,
    #[arg(long)]
    payload: usize,
    #[arg(long)]
    listen: String,
}

#[derive(Args)]
pub struct GatewayArgs {
    #[arg(long)]
    todo: String,
    #[arg(long)]
    listen: String,
}

/// The statements of `CreateTodo`, as the todo service sends them.
pub async fn create(db: &mut PgConnection, title: &str, key: &str, payload: &[u8]) -> Result<Uuid, anyhow::Error> {
    let (id, now) = (Uuid::now_v7(), chrono::Utc::now());
    let lock = i64::from_le_bytes(*id.as_bytes().last_chunk().context("16 bytes")?);
    let (nobody, never) = (None::<&str>, None::<chrono::DateTime<chrono::Utc>>);
    sqlx::raw_sql("begin; set local app.tenant = 'bench'").execute(&mut *db).await?;
    sqlx::query("select pg_try_advisory_xact_lock($1)").bind(lock).fetch_one(&mut *db).await?;
    let sql = "select fingerprint, response from idempotency \
               where tenant = $1 and principal = $2 and method = $3 and key = $4";
    sqlx::query(sql).bind("bench").bind("ann").bind(METHOD).bind(key).fetch_optional(&mut *db).await?;
    let sql = "insert into todo (tenant, id, title, notes, status, due_time, labels, assignee, create_time, update_time, \
               complete_time, created_by, version) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)";
    let todo = sqlx::query(sql).bind("bench").bind(id).bind(title).bind("").bind("OPEN").bind(never);
    let todo = todo.bind(Vec::<String>::new()).bind(nobody).bind(now).bind(now).bind(never);
    todo.bind("ann").bind(1).execute(&mut *db).await?;
    let sql = "insert into idempotency (tenant, principal, method, key, fingerprint, response) \
               values ($1, $2, $3, $4, $5, $6)";
    let answer = sqlx::query(sql).bind("bench").bind("ann").bind(METHOD).bind(key);
    answer.bind(&ANSWER[..32]).bind(&ANSWER[..]).execute(&mut *db).await?;
    let sql = "insert into outbox (event_id, tenant, aggregate_id, subject, traceparent, payload) \
               values ($1, $2, $3, $4, $5, $6) returning seq, created_at";
    let event = sqlx::query(sql).bind(Uuid::now_v7()).bind("bench").bind(key).bind(SUBJECT);
    event.bind(TRACEPARENT).bind(payload).fetch_one(&mut *db).await?;
    sqlx::raw_sql("commit").execute(&mut *db).await?;
    Ok(id)
}

struct Todos {
    pool: PgPool,
    js: jetstream::Context,
    payload: Bytes,
}

type Answer<T> = Result<Response<T>, Status>;

fn failed(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

#[tonic::async_trait]
impl TodoService for Todos {
    async fn create_todo(&self, request: Request<pb::CreateTodoRequest>) -> Answer<pb::Todo> {
        let key = request.metadata().get(KEY).and_then(|key| key.to_str().ok()).unwrap_or_default().to_owned();
        let title = request.into_inner().todo.unwrap_or_default().title;
        let mut db = self.pool.acquire().await.map_err(failed)?;
        let id = create(&mut db, &title, &key, &self.payload).await.map_err(failed)?.to_string();
        drop(db);
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", id.as_str());
        let stored = self.js.publish_with_headers(format!("{STREAM}.{SUBJECT}"), headers, self.payload.clone());
        let stored = stored.await.map_err(failed)?;
        // The client does not wait for it.
        tokio::spawn(async move { stored.await });
        Ok(Response::new(pb::Todo { id, title, created_by: "ann".to_owned(), version: 1, ..Default::default() }))
    }

    async fn get_todo(&self, _: Request<pb::GetTodoRequest>) -> Answer<pb::Todo> {
        Err(failed(METHOD))
    }

    async fn list_todos(&self, _: Request<pb::ListTodosRequest>) -> Answer<pb::ListTodosResponse> {
        Err(failed(METHOD))
    }

    type WatchTodosStream = futures::stream::Empty<Result<pb::WatchTodosResponse, Status>>;

    async fn watch_todos(&self, _: Request<pb::WatchTodosRequest>) -> Answer<Self::WatchTodosStream> {
        Err(failed(METHOD))
    }

    async fn update_todo(&self, _: Request<pb::UpdateTodoRequest>) -> Answer<pb::Todo> {
        Err(failed(METHOD))
    }

    async fn delete_todo(&self, _: Request<pb::DeleteTodoRequest>) -> Answer<()> {
        Err(failed(METHOD))
    }

    async fn complete_todo(&self, _: Request<pb::CompleteTodoRequest>) -> Answer<pb::Todo> {
        Err(failed(METHOD))
    }

    async fn reopen_todo(&self, _: Request<pb::ReopenTodoRequest>) -> Answer<pb::Todo> {
        Err(failed(METHOD))
    }
}

pub async fn todo(args: TodoArgs) -> Result<(), anyhow::Error> {
    let pool = PgPoolOptions::new().max_connections(16).test_before_acquire(false).connect(&args.database).await?;
    let js = jetstream::new(connect(&args.nats).await?);
    let subjects = vec![format!("{STREAM}.>")];
    js.create_stream(stream::Config { name: STREAM.to_owned(), subjects, ..Default::default() }).await?;
    let todos = Todos { pool, js, payload: vec![b'x'; args.payload].into() };
    Server::builder().add_service(TodoServiceServer::new(todos)).serve(args.listen.parse()?).await?;
    Ok(())
}

pub async fn gateway(args: GatewayArgs) -> Result<(), anyhow::Error> {
    let todos = TodoServiceClient::new(Endpoint::from_shared(format!("http://{}", args.todo))?.connect_lazy());
    let create = move |headers: HeaderMap, Json(body): Json<Value>| {
        let mut todos = todos.clone();
        async move {
            let title = body["title"].as_str().unwrap_or_default().to_owned();
            let todo = Some(pb::Todo { title, ..Default::default() });
            let mut call = Request::new(pb::CreateTodoRequest { todo });
            for name in ["authorization", KEY] {
                let value = headers.get(name).and_then(|value| value.to_str().ok()?.parse().ok());
                call.metadata_mut().insert(name, value.ok_or(name.to_owned())?);
            }
            let todo = todos.create_todo(call).await.map_err(|status| status.to_string())?.into_inner();
            let pb::Todo { id, title, created_by, version, .. } = todo;
            Ok::<_, String>(Json(json!({"id": id, "title": title, "createdBy": created_by, "version": version})))
        }
    };
    let listener = tokio::net::TcpListener::bind(&args.listen).await?;
    Ok(axum::serve(listener, Router::new().route("/v1/todos", post(create))).await?)
}

/// Both processes, running.
pub struct Bare {
    pub todo: Child,
    pub gateway: Child,
    pub address: String,
}

impl Bare {
    pub async fn start(bench: &Bench, database: &Database, payload: usize) -> Result<Self, anyhow::Error> {
        let program = std::env::current_exe()?;
        let mut ports = Ports::default();
        let mut address = || Ok::<_, anyhow::Error>(format!("127.0.0.1:{}", ports.pick(0)?));
        let (address_of_todo, address) = (address()?, address()?);
        let mut todo = Command::new(&program)
            .args(["bare-todo", "--listen", &address_of_todo, "--payload", &payload.to_string()])
            .env("BENCH_DATABASE_URL", &database.app)
            .envs(bench.nats_login().env())
            .kill_on_drop(true)
            .spawn()?;
        let mut gateway = Command::new(&program)
            .args(["bare-gateway", "--listen", &address, "--todo", &address_of_todo])
            .kill_on_drop(true)
            .spawn()?;
        listens(&mut todo, &address_of_todo).await?;
        listens(&mut gateway, &address).await?;
        Ok(Self { todo, gateway, address })
    }

    pub async fn stop(mut self, bench: &Bench, database: Database) -> Result<(), anyhow::Error> {
        self.gateway.kill().await?;
        self.todo.kill().await?;
        bench.drop_with_stream(database, STREAM).await
    }
}
