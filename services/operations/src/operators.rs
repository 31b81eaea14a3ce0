//! The operators' API: letters, jobs and the audit.

use proto::ops;
use proto::ops::audit_service_server::{AuditService, AuditServiceServer};
use proto::ops::job_service_server::{JobService, JobServiceServer};
use proto::ops::letter_service_server::{LetterService, LetterServiceServer};
use serde::Serialize;
use serde_json::Value;
use service::operators::{Answers, act, answers, away, limit, message, refused, time};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::letters;
use crate::pace::Pace;
use crate::store::{Act, Connection, Refused, Selection, Store};
use crate::store_audit;
use crate::store_jobs::{self, Order, Steer};
use crate::store_letters;
use crate::store_range::{self, Ranged};

/// So many letters of a plan are checked against their schemas: enough to see what is wrong.
const CHECKED: usize = 1_000;
/// The most events of one job: its selection is rows.
const MAX: usize = 1_000_000;

/// All services for the operations port.
pub(crate) fn services(store: &Store) -> Routes {
    let operated = Operated(store.clone());
    Routes::new(LetterServiceServer::new(operated.clone()))
        .add_service(JobServiceServer::new(operated.clone()))
        .add_service(AuditServiceServer::new(operated))
}

#[derive(Clone)]
struct Operated(Store);

impl Operated {
    async fn db(&self) -> Result<Connection, Status> {
        self.0.connection().await.map_err(away)
    }
}

fn not_done(error: Refused) -> Status {
    match error {
        Refused::NoLetter(_) | Refused::NoJob(_) => Status::not_found(error.to_string()),
        Refused::Edit(_) => Status::invalid_argument(error.to_string()),
        Refused::Database(_) => away(error),
        _ => refused(error),
    }
}

/// Makes a message; `field`, of any form, becomes text in it.
fn with_text<M: prost::Name + Default>(said: &impl Serialize, field: &str) -> Result<M, Status> {
    let mut said = serde_json::to_value(said).map_err(|error| Status::internal(error.to_string()))?;
    said[field] = said[field].to_string().into();
    message(&said)
}

/// Parses the JSON of a field.
fn any(text: &str) -> Result<Value, Status> {
    serde_json::from_str(text).map_err(|error| Status::invalid_argument(format!("that is no JSON: {error}")))
}

fn selection(said: Option<ops::Selection>) -> Result<Selection, Status> {
    let ops::Selection { ids, consumer, group, event_type, tenant, aggregate, reason, since, until, states } =
        said.unwrap_or_default();
    Ok(Selection {
        ids: (!ids.is_empty()).then_some(ids),
        consumer,
        group,
        event_type,
        tenant,
        aggregate,
        reason,
        since: time(since)?,
        until: time(until)?,
        states: (!states.is_empty()).then_some(states),
    })
}

fn pace(said: Option<ops::Pace>) -> Result<Pace, Status> {
    let said = said.ok_or_else(|| Status::invalid_argument("say how the job goes"))?;
    let ops::Pace { canary, rate, max_failures } = said;
    let wrong = Status::invalid_argument(
        "canary must be 0 to 100000, rate above 0 and at most 100000 a second, max_failures 0 to 1",
    );
    let right =
        (0..=100_000).contains(&canary) && rate > 0.0 && rate <= 100_000.0 && (0.0..=1.0).contains(&max_failures);
    if right { Ok(Pace { canary, rate, max_failures }) } else { Err(wrong) }
}

fn kind(said: &str) -> Result<&'static str, Status> {
    let kind = ["replay", "discard"].into_iter().find(|kind| *kind == said);
    kind.ok_or_else(|| Status::invalid_argument("a job is to `replay` or to `discard`"))
}

fn job(job: &store_jobs::Job) -> Result<ops::Job, Status> {
    with_text(job, "selection")
}

#[tonic::async_trait]
impl LetterService for Operated {
    type ListLettersStream = Answers<ops::Letter>;

    async fn list_letters(
        &self,
        request: Request<ops::ListLettersRequest>,
    ) -> Result<Response<Answers<ops::Letter>>, Status> {
        let request = request.into_inner();
        let (selection, limit) = (selection(request.selection)?, limit(request.limit)?);
        let letters = store_letters::list(&mut *self.db().await?, &selection, limit).await.map_err(away)?;
        Ok(answers(letters.iter().map(message).collect::<Result<_, _>>()?))
    }

