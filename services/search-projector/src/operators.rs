//! The operators' API of the index: comparison with the todos, and the rebuild.

use chrono::{DateTime, Utc};
use contracts::events::todo::Todo;
use proto::ops;
use proto::ops::Which;
use proto::ops::index_service_server::{IndexService, IndexServiceServer};
use serde_json::Value;
use service::clock;
use service::operators::{Answers, act, answers, away, limit, refused, time};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::store::{Document, Index};
use crate::store_bulk::Outcome;
use crate::store_documents::Page;

/// How many aggregates a request may name.
const MAX: usize = 1_000;
/// The size in bytes of a message with that many of the largest todos.
const MESSAGE: usize = 64 << 20;

/// The service for the operations port.
pub(crate) fn services(index: &Index) -> Routes {
    Routes::new(IndexServiceServer::new(Operated(index.clone())).max_decoding_message_size(MESSAGE))
}

struct Operated(Index);

fn few(count: usize) -> Result<(), Status> {
    if count <= MAX { Ok(()) } else { Err(Status::invalid_argument(format!("name at most {MAX}"))) }
}

fn notes(text: &str) -> Result<Value, Status> {
    let notes: Option<Value> = serde_json::from_str(text).ok().filter(Value::is_object);
    notes.ok_or_else(|| Status::invalid_argument("what is noted is a JSON object"))
}

fn changed() -> Response<ops::IndexChanged> {
    Response::new(ops::IndexChanged {})
}

/// The document that the index should hold for an aggregate.
fn document(aggregate: &ops::Aggregate, now: DateTime<Utc>) -> Result<Document, anyhow::Error> {
    let ops::Aggregate { key, version, deleted, state, problem } = aggregate;
    let key = key.clone().unwrap_or_default();
    if let Some(problem) = problem {
        anyhow::bail!("the database has what no todo may: {problem}");
    }
    let tenant = key.tenant.parse()?;
    if *deleted {
        let id = key.id.parse().map_err(|error| anyhow::anyhow!("{error}"))?;
        return Ok(Document { tenant, id, version: *version, deleted: true, index_time: now, content: None });
    }
    let todo: Todo = serde_json::from_str(state.as_deref().unwrap_or_default())?;
    Ok(Document::new(tenant, &todo, false, now))
}

/// Why the index differs from the todo.
fn differs(aggregate: &ops::Aggregate, shown: Option<&Document>) -> Option<String> {
    let version = aggregate.version;
    let Some(shown) = shown else { return Some(format!("at version {version}, and not in the index")) };
    if aggregate.key.as_ref().is_none_or(|key| key.tenant != shown.tenant.as_str()) {
        return Some(format!("the index has it under the tenant {}", shown.tenant));
    }
    if shown.version != version {
        return Some(format!("at version {version}, the index at {}", shown.version));
    }
    match document(aggregate, shown.index_time) {
        Ok(is) if is == *shown => None,
        Ok(_) => Some(format!("both at version {version}, with another content")),
        Err(error) => Some(format!("{error:#}")),
    }
}

impl Operated {
    fn index(&self, which: Which) -> Result<Index, Status> {
        match which {
            Which::Searched => Ok(self.0.clone()),
            Which::Next => Ok(self.0.next()),
            Which::Previous => Ok(self.0.previous()),
            Which::Unspecified => Err(Status::invalid_argument("say which index")),
        }
    }

    /// Checks that this service owns the index of this name: a caller may touch no other.
    fn name<'a>(&self, name: &'a str) -> Result<&'a str, Status> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let ours = name.strip_prefix(self.0.alias()).and_then(|rest| rest.strip_prefix('-'));
        let ours = ours.is_some_and(|rest| !rest.is_empty() && rest.len() < 100 && rest.bytes().all(plain));
        let wrong =
            || Status::invalid_argument(format!("an index is called {}-..., in a-z, 0-9 and -", self.0.alias()));
        if ours { Ok(name) } else { Err(wrong()) }
    }
}

#[tonic::async_trait]
impl IndexService for Operated {
    type ListIndexesStream = Answers<ops::Index>;

    async fn list_indexes(&self, _: Request<ops::ListIndexesRequest>) -> Result<Response<Answers<ops::Index>>, Status> {
        let mut all = Vec::new();
        for which in [Which::Searched, Which::Next, Which::Previous] {
            if let Some((name, notes)) = self.index(which)?.named().await.map_err(away)? {
                all.push(ops::Index { which: which.into(), name, notes: notes.to_string() });
            }
        }
        Ok(answers(all))
    }

    type ListDocumentsStream = Answers<ops::Key>;

    async fn list_documents(
        &self,
        request: Request<ops::ListDocumentsRequest>,
    ) -> Result<Response<Answers<ops::Key>>, Status> {
        let which = request.get_ref().which();
        let ops::ListDocumentsRequest { after, tenant, from, to, limit: most, .. } = request.into_inner();
        let after = after.map(|ops::Key { tenant, id }| (id, tenant));
        let page = Page { after, tenant, from: time(from)?, to: time(to)?, limit: limit(most)? };
        let keys = self.index(which)?.page(&page).await.map_err(away)?;
        Ok(answers(keys.into_iter().map(|(id, tenant)| ops::Key { tenant, id }).collect()))
    }

