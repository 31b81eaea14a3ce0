//! The aggregates of a service, as operators compare them with what was made of their events. A tenant's are read in a transaction of that
//! tenant, whoever the operator is.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use contracts::{TenantId, UserId};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use proto::ops::aggregate_service_server::{AggregateService, AggregateServiceServer};
use proto::ops::{Aggregate, GetAggregatesRequest, HeldTenant, Key, ListAggregatesRequest, ListHeldTenantsRequest};
use serde::{Deserialize, Serialize};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::operators::{Answers, answers, away, limit, time};
use crate::{Db, OperatorTx, StoreError, TenantTx};

/// How many a request may name.
const MAX: usize = 1_000;

/// A page of one tenant's aggregates.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// After this id.
    pub after: Uuid,
    /// Changed at or after this time.
    pub from: Option<DateTime<Utc>>,
    /// Changed before this time.
    pub to: Option<DateTime<Utc>>,
    /// How many at most.
    pub limit: i64,
}

/// An aggregate as it stands.
#[derive(Debug, Clone)]
pub struct State {
    id: Uuid,
    version: i32,
    state: Option<Result<String, String>>,
}

impl State {
    /// The aggregate of this id, at this version: its state, or why its state cannot be given; none of a deleted one.
    pub fn new<S: Serialize, E: Display>(id: Uuid, version: i32, state: Option<Result<S, E>>) -> Self {
        let said = |state: S| serde_json::to_string(&state).map_err(|error| error.to_string());
        Self { id, version, state: state.map(|state| state.map_err(|error| format!("{error:#}")).and_then(said)) }
    }

    /// Who made it, as its events say; none of one that names nobody.
    fn maker(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Made {
            created_by: UserId,
        }
        let Made { created_by } = serde_json::from_str(self.state.as_ref()?.as_ref().ok()?).ok()?;
        (created_by != UserId::erased()).then(|| created_by.to_string())
    }
}

/// What a service's store knows of its aggregates of one kind.
#[tonic::async_trait]
pub trait Aggregates: Send + Sync + 'static {
    /// The kind: `todo`.
    fn kind(&self) -> &'static str;

    /// The first tenant after this name that has any.
    async fn next_tenant(&self, tx: &mut OperatorTx, after: &str) -> Result<Option<TenantId>, StoreError>;

    /// A page of the tenant's aggregates, by id.
    async fn page(&self, tx: &mut TenantTx, page: Page) -> Result<Vec<State>, StoreError>;

    /// Those of these ids that exist.
    async fn these(&self, tx: &mut TenantTx, ids: &[Uuid]) -> Result<Vec<State>, StoreError>;
}

/// The aggregates of a service, kind by kind.
pub type Kinds = Arc<[Box<dyn Aggregates>]>;

/// The position of a page.
struct Reading {
    /// The position in the list of kinds.
    kind: usize,
    /// The next tenant, where known.
    at: Option<TenantId>,
    /// After this id of that tenant.
    after: Uuid,
    /// The tenant before.
    passed: String,
    only: Option<TenantId>,
    from: Option<DateTime<Utc>>,
    to: Option<DateTime<Utc>>,
    left: i64,
}

#[derive(Clone)]
struct Operated {
    db: Db,
    kinds: Kinds,
}

/// The aggregates of a service, for operators ([`Process::operate`](crate::Process::operate)).
#[must_use]
pub fn aggregates(db: Db, kinds: Kinds) -> AggregateServiceServer<impl AggregateService> {
    AggregateServiceServer::new(Operated { db, kinds })
}

fn aggregate(tenant: &TenantId, State { id, version, state }: State) -> Aggregate {
    let key = Some(Key { tenant: tenant.to_string(), id: id.to_string() });
    let deleted = state.is_none();
    let (state, problem) = match state {
        None => (None, None),
        Some(Ok(state)) => (Some(state), None),
        Some(Err(problem)) => (None, Some(problem)),
    };
    Aggregate { key, version, deleted, state, problem }
}

fn tenant(text: &str) -> Result<TenantId, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("{text:?} is no tenant: {error}")))
}

fn id(text: &str) -> Result<Uuid, Status> {
    text.parse().map_err(|_| Status::invalid_argument(format!("{text:?} is no id")))
}

#[tonic::async_trait]
impl AggregateService for Operated {
    type ListAggregatesStream = Answers<Aggregate>;

    async fn list_aggregates(
        &self,
        request: Request<ListAggregatesRequest>,
    ) -> Result<Response<Answers<Aggregate>>, Status> {
        let ListAggregatesRequest { after, tenant: only, from, to, limit: most, aggregate: kind } =
            request.into_inner();
        let kind = self.kind(&kind)?;
        let (from, to) = (time(from)?, time(to)?);
        let only = only.as_deref().map(tenant).transpose()?;
        let (at, after) = match after {
            None => (only.clone(), Uuid::nil()),
            Some(Key { tenant: name, id: after }) => (Some(tenant(&name)?), id(&after)?),
        };
        if only.is_some() && only != at {
            return Err(Status::invalid_argument("the page goes on behind an aggregate of another tenant"));
        }
        let left = limit(most)?.min(MAX as i64);
        let reading = Reading { kind, at, after, only, from, to, left, passed: String::new() };
        let asked = self.clone();
        // One tenant at a time, as the caller reads them.
        let tenants = stream::try_unfold(reading, move |mut reading| {
            let asked = asked.clone();
            async move {
                let states = asked.read(&mut reading).await?;
                Ok::<_, Status>(states.map(|states| (stream::iter(states).map(Ok), reading)))
            }
        });
        Ok(Response::new(tenants.try_flatten().boxed()))
    }

