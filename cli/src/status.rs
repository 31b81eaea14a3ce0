//! `flotilla status`: an operator's first questions on one screen. It names what does not answer, and shows the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use devstack::supervisor::State;
use devstack::{Unit, process};
use prost::{Message, Name};
use proto::ops::letter_service_client::LetterServiceClient;
use proto::ops::{
    self, AuditLine, GetOutboxRequest, GetStatsRequest, Group, JournalLine, ListGroupsRequest, ListJournalRequest,
    Selection,
};
use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::context::Context;
use crate::lag::{self, Stage, gauge};
use crate::outbox::{journal_cells, open};
use crate::processes::{self, clock, said};
use crate::{audit, backup, consumers, dlq, events, table, terminal};

/// A query without an answer by then counts as unanswered.
const PATIENCE: Duration = Duration::from_secs(3);
const GROUPS: usize = 5;
const JOURNAL: i64 = 5;

#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Refresh the status until Ctrl-C.
    #[arg(long)]
    watch: bool,
    /// The refresh interval, in seconds.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    every: u64,
}

/// The state of the fleet.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    /// The processes that this machine supervises; none of a fleet that is elsewhere.
    units: Vec<Unit>,
    /// The operations ports of each service's replicas.
    ops: BTreeMap<String, Vec<String>>,
    /// The release that each service reports; where its replicas differ, those.
    releases: BTreeMap<String, String>,
    /// By the service.
    outboxes: BTreeMap<&'static str, Asked<Outbox>>,
    consumers: Asked<Vec<Value>>,
    /// How long each stage takes.
    stages: Vec<Stage>,
    dead_letters: Asked<Letters>,
    /// Whether OpenSearch requires a login, where that is known; without one, anyone who reaches its port reads and changes the read models.
    #[serde(skip_serializing_if = "Option::is_none")]
    search_has_login: Option<bool>,
    /// The problems, and the page about each.
    degraded: Vec<String>,
}

