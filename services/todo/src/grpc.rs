//! The gRPC door: takes a request apart, runs one command, puts the answer together.

use contracts::TodoId;
use proto::todo as pb;
use proto::todo::todo_service_server::TodoService;
use service::Failure;
use service::grpc::principal;
use service::idempotency::{Attempt, Key};
use service::page::{self, PageTokens};
use tonic::{Request, Response, Status};

use crate::{commands, wire};

/// The service behind the door.
pub struct Todos {
    /// What commands need.
    pub app: commands::App,
    /// For lists.
    pub pages: PageTokens,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl TodoService for Todos {
    async fn create_todo(&self, request: Request<pb::CreateTodoRequest>) -> Answer<pb::Todo> {
        let (who, key) = (principal(&request)?, Key::required(&request)?);
        let request = request.into_inner();
        let draft = wire::draft(request.todo.as_ref())?;
        let attempt = Attempt::new(&who, "CreateTodo", Some(key), &request);
        answer(commands::create(&self.app, &who, attempt, draft).await)
    }

    async fn get_todo(&self, request: Request<pb::GetTodoRequest>) -> Answer<pb::Todo> {
        let who = principal(&request)?;
        answer(commands::get(&self.app, &who, wire::id(&request.get_ref().id)?).await)
    }

    async fn list_todos(&self, request: Request<pb::ListTodosRequest>) -> Answer<pb::ListTodosResponse> {
        let who = principal(&request)?;
        let request = request.into_inner();
        let filter = wire::filter(&request)?;
        let size = match request.page_size {
            ..0 => return Err(Failure::invalid("page_size", "must not be negative").into()),
            0 => 50,
            size => i64::from(size.min(200)),
        };
        let question = (who.tenant.as_str(), request.status, &request.label, &request.assignee);
        let after: Option<TodoId> = self.pages.read(&question, &request.page_token)?;
        // One more than asked for tells whether there is a next page.
        let mut todos = commands::list(&self.app, &who, &filter, after, size + 1).await.map_err(Failure::from)?;
        let found = todos.len();
        todos.truncate(usize::try_from(size).unwrap_or_default());
        let mut answer: Vec<pb::Todo> = todos.iter().map(wire::todo).collect();
        page::fit(&mut answer);
        let next_page_token = match todos.get(..answer.len()).and_then(<[_]>::last) {
            Some(last) if answer.len() < found => self.pages.make(&question, &last.id)?,
            _ => String::new(),
        };
        Ok(Response::new(pb::ListTodosResponse { todos: answer, next_page_token }))
    }

    async fn update_todo(&self, request: Request<pb::UpdateTodoRequest>) -> Answer<pb::Todo> {
        let (who, key) = (principal(&request)?, Key::of(&request)?);
        let request = request.into_inner();
        let id = wire::id(&request.id)?;
        let todo = request.todo.as_ref().ok_or_else(|| Failure::invalid("todo", "is missing"))?;
        let patch = wire::patch(todo, request.update_mask.as_ref())?;
        let attempt = Attempt::new(&who, "UpdateTodo", key, &request);
        answer(commands::update(&self.app, &who, attempt, id, &todo.etag, patch).await)
    }

    async fn delete_todo(&self, request: Request<pb::DeleteTodoRequest>) -> Answer<()> {
        let (who, key) = (principal(&request)?, Key::of(&request)?);
        let request = request.into_inner();
        let id = wire::id(&request.id)?;
        let attempt = Attempt::new(&who, "DeleteTodo", key, &request);
        answer(commands::delete(&self.app, &who, attempt, id, &request.etag).await)
    }

    async fn complete_todo(&self, request: Request<pb::CompleteTodoRequest>) -> Answer<pb::Todo> {
        let (who, key) = (principal(&request)?, Key::required(&request)?);
        let request = request.into_inner();
        let id = wire::id(&request.id)?;
        let attempt = Attempt::new(&who, "CompleteTodo", Some(key), &request);
        answer(commands::complete(&self.app, &who, attempt, id, &request.etag).await)
    }

    async fn reopen_todo(&self, request: Request<pb::ReopenTodoRequest>) -> Answer<pb::Todo> {
        let (who, key) = (principal(&request)?, Key::required(&request)?);
        let request = request.into_inner();
        let id = wire::id(&request.id)?;
        let attempt = Attempt::new(&who, "ReopenTodo", Some(key), &request);
        answer(commands::reopen(&self.app, &who, attempt, id, &request.etag).await)
    }
}

fn answer<T>(result: Result<T, commands::Error>) -> Answer<T> {
    result.map(Response::new).map_err(|error| Failure::from(error).into())
}
