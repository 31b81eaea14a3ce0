//! What identity took away within the life of a token: members and programs that are gone or have another role, and keys. Tokens are verified
//! offline; so each process reads identity's stream by itself, every second, and refuses a token that says what is not true any more.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream;
use async_nats::jetstream::stream::{RawMessageErrorKind, State, Stream};
use authz::{Caller, Issued};
use chrono::{DateTime, TimeDelta, Utc};
use contracts::events::EventType as _;
use contracts::events::identity::{
    ApiKeyRevokedV1, ApiKeyUpdatedV1, MemberAddedV1, MemberRemovedV1, MemberUpdatedV1, SERVICE,
    ServiceAccountDeletedV1, ServiceAccountUpdatedV1,
};
use contracts::{Role, subject};
use futures::{StreamExt as _, stream};
use metrics::gauge;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{error, warn};
use uuid::Uuid;

use crate::failure::{Code, Failure};
use crate::{Process, clock, nats};

/// How many seconds ago what was taken away was known whole.
const AGE: &str = "revocations_age_seconds";
/// How often to look. With the relay's way it is what a change takes until it is known, in seconds.
const LOOKS_EVERY: Duration = Duration::from_secs(1);
/// How many messages are asked for at once: an answer takes a way to NATS, and others publish as fast as they can.
const READS_AHEAD: usize = 64;
/// How long a request may take.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);
/// How long a token of identity's lives: what was not heard of for so long may have been taken away at any time.
const LIFE: Duration = Duration::from_secs(authz::exchange::LIFETIME_SECONDS as u64);
/// How long after its time a change may be committed: a token that was issued meanwhile says what was true before.
const COMMITS_WITHIN: TimeDelta = TimeDelta::seconds(15);
/// How long to remember: no token is older, with room for clocks that differ.
const REMEMBERS: TimeDelta = TimeDelta::seconds(authz::exchange::LIFETIME_SECONDS + 300);

/// How old what is known may be.
#[derive(Debug, Clone, Copy)]
pub struct Ages {
    /// From when on an answer says that it may rest on what was taken away.
    pub degrades: Duration,
    /// From when on no token of identity's is believed.
    pub refuses: Duration,
}

impl Default for Ages {
    fn default() -> Self {
        Self { degrades: Duration::from_secs(30), refuses: LIFE }
    }
}

/// What identity took away lately. Clones share it. One that follows nothing knows nothing, and refuses every token of identity's.
#[derive(Debug, Clone, Default)]
pub struct Revocations {
    known: Arc<RwLock<Known>>,
    ages: Ages,
}

#[derive(Debug, Default)]
struct Known {
    /// By member, service account or key.
    changes: HashMap<Uuid, Change>,
    /// When it was last known whole.
    heard: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Change {
    now: Now,
    time: DateTime<Utc>,
}

/// What a member, a service account or a key is from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Now {
    /// Gone for good: its id is never given again.
    Gone,
    /// Of this role; of none that this release knows.
    Role(Option<Role>),
    /// A key that opens until then.
    Until(DateTime<Utc>),
}

/// How far it has read, in which stream.
#[derive(Default)]
struct Place {
    /// When the stream was made, in microseconds since 1970.
    made: Option<i64>,
    next: u64,
    /// The sequence of the last message that was read, and when it was stored.
    last: Option<(u64, DateTime<Utc>)>,
    /// NATS was away: the stream may be another one now, or an older copy.
    doubted: bool,
}

/// A message of the stream.
struct Stored {
    sequence: u64,
    time: DateTime<Utc>,
    payload: bytes::Bytes,
}

/// An event, as far as it is read here.
#[derive(Deserialize)]
struct Said<'a> {
    #[serde(rename = "type")]
    event_type: &'a str,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// What is read of its data: one of these.
#[derive(Deserialize)]
struct About {
    #[serde(alias = "service_account", alias = "api_key")]
    member: Kept,
}

#[derive(Deserialize)]
struct Kept {
    id: Uuid,
    role: Option<String>,
    expire_time: Option<DateTime<Utc>>,
    update_time: DateTime<Utc>,
}

