//! Events into documents: a batch of events is one bulk request, with a verdict for each.

use std::time::Duration;

use consumer::{Consumer, Event as Delivered, Rewinder, Verdict};
use contracts::TenantId;
use contracts::events::todo::Event;
use contracts::text::without_quotations;
use service::clock;
use service::retry::Delays;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::store::{Document, Filled, Index};
use crate::store_bulk::Outcome;

/// Writes what events say into the index.
pub(crate) struct Projector {
    pub index: Index,
    pub stop: CancellationToken,
    /// One document of the newest bulk, to see when it is found; none while an index is rebuilt.
    pub sampled: Option<watch::Sender<Option<Sample>>>,
}

/// A document that was written, and when.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    id: String,
    version: i32,
    written: Instant,
}

impl Projector {
    /// A verdict for each event. While the index is away this waits: an outage makes no dead letters.
    pub async fn on_batch(&self, events: Vec<Delivered>) -> Vec<Verdict> {
        let read: Vec<Result<Document, String>> = events.iter().map(document).collect();
        let documents: Vec<&Document> = read.iter().filter_map(|document| document.as_ref().ok()).collect();
        let outcomes = self.write(&documents).await;
        // What was refused, or is there already, says nothing of how long it takes.
        let written = documents.iter().zip(&outcomes).rev().find(|(_, outcome)| **outcome == Outcome::Written);
        if let (Some((last, _)), Some(sampled)) = (written, &self.sampled) {
            let sample = Sample { id: last.id.to_string(), version: last.version, written: Instant::now() };
            sampled.send_replace(Some(sample));
        }
        let mut outcomes = outcomes.into_iter();
        let verdict = |document: &Result<Document, String>| match document {
            Err(reason) => Verdict::Reject(reason.clone()),
            Ok(_) => match outcomes.next() {
                Some(Outcome::Written | Outcome::Newer) => Verdict::Done,
                Some(Outcome::Busy(reason) | Outcome::Away(reason)) => Verdict::Retry(reason),
                Some(Outcome::Refused(reason)) => Verdict::Reject(reason),
                None => Verdict::Retry("the service is stopping".to_owned()),
            },
        };
        read.iter().map(verdict).collect()
    }

    /// The outcomes, in order; none when the service is to stop first.
    async fn write(&self, documents: &[&Document]) -> Vec<Outcome> {
        let mut delays = Delays::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut outcomes = vec![Outcome::Away("not written yet".to_owned()); documents.len()];
        while !self.stop.is_cancelled() {
            let left: Vec<usize> =
                (0..documents.len()).filter(|&index| matches!(outcomes[index], Outcome::Away(_))).collect();
            if left.is_empty() {
                return outcomes;
            }
            let again: Vec<&Document> = left.iter().map(|&index| documents[index]).collect();
            let why = match self.index.write(&again).await {
                Ok(written) => {
                    left.iter().zip(written).for_each(|(&index, outcome)| outcomes[index] = outcome);
                    outcomes.iter().find_map(|one| if let Outcome::Away(why) = one { Some(why.clone()) } else { None })
                }
                Err(error) => Some(format!("{error:#}")),
            };
            let Some(why) = why else { return outcomes };
            let delay = delays.next_delay();
            warn!(error = why, ?delay, "the index cannot be written: trying again");
            self.stop.run_until_cancelled(tokio::time::sleep(delay)).await;
        }
        Vec::new()
    }
}

/// The document that an event makes of its todo.
fn document(delivered: &Delivered) -> Result<Document, String> {
    let tenant: TenantId = delivered.attribute("tenant").parse().map_err(|error| format!("the tenant: {error}"))?;
    if !delivered.nats_subject.ends_with(&format!(".{tenant}")) {
        return Err("the tenant is not that of the subject it was published on".to_owned());
    }
    let event = Event::decode(delivered.event_type(), &delivered.data)
        .map_err(|error| {
            let why = std::error::Error::source(&error).map_or(String::new(), ToString::to_string);
            format!("{error}: {}", without_quotations(&why))
        })?
        .ok_or("its type is not known")?;
    // What is written goes by these: a letter that was mended must not write another todo, or a version of its own.
    let todo = event.todo();
    let id = todo.id.to_string();
    if [delivered.attribute("subject"), delivered.attribute("partitionkey")].iter().any(|&named| named != id) {
        return Err(format!("its todo is {id}, and its subject or partitionkey another"));
    }
    if todo.version < 1 || delivered.attribute("sequence") != contracts::envelope::sequence(todo.version) {
        return Err(format!("its todo is at version {}, and its sequence says otherwise", todo.version));
    }
    let deleted = matches!(event, Event::Deleted(_));
    Ok(Document::new(tenant, event.todo(), deleted, clock::now()))
}

