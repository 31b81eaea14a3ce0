//! The stream that a relay publishes to: opens it, compares it with what was asked for, and checks which subjects it takes.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::{self, stream};
use tracing::error;

use crate::config::{RelayConfig, StreamSpec};

/// Opens the stream that the administration has created ([`crate::administer`]). Reports where it differs from what was asked
/// for, also by the gauge `outbox_stream_drift`.
pub async fn open(
    nats: &async_nats::Client,
    config: &RelayConfig,
    patience: Duration,
) -> Result<stream::Stream, anyhow::Error> {
    let spec = &config.stream;
    let js = jetstream::ContextBuilder::new().timeout(patience).build(nats.clone());
    let stream = js.get_stream(&spec.name).await;
    let stream =
        stream.with_context(|| format!("opening the stream {}: `outbox::administer::stream` makes it", spec.name))?;
    let drift = drift(&stream.cached_info().config, config);
    metrics::gauge!("outbox_stream_drift").set(drift.len() as f64);
    for what in &drift {
        error!(stream = spec.name, what, "the stream is not as it was asked for");
    }
    Ok(stream)
}

/// Where a stream differs from what was asked for.
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
    differs("published once more", format!("{:?}", is.republish), format!("{:?}", republished(spec)));
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

/// What a stream publishes once more: all of it, under the prefix.
pub(crate) fn republished(spec: &StreamSpec) -> Option<stream::Republish> {
    let (prefix, all) = (spec.live.as_ref()?, spec.subjects.first()?);
    Some(stream::Republish { source: all.clone(), destination: format!("{prefix}{all}"), headers_only: false })
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
    use std::time::Duration;

    use async_nats::jetstream::stream;

    use super::{covers, drift};
    use crate::config::{RelayConfig, StreamSpec};

    #[test]
    fn each_difference_from_what_was_asked_for_is_said() {
        let days = |days: u64| Duration::from_secs(days * 86_400);
        let spec = StreamSpec {
            name: "EVENTS".into(),
            subjects: vec!["evt.>".into()],
            max_age: days(30),
            replicas: 3,
            live: None,
        };
        let config = RelayConfig { retention_days: Some(30), ..RelayConfig::from(spec) };
        let asked = stream::Config {
            num_replicas: 3,
            max_age: days(30),
            subjects: vec!["evt.>".to_owned()],
            discard: stream::DiscardPolicy::New,
            ..Default::default()
        };
        assert_eq!(drift(&asked, &config), Vec::<String>::new());
        let others = [
            ("replicas", stream::Config { num_replicas: 1, ..asked.clone() }),
            ("max_age", stream::Config { max_age: days(29), ..asked.clone() }),
            ("subjects", stream::Config { subjects: vec!["evt.todo.>".to_owned()], ..asked.clone() }),
            ("discard", stream::Config { discard: stream::DiscardPolicy::Old, ..asked.clone() }),
            ("limits", stream::Config { max_bytes: 1_000, ..asked.clone() }),
            ("limits", stream::Config { max_messages: 1_000, ..asked.clone() }),
            ("limits", stream::Config { max_messages_per_subject: 1, ..asked.clone() }),
        ];
        for (what, is) in others {
            let said = drift(&is, &config);
            assert!(said.len() == 1 && said[0].starts_with(what), "{what}: {said:?}");
        }
        for kept in
            [stream::Config { max_age: days(31), ..asked.clone() }, stream::Config { max_age: Duration::ZERO, ..asked }]
        {
            let said = drift(&kept, &config);
            assert!(said.len() == 2 && said[1].contains("keeps its rows for less"), "{said:?}");
        }
    }

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