impl Revocations {
    /// Follows identity's stream until the process stops, by a login that reads it. The process is ready once it has read what there is.
    #[must_use]
    pub fn follow(process: &Process, nats: nats::Client) -> Self {
        Self::follow_within(process, nats, Ages::default())
    }

    /// The same, where what is known may be so old.
    #[must_use]
    pub fn follow_within(process: &Process, nats: nats::Client, ages: Ages) -> Self {
        let revocations = Self { ages, ..Self::default() };
        let follows = revocations.clone();
        process.readiness.set("revocations", false);
        let ready = process.readiness.clone();
        process.lifecycle.run("what identity took away", |stop| async move {
            let stream = jetstream::ContextBuilder::new().timeout(ANSWERS_WITHIN).build(nats);
            let (mut place, mut failing) = (Place::default(), false);
            let mut tick = tokio::time::interval(LOOKS_EVERY);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while stop.run_until_cancelled(tick.tick()).await.is_some() {
                let Some(looked) = stop.run_until_cancelled(follows.look(&stream, &mut place)).await else { break };
                if let Err(error) = &looked
                    && !failing
                {
                    warn!(error = format!("{error:#}"), "what identity took away is not known: looking again");
                }
                failing = looked.is_err();
                place.doubted |= failing;
                if !failing {
                    ready.set("revocations", true);
                }
                gauge!(AGE).set(follows.seconds());
            }
        });
        revocations
    }