    type ListGroupsStream = Answers<ops::Group>;

    async fn list_groups(
        &self,
        request: Request<ops::ListGroupsRequest>,
    ) -> Result<Response<Answers<ops::Group>>, Status> {
        let selection = selection(request.into_inner().selection)?;
        let groups = store_letters::groups(&mut *self.db().await?, &selection).await.map_err(away)?;
        Ok(answers(groups.iter().map(message).collect::<Result<_, _>>()?))
    }

    async fn get_letter(&self, request: Request<ops::GetLetterRequest>) -> Result<Response<ops::WholeLetter>, Status> {
        let id = request.into_inner().id;
        let (whole, deaths) = store_letters::whole(&mut *self.db().await?, id).await.map_err(not_done)?;
        Ok(Response::new(ops::WholeLetter {
            letter: Some(message(&whole.letter)?),
            stream: whole.stream,
            stream_sequence: whole.stream_sequence,
            stored_at: Some(proto::timestamp(whole.stored_at)),
            subject: whole.subject,
            sequence: whole.sequence,
            trace_id: whole.trace_id,
            headers: whole.headers.to_string(),
            settled_at: whole.settled_at.map(proto::timestamp),
            settled_by: whole.settled_by,
            payload: whole.payload,
            edited: whole.edited,
            deaths: deaths.iter().map(message).collect::<Result<_, _>>()?,
        }))
    }

    async fn edit_letter(&self, request: Request<ops::EditLetterRequest>) -> Result<Response<ops::Letter>, Status> {
        let (actor, reason) = act(&request, &request.get_ref().reason)?;
        let ops::EditLetterRequest { id, event, dry_run, .. } = request.into_inner();
        let mut db = self.db().await?;
        if dry_run {
            let (whole, _) = store_letters::whole(&mut db, id).await.map_err(not_done)?;
            letters::check_edit(&whole.subject, whole.payload.as_deref(), &event)
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            return message(&whole.letter).map(Response::new);
        }
        store_letters::edit(&mut db, id, &event, Act { actor: &actor, reason: &reason }).await.map_err(not_done)?;
        let (whole, _) = store_letters::whole(&mut db, id).await.map_err(not_done)?;
        message(&whole.letter).map(Response::new)
    }

    async fn get_stats(&self, _: Request<ops::GetStatsRequest>) -> Result<Response<ops::Stats>, Status> {
        message(&store_letters::stats(&mut *self.db().await?).await.map_err(away)?).map(Response::new)
    }
}

#[tonic::async_trait]
impl JobService for Operated {
    type PlanJobStream = Answers<ops::PlannedLetter>;

    async fn plan_job(
        &self,
        request: Request<ops::PlanJobRequest>,
    ) -> Result<Response<Answers<ops::PlannedLetter>>, Status> {
        let request = request.into_inner();
        let (kind, selection) = (kind(&request.kind)?, selection(request.selection)?);
        let mut db = self.db().await?;
        let planned = store_jobs::plan(&mut db, kind, &selection).await.map_err(not_done)?;
        let mut all = planned.iter().map(message::<ops::PlannedLetter>).collect::<Result<Vec<_>, _>>()?;
        if kind == "replay" {
            for planned in all.iter_mut().take(CHECKED) {
                let (letter, _) = store_letters::whole(&mut db, planned.id).await.map_err(not_done)?;
                let event = letter.edited.as_ref().or(letter.payload.as_ref());
                let checked = event.map(|event| letters::check_edit(&letter.subject, None, event));
                planned.problem = checked.and_then(Result::err).map(|error| error.to_string());
            }
        }
        Ok(answers(all))
    }

    async fn create_job(&self, request: Request<ops::CreateJobRequest>) -> Result<Response<ops::Job>, Status> {
        let (actor, reason) = act(&request, &request.get_ref().reason)?;
        let request = request.into_inner();
        let selection = selection(request.selection)?;
        let order = Order { kind: kind(&request.kind)?, selection: &selection, pace: pace(request.pace)? };
        let act = Act { actor: &actor, reason: &reason };
        let mut db = self.db().await?;
        let id = store_jobs::create(&mut db, order, &request.letters, act).await.map_err(not_done)?;
        job(&store_jobs::job(&mut db, id).await.map_err(not_done)?).map(Response::new)
    }