    async fn compare_documents(
        &self,
        request: Request<ops::CompareDocumentsRequest>,
    ) -> Result<Response<ops::CompareDocumentsResponse>, Status> {
        let index = self.index(request.get_ref().which())?;
        let ops::CompareDocumentsRequest { aggregates, absent, .. } = request.into_inner();
        few(aggregates.len())?;
        few(absent.len())?;
        let keys = aggregates.iter().map(|aggregate| aggregate.key.clone().unwrap_or_default()).chain(absent);
        let keys: Vec<_> = keys.map(|ops::Key { tenant, id }| (id, tenant)).collect();
        let shown = index.get(&keys).await.map_err(away)?;
        let compare = |(number, shown): (usize, Option<Document>)| ops::Comparison {
            version: shown.as_ref().map(|shown| shown.version),
            why: match aggregates.get(number) {
                Some(aggregate) => differs(aggregate, shown.as_ref()),
                None => shown.map(|_| "the database has no such todo".to_owned()),
            },
        };
        let comparisons = shown.into_iter().enumerate().map(compare).collect();
        Ok(Response::new(ops::CompareDocumentsResponse { comparisons }))
    }

    async fn write_documents(
        &self,
        request: Request<ops::WriteDocumentsRequest>,
    ) -> Result<Response<ops::IndexChanged>, Status> {
        let aggregates = request.into_inner().aggregates;
        few(aggregates.len())?;
        let next = self.index(Which::Next)?;
        // Without this check OpenSearch would make an index of that name.
        next.named().await.map_err(away)?.ok_or_else(|| Status::failed_precondition("no index is being built"))?;
        let documents = aggregates.iter().map(|aggregate| document(aggregate, clock::now()));
        let documents = documents.collect::<Result<Vec<_>, _>>().map_err(refused)?;
        let outcomes = next.write(&documents.iter().collect::<Vec<_>>()).await.map_err(away)?;
        match outcomes.iter().find(|outcome| !matches!(outcome, Outcome::Written | Outcome::Newer)) {
            Some(not) => Err(Status::failed_precondition(format!("the index does not take a todo: {not:?}"))),
            None => Ok(changed()),
        }
    }

    async fn create_index(&self, request: Request<ops::CreateIndexRequest>) -> Result<Response<ops::Index>, Status> {
        act(&request, &request.get_ref().reason)?;
        let text = request.into_inner().notes;
        let next = self.index(Which::Next)?;
        if let Some((name, _)) = next.named().await.map_err(away)? {
            return Err(Status::failed_precondition(format!("{name} is being built already")));
        }
        let name = format!("{}-{}", self.0.alias(), clock::now().format("%Y%m%d%H%M%S"));
        next.create(&name, &notes(&text)?).await.map_err(away)?;
        Ok(Response::new(ops::Index { which: Which::Next.into(), name, notes: text }))
    }

    async fn note_index(&self, request: Request<ops::NoteIndexRequest>) -> Result<Response<ops::IndexChanged>, Status> {
        let ops::NoteIndexRequest { name, notes: text } = request.into_inner();
        self.0.note(self.name(&name)?, &notes(&text)?).await.map_err(away)?;
        Ok(changed())
    }

    async fn take_up_index(
        &self,
        request: Request<ops::TakeUpIndexRequest>,
    ) -> Result<Response<ops::IndexChanged>, Status> {
        act(&request, &request.get_ref().reason)?;
        self.index(Which::Next)?.point_to(self.name(&request.into_inner().name)?).await.map_err(away)?;
        Ok(changed())
    }

    async fn refresh_index(
        &self,
        request: Request<ops::RefreshIndexRequest>,
    ) -> Result<Response<ops::IndexChanged>, Status> {
        self.index(request.get_ref().which())?.refresh().await.map_err(away)?;
        Ok(changed())
    }

    async fn swap_indexes(
        &self,
        request: Request<ops::SwapIndexesRequest>,
    ) -> Result<Response<ops::IndexChanged>, Status> {
        act(&request, &request.get_ref().reason)?;
        let ops::SwapIndexesRequest { from, to, .. } = request.into_inner();
        let from = from.as_deref().map(|from| self.name(from)).transpose()?;
        self.0.swap(from, self.name(&to)?).await.map_err(away)?;
        Ok(changed())
    }

    async fn abandon_index(
        &self,
        request: Request<ops::AbandonIndexRequest>,
    ) -> Result<Response<ops::IndexChanged>, Status> {
        act(&request, &request.get_ref().reason)?;
        let (next, name) = (self.index(Which::Next)?, request.into_inner().name);
        let named = next.named().await.map_err(away)?.filter(|(named, _)| *named == name);
        let (name, notes) = named.ok_or_else(|| Status::failed_precondition(format!("{name} is not being built")))?;
        // An index that was searched before only loses the alias.
        let given_up = if notes["behind"].is_u64() { next.let_go(&name).await } else { next.remove(&name).await };
        given_up.map_err(away)?;
        Ok(changed())
    }
}
