//! The stream that a relay publishes to, as it is: opened, compared with what was asked for, and what it takes.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::{self, stream};
use tracing::error;

use crate::relay::{Relay, RelayConfig};

/// The stream, as the administration has made it ([`crate::administer`]). In what it is not as it was asked for is said, and
/// shown by the gauge `outbox_stream_drift`.
pub async fn open(relay: &Relay, patience: Duration) -> Result<stream::Stream, anyhow::Error> {
    let spec = &relay.config.stream;
    let js = jetstream::ContextBuilder::new().timeout(patience).build(relay.nats.clone());
    let stream = js.get_stream(&spec.name).await;
    let stream = stream.with_context(|| format!("opening the stream {}: `flotilla provision` makes it", spec.name))?;
    let drift = drift(&stream.cached_info().config, &relay.config);
    metrics::gauge!("outbox_stream_drift").set(drift.len() as f64);
    for what in &drift {
        error!(stream = spec.name, what, "the stream is not as it was asked for");
    }
    Ok(stream)
}

/// In what a stream differs from what was asked for.
fn drift(is: &stream::Config, wanted: &RelayConfig) -> Vec<String> {
    let spec = &wanted.stream;
    let mut drift = Vec::new();
    let mut differs = |what: &str, is: String, wanted: String| {
        if is != wanted {
            drift.push(format!("{what}: {is}, asked for {wanted}"));
        }
    };
    differs("replicas", is.num_replicas.to_string(), spec.replicas.to_string());
    differs("max_age", format!("{:?}", is.max_age), format!("{:?}", spec.max_age));
    differs("subjects", is.subjects.join(" "), spec.subjects.join(" "));
    differs("discard", format!("{:?}", is.discard), format!("{:?}", stream::DiscardPolicy::New));
    let limits = is.max_bytes > 0 || is.max_messages > 0 || is.max_messages_per_subject > 0;
    differs("limits by size or count", limits.to_string(), false.to_string());
    if let Some(days) = wanted.retention_days {
        let keeps = Duration::from_secs(86_400 * u64::try_from(days).unwrap_or_default());
        let shorter = is.max_age.is_zero() || keeps < is.max_age;
        differs(
            "the outbox keeps its rows for less than the stream its messages",
            shorter.to_string(),
            false.to_string(),
        );
    }
    drift
}

/// Whether a stream of these subjects, which may have wildcards, stores what is published on this one.
pub fn takes(subjects: &[String], subject: &str) -> bool {
    subjects.iter().any(|wanted| covers(wanted, subject))
}

fn covers(wanted: &str, subject: &str) -> bool {
    let (mut wanted, mut tokens) = (wanted.split('.'), subject.split('.'));
    loop {
        match (wanted.next(), tokens.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some(wanted), Some(token)) if wanted == "*" || wanted == token => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn a_stream_takes_what_its_subjects_cover() {
        for wanted in ["evt.>", "evt.*.created", "evt.todo.created", "*.*.*", ">"] {
            assert!(covers(wanted, "evt.todo.created"), "{wanted}");
        }
        for wanted in ["evt", "evt.todo", "evt.todo.created.>", "evt.todo.created.*", "evt.*", "x.>", ""] {
            assert!(!covers(wanted, "evt.todo.created"), "{wanted}");
        }
    }
}
