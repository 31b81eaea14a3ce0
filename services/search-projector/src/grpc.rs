//! The gRPC server for searches.

use contracts::TodoId;
use contracts::events::todo::{self, Status};
use proto::search as pb;
use proto::search::search_service_server::SearchService;
use proto::timestamp;
use service::grpc::reading;
use service::page::{self, PageTokens};
use service::{Failure, consistency, notes};
use tokio::sync::watch;
use tonic::{Request, Response, Status as GrpcStatus};

use crate::freshness::Freshness;
use crate::permissions;
use crate::store::{Hit, Index, Question};

/// The implementation of `flotilla.search.v1.SearchService`.
pub struct Search {
    /// The index.
    pub index: Index,
    /// Whether the index shows all that it should.
    pub is_whole: watch::Receiver<bool>,
    /// How far the index is.
    pub freshness: Freshness,
    /// The page tokens.
    pub pages: PageTokens,
}

#[tonic::async_trait]
impl SearchService for Search {
    async fn search_todos(
        &self,
        request: Request<pb::SearchTodosRequest>,
    ) -> Result<Response<pb::SearchTodosResponse>, GrpcStatus> {
        let wanted = consistency::wanted(request.metadata().as_ref(), todo::SERVICE);
        let (call, request) = reading(request)?;
        let caller = &call.caller;
        permissions::SEARCH.check(caller).map_err(Failure::from)?;
        let wanted = wanted?;
        // The order is part of the question: a position in another order means nothing in this one.
        let asked =
            (caller.tenant.as_str(), &request.query, request.status, &request.label, "by rules, then newest first");
        let question =
            Question { after: self.pages.read::<(f64, TodoId)>(&asked, &request.page_token)?, ..question(&request)? };
        let is_whole = *self.is_whole.borrow();
        if let Some((row, within)) = wanted
            && !(self.freshness.reached(&caller.tenant, row, within).await && is_whole)
        {
            notes::pending();
        }
        // One hit more than asked for shows whether there is a next page.
        let wanted = Question { limit: question.limit + 1, ..question.clone() };
        let (mut hits, total) = self
            .index
            .search(&caller.tenant, &wanted)
            .await
            .map_err(|error| Failure::unavailable("the search index", error))?;
        if !*self.is_whole.borrow() {
            notes::degraded("search-index");
        }
        let more = hits.len() > question.limit;
        hits.truncate(question.limit);
        let place = |hit: &Hit| (hit.score, hit.document.id);
        let end = hits.last().map(place).filter(|_| more);
        let (places, mut hits): (Vec<_>, Vec<_>) =
            hits.into_iter().filter_map(|found| Some((place(&found), hit(found)?))).unzip();
        page::fit(&mut hits);
        // A shortened page continues behind its last hit; any other page, behind the last hit that was read.
        let last =
            if hits.len() < places.len() { places.get(..hits.len()).and_then(<[_]>::last) } else { end.as_ref() };
        let next_page_token = last.map_or(Ok(String::new()), |last| self.pages.make(&asked, last))?;
        Ok(Response::new(pb::SearchTodosResponse {
            hits,
            next_page_token,
            total_size: i32::try_from(total).unwrap_or(i32::MAX),
        }))
    }
}

fn question(request: &pb::SearchTodosRequest) -> Result<Question, Failure> {
    if request.query.chars().count() > 500 {
        return Err(Failure::invalid("query", "must have at most 500 characters"));
    }
    let limit = match request.page_size {
        ..0 => return Err(Failure::invalid("page_size", "must not be negative")),
        0 => 20,
        size => usize::try_from(size.min(100)).unwrap_or(100),
    };
    let status = match pb::TodoStatus::try_from(request.status) {
        Ok(pb::TodoStatus::Unspecified) => None,
        Ok(pb::TodoStatus::Open) => Some(Status::Open),
        Ok(pb::TodoStatus::Completed) => Some(Status::Completed),
        Err(_) => return Err(Failure::invalid("status", "must be OPEN or COMPLETED")),
    };
    let label = (!request.label.is_empty()).then(|| request.label.trim().to_owned());
    Ok(Question { words: request.query.trim().to_owned(), status, label, after: None, limit })
}

/// A hit on the wire; none for a tombstone, or a document that cannot be read, such as one of a newer release.
fn hit(hit: Hit) -> Option<pb::TodoHit> {
    let document = hit.document;
    let content = document.content?;
    let status = match content.status {
        Status::Open => pb::TodoStatus::Open,
        Status::Completed => pb::TodoStatus::Completed,
    };
    Some(pb::TodoHit {
        id: document.id.to_string(),
        title: content.title,
        notes: content.notes,
        status: status.into(),
        due_time: content.due_time.map(timestamp),
        labels: content.labels,
        assignee: content.assignee.unwrap_or_default(),
        create_time: Some(timestamp(content.create_time)),
        update_time: Some(timestamp(content.update_time)),
        complete_time: content.complete_time.map(timestamp),
        created_by: content.created_by,
        version: document.version,
        highlights: hit.highlights.into_iter().map(|(field, snippets)| pb::Highlight { field, snippets }).collect(),
        score: hit.score as f32,
        index_time: Some(timestamp(document.index_time)),
    })
}
