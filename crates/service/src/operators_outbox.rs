//! The outbox, as operators see and repair it.

use std::time::Duration;

use ::outbox::inspect::{self, Page};
use ::outbox::operate::{self, Act, Refused};
use async_nats::jetstream::{self, stream::Stream};
use chrono::DateTime;
use contracts::subject;
use futures::StreamExt as _;
use futures::stream;
use proto::ops::outbox_service_server::{OutboxService, OutboxServiceServer};
use proto::ops::{
    AcceptProgress, AcceptRequest, ActedRows, Behind, DiscardRowRequest, Divergence, FindRowRequest, FoundRow,
    GetBehindRequest, GetDivergenceRequest, GetOutboxRequest, GetRowRequest, JournalLine, ListJournalRequest,
    ListParkedRowsRequest, ListRowsRequest, Outbox, ParkedRow, ReleaseRowsRequest, RenumberRowsRequest,
    RequeueRowsRequest, Row,
};
use serde::Serialize;
use sqlx::PgPool;
use sqlx::pool::PoolConnection;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::operators::{Answers, act, answers, away, limit, message, refused, time};
use crate::{Lifecycle, Process, config};

/// How often to check the stream for the removal of the messages.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// How long to wait for that: less than a call may take.
const REMOVED_WITHIN: Duration = Duration::from_secs(800);
/// How many connections operators have.
const CONNECTIONS: u32 = 2;
/// How many rows a request may name.
const MAX: usize = 10_000;

/// The outbox of a service.
struct Operated {
    /// In the relay's role, which may do all of it.
    db: PgPool,
    js: jetstream::Context,
    stream: String,
    lifecycle: Lifecycle,
}

/// The outbox of a process's service, for operators ([`Process::operate`]).
///
/// # Errors
/// The address of the database cannot be read.
pub fn outbox(
    process: &Process,
    config: &config::Outbox,
    nats: async_nats::Client,
) -> Result<OutboxServiceServer<impl OutboxService + use<>>, anyhow::Error> {
    let db = process.operators_pool(&config.relay_database_url, CONNECTIONS)?;
    let (js, stream, lifecycle) = (jetstream::new(nats), subject::stream(process.name), process.lifecycle.clone());
    Ok(OutboxServiceServer::new(Operated { db, js, stream, lifecycle }))
}

fn not_done(error: Refused) -> Status {
    match error {
        Refused::Database(_) | Refused::Stream(_) | Refused::InUse => away(error),
        Refused::NotParked(_) | Refused::NoRow(_) | Refused::NothingBehind | Refused::NotAhead => refused(error),
    }
}

fn row(row: inspect::Row) -> Row {
    let inspect::Row { seq, created_at, event_id, tenant, aggregate_id, digest, parked } = row;
    let (created_at, event_id) = (Some(proto::timestamp(created_at)), event_id.to_string());
    Row { seq, created_at, event_id, tenant, aggregate_id, digest, parked }
}

