//! What a service holds of a tenant, or of one person of it: exported as it stands, and erased by commands, so that events say so.
//! What the streams and the outbox hold of it goes with their retention.

use std::collections::BTreeMap;
use std::sync::Arc;

use contracts::{TenantId, UserId};
use futures::stream::{self, StreamExt as _};
use proto::ops::data_service_server::{DataService, DataServiceServer};
use proto::ops::{DataRow, DataTable, EraseDataRequest, ErasedData, ExportDataRequest, ListTablesRequest};
use sqlx::AssertSqlSafe;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::operators::{Answers, act, answers, away};
use crate::{Call, Code, Db, Failure, Process, StoreError, TenantTx};

/// How many aggregates are asked for at once, and rows fetched.
const CHUNK: i64 = 200;
/// How often all is gone through, while somebody goes on writing.
const ROUNDS: usize = 3;

/// What becomes of a table when data are exported or erased.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub holds: Holds,
}

/// What a table holds.
#[derive(Debug, Clone, Copy)]
pub enum Holds {
    /// A tenant's rows, which are exported; these columns name people. Erasing an aggregate empties or removes them.
    Rows {
        /// Columns with the subject of a person's tokens.
        people: &'static [&'static str],
    },
    /// Nothing to be exported, or a copy: why, and what becomes of it.
    Copies(&'static str),
}

/// The tables that crates ship.
pub const SHIPPED: [Table; 9] = [
    copies("idempotency", "answers to what was asked, for a repeat: forgotten after a day"),
    copies("inbox", "ids of events that were handled: forgotten with the outbox's days"),
    copies("inbox_dead", "ids of events that were not handled: gone when they are replayed or discarded"),
    copies("inbox_lease", "who pulls for a consumer, and the last event that it handled: the next one takes its place"),
    copies("outbox", "events with the states that were exported: dropped after FLOTILLA_OUTBOX_DAYS"),
    copies("outbox_journal", "what the relay and operators did: numbers of rows, and an operator's own words"),
    copies("outbox_parked", "which rows could not be published, and why"),
    copies("outbox_passed", "days"),
    copies("outbox_relay", "how far the relay is"),
];

const fn copies(name: &'static str, why: &'static str) -> Table {
    Table { name, holds: Holds::Copies(why) }
}

/// Whose data: a tenant's, or what names one person of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whose {
    /// The tenant.
    pub tenant: TenantId,
    /// The person.
    pub person: Option<UserId>,
}

/// How the aggregates of one kind are erased.
#[tonic::async_trait]
pub trait Erase: Send + Sync + 'static {
    /// The kind: `todo`.
    fn kind(&self) -> &'static str;

    /// Up to `limit` aggregates behind this one, by id, that still hold something of the tenant, or name the person.
    async fn holding(
        &self,
        tx: &mut TenantTx,
        person: Option<&UserId>,
        after: Uuid,
        limit: i64,
    ) -> Result<Vec<Uuid>, StoreError>;

    /// Runs the command that erases all of one aggregate, or what names the person.
    async fn erase(&self, call: &Call, person: Option<&UserId>, id: Uuid) -> Result<(), Failure>;
}

/// How the aggregates of a service are erased, kind by kind.
pub type Erased = Arc<[Box<dyn Erase>]>;

/// What a service holds, and how it is erased.
#[derive(Clone)]
pub struct Data {
    /// Its own tables.
    pub own: &'static [Table],
    /// Its aggregates, kind by kind.
    pub kinds: Erased,
}

#[derive(Clone)]
struct Operated {
    db: Db,
    service: UserId,
    data: Data,
}

/// The data of a service, for operators ([`Process::operate`]).
///
/// # Errors
/// The service's name is no id.
pub fn data(process: &Process, db: Db, data: Data) -> Result<DataServiceServer<impl DataService>, anyhow::Error> {
    Ok(DataServiceServer::new(Operated { db, service: process.acts_as()?, data }))
}

fn whose(tenant: &str, person: Option<&str>) -> Result<Whose, Status> {
    let wrong = |what: &str, error: contracts::ids::IdError| Status::invalid_argument(format!("{what}: {error}"));
    let tenant = tenant.parse().map_err(|error| wrong("the tenant", error))?;
    let person = person.map(|person| person.parse().map_err(|error| wrong("the person", error))).transpose()?;
    Ok(Whose { tenant, person })
}

