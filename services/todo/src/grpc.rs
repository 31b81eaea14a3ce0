//! The gRPC server: reads a request, runs one command, writes the response.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use proto::todo as pb;
use proto::todo::todo_service_server::TodoService;
use service::grpc::{reading, writing};
use service::live::Live;
use service::page::{self, PageTokens};
use service::{Failure, IfMatch};
use tonic::{Request, Response, Status};

use crate::todo::Change;
use crate::{commands, wire};

/// The implementation of `flotilla.todo.v1.TodoService`.
pub struct Todos {
    /// What commands need.
    pub app: commands::App,
    /// What its callers watch.
    pub live: Live<Change>,
    /// Makes and reads page tokens.
    pub pages: PageTokens,
}

type RpcResult<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl TodoService for Todos {
    async fn create_todo(&self, request: Request<pb::CreateTodoRequest>) -> RpcResult<pb::Todo> {
        let (call, request) = writing(request, "CreateTodo")?;
        let draft = wire::draft(request.todo.as_ref())?;
        response(commands::create(&self.app, &call, draft).await)
    }

    async fn get_todo(&self, request: Request<pb::GetTodoRequest>) -> RpcResult<pb::Todo> {
        let (call, request) = reading(request)?;
        response(commands::get(&self.app, &call, wire::id(&request.id)?).await)
    }

    async fn list_todos(&self, request: Request<pb::ListTodosRequest>) -> RpcResult<pb::ListTodosResponse> {
        let (call, request) = reading(request)?;
        let (query, size) = (wire::query(&request)?, page::size(request.page_size)?);
        let pb::ListTodosRequest { status, label, assignee, filter, order_by, page_size: _, page_token } = &request;
        let question = (call.caller.tenant.as_str(), status, label, assignee, filter, order_by);
        let after = self.pages.read(&question, page_token)?;
        let found = commands::list(&self.app, &call, &query, after.as_ref(), size).await.map_err(Failure::from)?;
        let (todos, next_page_token) = self.pages.found(&question, size, found, wire::todo)?;
        Ok(Response::new(pb::ListTodosResponse { todos, next_page_token }))
    }

    type WatchTodosStream = Pin<Box<dyn Stream<Item = Result<pb::WatchTodosResponse, Status>> + Send>>;

    async fn watch_todos(&self, request: Request<pb::WatchTodosRequest>) -> RpcResult<Self::WatchTodosStream> {
        let (call, request) = reading(request)?;
        let (tenant, pages) = (call.caller.tenant.clone(), self.pages.clone());
        let after = wire::place(&pages, &tenant, &request.last_event_id)?;
        let heard = commands::watch(&self.live, &call, after).map_err(Failure::from)?;
        Ok(Response::new(Box::pin(heard.map(move |heard| Ok(wire::heard(&pages, &tenant, heard?)?)))))
    }

    async fn update_todo(&self, request: Request<pb::UpdateTodoRequest>) -> RpcResult<pb::Todo> {
        let (call, request) = writing(request, "UpdateTodo")?;
        let id = wire::id(&request.id)?;
        let (if_match, patch) = wire::patch(request.todo.as_ref(), request.update_mask.as_ref())?;
        response(commands::update(&self.app, &call, id, &if_match, patch).await)
    }

    async fn delete_todo(&self, request: Request<pb::DeleteTodoRequest>) -> RpcResult<()> {
        let (call, request) = writing(request, "DeleteTodo")?;
        let (id, if_match) = (wire::id(&request.id)?, IfMatch::parse(&request.etag));
        let deleted = commands::delete(&self.app, &call, id, &if_match).await;
        Ok(Response::new(deleted.map_err(Failure::from)?))
    }

    async fn complete_todo(&self, request: Request<pb::CompleteTodoRequest>) -> RpcResult<pb::Todo> {
        let (call, request) = writing(request, "CompleteTodo")?;
        let (id, if_match) = (wire::id(&request.id)?, IfMatch::parse(&request.etag));
        response(commands::complete(&self.app, &call, id, &if_match).await)
    }

    async fn reopen_todo(&self, request: Request<pb::ReopenTodoRequest>) -> RpcResult<pb::Todo> {
        let (call, request) = writing(request, "ReopenTodo")?;
        let (id, if_match) = (wire::id(&request.id)?, IfMatch::parse(&request.etag));
        response(commands::reopen(&self.app, &call, id, &if_match).await)
    }
}

fn response(result: Result<crate::todo::Todo, commands::Error>) -> RpcResult<pb::Todo> {
    result.map(|todo| Response::new(wire::todo(&todo))).map_err(|error| Failure::from(error).into())
}
