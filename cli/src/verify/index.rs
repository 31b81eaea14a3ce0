//! Todos against the index that shows them: by key, with a second check of what differs.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use anyhow::Context as _;
use contracts::events::todo::SERVICE;
use proto::ops::aggregate_service_client::AggregateServiceClient;
use proto::ops::index_service_client::IndexServiceClient;
use proto::ops::{
    Aggregate, CompareDocumentsRequest, Comparison, GetAggregatesRequest, GetOutboxRequest, Key, ListAggregatesRequest,
    ListDocumentsRequest,
};
use serde_json::json;

use super::report::{Report, Throttle, VerifyArgs};
use crate::context::Context;
use crate::events;
use crate::outbox::{self, Outbox};
use crate::processes::{self, Port, said};

/// How many the services accept at once.
pub const CHUNK: usize = 1_000;
/// More than these are not checked twice: the model is wrong then, not late.
const SUSPECTS: usize = 100_000;

/// The aggregates that the index shows.
pub const TODO: &str = "todo";

/// The API of the todos, at their service.
pub type Todos = AggregateServiceClient<Port>;

/// The API of the read model, at its service.
pub type Documents = IndexServiceClient<Port>;

/// Connects to the API of the todos.
pub async fn todos(context: &Context) -> Result<Todos, anyhow::Error> {
    Ok(AggregateServiceClient::new(context.port(SERVICE).await?))
}

/// Connects to the API of the read model.
pub async fn documents(context: &Context) -> Result<Documents, anyhow::Error> {
    Ok(IndexServiceClient::new(context.port(fleet::PROJECTOR).await?))
}

/// How often differences are checked again: an event may still be on its way from the outbox into the stream.
const ROUNDS: usize = 4;

/// The tenant, and the id.
type Named = (String, String);

struct Index<'a> {
    documents: Documents,
    todos: Todos,
    outbox: Outbox,
    args: &'a VerifyArgs,
    throttle: Throttle,
}

fn named(key: Option<&Key>) -> Named {
    key.map(|key| (key.tenant.clone(), key.id.clone())).unwrap_or_default()
}

fn key((tenant, id): &Named) -> Key {
    Key { tenant: tenant.clone(), id: id.clone() }
}

/// Compares; what differs is checked again once `consumer` has handled what is in the stream by then.
pub async fn verify(
    context: &Context,
    args: &VerifyArgs,
    consumer: &str,
    report: &mut Report,
) -> Result<(), anyhow::Error> {
    let (documents, todos) = (documents(context).await?, todos(context).await?);
    let outbox = outbox::open(context, SERVICE).await?;
    let mut index = Index { documents, todos, outbox, args, throttle: Throttle::new(args.rate) };
    let mut suspects = BTreeMap::new();
    index.todos(report, &mut suspects).await?;
    // What was found is checked again and reported, whatever else cannot be read.
    if let Err(error) = index.documents(report, &mut suspects).await {
        report.unchecked.push(format!("the documents of the read model: {error:#}"));
    }
    for round in 0..ROUNDS {
        if suspects.is_empty() {
            break;
        }
        match index.again(suspects.clone(), context, consumer).await {
            Ok(still) => suspects = still,
            Err(error) => {
                report.unchecked.push(format!("whether what differs is only late (check {}): {error:#}", round + 2));
                break;
            }
        }
    }
    for ((tenant, id), why) in suspects {
        report.tenants.entry(tenant.clone()).or_default().differing += 1;
        report.diverged.add(json!({"tenant": tenant, "id": id, "why": why}));
    }
    Ok(())
}

