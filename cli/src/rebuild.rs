//! `flotilla rebuild search`: a new index beside the one that is searched, filled while the fleet works, compared with the
//! database, and swapped in. Or the previous one, brought up to date and swapped back in.
//!
//! The state outlives this command: it is in an alias (`todos-rebuild`), in notes inside the index, and
//! in the durable consumer by which the projector fills it. Run again, the command continues from there.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream;
use async_nats::jetstream::stream::Stream;
use chrono::TimeDelta;
use clap::{Args, Subcommand};
use consumer::RecordStreams;
use fleet::{PROJECTOR, REBUILDER};
use indicatif::{ProgressBar, ProgressStyle};
use proto::ops::{
    AbandonIndexRequest, CreateIndexRequest, ListAggregatesRequest, ListIndexesRequest, NoteIndexRequest,
    RefreshIndexRequest, SwapIndexesRequest, TakeUpIndexRequest, Which, WriteDocumentsRequest,
};
use serde_json::{Value, json};

use crate::context::Context;
use crate::exit::Exit;
use crate::operator::ActArgs;
use crate::outbox::say;
use crate::processes::{self, said};
use crate::verify::index::{CHUNK, Documents, TODO, documents, todos};
use crate::verify::{self, Report, VerifyArgs};
use crate::{audit, events, table};

/// The longest pause of the projector, should this command die in the middle of the swap.
const PAUSE: TimeDelta = TimeDelta::seconds(120);
/// How long the swap waits for the new index meanwhile.
const CATCHES_UP: Duration = Duration::from_secs(20);
/// The source of the new index.
const STREAM: &str = "stream";
const DATABASE: &str = "database";

#[derive(Debug, Clone, Args)]
pub struct RebuildArgs {
    #[command(subcommand)]
    command: RebuildCommand,
}

#[derive(Debug, Clone, Subcommand)]
enum RebuildCommand {
    /// Rebuild the search index with the mapping of this version. Run again, it continues where it stopped.
    Search(SearchArgs),
}

#[derive(Debug, Clone, Args)]
struct SearchArgs {
    /// The source of the new index; by default the stream, where that holds every event.
    #[arg(long, value_parser = ["stream", "database"], conflicts_with_all = ["rollback", "abandon"])]
    from: Option<String>,
    /// Update the index that was searched before the last swap, and search it again.
    #[arg(long, conflicts_with = "abandon")]
    rollback: bool,
    /// Abandon a rebuild that has begun; the searched index stays as it is.
    #[arg(long)]
    abandon: bool,
    #[command(flatten)]
    act: ActArgs,
}

struct Rebuild<'a> {
    context: &'a Context,
    args: &'a SearchArgs,
    index: Documents,
    js: jetstream::Context,
    stream: Stream,
}

pub async fn run(context: &Context, args: &RebuildArgs) -> Result<(), anyhow::Error> {
    let RebuildCommand::Search(args) = &args.command;
    with(context, args).await
}

/// Rebuilds the search index from where it finds everything, as a part of another command.
pub async fn search(context: &Context, act: &ActArgs) -> Result<(), anyhow::Error> {
    with(context, &SearchArgs { from: None, rollback: false, abandon: false, act: act.clone() }).await
}

async fn with(context: &Context, args: &SearchArgs) -> Result<(), anyhow::Error> {
    let index = documents(context).await?;
    let (js, stream) = events::open(context).await?;
    args.act.verify(context).await?;
    let rebuild = Rebuild { context, args, index, js, stream };
    if args.abandon { rebuild.abandon().await } else { rebuild.run().await }
}