    /// Reads what is new.
    async fn look(&self, js: &jetstream::Context, place: &mut Place) -> Result<(), anyhow::Error> {
        let (began, now) = (Instant::now(), clock::now());
        let stream = js.get_stream_no_info(subject::stream(SERVICE)).await?;
        let info = stream.get_info().await.context("asking for identity's stream")?;
        let (made, State { first_sequence, last_sequence, .. }) = (info.created.timestamp_micros(), info.state);
        if place.doubted && place.is_of(&stream).await? {
            place.doubted = false;
        }
        // A stream that was lost begins anew: what there is, is read again.
        if place.doubted || place.made != Some(made) || last_sequence.saturating_add(1) < place.next {
            let next = first_since(&stream, (first_sequence, last_sequence), now - REMEMBERS).await?;
            *place = Place { made: Some(made), next, last: None, doubted: false };
        }
        let ahead = (place.next.max(first_sequence)..=last_sequence).map(|sequence| at(&stream, sequence));
        let mut read = stream::iter(ahead).buffered(READS_AHEAD);
        while let Some(message) = read.next().await {
            let Some(Stored { sequence, time, payload }) = message? else {
                // What was there is removed, and nothing is behind it.
                place.next = last_sequence + 1;
                break;
            };
            // Where some are removed, the one behind them comes for each.
            if sequence < place.next {
                continue;
            }
            if let Err(error) = self.note(&payload) {
                // By a newer release, or broken: the others count.
                error!(%error, sequence, "an event of identity's cannot be read, and may have taken something away");
            }
            (place.next, place.last) = (sequence + 1, Some((sequence, time)));
            // Whatever was stored before is known.
            self.hears(began.checked_sub((now - time).to_std().unwrap_or_default()));
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.changes.retain(|_, change| change.time > now - REMEMBERS);
        drop(known);
        self.hears(Some(began));
        Ok(())
    }

    /// What was taken away until then is known.
    fn hears(&self, until: Option<Instant>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.heard = known.heard.max(until);
        drop(known);
        gauge!(AGE).set(self.seconds());
    }

    fn note(&self, payload: &[u8]) -> Result<(), serde_json::Error> {
        let Said { event_type, data } = serde_json::from_slice(payload)?;
        let is = |types: &[&str]| types.contains(&event_type);
        let goes = is(&[MemberRemovedV1::TYPE, ServiceAccountDeletedV1::TYPE, ApiKeyRevokedV1::TYPE]);
        if !goes
            && !is(&[MemberAddedV1::TYPE, MemberUpdatedV1::TYPE, ServiceAccountUpdatedV1::TYPE, ApiKeyUpdatedV1::TYPE])
        {
            return Ok(());
        }
        let About { member: Kept { id, role, expire_time, update_time: time } } = serde_json::from_str(data.get())?;
        let now = match (goes, expire_time) {
            (true, _) => Now::Gone,
            (false, Some(until)) => Now::Until(until),
            (false, None) => Now::Role(role.and_then(|role| role.parse().ok())),
        };
        let change = Change { now, time };
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let newest = known.changes.entry(id).or_insert(change);
        if newest.now != Now::Gone && (now == Now::Gone || newest.time <= time) {
            *newest = change;
        }
        Ok(())
    }

    /// How many seconds ago it was known whole; infinity before it ever was.
    fn seconds(&self) -> f64 {
        let heard = self.known.read().unwrap_or_else(PoisonError::into_inner).heard;
        heard.map_or(f64::INFINITY, |heard| heard.elapsed().as_secs_f64())
    }

    /// Refuses a caller whose token says what is not true any more. A token that does not say what it was issued for is not identity's, and
    /// not looked at. Returns whether the answer rests on what may be taken away by now.
    ///
    /// # Errors
    /// TOKEN_REVOKED; `REVOCATIONS_UNKNOWN` where nothing was heard for as long as a token lives.
    pub fn check(&self, caller: &Caller) -> Result<bool, Failure> {
        let Some(Issued { unix_seconds, sources, task: _ }) = caller.issued.as_deref() else { return Ok(false) };
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let age = known.heard.map(|heard| heard.elapsed()).filter(|age| *age < self.ages.refuses);
        let Some(age) = age else {
            let what =
                "what was taken away from whom is not known here for the moment, so no token is believed: try again";
            return Err(Failure::new(Code::Unavailable, "REVOCATIONS_UNKNOWN", what).retry_after(LOOKS_EVERY));
        };
        let voids = |Change { now, time }: &Change| match now {
            Now::Gone => true,
            Now::Until(until) => clock::now() >= *until,
            // One that is issued afterwards says the new role, or a newer one that is not known here yet.
            Now::Role(role) => *role != caller.role && *unix_seconds <= (*time + COMMITS_WITHIN).timestamp(),
        };
        if sources.iter().filter_map(|source| known.changes.get(source)).any(voids) {
            let what =
                "this token was revoked: its holder has another role now, or none; exchange the credential again";
            return Err(Failure::new(Code::Unauthenticated, "TOKEN_REVOKED", what));
        }
        Ok(age > self.ages.degrades)
    }
}

impl Place {
    /// Whether the last message that was read is in this stream.
    async fn is_of(&self, stream: &Stream<()>) -> Result<bool, anyhow::Error> {
        let Some((sequence, time)) = self.last else { return Ok(false) };
        Ok(at(stream, sequence).await?.is_some_and(|message| (message.sequence, message.time) == (sequence, time)))
    }
}

/// The message at this sequence or behind it.
async fn at(stream: &Stream<()>, sequence: u64) -> Result<Option<Stored>, anyhow::Error> {
    match stream.get_first_raw_message_by_subject(subject::all(SERVICE), sequence).await {
        Ok(message) => Ok(Some(Stored { sequence: message.sequence, time: message.time, payload: message.payload })),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error).context("reading identity's stream"),
    }
}