    async fn create_range_job(
        &self,
        request: Request<Streaming<ops::CreateRangeJobRequest>>,
    ) -> Result<Response<ops::Job>, Status> {
        let (head, extensions, mut messages) = request.into_parts();
        let first = messages.message().await?.ok_or_else(|| Status::invalid_argument("nothing was asked for"))?;
        let first = Request::from_parts(head, extensions, first);
        let (actor, reason) = act(&first, &first.get_ref().reason)?;
        let first = first.into_inner();
        let (selection, pace) = (any(&first.selection)?, pace(first.pace)?);
        let (mut events, mut more) = (Vec::new(), Some(first.events));
        while let Some(some) = more {
            if events.len() + some.len() > MAX {
                return Err(Status::invalid_argument(format!(
                    "more than {MAX} events: replay a shorter range at a time"
                )));
            }
            events.extend(some.into_iter().map(|ops::RangedEvent { sequence, aggregate_id, event_id }| Ranged {
                sequence,
                aggregate_id,
                event_id,
            }));
            more = messages.message().await?.map(|message| message.events);
        }
        if events.is_empty() || first.consumer.is_empty() {
            return Err(Status::invalid_argument("name the consumer and at least one event"));
        }
        let act = Act { actor: &actor, reason: &reason };
        let mut db = self.db().await?;
        let created = store_range::create_range(&mut db, &first.consumer, &selection, &events, pace, act).await;
        let id = created.map_err(not_done)?;
        job(&store_jobs::job(&mut db, id).await.map_err(not_done)?).map(Response::new)
    }

    type ListJobsStream = Answers<ops::Job>;

    async fn list_jobs(&self, request: Request<ops::ListJobsRequest>) -> Result<Response<Answers<ops::Job>>, Status> {
        let limit = limit(request.into_inner().limit)?;
        let jobs = store_jobs::jobs(&mut *self.db().await?, limit).await.map_err(away)?;
        Ok(answers(jobs.iter().map(job).collect::<Result<_, _>>()?))
    }

    async fn get_job(&self, request: Request<ops::GetJobRequest>) -> Result<Response<ops::Job>, Status> {
        let found = store_jobs::job(&mut *self.db().await?, request.into_inner().id).await;
        job(&found.map_err(not_done)?).map(Response::new)
    }

    async fn steer_job(&self, request: Request<ops::SteerJobRequest>) -> Result<Response<ops::Job>, Status> {
        let (actor, reason) = act(&request, &request.get_ref().reason)?;
        let (id, to) = (request.get_ref().id, request.get_ref().to());
        let to = match to {
            ops::Steer::Pause => Steer::Pause,
            ops::Steer::Resume => Steer::Resume,
            ops::Steer::Abort => Steer::Abort,
            ops::Steer::Unspecified => return Err(Status::invalid_argument("say what becomes of the job")),
        };
        let mut db = self.db().await?;
        let act = Act { actor: &actor, reason: &reason };
        store_jobs::steer(&mut db, id, to, act).await.map_err(not_done)?;
        job(&store_jobs::job(&mut db, id).await.map_err(not_done)?).map(Response::new)
    }
}

#[tonic::async_trait]
impl AuditService for Operated {
    type ListAuditStream = Answers<ops::AuditLine>;

    async fn list_audit(
        &self,
        request: Request<ops::ListAuditRequest>,
    ) -> Result<Response<Answers<ops::AuditLine>>, Status> {
        let ops::ListAuditRequest { lines, action } = request.into_inner();
        let lines = limit(lines)?;
        let found = store_audit::lines(&mut *self.db().await?, lines, action.as_deref()).await.map_err(away)?;
        Ok(answers(found.iter().map(|line| with_text(line, "detail")).collect::<Result<_, _>>()?))
    }

    async fn record_act(&self, request: Request<ops::RecordActRequest>) -> Result<Response<ops::RecordedAct>, Status> {
        let (actor, reason) = act(&request, &request.get_ref().reason)?;
        let ops::RecordActRequest { action, count, detail, .. } = request.into_inner();
        if action.is_empty() || action.len() > 100 {
            return Err(Status::invalid_argument("an act has a name, of 100 bytes at most"));
        }
        let (act, detail) = (Act { actor: &actor, reason: &reason }, any(&detail)?);
        store_audit::audit(&mut *self.db().await?, act, &action, count, &detail).await.map_err(away)?;
        Ok(Response::new(ops::RecordedAct {}))
    }
}