impl Rebuild<'_> {
    /// One of the indexes, if it exists: its name, and the notes in it.
    async fn named(&self, which: Which) -> Result<Option<(String, Value)>, anyhow::Error> {
        let all = processes::all(self.index.clone().list_indexes(ListIndexesRequest {}).await).await?;
        let one = all.into_iter().find(|index| index.which() == which);
        one.map(|index| Ok((index.name, serde_json::from_str(&index.notes)?))).transpose()
    }

    async fn note(&self, name: &str, notes: &Value) -> Result<(), anyhow::Error> {
        let request = NoteIndexRequest { name: name.to_owned(), notes: notes.to_string() };
        self.index.clone().note_index(request).await.map_err(said)?;
        Ok(())
    }

    async fn refresh(&self) -> Result<(), anyhow::Error> {
        self.index.clone().refresh_index(RefreshIndexRequest { which: Which::Next.into() }).await.map_err(said)?;
        Ok(())
    }

    async fn audit(&self, action: &str, count: u64, detail: &Value) -> Result<(), anyhow::Error> {
        audit::record(self.context, action, count.cast_signed(), detail, &self.args.act.reason).await
    }

    fn tell(&self, text: &str) {
        if !self.context.json {
            println!("{text}");
        }
    }

    async fn run(&self) -> Result<(), anyhow::Error> {
        let (target, notes) = match self.named(Which::Next).await? {
            Some((target, notes)) => {
                let (rolls_back, source) = (notes["behind"].is_u64(), notes["source"].as_str().unwrap_or_default());
                let other =
                    rolls_back != self.args.rollback || self.args.from.as_ref().is_some_and(|from| from != source);
                ensure!(
                    !other || rolls_back,
                    "{target} is being rebuilt from the {source}: go on with that, or --abandon it first"
                );
                ensure!(
                    !other,
                    "{target} is being brought up to date for a rollback: go on with --rollback, or --abandon it first"
                );
                self.tell(&format!("{target} is being rebuilt already: going on with it."));
                (target, notes)
            }
            None if self.args.rollback => self.begin_rollback().await?,
            None => self.begin().await?,
        };
        if notes["source"] == DATABASE && notes["copied"] != true {
            self.copy().await?;
            let mut copied = notes;
            copied["copied"] = json!(true);
            self.note(&target, &copied).await?;
        }
        self.filled().await?;
        let report = self.compare().await?;
        self.swap(&target).await?;
        let todos: u64 = report.tenants.values().map(|tenant| tenant.todos).sum();
        self.audit("rebuilt search", todos, &json!({"index": target})).await?;
        let json = json!({"index": target, "todos": todos, "tenants": report.tenants});
        let back = "`flotilla rebuild search --rollback` goes back";
        say(self.context, &json, &format!("{target} is searched now, {todos} todos; {back}."));
        Ok(())
    }

    async fn begin(&self) -> Result<(String, Value), anyhow::Error> {
        let state = &self.stream.cached_info().state;
        // Rewritten from the outbox it may begin anywhere: its first message says what it begins with.
        let first = match state.messages {
            0 => None,
            _ => self.stream.get_raw_message(state.first_sequence).await.ok(),
        };
        let seq = first.and_then(|message| message.headers.get(outbox::SEQ_HEADER).map(|seq| seq.as_str() == "1"));
        let whole = seq.unwrap_or(state.first_sequence <= 1);
        let source = match self.args.from.as_deref() {
            Some("database") => DATABASE,
            Some(_) if !whole => bail!("the stream no longer holds every event: use --from database"),
            Some(_) => STREAM,
            None if whole => STREAM,
            None => DATABASE,
        };
        self.args.act.confirm(&format!("Build an index from the {source} beside what is searched, and swap it in?"))?;
        // During the confirmation, another rebuild may have begun.
        ensure!(self.named(Which::Next).await?.is_none(), "an index is being built already: run the command again");
        let from = if source == STREAM { 1 } else { state.last_sequence + 1 };
        self.durable(from).await?;
        // Where the projector is still filling what is searched, it has that to pass before it shows what is new.
        let filling = self.named(Which::Searched).await?.map(|(_, notes)| notes["filling"].clone());
        let notes = json!({"filled_since": 1, "source": source, "filling": filling});
        let request = CreateIndexRequest { notes: notes.to_string(), reason: self.args.act.reason.clone() };
        let name = self.index.clone().create_index(request).await.map_err(said)?.into_inner().name;
        self.audit("rebuild search", 1, &json!({"index": name, "source": source, "from": from})).await?;
        self.tell(&format!("{name} is filled from the {}.", source));
        Ok((name, notes))
    }

    async fn begin_rollback(&self) -> Result<(String, Value), anyhow::Error> {
        let previous = self.named(Which::Previous).await?;
        let (name, mut notes) = previous.context("there is no index from before a swap to go back to")?;
        let behind = notes["behind"].as_u64().context("the index before does not say how far it is")?;
        let first = self.stream.cached_info().state.first_sequence;
        ensure!(first <= behind, "the stream has dropped what {name} lacks: build a new one instead");
        self.args.act.confirm(&format!("Bring {name} up to date, and search it again?"))?;
        self.durable(behind).await?;
        // The notes of an older release about how it was filled are no longer true.
        for note in ["floor", "anchor"] {
            notes.as_object_mut().map(|notes| notes.remove(note));
        }
        self.note(&name, &notes).await?;
        self.index
            .clone()
            .take_up_index(TakeUpIndexRequest { name: name.clone(), reason: self.args.act.reason.clone() })
            .await
            .map_err(said)?;
        self.audit("roll back search", 1, &json!({"index": name, "from": behind})).await?;
        self.tell(&format!("{name} is brought up to date from the stream."));
        Ok((name, notes))
    }

    /// Removes the durable consumer that fills the index; returns the account of its replays.
    async fn forget(&self) -> Result<jetstream::Context, anyhow::Error> {
        let records = events::administration(self.context, fleet::RECORDS).await?;
        let stream = self.stream.cached_info().config.name.as_str();
        consumer::administer::forget(&self.js, (&records, &RecordStreams::default()), (stream, REBUILDER)).await?;
        Ok(records)
    }

    /// The durable consumer that fills the index, from this event on.
    async fn durable(&self, from: u64) -> Result<(), anyhow::Error> {
        let records = self.forget().await?;
        let config = fleet::REBUILD.config(String::new());
        let made = consumer::administer::durables(&self.js, &records, &config, Some(from.max(1))).await;
        made.context("making the consumer that fills the index")
    }

    /// The rows of the database, deleted ones as tombstones. An older version never replaces a newer one.
    async fn copy(&self) -> Result<(), anyhow::Error> {
        let mut todos = todos(self.context).await?;
        let bar = self.bar(0, "copying")?;
        let mut after = None;
        loop {
            let page = ListAggregatesRequest {
                after,
                limit: CHUNK as i64,
                aggregate: TODO.to_owned(),
                ..ListAggregatesRequest::default()
            };
            let aggregates = processes::all(todos.list_aggregates(page).await).await.context("reading the todos")?;
            let Some(last) = aggregates.last() else { break };
            after = last.key.clone();
            let copied = aggregates.len() as u64;
            let written = self.index.clone().write_documents(WriteDocumentsRequest { aggregates }).await;
            written.map_err(said).context("run the command again to go on")?;
            bar.inc_length(copied);
            bar.inc(copied);
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn bar(&self, total: u64, what: &'static str) -> Result<ProgressBar, anyhow::Error> {
        if self.context.json {
            return Ok(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {per_sec} {elapsed}")?;
        Ok(ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_prefix(what))
    }

    /// Waits until the projector has filled it with everything in the stream.
    async fn filled(&self) -> Result<(), anyhow::Error> {
        let state = self.stream.get_info().await?.state;
        let bar = self.bar(state.messages, "filling")?;
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        loop {
            tick.tick().await;
            let info = self.stream.consumer_info(REBUILDER).await.context("asking how far the index is filled")?;
            let waits = info.num_pending + info.num_ack_pending as u64;
            bar.set_length(bar.length().unwrap_or(0).max(waits));
            bar.set_position(bar.length().unwrap_or(0).saturating_sub(waits));
            // The swap waits for events that come meanwhile.
            if waits == 0 || info.ack_floor.stream_sequence >= state.last_sequence {
                bar.finish_and_clear();
                return Ok(());
            }
        }
    }

    /// Parity: it holds every todo of every tenant as the database has it, and nothing else.
    async fn compare(&self) -> Result<Report, anyhow::Error> {
        self.refresh().await?;
        let mut report = Report::default();
        let args = VerifyArgs::of_index(Which::Next);
        verify::index::verify(self.context, &args, REBUILDER, &mut report).await?;
        if !self.context.json {
            let row = |(tenant, of): (&String, &verify::Tenant)| {
                vec![tenant.clone(), of.todos.to_string(), of.documents.to_string(), of.differing.to_string()]
            };
            let rows: Vec<_> = report.tenants.iter().map(row).collect();
            table::print(&["TENANT", "TODOS", "DOCUMENTS", "DIFFERING"], &rows);
        }
        if report.diverged.count > 0 {
            let example = report.diverged.examples.first().map(ToString::to_string).unwrap_or_default();
            let what = format!("{} todos differ, such as {example}", report.diverged.count);
            return Err(Exit::found(format!("not swapped: {what}. Run again to compare again, or --abandon")).into());
        }
        ensure!(
            report.unchecked.is_empty(),
            "not swapped, for not all could be compared: {}",
            report.unchecked.join("; ")
        );
        Ok(report)
    }

    /// Swaps while the projector is paused for a moment, so that neither index has what the other lacks.
    async fn swap(&self, target: &str) -> Result<(), anyhow::Error> {
        let current = self.named(Which::Searched).await?;
        let before = self.stream.consumer_info(PROJECTOR).await.context("asking for the projector's consumer")?;
        let until = devstack::supervisor::now() + PAUSE;
        self.stream.pause_consumer(PROJECTOR, until).await.context("holding up the projector")?;
        let swapped = async {
            self.paused().await?;
            self.swap_while_paused(current, target).await
        };
        let swapped = swapped.await;
        match before.pause_remaining.filter(|_| before.paused) {
            None => {
                self.stream.resume_consumer(PROJECTOR).await.context("letting the projector go on")?;
            }
            // An operator has paused it: keep it paused.
            Some(left) => {
                let until = devstack::supervisor::now() + left;
                self.stream
                    .pause_consumer(PROJECTOR, until)
                    .await
                    .context("leaving the projector paused, as it was")?;
            }
        }
        swapped?;
        self.end_filling().await;
        Ok(())
    }

    /// A pause is in force once the consumer reports it: the answer to the request comes earlier.
    async fn paused(&self) -> Result<(), anyhow::Error> {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        let paused = async {
            loop {
                tick.tick().await;
                let info = self.stream.consumer_info(PROJECTOR).await.context("asking for the projector's consumer")?;
                if info.paused {
                    return Ok::<(), anyhow::Error>(());
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), paused)
            .await
            .context("not swapped: the projector is not held up; does the clock of NATS agree with this machine's?")?
    }

    /// Removes it once the projector no longer pulls from it: the projector would make it again.
    async fn end_filling(&self) {
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        let let_go = async {
            while self.stream.consumer_info(REBUILDER).await.is_ok_and(|info| info.num_waiting > 0) {
                tick.tick().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), let_go).await.ok();
        // The next rebuild tries again; the searched index is complete.
        if let Err(error) = self.forget().await {
            eprintln!("what filled the index is still there: {error:#}");
        }
    }

    async fn swap_while_paused(&self, current: Option<(String, Value)>, target: &str) -> Result<(), anyhow::Error> {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        let both = async {
            loop {
                tick.tick().await;
                let searched =
                    self.stream.consumer_info(PROJECTOR).await.context("asking for the projector's consumer")?;
                let rebuilt =
                    self.stream.consumer_info(REBUILDER).await.context("asking how far the index is filled")?;
                // Events in the projector's hands may be in the searched index: the new one must have them.
                let (has, needs) = (rebuilt.ack_floor.stream_sequence, searched.delivered.stream_sequence);
                let all = rebuilt.num_pending == 0 && rebuilt.num_ack_pending == 0;
                if all || has >= needs {
                    return Ok::<_, anyhow::Error>((searched.ack_floor.stream_sequence, needs));
                }
            }
        };
        let (floor, delivered) =
            tokio::time::timeout(CATCHES_UP, both).await.context("not swapped: the new index is too far behind")??;
        self.refresh().await?;
        let current = match current {
            Some((name, mut notes)) => {
                // Should it be searched again, it lacks what follows.
                notes["behind"] = json!(floor + 1);
                // That note suffices for now; how far it is filled is noted again once it is searched again.
                notes.as_object_mut().map(|notes| notes.remove("floor"));
                self.note(&name, &notes).await?;
                Some((name, notes))
            }
            None => None,
        };
        let info = self.stream.consumer_info(PROJECTOR).await.context("asking for the projector's consumer")?;
        ensure!(
            info.paused && info.delivered.stream_sequence == delivered,
            "not swapped: the projector was given events meanwhile; run the command again"
        );
        let request = SwapIndexesRequest {
            from: current.as_ref().map(|(name, _)| name.clone()),
            to: target.to_owned(),
            reason: self.args.act.reason.clone(),
        };
        self.index.clone().swap_indexes(request).await.map_err(said)?;
        // The projector writes notes in the same document, and may have done so at the same moment. Until now the event that it had noted
        // was evidence of what the index showed; it is searched again only after it was compared.
        if let Some((name, mut notes)) = current {
            notes.as_object_mut().map(|notes| notes.remove("anchor"));
            if self.named(Which::Previous).await?.is_some_and(|(is, now)| is == name && now != notes) {
                self.note(&name, &notes).await?;
            }
        }
        Ok(())
    }

    async fn abandon(&self) -> Result<(), anyhow::Error> {
        let (name, _) = self.named(Which::Next).await?.context("nothing is being rebuilt")?;
        self.args.act.confirm(&format!("Give up {name}?"))?;
        self.index
            .clone()
            .abandon_index(AbandonIndexRequest { name: name.clone(), reason: self.args.act.reason.clone() })
            .await
            .map_err(said)?;
        self.end_filling().await;
        self.audit("abandon rebuild", 1, &json!({"index": name})).await?;
        say(self.context, &json!({"abandoned": name}), &format!("{name} is given up."));
        Ok(())
    }
}