/// The first sequence whose message was stored since then: by halves, since messages are stored in time.
async fn first_since(
    stream: &Stream<()>,
    (first, last): (u64, u64),
    since: DateTime<Utc>,
) -> Result<u64, anyhow::Error> {
    let (mut low, mut high) = (first, last.saturating_add(1));
    while low < high {
        let middle = low + (high - low) / 2;
        match at(stream, middle).await? {
            Some(Stored { sequence, time, .. }) if time < since => low = sequence + 1,
            Some(_) | None => high = middle,
        }
    }
    Ok(low)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ID: Uuid = Uuid::from_u128(7);

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_000_000 + seconds, 0).unwrap()
    }

    fn event(event_type: &str, about: &str, role: Option<&str>, seconds: i64) -> Vec<u8> {
        let data = json!({about: {"id": ID, "role": role, "update_time": at(seconds), "name": "whatever"}});
        json!({"type": event_type, "data": data, "more": 1}).to_string().into_bytes()
    }

    fn caller(role: Role, issued: i64) -> Caller {
        let issued = Issued { unix_seconds: at(issued).timestamp(), sources: vec![Uuid::nil(), ID], task: None };
        let service = Caller::service("acme".parse().unwrap(), "x".parse().unwrap());
        Caller { role: Some(role), issued: Some(Arc::new(issued)), ..service }
    }

    fn heard(ago: Duration) -> Revocations {
        let revocations = Revocations::default();
        revocations.known.write().unwrap().heard = Instant::now().checked_sub(ago);
        revocations
    }

    fn checked(revocations: &Revocations, caller: &Caller) -> Result<bool, &'static str> {
        revocations.check(caller).map_err(|failure| failure.reason)
    }

    #[tokio::test]
    async fn a_role_that_changed_voids_tokens_that_say_the_old_one_and_were_issued_before() {
        let known = heard(Duration::ZERO);
        known.note(&event("identity.member_updated.v1", "member", Some("viewer"), 100)).unwrap();
        assert_eq!(checked(&known, &caller(Role::Owner, 99)), Err("TOKEN_REVOKED"));
        assert_eq!(checked(&known, &caller(Role::Owner, 110)), Err("TOKEN_REVOKED"), "issued while it was committed");
        assert_eq!(checked(&known, &caller(Role::Owner, 116)), Ok(false), "made owner again, which is not heard yet");
        assert_eq!(checked(&known, &caller(Role::Viewer, 0)), Ok(false));
        // What comes again, or late, changes nothing.
        known.note(&event("identity.member_added.v1", "member", Some("owner"), 50)).unwrap();
        assert_eq!(checked(&known, &caller(Role::Owner, 99)), Err("TOKEN_REVOKED"));
        assert_eq!(checked(&known, &Caller { issued: None, ..caller(Role::Owner, 0) }), Ok(false));
    }

    #[tokio::test]
    async fn what_is_gone_is_gone_for_good() {
        for (gone, about) in [
            ("identity.member_removed.v1", "member"),
            ("identity.service_account_deleted.v1", "service_account"),
            ("identity.api_key_revoked.v1", "api_key"),
        ] {
            let known = heard(Duration::ZERO);
            let role = Some("owner");
            known.note(&event("identity.member_added.v1", about, role, 1)).unwrap();
            assert_eq!(checked(&known, &caller(Role::Owner, 0)), Ok(false), "{about}");
            known.note(&event(gone, about, role, 100)).unwrap();
            known.note(&event("identity.member_updated.v1", about, Some("owner"), 200)).unwrap();
            assert_eq!(checked(&known, &caller(Role::Owner, 300)), Err("TOKEN_REVOKED"), "{about}");
        }
        assert!(heard(Duration::ZERO).note(b"{\"type\": \"identity.member_removed.v1\", \"data\": {}}").is_err());
    }

    #[tokio::test]
    async fn a_key_ends_when_it_is_said_to_and_a_role_that_is_not_known_is_another_one() {
        let key = |until: DateTime<Utc>| {
            let about = json!({"id": ID, "expire_time": until, "update_time": at(0)});
            let known = heard(Duration::ZERO);
            let event = json!({"type": "identity.api_key_updated.v1", "data": {"api_key": about}});
            known.note(event.to_string().as_bytes()).unwrap();
            checked(&known, &caller(Role::Owner, 0))
        };
        assert_eq!(key(clock::now()), Err("TOKEN_REVOKED"), "rotated without an overlap");
        assert_eq!(key(clock::now() + TimeDelta::hours(1)), Ok(false));
        let known = heard(Duration::ZERO);
        known.note(&event("identity.member_updated.v1", "member", Some("steward"), 100)).unwrap();
        assert_eq!(checked(&known, &caller(Role::Owner, 99)), Err("TOKEN_REVOKED"));
    }

    #[tokio::test]
    async fn what_was_not_heard_for_long_degrades_and_then_refuses() {
        let (owner, Ages { degrades, refuses }) = (caller(Role::Owner, 0), Ages::default());
        assert_eq!(checked(&heard(degrades - LOOKS_EVERY), &owner), Ok(false));
        assert_eq!(checked(&heard(degrades + LOOKS_EVERY), &owner), Ok(true));
        assert_eq!(checked(&heard(refuses + LOOKS_EVERY), &owner), Err("REVOCATIONS_UNKNOWN"));
        assert_eq!(checked(&Revocations::default(), &owner), Err("REVOCATIONS_UNKNOWN"));
    }
}