/// Keeps an index behind the alias. One that had to be made anew (its data was wiped, somebody deleted it) is filled from
/// the beginning of the stream: the consumer goes back there. Sends `true` once there is one to write to.
pub(crate) async fn keep_index(
    index: &Index,
    rewinder: &Rewinder,
    status: &watch::Receiver<consumer::Status>,
    stop: &CancellationToken,
    there: &watch::Sender<bool>,
) {
    const LOOK_EVERY: Duration = Duration::from_secs(1);
    metrics::counter!("search_index_refills_total").increment(0);
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut said = false;
    let mut noted = Noted::default();
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let trimmed = status.borrow().trimmed_unread;
        match look_after(index, rewinder, trimmed, &mut noted).await {
            Ok(()) => {
                there.send_if_modified(|there| !std::mem::replace(there, true));
                said = false;
            }
            Err(error) if !said => {
                warn!(error = format!("{error:#}"), "the index cannot be looked after: trying again");
                said = true;
            }
            Err(_) => {}
        }
    }
}

/// How far this process knows an index to be filled, and when that was noted in it.
#[derive(Default)]
struct Noted {
    index: String,
    sequence: Option<u64>,
    /// The same of what was replayed.
    replays: Option<u64>,
    /// What was replayed behind this is to come again; that stream has not been asked for it yet.
    replays_owed: Option<u64>,
    at: Option<Instant>,
    /// How many events were found to be trimmed unread, as far as that is noted: in the index of that time.
    trimmed_unread: u64,
    /// It said less than before at the last look. Another process may have written an older note; it is looked at twice.
    fell_back: bool,
    /// What was logged of mappings that are behind.
    mapping_behind: Vec<String>,
}

async fn look_after(
    index: &Index,
    rewinder: &Rewinder,
    trimmed_unread: u64,
    noted: &mut Noted,
) -> Result<(), anyhow::Error> {
    index.ensure().await?;
    let Some((name, mut notes)) = index.named().await? else { return Ok(()) };
    let behind = index.add_fields(&name).await?;
    metrics::gauge!("search_index_mapping_behind").set(behind.len() as f64);
    if behind != noted.mapping_behind {
        if !behind.is_empty() {
            warn!(what = behind.join("; "), "the mapping is behind: `flotilla rebuild search`");
        }
        noted.mapping_behind = behind;
    }
    if noted.index != name {
        *noted = Noted { index: name.clone(), trimmed_unread: noted.trimmed_unread, ..Noted::default() };
    }
    if !notes["filled_since"].is_u64() {
        // Rewritten from the outbox, a stream may begin anywhere: its first message says with which row.
        let (sequence, row) = rewinder.rewind("Outbox-Seq").await?;
        let first = row.and_then(|row| row.parse().ok()).unwrap_or(sequence);
        if first > 1 {
            error!(
                first,
                "the index is new, and the stream does not begin with the first event: `flotilla rebuild search`"
            );
        } else {
            info!("the index is new: filling it from the beginning of the stream");
        }
        metrics::counter!("search_index_refills_total").increment(1);
        // An event that was mended is only there.
        noted.replays_owed = Some(0);
        let since = serde_json::json!({"filled_since": first});
        index.note_beside(&name, &notes, &since).await?;
        notes["filled_since"] = since["filled_since"].clone();
    }
    keep_floor(index, rewinder, (&name, &notes), trimmed_unread, noted).await?;
    // While the stream of replays is away the events go on.
    if let Some(behind) = noted.replays_owed
        && rewinder.rewind_replays_behind(behind).await.is_ok()
    {
        (noted.replays, noted.replays_owed) = (Some(behind), None);
    }
    let incomplete = notes["filled_since"].as_u64().is_some_and(|first| first > 1)
        || notes["trimmed_unread"].as_u64().unwrap_or_default() > 0;
    metrics::gauge!("search_index_incomplete").set(f64::from(u8::from(incomplete)));
    Ok(())
}