/// Waits until everything in the outbox now is in the stream, and the projector has acknowledged everything in the stream by then.
async fn caught_up(
    context: &Context,
    outbox: &mut Outbox,
    consumer: &str,
    patience: Duration,
) -> Result<(), anyhow::Error> {
    let mark = outbox.get_outbox(GetOutboxRequest {}).await.map_err(said)?.into_inner().unparked_seq;
    let (_js, stream) = events::open(context).await?;
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let waited = async {
        let mut last = None;
        loop {
            tick.tick().await;
            if last.is_none() {
                let state = stream.get_info().await.context("reading the stream")?.state;
                let seq = match stream.get_raw_message(state.last_sequence).await {
                    Ok(message) => {
                        message.headers.get(::outbox::SEQ_HEADER).and_then(|seq| seq.as_str().parse::<i64>().ok())
                    }
                    Err(_) => None,
                };
                // Another publisher's message at the end says nothing about the relay.
                last = (mark == 0 || seq.is_none_or(|seq| seq >= mark)).then_some(state.last_sequence);
            }
            let Some(last) = last else { continue };
            let info = stream.consumer_info(consumer).await.context("asking for the projector's consumer")?;
            // The floor stays behind messages that the filter excludes.
            if info.ack_floor.stream_sequence >= last || (info.num_pending == 0 && info.num_ack_pending == 0) {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(patience, waited)
        .await
        .context("relay or projector are behind, and did not catch up in time")?
}

impl Index<'_> {
    /// Every todo must be in the index as it is.
    async fn todos(
        &mut self,
        report: &mut Report,
        suspects: &mut BTreeMap<Named, String>,
    ) -> Result<(), anyhow::Error> {
        let mut after = None;
        loop {
            let page = ListAggregatesRequest {
                after,
                tenant: self.args.tenant.as_ref().map(ToString::to_string),
                from: self.args.from.map(proto::timestamp),
                to: self.args.to.map(proto::timestamp),
                limit: CHUNK as i64,
                aggregate: TODO.to_owned(),
            };
            let todos = processes::all(self.todos.list_aggregates(page).await).await.context("reading the todos")?;
            let Some(last) = todos.last() else { return Ok(()) };
            after = last.key.clone();
            report.todos += todos.len() as u64;
            self.throttle.read(todos.len()).await;
            let names: Vec<Named> = todos.iter().map(|todo| named(todo.key.as_ref())).collect();
            let comparisons = self.compare(todos, Vec::new()).await?;
            for (name, comparison) in names.into_iter().zip(comparisons) {
                report.tenants.entry(name.0.clone()).or_default().todos += 1;
                if let Some(why) = comparison.why {
                    suspect(suspects, name, why)?;
                }
            }
        }
    }

    /// Every document must be a todo.
    async fn documents(
        &mut self,
        report: &mut Report,
        suspects: &mut BTreeMap<Named, String>,
    ) -> Result<(), anyhow::Error> {
        let mut after = None;
        loop {
            let page = ListDocumentsRequest {
                which: self.args.which.into(),
                after,
                tenant: self.args.tenant.as_ref().map(ToString::to_string),
                from: self.args.from.map(proto::timestamp),
                to: self.args.to.map(proto::timestamp),
                limit: CHUNK as i64,
            };
            let keys = processes::all(self.documents.list_documents(page).await).await.context("reading the index")?;
            let Some(last) = keys.last() else { return Ok(()) };
            after = Some(last.clone());
            report.documents += keys.len() as u64;
            self.throttle.read(keys.len()).await;
            let names: Vec<Named> = keys.iter().map(|key| named(Some(key))).collect();
            let known: HashSet<Named> = self.states(&names).await?.into_keys().collect();
            for name in names {
                report.tenants.entry(name.0.clone()).or_default().documents += 1;
                if !known.contains(&name) {
                    suspect(suspects, name, "the database has no such todo".to_owned())?;
                }
            }
        }
    }

    /// What still differs, although the projector has handled since what was in the stream. A todo that changes
    /// all the time may be newer in the index than when it was read: by then it must be as new in the database.
    async fn again(
        &mut self,
        suspects: BTreeMap<Named, String>,
        context: &Context,
        consumer: &str,
    ) -> Result<BTreeMap<Named, String>, anyhow::Error> {
        let names: Vec<Named> = suspects.into_keys().collect();
        let mut still = BTreeMap::new();
        for names in names.chunks(CHUNK) {
            let before = self.states(names).await?;
            caught_up(context, &mut self.outbox, consumer, Duration::from_secs(self.args.patience)).await?;
            let (there, absent): (Vec<&Named>, Vec<&Named>) = names.iter().partition(|name| before.contains_key(name));
            let todos = there.iter().filter_map(|name| before.get(*name).cloned()).collect();
            let comparisons = self.compare(todos, absent.iter().map(|name| key(name)).collect()).await?;
            let after = self.states(names).await?;
            // Made meanwhile: compared as they are now.
            let made: Vec<Aggregate> = absent.iter().filter_map(|name| after.get(*name).cloned()).collect();
            let made_names: Vec<Named> = made.iter().map(|todo| named(todo.key.as_ref())).collect();
            let made: BTreeMap<Named, Comparison> =
                made_names.into_iter().zip(self.compare(made, Vec::new()).await?).collect();
            for (name, Comparison { version, why }) in there.into_iter().chain(absent).zip(comparisons) {
                let now = after.get(name).map(|todo| todo.version);
                let shown =
                    version.map_or_else(|| "not in the index".to_owned(), |shown| format!("the index at {shown}"));
                let why = match (before.get(name).map(|todo| todo.version), now) {
                    (Some(was), Some(now)) if version.is_some_and(|shown| shown > was) => {
                        version.filter(|shown| *shown > now).map(|_| format!("at version {now}, {shown}"))
                    }
                    (Some(_), _) | (None, None) => why,
                    (None, Some(_)) => made.get(name).and_then(|comparison| comparison.why.clone()),
                };
                if let Some(why) = why {
                    still.insert(name.clone(), why);
                }
            }
        }
        Ok(still)
    }

    /// The present states of these todos, of those that exist.
    async fn states(&mut self, names: &[Named]) -> Result<BTreeMap<Named, Aggregate>, anyhow::Error> {
        // What has no todo's id is no todo.
        let keys = names.iter().filter(|(_, id)| id.parse::<uuid::Uuid>().is_ok()).map(key).collect();
        let todos =
            processes::all(self.todos.get_aggregates(GetAggregatesRequest { keys, aggregate: TODO.to_owned() }).await)
                .await;
        let todos = todos.context("looking for the todos")?;
        Ok(todos.into_iter().map(|todo| (named(todo.key.as_ref()), todo)).collect())
    }

    async fn compare(
        &mut self,
        aggregates: Vec<Aggregate>,
        absent: Vec<Key>,
    ) -> Result<Vec<Comparison>, anyhow::Error> {
        let asked = aggregates.len() + absent.len();
        let request = CompareDocumentsRequest { which: self.args.which.into(), aggregates, absent };
        let compared = self.documents.compare_documents(request).await.map_err(said).context("reading the index")?;
        let comparisons = compared.into_inner().comparisons;
        anyhow::ensure!(comparisons.len() == asked, "{} of {asked} were compared", comparisons.len());
        Ok(comparisons)
    }
}

fn suspect(suspects: &mut BTreeMap<Named, String>, name: Named, why: String) -> Result<(), anyhow::Error> {
    anyhow::ensure!(
        suspects.len() < SUSPECTS,
        "more than {SUSPECTS} todos differ: is the read model of this database?"
    );
    suspects.insert(name, why);
    Ok(())
}