/// How far an export is.
struct Exporting {
    tx: TenantTx,
    whose: Whose,
    /// What is still to be exported; the last one next.
    tables: Vec<(&'static str, &'static [&'static str])>,
    open: Option<&'static str>,
}

impl Exporting {
    /// The next rows, of one table; none when that was all. An empty one is no end.
    async fn rows(&mut self) -> Result<Option<Vec<DataRow>>, sqlx::Error> {
        let Some(table) = self.open else {
            let Some((table, people)) = self.tables.pop() else { return Ok(None) };
            if people.is_empty() && self.whose.person.is_some() {
                return Ok(Some(Vec::new()));
            }
            // A cursor takes no parameters. The tenant is that of the transaction.
            let person = self.whose.person.as_ref().map_or("", UserId::as_str);
            sqlx::query("select set_config('app.person', $1, true)").bind(person).execute(&mut *self.tx).await?;
            let named = people.iter().map(|column| format!("{column} = current_setting('app.person')"));
            let named = named.collect::<Vec<_>>().join(" or ");
            let which = if self.whose.person.is_some() { format!(" and ({named})") } else { String::new() };
            let cursor = format!(
                "declare exported cursor for select to_jsonb(t)::text from {table} t \
                 where tenant = current_setting('app.tenant'){which}"
            );
            sqlx::query(AssertSqlSafe(cursor)).execute(&mut *self.tx).await?;
            self.open = Some(table);
            return Ok(Some(Vec::new()));
        };
        let fetch = format!("fetch {CHUNK} from exported");
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(fetch)).fetch_all(&mut *self.tx).await?;
        if rows.is_empty() {
            sqlx::query("close exported").execute(&mut *self.tx).await?;
            self.open = None;
        }
        Ok(Some(rows.into_iter().map(|row| DataRow { table: table.to_owned(), row }).collect()))
    }
}

#[tonic::async_trait]
impl DataService for Operated {
    type ListTablesStream = Answers<DataTable>;

    async fn list_tables(&self, _: Request<ListTablesRequest>) -> Result<Response<Answers<DataTable>>, Status> {
        let said = |Table { name, holds }: &Table| {
            let (people, not_exported) = match holds {
                Holds::Rows { people } => (people.iter().map(|&column| column.to_owned()).collect(), None),
                Holds::Copies(why) => (Vec::new(), Some((*why).to_owned())),
            };
            DataTable { table: (*name).to_owned(), people, not_exported }
        };
        Ok(answers(self.data.own.iter().chain(&SHIPPED).map(said).collect()))
    }

    type ExportDataStream = Answers<DataRow>;

    async fn export_data(&self, request: Request<ExportDataRequest>) -> Result<Response<Answers<DataRow>>, Status> {
        let ExportDataRequest { tenant, person } = request.into_inner();
        let whose = whose(&tenant, person.as_deref())?;
        let rows = |table: &Table| match table.holds {
            Holds::Rows { people } => Some((table.name, people)),
            Holds::Copies(_) => None,
        };
        let tables = self.data.own.iter().rev().filter_map(rows).collect();
        let tx = self.db.read_as(&whose.tenant).await.map_err(away)?;
        let exporting = Exporting { tx, whose, tables, open: None };
        let pages = stream::try_unfold(exporting, |mut exporting| async move {
            match exporting.rows().await.map_err(away)? {
                Some(rows) => Ok(Some((stream::iter(rows.into_iter().map(Ok)), exporting))),
                None => exporting.tx.end().await.map_err(away).map(|()| None),
            }
        });
        Ok(Response::new(futures::TryStreamExt::try_flatten(pages).boxed()))
    }

    async fn erase_data(&self, request: Request<EraseDataRequest>) -> Result<Response<ErasedData>, Status> {
        act(&request, &request.get_ref().reason)?;
        let EraseDataRequest { tenant, person, reason: _ } = request.into_inner();
        let whose = whose(&tenant, person.as_deref())?;
        let mut aggregates = BTreeMap::new();
        for _ in 0..ROUNDS {
            let mut any = false;
            for kind in self.data.kinds.iter() {
                let erased = self.erase_all(kind.as_ref(), &whose).await?;
                any |= erased > 0;
                *aggregates.entry(kind.kind().to_owned()).or_insert(0) += erased;
            }
            if !any {
                return Ok(Response::new(ErasedData { aggregates }));
            }
        }
        let message = format!("{aggregates:?} are erased, and more is written meanwhile: stop that, and erase again");
        Err(Status::failed_precondition(message))
    }
}

impl Operated {
    async fn erase_all(&self, kind: &dyn Erase, whose: &Whose) -> Result<i64, Status> {
        let (mut after, mut erased) = (Uuid::nil(), 0);
        let person = whose.person.as_ref();
        loop {
            let mut tx = self.db.read_as(&whose.tenant).await.map_err(away)?;
            let ids = kind.holding(&mut tx, person, after, CHUNK).await.map_err(away)?;
            tx.end().await.map_err(away)?;
            let Some(last) = ids.last() else { return Ok(erased) };
            after = *last;
            for id in ids {
                let call = Call::of_schedule(whose.tenant.clone(), self.service.clone());
                match kind.erase(&call, person, id).await {
                    Ok(()) => erased += 1,
                    // Somebody changes it: it is there again in the next round.
                    Err(failure) if failure.code == Code::Aborted => erased += 1,
                    Err(failure) => return Err(Status::from(failure)),
                }
            }
        }
    }
}