/// An answer, or why there is none.
#[derive(Serialize)]
#[serde(rename_all = "camelCase", untagged)]
enum Asked<T> {
    Answer(T),
    Error { error: String },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Outbox {
    #[serde(serialize_with = "message")]
    overview: ops::Outbox,
    /// The stream's newest message; the overview reports how far it is known to be stored.
    stream_tail: Option<u64>,
    oldest_waiting_seconds: Option<f64>,
    #[serde(serialize_with = "messages")]
    journal: Vec<JournalLine>,
}

fn message<M: Message + Name, S: Serializer>(message: &M, to: S) -> Result<S::Ok, S::Error> {
    proto::to_json(message).map_err(S::Error::custom)?.serialize(to)
}

fn messages<M: Message + Name, S: Serializer>(messages: &[M], to: S) -> Result<S::Ok, S::Error> {
    messages.iter().map(proto::to_json).collect::<Result<Vec<_>, _>>().map_err(S::Error::custom)?.serialize(to)
}

fn audit_line<S: Serializer>(line: &Option<AuditLine>, to: S) -> Result<S::Ok, S::Error> {
    let line = line.as_ref().map(|line| processes::json_with(line, "detail")).transpose();
    line.map_err(S::Error::custom)?.serialize(to)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Letters {
    #[serde(serialize_with = "message")]
    stats: ops::Stats,
    #[serde(serialize_with = "messages")]
    groups: Vec<Group>,
    #[serde(serialize_with = "audit_line")]
    last_rebuild: Option<AuditLine>,
}

/// Queries, and does not wait for long.
async fn asked<T>(question: impl Future<Output = Result<T, anyhow::Error>>) -> Asked<T> {
    match tokio::time::timeout(PATIENCE, question).await.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in time"))) {
        Ok(answer) => Asked::Answer(answer),
        Err(error) => Asked::Error { error: format!("{error:#}") },
    }
}

impl<T> Asked<T> {
    fn as_ref(&self) -> Result<&T, &str> {
        match self {
            Self::Answer(answer) => Ok(answer),
            Self::Error { error } => Err(error),
        }
    }
}

pub async fn run(context: &Context, args: &StatusArgs) -> Result<(), anyhow::Error> {
    let mut tick = tokio::time::interval(Duration::from_secs(args.every));
    loop {
        tick.tick().await;
        let status = Box::pin(ask(context)).await?;
        if context.json {
            println!("{}", serde_json::to_string_pretty(&status)?);
        } else {
            if args.watch {
                terminal::clear();
                let now = devstack::supervisor::now().format("%H:%M:%S UTC");
                println!("{now}  every {} s, Ctrl-C ends it\n", args.every);
            }
            print(&status);
        }
        if !args.watch || terminal::is_closed() {
            return Ok(());
        }
    }
}

async fn ask(context: &Context) -> Result<Status, anyhow::Error> {
    let units = if context.is_elsewhere() { Vec::new() } else { context.stack_status()?.units };
    let mut ops: BTreeMap<String, Vec<String>> = BTreeMap::new();
    context.ops()?.into_iter().for_each(|(name, address)| ops.entry(name).or_default().push(address));
    let outboxes = fleet::producers().into_iter().map(|service| async move {
        let asked = asked(outbox(context, service)).await;
        (service, asked)
    });
    let (metrics, unready, outboxes, consumers, dead_letters) = tokio::join!(
        lag::metrics(context),
        unready(context, &units, &ops),
        futures::future::join_all(outboxes),
        asked(consumers::of_all(context)),
        asked(letters(context)),
    );
    let outboxes = outboxes.into_iter().collect();
    let metrics = metrics?;
    let releases = releases(&metrics);
    let mut degraded = degraded(&units, &unready, &metrics, &outboxes, &consumers, &dead_letters);
    if let Asked::Answer(Some(since)) = asked(backup::fails_since(context)).await {
        degraded.push(format!(
            "the log of PostgreSQL cannot be archived since {since} (docs/runbooks/backups.md#an-archive-that-fails)"
        ));
    }
    let opensearch = units.iter().find(|unit| unit.name == "opensearch");
    let search_has_login = opensearch.map(|unit| unit.creds_file.is_some());
    Ok(Status {
        search_has_login,
        units,
        ops,
        releases,
        outboxes,
        consumers,
        stages: lag::stages(&metrics),
        dead_letters,
        degraded,
    })
}

/// The services that run and are not ready, and why. Of a dead one its supervisor knows more.
async fn unready(context: &Context, units: &[Unit], ops: &BTreeMap<String, Vec<String>>) -> Vec<(String, String)> {
    let Ok(http) = context.http(Duration::from_secs(2)) else {
        return Vec::new();
    };
    let dead = |name: &String| units.iter().any(|unit| unit.name == *name && unit.state != State::Ready);
    let ports = ops.iter().filter(|(name, _)| !dead(name));
    let ports = ports.flat_map(|(name, ports)| ports.iter().map(move |address| (name, address, ports.len() > 1)));
    let ask = ports.map(|(name, address, is_of_several)| {
        let name = if is_of_several { format!("{name} at {address}") } else { name.clone() };
        let request = http.get(format!("{}/readyz", context.ops_url(address))).send();
        async move {
            let why = match request.await {
                Err(_) => "it does not answer".to_owned(),
                Ok(response) if response.status().is_success() => return None,
                Ok(response) => {
                    let answer: Value = response.json().await.unwrap_or_default();
                    let conditions = answer["conditions"].as_object().cloned().unwrap_or_default();
                    let down: Vec<_> =
                        conditions.into_iter().filter(|(_, holds)| *holds == false).map(|(name, _)| name).collect();
                    format!("it waits for: {}", down.join(", "))
                }
            };
            Some((name, why))
        }
    });
    futures::future::join_all(ask).await.into_iter().flatten().collect()
}

/// The releases of each service that answers, by its metric `build_info`.
fn releases(metrics: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let release = |metrics: &String| {
        let of = |line: &str| Some(line.split_once("release=\"")?.1.split_once('"')?.0.to_owned());
        let all: BTreeSet<String> =
            metrics.lines().filter(|line| line.starts_with("build_info{")).filter_map(of).collect();
        (!all.is_empty()).then(|| all.into_iter().collect::<Vec<_>>().join(", "))
    };
    metrics.iter().filter_map(|(name, metrics)| Some((name.clone(), release(metrics)?))).collect()
}

async fn outbox(context: &Context, service: &str) -> Result<Outbox, anyhow::Error> {
    let mut outbox = open(context, service).await?;
    let overview = outbox.get_outbox(GetOutboxRequest {}).await.map_err(said)?.into_inner();
    let journal = processes::all(outbox.list_journal(ListJournalRequest { lines: JOURNAL }).await).await?;
    let oldest = overview.oldest_waiting.as_ref().and_then(proto::time);
    let oldest = oldest.map(|at| (devstack::supervisor::now() - at).as_seconds_f64().max(0.0));
    let stream_tail =
        tokio::time::timeout(PATIENCE / 2, events::open_of(context, service)).await.ok().and_then(Result::ok);
    let stream_tail = stream_tail.map(|(_, stream)| stream.cached_info().state.last_sequence);
    Ok(Outbox { oldest_waiting_seconds: oldest, overview, stream_tail, journal })
}

async fn letters(context: &Context) -> Result<Letters, anyhow::Error> {
    let port = context.port(dlq::SERVICE).await?;
    let mut letters = LetterServiceClient::new(port.clone());
    let selection = Selection { states: dlq::UNSETTLED.map(ToOwned::to_owned).to_vec(), ..Selection::default() };
    let request = ListGroupsRequest { selection: Some(selection) };
    let groups = processes::all(letters.list_groups(request).await).await.context("reading the groups")?;
    let last_rebuild = audit::last(port, "rebuilt search").await?;
    let stats = letters.get_stats(GetStatsRequest {}).await.map_err(said)?.into_inner();
    Ok(Letters { stats, groups, last_rebuild })
}

/// The problems in words, each with the page that says what to do.
fn degraded(
    units: &[Unit],
    unready: &[(String, String)],
    metrics: &BTreeMap<String, String>,
    outboxes: &BTreeMap<&'static str, Asked<Outbox>>,
    consumers: &Asked<Vec<Value>>,
    letters: &Asked<Letters>,
) -> Vec<String> {
    let mut degraded = Vec::new();
    for unit in units.iter().filter(|unit| unit.state != State::Ready) {
        degraded
            .push(format!("{} is not ready, restarted {} times (docs/runbooks/service.md)", unit.name, unit.restarts));
    }
    for (name, why) in unready {
        degraded.push(format!("{name} runs and is not ready: {why} (docs/runbooks/service.md)"));
    }
    for (service, outbox) in outboxes {
        match outbox.as_ref() {
            Err(error) => degraded.push(format!("the outbox of {service} cannot be read: {error}")),
            Ok(outbox) => degraded_outbox(service, outbox, &mut degraded),
        }
    }
    match consumers.as_ref() {
        Err(error) => degraded.push(format!("the consumers cannot be asked: {error}")),
        Ok(all) => {
            for consumer in all.iter().filter(|consumer| consumer["paused"] == true) {
                degraded.push(format!("{} is paused (docs/runbooks/consumers.md#paused)", consumer["name"]));
            }
        }
    }
    for (service, metrics) in metrics {
        let raised = |name: &str| gauge(metrics, name).filter(|value| *value > 0.0);
        if let Some(seconds) = raised("consumer_stalled_seconds").filter(|seconds| *seconds > 60.0) {
            degraded.push(format!(
                "a consumer of {service} has acknowledged nothing for {seconds:.0} s (docs/runbooks/consumers.md#stalled)"
            ));
        }
        if raised("consumer_refused").is_some() {
            degraded.push(format!(
                "a release of {service} does not pull: its durable consumer was made for another one \
                 (docs/runbooks/consumers.md#refused)"
            ));
        } else if raised("consumer_config_drift").is_some() {
            degraded.push(format!(
                "a durable consumer is not as {service} asked for it (docs/runbooks/consumers.md#drift)"
            ));
        }
        if let Some(events) = raised("consumer_trimmed_unread") {
            degraded.push(format!(
                "{events} events were trimmed before {service} had them (docs/runbooks/consumers.md#trimmed-unread)"
            ));
        }
        if raised("consumer_diverged").is_some() {
            degraded.push(format!(
                "{service} has handled what its stream does not hold (docs/runbooks/consumers.md#diverged)"
            ));
        }
        let late =
            metrics.lines().filter(|line| line.starts_with("due_work_late_seconds") && !line.contains("-purge\""));
        let seconds = late.filter_map(|line| line.rsplit_once(' ')?.1.parse().ok()).fold(0.0, f64::max);
        if seconds > 300.0 {
            degraded.push(format!(
                "what {service} does when its time comes is {seconds:.0} s late (docs/runbooks/service.md#due-work)"
            ));
        }
    }
    let raised = |name: &str| metrics.values().find_map(|said| gauge(said, name).filter(|value| *value > 0.0));
    if raised("outbox_stream_drift").is_some() {
        degraded.push("the stream differs from the service's configuration (docs/runbooks/outbox.md#drift)".to_owned());
    }
    if raised("search_index_mapping_behind").is_some() {
        degraded.push(
            "a search index does not take a field as it is meant (docs/runbooks/search.md#mapping-behind)".to_owned(),
        );
    }
    if raised("search_index_incomplete").is_some() {
        degraded.push("the search index is incomplete (docs/runbooks/search.md#incomplete)".to_owned());
    }
    if raised("search_index_diverged").is_some() {
        degraded.push("the search index holds what its stream does not (docs/runbooks/search.md#diverged)".to_owned());
    }
    match letters.as_ref() {
        Err(error) => degraded.push(format!("the dead letters cannot be read: {error}")),
        Ok(Letters { stats, .. }) if stats.open + stats.failed_again > 0 => {
            let count = stats.open + stats.failed_again;
            degraded.push(format!("{count} dead letters wait to be resolved (docs/runbooks/dead-letters.md)"));
        }
        Ok(_) => {}
    }
    degraded
}

fn degraded_outbox(service: &str, outbox: &Outbox, degraded: &mut Vec<String>) {
    let Outbox { overview, oldest_waiting_seconds, .. } = outbox;
    if let Some(reason) = &overview.halted {
        // The reason names functions of the outbox; operators have commands.
        let act = if reason.contains(outbox::operate::RENUMBER) { "renumber" } else { "accept" };
        degraded.push(format!(
            "THE RELAY OF {service} HAS HALTED: {reason}. Run `flotilla outbox {act}` (docs/runbooks/outbox.md#halted)"
        ));
    }
    if overview.leader.is_none() {
        degraded
            .push(format!("no relay of {service} leads: nothing is published (docs/runbooks/outbox.md#nobody-leads)"));
    }
    if overview.parked > 0 {
        degraded.push(format!("{} rows of {service} are parked (docs/runbooks/outbox.md#parked)", overview.parked));
    }
    if let Some(seconds) = oldest_waiting_seconds.filter(|seconds| *seconds > 60.0) {
        degraded.push(format!(
            "the oldest unpublished event of {service} waits for {seconds:.0} s (docs/runbooks/outbox.md#backlog)"
        ));
    }
}

fn print(status: &Status) {
    let row = |unit: &Unit| {
        let state = serde_json::to_value(unit.state).map(|state| state.as_str().unwrap_or_default().to_owned());
        vec![
            unit.name.clone(),
            state.unwrap_or_default(),
            unit.since.format("%m-%d %H:%M:%S").to_string(),
            unit.restarts.to_string(),
            status.releases.get(&unit.name).cloned().unwrap_or_else(|| "-".to_owned()),
            unit.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            unit.address.clone(),
            unit.log.display().to_string(),
        ]
    };
    let rows: Vec<_> = status.units.iter().map(row).collect();
    if rows.is_empty() {
        let release = |name: &String| status.releases.get(name).cloned().unwrap_or_else(|| "-".to_owned());
        let row = |(name, ports): (&String, &Vec<String>)| vec![name.clone(), release(name), ports.join(", ")];
        table::print(&["NAME", "RELEASE", "OPERATIONS"], &status.ops.iter().map(row).collect::<Vec<_>>());
    } else {
        table::print(&["NAME", "STATE", "SINCE (UTC)", "RESTARTS", "RELEASE", "PID", "ADDRESS", "LOG"], &rows);
    }
    for unit in status.units.iter().filter(|unit| unit.state != State::Ready) {
        println!("\n{} is not ready; its log ends with:\n{}", unit.name, process::tail(&unit.log, 5));
    }
    println!();
    for (service, outbox) in &status.outboxes {
        match outbox.as_ref() {
            Ok(outbox) => print_outbox(service, outbox),
            Err(error) => println!("The outbox of {service} cannot be read: {error}"),
        }
    }
    println!();
    lag::print_stages(&status.stages);
    println!();
    match status.consumers.as_ref() {
        Ok(all) => consumers::print(all),
        Err(error) => println!("The consumers cannot be asked: {error}"),
    }
    println!();
    match status.dead_letters.as_ref() {
        Ok(letters) => print_letters(letters),
        Err(error) => println!("The dead letters cannot be read: {error}"),
    }
    println!();
    if status.degraded.is_empty() {
        println!("Nothing is degraded.");
    }
    for line in &status.degraded {
        println!("! {line}");
    }
    if status.search_has_login == Some(false) {
        println!(
            "OpenSearch has no login here: whoever is on this machine reads and changes every tenant's read model \
             (docs/security.md#opensearch)"
        );
    }
}

fn print_outbox(service: &str, outbox: &Outbox) {
    let ops::Outbox { leader, epoch, stored_seq, stream_seq, newest_seq, parked, .. } = &outbox.overview;
    let leader = leader.as_deref().unwrap_or("nobody");
    let tail = outbox.stream_tail.map_or_else(|| "?".to_owned(), |tail| tail.to_string());
    let oldest =
        outbox.oldest_waiting_seconds.map_or_else(|| "none".to_owned(), |seconds| format!("{seconds:.1} s ago"));
    println!("Outbox of {service}: relay {leader} leads (epoch {epoch})");
    println!(
        "  rows: {stored_seq} known to be stored (stream at {stream_seq}, its tail {tail}), {newest_seq} taken, {parked} parked"
    );
    println!("  oldest behind the known ones: {oldest}");
    if let Some(refill) = &outbox.overview.last_refill {
        println!("  last refill: {} UTC, {}", clock(refill.at.as_ref()), refill.detail);
    }
    if !outbox.journal.is_empty() {
        println!("  what happened last (`flotilla outbox journal` has all):");
        let mut rows: Vec<_> = outbox.journal.iter().map(journal_cells).collect();
        rows.iter_mut().filter_map(|row| row.first_mut()).for_each(|cell| cell.insert_str(0, "  "));
        table::print(&["  AT (UTC)", "WHAT", "WHO", "ROWS", "DETAIL"], &rows);
    }
}

fn print_letters(letters: &Letters) {
    let ops::Stats { letters: all, open, failed_again, handled, discarded, .. } = letters.stats;
    println!(
        "Dead letters: {open} open, {failed_again} failed again, {handled} handled, {discarded} discarded, of {all}"
    );
    for group in letters.groups.iter().take(GROUPS) {
        let cause: String = group.error_class.chars().take(90).collect();
        println!("  {} {:>6}  {} {}  {cause}", group.group_id, group.letters, group.consumer, group.event_type);
    }
    if letters.groups.len() > GROUPS {
        println!("  ... and {} groups more: `flotilla dlq groups`", letters.groups.len() - GROUPS);
    }
    if let Some(rebuild) = &letters.last_rebuild {
        println!("Last rebuild of search: {} UTC by {}", clock(rebuild.at.as_ref()), rebuild.actor);
    }
}
