//! Upkeep of the index that is searched: that it exists, how far it is filled, and whether it agrees with its stream.

use std::time::Duration;

use chrono::{DateTime, Utc};
use consumer::{Acknowledged, Anchor, Rewinder};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::store::Index;

/// Keeps an index behind the alias. A new one (its data was wiped, somebody deleted it) is filled from the beginning of
/// the stream: the consumer goes back there. Sends `true` to `there` once there is an index to write to. Sends to `whole`
/// whether the index shows all that it should, as far as that is known.
pub(crate) async fn keep_index(
    index: &Index,
    rewinder: &Rewinder,
    status: &watch::Receiver<consumer::Status>,
    stop: &CancellationToken,
    there: &watch::Sender<bool>,
    whole: &watch::Sender<bool>,
) {
    const CHECK_EVERY: Duration = Duration::from_secs(1);
    metrics::counter!("search_index_refills_total").increment(0);
    metrics::counter!("degraded_answers_total", "part" => "search-index").increment(0);
    let mut tick = tokio::time::interval(CHECK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut said = false;
    let mut noted = Noted::default();
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let trimmed = status.borrow().trimmed_unread;
        match look_after(index, rewinder, trimmed, &mut noted).await {
            Ok(is_whole) => {
                whole.send_if_modified(|whole| std::mem::replace(whole, is_whole) != is_whole);
                there.send_if_modified(|there| !std::mem::replace(there, true));
                said = false;
            }
            Err(error) if !said => {
                warn!(error = format!("{error:#}"), "the upkeep of the index failed: trying again");
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
    /// The same for replays.
    replays: Option<u64>,
    /// The replays behind this must come again; their stream has not been asked for them yet.
    replays_owed: Option<u64>,
    at: Option<Instant>,
    /// How many events were trimmed unread, as noted in the index of that time.
    trimmed_unread: u64,
    /// The note was older at the last check. Another process may have written an older one, so the check runs twice.
    fell_back: bool,
    /// The stream lacks what the index holds.
    diverged: bool,
    /// The mapping differences in the last log line.
    mapping_behind: Vec<String>,
}

async fn look_after(
    index: &Index,
    rewinder: &Rewinder,
    trimmed_unread: u64,
    noted: &mut Noted,
) -> Result<bool, anyhow::Error> {
    index.ensure().await?;
    let Some((name, mut notes)) = index.named().await? else { return Ok(false) };
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
        let (stream, last) = rewinder.end().await?;
        // A stream that was rewritten from the outbox may begin anywhere: its first message says with which row.
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
        // Only the stream of replays holds an edited event.
        noted.replays_owed = Some(0);
        let since = serde_json::json!({"filled_since": first, "filling": filling(stream, last)});
        index.note_beside(&name, &notes, &since).await?;
        notes["filled_since"] = since["filled_since"].clone();
        notes["filling"] = since["filling"].clone();
    }
    let filling = keep_floor(index, rewinder, (&name, &notes), trimmed_unread, noted).await?;
    // The events go on while the stream of replays is unavailable.
    if let Some(behind) = noted.replays_owed
        && rewinder.rewind_replays_behind(behind).await.is_ok()
    {
        (noted.replays, noted.replays_owed) = (Some(behind), None);
    }
    let incomplete = notes["filled_since"].as_u64().is_some_and(|first| first > 1)
        || notes["trimmed_unread"].as_u64().unwrap_or_default() > 0;
    metrics::gauge!("search_index_incomplete").set(f64::from(u8::from(incomplete)));
    Ok(!incomplete && !noted.diverged && !filling)
}

/// The note that an index is incomplete until it is filled up to here; every process goes by it.
fn filling(stream_created_at: DateTime<Utc>, to: u64) -> serde_json::Value {
    serde_json::json!({"stream_created_at": stream_created_at.to_rfc3339(), "to": to})
}

/// Notes in the index how far it is filled, and checks that. An index restored from a snapshot lacks what was acknowledged
/// since, which comes again. After each start, what was acknowledged behind the newest note comes again too. Returns whether the
/// index is being filled.
async fn keep_floor(
    index: &Index,
    rewinder: &Rewinder,
    (name, notes): (&str, &serde_json::Value),
    trimmed_unread: u64,
    noted: &mut Noted,
) -> Result<bool, anyhow::Error> {
    const NOTE_EVERY: Duration = Duration::from_secs(5);
    let Some(is) = rewinder.acknowledged().await? else { return Ok(notes["filling"].is_object()) };
    let said = notes["floor"]["sequence"].as_u64();
    // The index holds nothing of another stream.
    let stream = is.stream_created_at.to_rfc3339();
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
            return Ok(true);
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
        let missing = missing.max(notes["trimmed_unread"].as_u64().unwrap_or_default());
        // What had been acknowledged must come again.
        let more =
            serde_json::json!({"trimmed_unread": missing, "filling": filling(is.stream_created_at, is.sequence)});
        index.note_beside(name, notes, &more).await?;
        return Ok(true);
    }
    (noted.sequence, noted.replays) = (noted.sequence.max(said), noted.replays.max(said_of_replays));
    let trimmed = trimmed_unread > noted.trimmed_unread;
    let fills = notes["filling"]["to"].as_u64();
    // A stream that was created again is being filled itself, until nothing of it is pending.
    let same = notes["filling"]["stream_created_at"] == stream;
    let filled = fills.is_some_and(|to| is.pending == 0 || (same && is.sequence >= to));
    let filling = fills.is_some() && !filled;
    if !trimmed && !filled && noted.at.is_some_and(|at| at.elapsed() < NOTE_EVERY) {
        return Ok(filling);
    }
    noted.at = Some(Instant::now());
    let mut more = serde_json::json!({});
    // A failed comparison must not keep the index from being filled.
    match next_anchor(rewinder, &notes["anchor"], &is, noted).await {
        Ok(Some(anchor)) => more["anchor"] = serde_json::to_value(anchor)?,
        Ok(None) => {}
        Err(error) => warn!(error = format!("{error:#}"), "the index cannot be compared with the stream"),
    }
    if said.is_none_or(|said| said < is.sequence) || said_of_replays.is_none_or(|said| said < replays) {
        let sequence = is.sequence.max(said.unwrap_or(0));
        more["floor"] = serde_json::json!({"stream_created_at": stream, "sequence": sequence, "replays": replays});
    }
    if filled {
        more["filling"] = serde_json::Value::Null;
    }
    if trimmed {
        more["trimmed_unread"] = trimmed_unread.into();
    }
    if more.as_object().is_some_and(|more| !more.is_empty()) {
        index.note_beside(name, notes, &more).await?;
        (noted.sequence, noted.replays) = (Some(is.sequence.max(said.unwrap_or(0))), Some(replays));
        noted.trimmed_unread = trimmed_unread;
    }
    Ok(filling)
}

/// Checks that the stream holds the event that the index notes as handled. While it does, a newer one is to be noted.
/// While it does not, the index shows what was undone, and the old note is the evidence.
async fn next_anchor(
    rewinder: &Rewinder,
    noted_in_index: &serde_json::Value,
    is: &Acknowledged,
    noted: &mut Noted,
) -> Result<Option<Anchor>, anyhow::Error> {
    let anchor = serde_json::from_value::<Anchor>(noted_in_index.clone()).ok();
    let holds = match &anchor {
        Some(anchor) => rewinder.holds(anchor).await?,
        None => true,
    };
    metrics::gauge!("search_index_diverged").set(f64::from(u8::from(!holds)));
    let said = std::mem::replace(&mut noted.diverged, !holds);
    if !holds {
        if !said {
            error!(?anchor, "the index holds what its stream does not: was that restored? `flotilla rebuild search`");
        }
        return Ok(None);
    }
    if said {
        info!("the stream holds what the index does");
    }
    if anchor.is_some_and(|anchor| anchor.sequence == is.sequence) {
        return Ok(None);
    }
    rewinder.anchor(is.stream_created_at, is.sequence).await
}