    type GetAggregatesStream = Answers<Aggregate>;

    async fn get_aggregates(
        &self,
        request: Request<GetAggregatesRequest>,
    ) -> Result<Response<Answers<Aggregate>>, Status> {
        let GetAggregatesRequest { keys, aggregate: kind } = request.into_inner();
        let store = &self.kinds[self.kind(&kind)?];
        if keys.len() > MAX {
            return Err(Status::invalid_argument(format!("name at most {MAX}")));
        }
        let mut of: BTreeMap<String, Vec<Uuid>> = BTreeMap::new();
        for key in keys {
            of.entry(key.tenant).or_default().push(id(&key.id)?);
        }
        let mut all = Vec::new();
        for (name, ids) in of {
            // What is no tenant's name has none.
            let Ok(tenant) = tenant(&name) else { continue };
            let mut tx = self.db.read_as(&tenant).await.map_err(away)?;
            let states = store.these(&mut tx, &ids).await.map_err(away)?;
            tx.end().await.map_err(away)?;
            all.extend(states.into_iter().map(|state| aggregate(&tenant, state)));
        }
        Ok(answers(all))
    }

    type ListHeldTenantsStream = Answers<HeldTenant>;

    async fn list_held_tenants(
        &self,
        request: Request<ListHeldTenantsRequest>,
    ) -> Result<Response<Answers<HeldTenant>>, Status> {
        let ListHeldTenantsRequest { after, limit: most } = request.into_inner();
        let (most, asked) = (limit(most)?.min(MAX as i64), self.clone());
        // One at a time, as the caller reads them.
        let held = stream::try_unfold((after, most), move |(after, left)| {
            let asked = asked.clone();
            async move {
                if left == 0 {
                    return Ok(None);
                }
                let Some(tenant) = asked.held_behind(&after).await? else { return Ok(None) };
                let created_by = asked.oldest_maker(&tenant).await?;
                let tenant = tenant.to_string();
                Ok::<_, Status>(Some((HeldTenant { tenant: tenant.clone(), created_by }, (tenant, left - 1))))
            }
        });
        Ok(Response::new(held.boxed()))
    }
}

impl Operated {
    /// The position of a kind.
    fn kind(&self, name: &str) -> Result<usize, Status> {
        let found = self.kinds.iter().position(|kind| kind.kind() == name);
        found.ok_or_else(|| {
            let names = self.kinds.iter().map(|kind| kind.kind()).collect::<Vec<_>>().join(", ");
            Status::invalid_argument(format!("there are no aggregates {name:?} here: ask for {names}"))
        })
    }

    /// The next tenant's share of a page; none when it is full, or there is no further tenant.
    async fn read(&self, reading: &mut Reading) -> Result<Option<Vec<Aggregate>>, Status> {
        if reading.left == 0 {
            return Ok(None);
        }
        let next = match reading.at.take() {
            Some(tenant) => Some(tenant),
            None if reading.only.is_some() => None,
            None => self.tenant_behind(reading.kind, &reading.passed).await?,
        };
        let Some(next) = next else { return Ok(None) };
        let mut tx = self.db.read_as(&next).await.map_err(away)?;
        let page = Page { after: reading.after, from: reading.from, to: reading.to, limit: reading.left };
        let states = self.kinds[reading.kind].page(&mut tx, page).await.map_err(away)?;
        tx.end().await.map_err(away)?;
        reading.left -= states.len() as i64;
        (reading.after, reading.passed) = (Uuid::nil(), next.to_string());
        Ok(Some(states.into_iter().map(|state| aggregate(&next, state)).collect()))
    }

    /// The first tenant behind this name that has aggregates of any kind.
    async fn held_behind(&self, name: &str) -> Result<Option<TenantId>, Status> {
        let mut first = None;
        for kind in 0..self.kinds.len() {
            let behind = self.tenant_behind(kind, name).await?;
            first = first.into_iter().chain(behind).min();
        }
        Ok(first)
    }

    /// Who made the oldest of a tenant's aggregates that still names somebody, of the first kind that has one: ids are in the order of time.
    async fn oldest_maker(&self, tenant: &TenantId) -> Result<Option<String>, Status> {
        let mut tx = self.db.read_as(tenant).await.map_err(away)?;
        let mut found = None;
        for kind in self.kinds.iter() {
            let mut after = Uuid::nil();
            while found.is_none() {
                let page = Page { after, from: None, to: None, limit: 100 };
                let states = kind.page(&mut tx, page).await.map_err(away)?;
                let Some(last) = states.last() else { break };
                after = last.id;
                found = states.iter().find_map(State::maker);
            }
        }
        tx.end().await.map_err(away)?;
        Ok(found)
    }

    async fn tenant_behind(&self, kind: usize, name: &str) -> Result<Option<TenantId>, Status> {
        let mut tx = self.db.begin_operator("which tenants there are").await.map_err(away)?;
        let tenant = self.kinds[kind].next_tenant(&mut tx, name).await.map_err(away)?;
        tx.commit().await.map_err(away)?;
        Ok(tenant)
    }
}