/// What was shown, as the outbox takes it again.
fn shown<T: serde::de::DeserializeOwned>(said: Option<impl prost::Name>) -> Result<T, Status> {
    let said = said.ok_or_else(|| Status::invalid_argument("say what was shown"))?;
    proto::to_json(&said).and_then(serde_json::from_value).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn acted(rows: u64) -> Response<ActedRows> {
    Response::new(ActedRows { rows: rows.cast_signed() })
}

impl Operated {
    async fn db(&self) -> Result<PoolConnection<sqlx::Postgres>, Status> {
        self.db.acquire().await.map_err(away)
    }

    async fn stream(&self) -> Result<Stream, Status> {
        self.js.get_stream(&self.stream).await.map_err(away)
    }
}

#[tonic::async_trait]
impl OutboxService for Operated {
    async fn get_outbox(&self, _: Request<GetOutboxRequest>) -> Result<Response<Outbox>, Status> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct All {
            #[serde(flatten)]
            overview: operate::Overview,
            #[serde(flatten)]
            bounds: inspect::Bounds,
            last_refill: Option<operate::JournalLine>,
        }
        let mut db = self.db().await?;
        let overview = operate::overview(&mut db).await.map_err(away)?;
        let last_refill = operate::last(&mut db, "refill").await.map_err(away)?;
        let bounds = inspect::bounds(&mut db).await.map_err(away)?;
        message(&All { overview, bounds, last_refill }).map(Response::new)
    }

    type ListParkedRowsStream = Answers<ParkedRow>;

    async fn list_parked_rows(
        &self,
        _: Request<ListParkedRowsRequest>,
    ) -> Result<Response<Answers<ParkedRow>>, Status> {
        let rows = operate::parked(&mut *self.db().await?).await.map_err(away)?;
        Ok(answers(rows.iter().map(message).collect::<Result<_, _>>()?))
    }

    type ListJournalStream = Answers<JournalLine>;

    async fn list_journal(
        &self,
        request: Request<ListJournalRequest>,
    ) -> Result<Response<Answers<JournalLine>>, Status> {
        let lines = limit(request.into_inner().lines)?;
        let lines = operate::journal(&mut *self.db().await?, lines).await.map_err(away)?;
        Ok(answers(lines.iter().map(message).collect::<Result<_, _>>()?))
    }

    async fn release_rows(&self, request: Request<ReleaseRowsRequest>) -> Result<Response<ActedRows>, Status> {
        let (actor, reason) = act(&request, &request.get_ref().reason)?;
        let aggregate = request.into_inner().aggregate_id;
        let act = Act { actor: &actor, reason: &reason };
        operate::release(&mut *self.db().await?, &aggregate, act).await.map(acted).map_err(not_done)
    }

    async fn discard_row(&self, request: Request<DiscardRowRequest>) -> Result<Response<ActedRows>, Status> {
        let (actor, reason) = act(&request, &request.get_ref().reason)?;
        let act = Act { actor: &actor, reason: &reason };
        operate::discard(&mut *self.db().await?, request.into_inner().seq, act).await.map_err(not_done)?;
        Ok(acted(1))
    }

    async fn requeue_rows(&self, request: Request<RequeueRowsRequest>) -> Result<Response<ActedRows>, Status> {
        let (actor, reason) = act(&request, &request.get_ref().reason)?;
        let seqs = request.into_inner().seqs;
        if seqs.is_empty() || seqs.len() > MAX {
            return Err(Status::invalid_argument(format!("name 1 to {MAX} rows")));
        }
        let act = Act { actor: &actor, reason: &reason };
        operate::requeue(&mut *self.db().await?, &seqs, act).await.map(acted).map_err(not_done)
    }

    async fn get_behind(&self, _: Request<GetBehindRequest>) -> Result<Response<Behind>, Status> {
        let stream = self.stream().await?;
        let behind = operate::numbered_behind(&mut *self.db().await?, &stream).await.map_err(not_done)?;
        message(&behind).map(Response::new)
    }

    async fn renumber_rows(&self, request: Request<RenumberRowsRequest>) -> Result<Response<ActedRows>, Status> {
        let (actor, reason) = act(&request, &request.get_ref().reason)?;
        let behind: operate::Behind = shown(request.into_inner().behind)?;
        let act = Act { actor: &actor, reason: &reason };
        let stream = self.stream().await?;
        let now = operate::numbered_behind(&mut *self.db().await?, &stream).await.map_err(not_done)?;
        let seqs = |behind: &operate::Behind| behind.rows.iter().map(|row| row.seq).collect::<Vec<_>>();
        if behind.published_seq > now.published_seq || seqs(&behind) != seqs(&now) {
            return Err(Status::failed_precondition("that is not what is numbered behind now: query it again"));
        }
        operate::renumber(&mut *self.db().await?, &behind, act).await.map(acted).map_err(not_done)
    }

    async fn get_divergence(&self, _: Request<GetDivergenceRequest>) -> Result<Response<Divergence>, Status> {
        let stream = self.stream().await?;
        let divergence = operate::divergence(&mut *self.db().await?, &stream).await.map_err(not_done)?;
        message(&divergence).map(Response::new)
    }

    type AcceptStream = Answers<AcceptProgress>;

    async fn accept(&self, request: Request<AcceptRequest>) -> Result<Response<Answers<AcceptProgress>>, Status> {
        let (actor, reason) = act(&request, &request.get_ref().reason)?;
        let divergence: operate::Divergence = shown(request.into_inner().divergence)?;
        let stream = self.stream().await?;
        let info = stream.cached_info();
        if DateTime::from_timestamp_micros(info.created.timestamp_micros()) != Some(divergence.stream_created_at) {
            return Err(Status::failed_precondition("that is another stream by now: query it again"));
        }
        // A connection of its own: closed, it releases its lock.
        let mut db = self.db().await?.detach();
        let (progress, mut steps) = mpsc::channel(2);
        self.lifecycle.finish(|stop| async move {
            let removed = async {
                progress.send(Ok(AcceptProgress { accepted: false })).await.ok();
                let mut tick = tokio::time::interval(CHECK_INTERVAL);
                let removal = async {
                    while !operate::is_removed(&stream, &divergence).await? {
                        tick.tick().await;
                    }
                    Ok(())
                };
                let gone = |why: &str| Refused::Stream(anyhow::anyhow!("{why}: do it again"));
                tokio::select! {
                    removed = tokio::time::timeout(REMOVED_WITHIN, removal) => {
                        removed.unwrap_or_else(|_| Err(gone("not all of the messages were removed in time")))
                    }
                    () = progress.closed() => Err(gone("whoever was to remove the messages has gone")),
                    () = stop.cancelled() => Err(gone("the process stops")),
                }
            };
            let act = Act { actor: &actor, reason: &reason };
            let done = operate::accept(&mut db, &divergence, act, removed).await.map_err(not_done);
            progress.send(done.map(|()| AcceptProgress { accepted: true })).await.ok();
        });
        Ok(Response::new(stream::poll_fn(move |context| steps.poll_recv(context)).boxed()))
    }

    type ListRowsStream = Answers<Row>;

    async fn list_rows(&self, request: Request<ListRowsRequest>) -> Result<Response<Answers<Row>>, Status> {
        let ListRowsRequest { after, tenant, from, to, limit: most } = request.into_inner();
        let page = Page { after, tenant: tenant.as_deref(), from: time(from)?, to: time(to)?, limit: limit(most)? };
        let rows = inspect::rows(&mut *self.db().await?, page).await.map_err(away)?;
        Ok(answers(rows.into_iter().map(row).collect()))
    }

    async fn get_row(&self, request: Request<GetRowRequest>) -> Result<Response<Row>, Status> {
        let GetRowRequest { seq, from, to } = request.into_inner();
        let (Some(from), Some(to)) = (time(from)?, time(to)?) else {
            return Err(Status::invalid_argument("say from when to when the row may have been written"));
        };
        let found = inspect::row(&mut *self.db().await?, seq, (from, to)).await.map_err(away)?;
        found
            .map(|found| Response::new(row(found)))
            .ok_or_else(|| Status::not_found(format!("the outbox has no row {seq}")))
    }

    async fn find_row(&self, request: Request<FindRowRequest>) -> Result<Response<FoundRow>, Status> {
        let FindRowRequest { after, to, aggregate_id, from } = request.into_inner();
        let from = time(from)?.unwrap_or(DateTime::UNIX_EPOCH);
        let seq = inspect::first_of(&mut *self.db().await?, &aggregate_id, (after, to), from).await.map_err(away)?;
        Ok(Response::new(FoundRow { seq }))
    }
}
