//! Setup before services start: creates the streams that all consumers share, and durable consumers. A service only
//! checks them: the right to make one is the right to have its messages sent to any subject.
//!
//! Setup is repeatable. It changes what is not as it was asked for, except the limits of streams.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, stream};
use tracing::warn;

use crate::config::{BEGINS_BEHIND, Config};
use crate::records::{KINDS, RecordStreams};
use crate::time::ACK_WAIT;

/// Longer than any pull of ours. The server forgets by then who has pulled and is gone.
const MAX_EXPIRES: Duration = Duration::from_secs(30);
/// JetStream's default.
const MOST_IN_HAND: i64 = 1_000;
/// The most bytes of dead letters: some millions of them. Their own, and none of the disk that events need.
const LETTERS_BYTES: i64 = 4 << 30;
const DAY: Duration = Duration::from_secs(86_400);

/// Makes the streams of dead letters, replays and advisories, on as many servers as the events are.
///
/// # Errors
/// NATS does not answer, or refuses.
pub async fn streams(js: &jetstream::Context, records: &RecordStreams, replicas: usize) -> Result<(), anyhow::Error> {
    let file = || stream::Config { num_replicas: replicas, storage: stream::StorageType::File, ..Default::default() };
    let root = &records.root;
    let letters = stream::Config {
        name: records.dead_letters.clone(),
        subjects: vec![format!("{root}dlq.>")],
        discard: stream::DiscardPolicy::New,
        // Full, it refuses, and what cannot become a letter stays unacknowledged.
        max_bytes: LETTERS_BYTES,
        deny_delete: true,
        deny_purge: true,
        ..file()
    };
    let replays = stream::Config {
        name: records.replays.clone(),
        subjects: vec![format!("{root}replay.>"), format!("{root}replayed.*")],
        // By then the sender of a replay has read its outcome.
        max_age: 7 * DAY,
        ..file()
    };
    let advisories = stream::Config {
        name: records.advisories.clone(),
        subjects: KINDS.map(|kind| format!("$JS.EVENT.ADVISORY.CONSUMER.{kind}.>")).to_vec(),
        max_age: 30 * DAY,
        // An advisory that names a reply subject must not have the answer sent there; and what is said in it is not ours.
        no_ack: true,
        max_bytes: 1 << 30,
        max_message_size: 64 * 1024,
        ..file()
    };
    for wanted in [letters, replays] {
        stream(js, wanted).await?;
    }
    // Teams with prefixes share it: none takes it from the servers that another has asked for.
    let shared = match js.get_stream(&records.advisories).await {
        Ok(is) => is.cached_info().config.num_replicas.max(replicas),
        Err(_) => replicas,
    };
    stream(js, stream::Config { num_replicas: shared, ..advisories }).await
}

/// Creates a stream. Changes an existing one in its subjects, its replicas and what it refuses; never in its limits, which
/// remove messages. Sets a bound in bytes at which it refuses where there is none, at twice what it holds if that is more;
/// one that somebody has set stays.
///
/// # Errors
/// NATS does not answer, or refuses.
pub async fn stream(js: &jetstream::Context, wanted: stream::Config) -> Result<(), anyhow::Error> {
    let name = wanted.name.clone();
    let opening = || format!("making the stream {name}");
    let stream = js.get_or_create_stream(wanted.clone()).await.with_context(opening)?;
    let is = &stream.cached_info().config;
    let bounds = wanted.discard == stream::DiscardPolicy::New && wanted.max_bytes > 0 && is.max_bytes <= 0;
    let held = i64::try_from(stream.cached_info().state.bytes).unwrap_or(i64::MAX / 2);
    let ours = stream::Config {
        subjects: wanted.subjects,
        num_replicas: wanted.num_replicas,
        discard: wanted.discard,
        no_ack: wanted.no_ack,
        deny_delete: wanted.deny_delete,
        deny_purge: wanted.deny_purge,
        max_bytes: if bounds { wanted.max_bytes.max(2 * held) } else { is.max_bytes },
        ..is.clone()
    };
    if *is != ours {
        warn!(stream = name, ?is, ?ours, "the stream is not as it was asked for: changing it");
        js.update_stream(ours).await.with_context(|| format!("changing the stream {name}"))?;
    }
    Ok(())
}

