//! What a service holds of a tenant, or of one person in it: exported as it stands, and erased by commands, so that events report it. What
//! the streams and the outbox hold of it goes with their retention.

use std::collections::BTreeMap;
use std::sync::Arc;

use contracts::{TenantId, UserId};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use proto::ops::data_service_server::{DataService, DataServiceServer};
use proto::ops::{DataRow, DataTable, EraseDataRequest, ErasedData, ExportDataRequest, ListTablesRequest};
use sqlx::AssertSqlSafe;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::migrations::Migrations;
use crate::operators::{Answers, act, answers, away};
use crate::{Call, Code, Db, Failure, Process, StoreError, TenantTx};

/// How many aggregates to request, and rows to fetch, at once.
const CHUNK: i64 = 200;
/// A tenant's rows may be many, and no index leads to a person.
const PATIENT: &str = "set local statement_timeout = '60s'";
/// One snapshot of all tables; its reader may pause.
const EXPORTS: &[&str] = &[
    "set transaction isolation level repeatable read",
    PATIENT,
    "set local idle_in_transaction_session_timeout = '10min'",
];
/// How many failures an answer names.
const NAMED: usize = 5;
/// How often to repeat the pass, while somebody keeps writing.
const ROUNDS: usize = 3;

/// What happens to a table when data are exported or erased.
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
    /// Nothing to export, or a copy: why, and what happens to it.
    Copies(&'static str),
}

/// The tables that crates ship.
const IDEMPOTENCY: &[Table] =
    &[copies("idempotency", "answers to what was asked, for a repeat: forgotten after a day")];
const INBOX: &[Table] = &[
    copies("inbox", "ids of events that were handled: forgotten with the outbox's days"),
    copies("inbox_dead", "ids of events that were not handled: gone when they are replayed or discarded"),
    copies("inbox_lease", "who pulls for a consumer, and the last event that it handled: the next one takes its place"),
];
const TENANTS: &[Table] = &[
    copies("known_tenant", "whether a tenant is suspended or erased, as identity says: its id is never given twice"),
    copies("known_member", "which users are members, as identity says: a user's name goes when identity erases it"),
];
const OUTBOX: &[Table] = &[
    copies(
        "outbox",
        "events with the states that were exported: dropped after FLOTILLA_OUTBOX_DAYS, once no older row is parked",
    ),
    copies("outbox_journal", "what the relay and operators did: numbers of rows, and an operator's own words"),
    copies("outbox_parked", "which rows could not be published, and why"),
    copies("outbox_passed", "days"),
    copies("outbox_relay", "how far the relay is"),
];

const fn copies(name: &'static str, why: &'static str) -> Table {
    Table { name, holds: Holds::Copies(why) }
}

/// Whose data: a tenant's, or those that name one person in it.
struct Whose {
    tenant: TenantId,
    person: Option<UserId>,
}

/// How the aggregates of one kind are erased.
#[tonic::async_trait]
pub trait Erase: Send + Sync + 'static {
    /// The kind: `todo`.
    fn kind(&self) -> &'static str;

    /// Up to `limit` aggregates after this one, by id, that still hold something of the tenant, or name the person.
    async fn holding(
        &self,
        tx: &mut TenantTx,
        person: Option<&UserId>,
        after: Uuid,
        limit: i64,
    ) -> Result<Vec<Uuid>, StoreError>;

    /// Runs the command that erases one aggregate, or removes the person from it; returns whether it changed anything.
    async fn erase(&self, call: &Call, person: Option<&UserId>, id: Uuid) -> Result<bool, Failure>;
}

/// How the aggregates of a service are erased, kind by kind.
pub type Erased = Arc<[Box<dyn Erase>]>;

/// What a service holds, and how it is erased.
#[derive(Clone)]
pub struct Data {
    /// Its own tables.
    pub own: &'static [Table],
    /// Which tables crates ship to it.
    pub migrations: Migrations,
    /// Its aggregates, kind by kind.
    pub kinds: Erased,
}

#[derive(Clone)]
struct Operated {
    db: Db,
    service: UserId,
    data: Data,
    /// One export at a time: its connection comes from the callers' pool.
    exports: Arc<Semaphore>,
}

/// The data of a service, for operators ([`Process::operate`]).
///
/// # Errors
/// The service's name is no id.
pub fn data(process: &Process, db: Db, data: Data) -> Result<DataServiceServer<impl DataService>, anyhow::Error> {
    let exports = Arc::new(Semaphore::new(1));
    Ok(DataServiceServer::new(Operated { db, service: process.acts_as()?, data, exports }))
}

fn whose(tenant: &str, person: Option<&str>) -> Result<Whose, Status> {
    let wrong = |what: &str, error: contracts::ids::IdError| Status::invalid_argument(format!("{what}: {error}"));
    let tenant = tenant.parse().map_err(|error| wrong("the tenant", error))?;
    let person = person.map(|person| person.parse().map_err(|error| wrong("the person", error))).transpose()?;
    if person.as_ref() == Some(&UserId::erased()) {
        return Err(Status::invalid_argument("the person: that is what stands for everybody who was erased"));
    }
    Ok(Whose { tenant, person })
}