/// Notes in the index how far it is filled, and looks whether it still is: one that was restored from a snapshot lacks what
/// was acknowledged since, which comes again. So does, after each start, what was acknowledged behind the newest note.
async fn keep_floor(
    index: &Index,
    rewinder: &Rewinder,
    (name, notes): (&str, &serde_json::Value),
    trimmed_unread: u64,
    noted: &mut Noted,
) -> Result<(), anyhow::Error> {
    const NOTE_EVERY: Duration = Duration::from_secs(5);
    let Some(is) = rewinder.acknowledged().await? else { return Ok(()) };
    let stream = is.stream_created_at.to_rfc3339();
    let said = notes["floor"]["sequence"].as_u64();
    // Of another stream the index holds nothing.
    let said = said.map(|said| if notes["floor"]["stream_created_at"] == stream { said } else { 0 });
    let said_of_replays = notes["floor"]["replays"].as_u64();
    let known_of_replays = noted.replays.or(is.replays).filter(|_| noted.replays_owed.is_none());
    let replays = noted.replays_owed.or(is.replays).or(said_of_replays).unwrap_or(0);
    let replays_fell_back = said_of_replays.filter(|said| known_of_replays.is_some_and(|known| *said < known));
    let fell_back = said.filter(|said| replays_fell_back.is_some() || *said < noted.sequence.unwrap_or(is.sequence));
    let acts = noted.fell_back || noted.sequence.is_none();
    noted.fell_back = fell_back.is_some();
    if let Some(said) = fell_back {
        if !acts {
            return Ok(());
        }
        if noted.sequence.is_some() {
            error!(
                index = name,
                filled = said,
                acknowledged = is.sequence,
                "the index is older than what it was filled with: was it restored? Events of between come again"
            );
            metrics::counter!("search_index_refills_total").increment(1);
        }
        let missing = rewinder.rewind_behind(said).await?;
        noted.replays_owed = said_of_replays.or(noted.replays_owed);
        (noted.sequence, noted.replays, noted.fell_back) = (Some(said), said_of_replays, false);
        if missing > 0 {
            let missing = missing.max(notes["trimmed_unread"].as_u64().unwrap_or_default());
            index.note_beside(name, notes, &serde_json::json!({"trimmed_unread": missing})).await?;
        }
        return Ok(());
    }
    (noted.sequence, noted.replays) = (noted.sequence.max(said), noted.replays.max(said_of_replays));
    let due = noted.at.is_none_or(|at| at.elapsed() >= NOTE_EVERY);
    let trimmed = trimmed_unread > noted.trimmed_unread;
    let behind = said.is_none_or(|said| said < is.sequence) || said_of_replays.is_none_or(|said| said < replays);
    if trimmed || (due && behind) {
        let mut more = serde_json::json!({
            "floor": {"stream_created_at": stream, "sequence": is.sequence, "replays": replays},
        });
        if trimmed {
            more["trimmed_unread"] = trimmed_unread.into();
        }
        index.note_beside(name, notes, &more).await?;
        (noted.sequence, noted.replays, noted.at) = (Some(is.sequence), Some(replays), Some(Instant::now()));
        noted.trimmed_unread = trimmed_unread;
    }
    Ok(())
}

/// Writes events into the index that is being rebuilt, whenever there is one behind this alias.
pub(crate) async fn rebuild(index: &Index, consumer: impl Fn() -> Consumer, stop: &CancellationToken) {
    while let Some(()) = stop.run_until_cancelled(until(index, true)).await {
        info!("an index is being rebuilt: filling it");
        let ended = stop.child_token();
        let projector = Projector { index: index.clone(), stop: ended.clone(), sampled: None };
        let work = consumer().run_batches(ended.clone(), |batch| projector.on_batch(batch));
        let watch = async {
            stop.run_until_cancelled(until(index, false)).await;
            ended.cancel();
        };
        tokio::join!(work, watch);
        info!("the index is rebuilt, or given up");
    }
}

/// Waits until there is an index behind the alias, or none any more.
async fn until(index: &Index, there: bool) {
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    loop {
        tick.tick().await;
        if index.filled().await.is_ok_and(|filled| there == (filled != Filled::Missing)) {
            return;
        }
    }
}

/// Measures, one document at a time, how long after its write a document is found.
pub(crate) async fn sample_lag(index: Index, mut samples: watch::Receiver<Option<Sample>>) {
    while samples.changed().await.is_ok() {
        let Some(sample) = samples.borrow_and_update().clone() else { continue };
        let deadline = sample.written + Duration::from_secs(30);
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        while Instant::now() < deadline {
            tick.tick().await;
            if index.shows(&sample.id, sample.version).await.unwrap_or(false) {
                break;
            }
        }
        // One that is not found by then counts with what it took at least.
        metrics::histogram!("search_handled_to_searchable_seconds").record(sample.written.elapsed().as_secs_f64());
    }
}