/// Makes what a consumer pulls by: of its stream, of its replays, and of the advisories about it. `events` and `records`
/// are the accounts of its stream, and of what [`streams`] makes. An older release does not take back the filter of a
/// newer one; the types of both stand beside each other. A new one begins with the stream's first event, or with `from`.
///
/// # Errors
/// NATS does not answer, or refuses.
pub async fn durables(
    events: &jetstream::Context,
    records: &jetstream::Context,
    config: &Config,
    from: Option<u64>,
) -> Result<(), anyhow::Error> {
    let Config { stream, durable, .. } = config;
    let of = open(events, stream).await?;
    let first = of.cached_info().state.first_sequence;
    let begins = (BEGINS_BEHIND.to_owned(), from.unwrap_or(first).saturating_sub(1).to_string());
    let new = pull::Config {
        durable_name: Some(durable.clone()),
        filter_subject: config.filter.clone(),
        deliver_policy: from
            .map_or(DeliverPolicy::All, |start_sequence| DeliverPolicy::ByStartSequence { start_sequence }),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_deliver: -1,
        max_ack_pending: config.most_in_hand(),
        max_expires: MAX_EXPIRES,
        metadata: config.merged(&HashMap::from([begins])),
        ..Default::default()
    };
    let ours = |is: &consumer::Config, wanted: consumer::Config| {
        let newer = config.is_older(is).map(|_| is.filter_subject.clone());
        consumer::Config {
            filter_subject: newer.unwrap_or(wanted.filter_subject),
            metadata: config.merged(&is.metadata),
            ..wanted
        }
    };
    make(&of, new, ours).await?;
    let replays = pull::Config {
        durable_name: Some(durable.clone()),
        filter_subject: config.records.replay(durable, ">"),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_deliver: -1,
        max_ack_pending: i64::try_from(config.mode.pulls()).unwrap_or(i64::MAX),
        max_expires: MAX_EXPIRES,
        ..Default::default()
    };
    self::durable(records, &config.records.replays, replays).await?;
    let given_up = pull::Config {
        durable_name: Some(RecordStreams::backstop(stream, durable)),
        filter_subjects: KINDS.map(|kind| format!("$JS.EVENT.ADVISORY.CONSUMER.{kind}.{stream}.{durable}")).to_vec(),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_deliver: -1,
        max_ack_pending: MOST_IN_HAND,
        max_expires: MAX_EXPIRES,
        ..Default::default()
    };
    self::durable(records, &config.records.advisories, given_up).await
}

/// Makes what a [`crate::DeadLetterReader`] of this name pulls by.
///
/// # Errors
/// NATS does not answer, or refuses.
pub async fn letter_reader(
    js: &jetstream::Context,
    records: &RecordStreams,
    durable: &str,
) -> Result<(), anyhow::Error> {
    let root = &records.root;
    for (stream, filter) in
        [(&records.dead_letters, format!("{root}dlq.>")), (&records.replays, format!("{root}replayed.*"))]
    {
        let new = pull::Config {
            durable_name: Some(durable.to_owned()),
            filter_subject: filter,
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_deliver: -1,
            max_ack_pending: MOST_IN_HAND,
            max_expires: MAX_EXPIRES,
            ..Default::default()
        };
        self::durable(js, stream, new).await?;
    }
    Ok(())
}

/// Removes what [`durables`] makes.
///
/// # Errors
/// NATS does not answer, or refuses.
pub async fn forget(
    events: &jetstream::Context,
    (js, records): (&jetstream::Context, &RecordStreams),
    (stream, durable): (&str, &str),
) -> Result<(), anyhow::Error> {
    let advisories = RecordStreams::backstop(stream, durable);
    for (js, stream, durable) in
        [(events, stream, durable), (js, records.replays(), durable), (js, records.advisories(), &advisories)]
    {
        let of = js.get_stream(stream).await.with_context(|| format!("opening the stream {stream}"))?;
        match of.delete_consumer(durable).await {
            Ok(_) => {}
            Err(error) if of.consumer_info(durable).await.is_ok() => {
                return Err(error).with_context(|| format!("removing the durable consumer {durable}"));
            }
            // It was not there.
            Err(_) => {}
        }
    }
    Ok(())
}

/// Makes a durable consumer, or changes what differs: what it takes, how long an acknowledgement may take, how many may be
/// unacknowledged. There is no limit to deliveries.
///
/// # Errors
/// It has no name, or NATS does not answer, or refuses.
pub async fn durable(js: &jetstream::Context, stream: &str, wanted: pull::Config) -> Result<(), anyhow::Error> {
    make(&open(js, stream).await?, wanted, |_, wanted| wanted).await
}

async fn open(js: &jetstream::Context, stream: &str) -> Result<stream::Stream, anyhow::Error> {
    js.get_stream(stream).await.with_context(|| format!("opening the stream {stream}"))
}

/// The same; `ours` has the last word about what is asked for.
async fn make(
    stream: &stream::Stream,
    new: pull::Config,
    ours: impl Fn(&consumer::Config, consumer::Config) -> consumer::Config,
) -> Result<(), anyhow::Error> {
    let durable = new.durable_name.as_deref().context("a durable consumer without a name")?;
    let consumer: PullConsumer = stream
        .get_or_create_consumer(durable, new.clone())
        .await
        .with_context(|| format!("making the durable consumer {durable}"))?;
    let is = &consumer.cached_info().config;
    let wanted = consumer::Config {
        filter_subject: new.filter_subject.clone(),
        filter_subjects: new.filter_subjects.clone(),
        headers_only: false,
        backoff: Vec::new(),
        ack_wait: new.ack_wait,
        // The attempts are counted by the consumer; the server must never give up on its own.
        max_deliver: -1,
        max_ack_pending: new.max_ack_pending,
        max_expires: new.max_expires,
        ..is.clone()
    };
    let ours = ours(is, wanted);
    if *is != ours {
        warn!(consumer = durable, ?is, ?ours, "the durable consumer is not as it was asked for: changing it");
        let changed = stream.update_consumer(ours).await;
        changed.with_context(|| format!("changing the durable consumer {durable}"))?;
    }
    Ok(())
}