/// The progress of an export.
struct Exporting {
    tx: TenantTx,
    /// The tables still to export with their conditions; the last one is next.
    tables: Vec<(&'static str, String)>,
    open: Option<&'static str>,
    _turn: OwnedSemaphorePermit,
}

/// Which rows of a table an export takes. A cursor takes no parameters, so tenant and person are settings of the transaction. None
/// where it takes no row of the table.
fn condition(people: &[&str], of_a_person: bool) -> Option<String> {
    let tenant = "tenant = current_setting('app.tenant')";
    if !of_a_person {
        return Some(tenant.to_owned());
    }
    let named: Vec<_> = people.iter().map(|column| format!("{column} = current_setting('app.person')")).collect();
    (!named.is_empty()).then(|| format!("{tenant} and ({})", named.join(" or ")))
}

impl Exporting {
    /// The next rows, of one table; none at the end. Empty rows are not the end.
    async fn rows(&mut self) -> Result<Option<Vec<DataRow>>, sqlx::Error> {
        let Some(table) = self.open else {
            let Some((table, condition)) = self.tables.pop() else { return Ok(None) };
            let cursor =
                format!("declare exported cursor for select to_jsonb(t)::text from {table} t where {condition}");
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
        let Migrations { outbox, inbox, idempotency, tenants, .. } = self.data.migrations;
        let shipped = [(idempotency, IDEMPOTENCY), (inbox, INBOX), (outbox, OUTBOX), (tenants, TENANTS)];
        let shipped = shipped.into_iter().filter(|(has, _)| *has).flat_map(|(_, tables)| tables);
        Ok(answers(self.data.own.iter().chain(shipped).map(said).collect()))
    }

    type ExportDataStream = Answers<DataRow>;

    async fn export_data(&self, request: Request<ExportDataRequest>) -> Result<Response<Answers<DataRow>>, Status> {
        let ExportDataRequest { tenant, person } = request.into_inner();
        let whose = whose(&tenant, person.as_deref())?;
        let rows = |table: &Table| match table.holds {
            Holds::Rows { people } => Some((table.name, condition(people, whose.person.is_some())?)),
            Holds::Copies(_) => None,
        };
        let tables = self.data.own.iter().rev().filter_map(rows).collect();
        let turn = Arc::clone(&self.exports).try_acquire_owned();
        let turn =
            turn.map_err(|_| Status::resource_exhausted("another export is running: try again when it has ended"))?;
        let mut tx = self.db.read_as(&whose.tenant).await.map_err(away)?;
        for setting in EXPORTS {
            sqlx::query(*setting).execute(&mut *tx).await.map_err(away)?;
        }
        let person = whose.person.as_ref().map_or("", UserId::as_str);
        let named = sqlx::query("select set_config('app.person', $1, true)").bind(person);
        named.execute(&mut *tx).await.map_err(away)?;
        let exporting = Exporting { tx, tables, open: None, _turn: turn };
        let pages = stream::try_unfold(exporting, |mut exporting| async move {
            match exporting.rows().await.map_err(away)? {
                Some(rows) => Ok(Some((stream::iter(rows.into_iter().map(Ok)), exporting))),
                None => exporting.tx.end().await.map_err(away).map(|()| None),
            }
        });
        Ok(Response::new(pages.try_flatten().boxed()))
    }

    async fn erase_data(&self, request: Request<EraseDataRequest>) -> Result<Response<ErasedData>, Status> {
        let (operator, _) = act(&request, &request.get_ref().reason)?;
        let EraseDataRequest { tenant, person, reason: _ } = request.into_inner();
        let whose = whose(&tenant, person.as_deref())?;
        let call = Call::of_schedule(whose.tenant.clone(), self.service.clone()).had_by(operator);
        let mut aggregates = BTreeMap::new();
        for _ in 0..ROUNDS {
            let mut round = Round::default();
            for kind in self.data.kinds.iter() {
                let erased = self.erase_all(kind.as_ref(), (&call, &whose), &mut round).await?;
                *aggregates.entry(kind.kind().to_owned()).or_insert(0) += erased;
            }
            if let Some(failure) = round.failure() {
                return Err(Status::failed_precondition(format!("{aggregates:?} are erased; {failure}")));
            }
            if !round.again {
                return Ok(Response::new(ErasedData { aggregates }));
            }
        }
        let message = format!("{aggregates:?} are erased, and more is written meanwhile: stop that, and erase again");
        Err(Status::failed_precondition(message))
    }
}

/// The result of one pass through all aggregates.
#[derive(Default)]
struct Round {
    /// It changed something, or somebody else is changing something.
    again: bool,
    failed: usize,
    named: Vec<String>,
}

impl Round {
    fn failure(&self) -> Option<String> {
        let named = self.named.join("; ");
        (self.failed > 0)
            .then(|| format!("{} could not be erased, such as {named}: mend them, and erase again", self.failed))
    }
}

impl Operated {
    async fn erase_all(
        &self,
        kind: &dyn Erase,
        (call, whose): (&Call, &Whose),
        round: &mut Round,
    ) -> Result<i64, Status> {
        let (mut after, mut erased) = (Uuid::nil(), 0);
        let person = whose.person.as_ref();
        loop {
            let mut tx = self.db.read_as(&whose.tenant).await.map_err(away)?;
            sqlx::query(PATIENT).execute(&mut *tx).await.map_err(away)?;
            let ids = kind.holding(&mut tx, person, after, CHUNK).await.map_err(away)?;
            tx.end().await.map_err(away)?;
            let Some(last) = ids.last() else { return Ok(erased) };
            after = *last;
            for id in ids {
                match kind.erase(call, person, id).await {
                    Ok(changed) => {
                        erased += i64::from(changed);
                        round.again |= changed;
                    }
                    // Somebody changes it: the next round finds it again.
                    Err(failure) if failure.code == Code::Aborted => round.again = true,
                    Err(failure) if failure.code == Code::Unavailable => return Err(failure.into()),
                    // An unreadable one does not hold up the others.
                    Err(failure) => {
                        round.failed += 1;
                        if round.named.len() < NAMED {
                            round.named.push(format!("{} {id} ({})", kind.kind(), failure.reason));
                        }
                    }
                }
            }
        }
    }
}
