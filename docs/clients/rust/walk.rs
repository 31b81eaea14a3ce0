//! Writes a todo over gRPC, lists it, and sees it arrive.
//!
//!     cargo run -p proto --example walk -- http://HOST:PORT KEY

use std::io::Write as _;
use std::time::Duration;

use proto::todo::todo_service_client::TodoServiceClient;
use proto::todo::watch_todos_response::Change;
use proto::todo::{CreateTodoRequest, GetTodoRequest, ListTodosRequest, Todo, WatchTodosRequest};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Calls until there is an answer, three times at most. Only what reads, or has an idempotency key, may be called so.
async fn retried<T, F: Future<Output = Result<T, Status>>>(call: impl Fn() -> F) -> Result<T, Status> {
    let mut tries = 1;
    loop {
        match call().await {
            Err(status) if status.code() == Code::Unavailable && tries < 3 => {
                let wait = status.get_details_retry_info().and_then(|info| info.retry_delay);
                tokio::time::sleep(wait.unwrap_or(Duration::from_millis(100 << tries))).await;
                tries += 1;
            }
            answer => return answer,
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failed> {
    let mut arguments = std::env::args().skip(1);
    let (Some(url), Some(key)) = (arguments.next(), arguments.next()) else { return Err("walk URL KEY".into()) };
    let id = walk(url, key).await?;
    writeln!(std::io::stdout(), "wrote, listed and heard {id}")?;
    Ok(())
}

/// The whole walk; the id of the todo.
///
/// # Errors
/// A call fails, or something else is answered than is promised.
pub async fn walk(url: String, key: String) -> Result<String, Failed> {
    let channel = Endpoint::from_shared(url)?
        .timeout(Duration::from_secs(10))
        // Streams have no deadline: a connection that is gone is noticed by its silence.
        .http2_keep_alive_interval(Duration::from_secs(20))
        .connect()
        .await?;
    let bearer: MetadataValue<Ascii> = format!("Bearer {key}").parse()?;
    let with_key = move |mut request: Request<()>| {
        request.metadata_mut().insert("authorization", bearer.clone());
        Ok(request)
    };
    let client: TodoServiceClient<InterceptedService<Channel, _>> =
        TodoServiceClient::with_interceptor(channel, with_key);

    let mut arriving = client.clone().watch_todos(WatchTodosRequest::default()).await?.into_inner();
    // The stream says at once where it is: from here on nothing is missed.
    let first = arriving.message().await?.and_then(|message| message.change);
    assert!(matches!(first, Some(Change::Heartbeat(_))), "{first:?}");

    let (label, key) = (format!("walk-{}", Uuid::new_v4()), Uuid::new_v4().to_string());
    let todo = Todo { title: "Splice the mooring line".to_owned(), labels: vec![label.clone()], ..Todo::default() };
    let written = retried(|| async {
        let mut request = Request::new(CreateTodoRequest { todo: Some(todo.clone()) });
        let key = key.parse().map_err(|_| Status::internal("a key is printable"))?;
        request.metadata_mut().insert("idempotency-key", key);
        client.clone().create_todo(request).await
    });
    let written = written.await?.into_inner();

    let filter = format!("labels:\"{label}\" AND status = OPEN");
    let list = ListTodosRequest { filter, order_by: "due_time".to_owned(), page_size: 10, ..Default::default() };
    let found = retried(|| async { client.clone().list_todos(list.clone()).await }).await?.into_inner();
    assert_eq!(found.todos.first().map(|todo| &todo.id), Some(&written.id));

    while let Some(message) = arriving.message().await? {
        if matches!(&message.change, Some(Change::Todo(todo)) if todo.id == written.id) {
            break;
        }
    }

    let missing = client.clone().get_todo(GetTodoRequest { id: Uuid::new_v4().to_string() }).await;
    let missing = missing.err().ok_or("there is such a todo")?;
    let reason = missing.get_details_error_info().map(|info| info.reason);
    assert_eq!((missing.code(), reason.as_deref()), (Code::NotFound, Some("TODO_NOT_FOUND")));
    Ok(written.id)
}
