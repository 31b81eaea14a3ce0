//! The fleet's table: the producer of each stream, the durable consumers of each service, and the permissions of each NATS login.
//! Accounts, streams and durable consumers are made from it, and services take their own configuration from it.
//!
//! A producing service's account owns its stream. Dead letters, replays, audit and advisories are in the account RECORDS, to
//! which no service logs in. An account either owns streams or reads those of others, never both: a reply subject is
//! resolved in the requester's account, so what an account cannot do, no reply does for it (ADR 9).

mod durables;
mod services;
mod variables;

use std::time::Duration;

use consumer::{Config, RecordStreams};
use contracts::events::identity;
use contracts::{TenantId, subject};
use outbox::StreamSpec;

pub use durables::{Durable, PROJECTION, REBUILD};
pub use services::{Database, SERVICES, Service, durable, named, producers, upstreams};
pub use variables::{REDIS_URL, SERVICE_KEYS, SIGNING_KEYS, Surroundings, shared};

/// The account of dead letters, replays, audit and advisories.
pub const RECORDS: &str = "RECORDS";
/// The streams of that account.
pub const RECORD_STREAMS: [&str; 4] = ["DLQ", "REPLAY", "AUDIT", "ADVISORIES"];
/// The search projector, and its durable consumer that fills the index that is searched.
pub const PROJECTOR: &str = "search-projector";
/// The durable consumer that fills an index that is being rebuilt.
pub const REBUILDER: &str = "search-projector-rebuild";
/// The login and the durable consumers that keep dead letters.
pub const OPERATIONS: &str = "operations";

/// How long a stream keeps an event, unless a deployment says otherwise.
pub const STREAM_DAYS: u64 = 30;

/// A login, in an account of its own, with all its permissions.
#[derive(Debug, Clone, Default)]
pub struct Login {
    /// Its name.
    pub name: String,
    /// Subjects that streams take.
    pub publishes: Vec<String>,
    /// Streams whose messages it reads one by one, its own or others'.
    pub reads: Vec<String>,
    /// Services whose events it watches: it reads many messages of their streams at once, and hears what is stored.
    pub watches: Vec<String>,
    /// Streams that it only queries for information.
    pub asks: Vec<String>,
    /// Streams of which it queries all durable consumers for information.
    pub asks_consumers: Vec<String>,
    /// Durable consumers that it pulls from: the stream and the name.
    pub pulls: Vec<(String, String)>,
    /// Durable consumers among them that it resets to an earlier sequence.
    pub takes_back: Vec<(String, String)>,
    /// Subjects that never leave its account, published and subscribed.
    pub local: Vec<String>,
}

/// A request of a login to the account that owns a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The account that answers.
    pub owner: String,
    /// The subject, the same on both sides.
    pub subject: String,
    /// Whether the answer is several messages.
    pub stream: bool,
}

impl Login {
    /// Its account: for an owner that of its streams, otherwise one of its own. No two logins but an owner's and its administration's
    /// share one.
    #[must_use]
    pub fn account(&self) -> String {
        if self.owns() { account(&self.name) } else { self.name.clone() }
    }

    /// Whether its account owns a stream.
    #[must_use]
    pub fn owns(&self) -> bool {
        producers().contains(&self.name.as_str())
    }

    /// The messages that it hears, each with the account that publishes them.
    #[must_use]
    pub fn heard(&self) -> Vec<(String, String)> {
        self.watches.iter().map(|service| (account(service), subject::live(service))).collect()
    }

    /// All requests that it may make, to its own account and to others: this is the authority.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        let mut all: Vec<Asked> = Vec::new();
        let mut add = |stream: &str, subject: String, several: bool| {
            let asked = Asked { owner: owner(stream), subject: format!("$JS.{subject}"), stream: several };
            if !all.contains(&asked) {
                all.push(asked);
            }
        };
        for stream in &self.reads {
            add(stream, format!("API.STREAM.INFO.{stream}"), false);
            add(stream, format!("API.STREAM.MSG.GET.{stream}"), false);
        }
        for service in &self.watches {
            let stream = subject::stream(service);
            add(&stream, format!("API.DIRECT.GET.{stream}"), true);
        }
        for stream in &self.asks {
            add(stream, format!("API.STREAM.INFO.{stream}"), false);
        }
        for stream in &self.asks_consumers {
            add(stream, format!("API.CONSUMER.INFO.{stream}.*"), false);
        }
        for (stream, durable) in &self.pulls {
            if !self.asks_consumers.contains(stream) {
                add(stream, format!("API.CONSUMER.INFO.{stream}.{durable}"), false);
            }
            add(stream, format!("API.CONSUMER.MSG.NEXT.{stream}.{durable}"), true);
            add(stream, format!("ACK.{stream}.{durable}.>"), false);
        }
        for (stream, durable) in &self.takes_back {
            add(stream, format!("API.CONSUMER.RESET.{stream}.{durable}"), false);
        }
        for subject in &self.publishes {
            let service = subject.strip_prefix("evt.").and_then(|rest| rest.split('.').next());
            let owner = service.map_or_else(|| RECORDS.to_owned(), account);
            all.push(Asked { owner, subject: subject.clone(), stream: false });
        }
        all
    }
}

/// The account of a producing service.
#[must_use]
pub fn account(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_")
}

/// The account that owns a stream.
#[must_use]
pub fn owner(stream: &str) -> String {
    stream.strip_prefix("EVENTS_").unwrap_or(RECORDS).to_owned()
}

/// The accounts that own streams.
#[must_use]
pub fn owners() -> Vec<String> {
    producers().into_iter().map(account).chain([RECORDS.to_owned()]).collect()
}

/// The stream of a producing service.
#[must_use]
pub fn stream(service: &str, max_age: Duration, replicas: usize) -> StreamSpec {
    StreamSpec {
        name: subject::stream(service),
        subjects: vec![subject::all(service)],
        max_age,
        replicas,
        live: Some(subject::LIVE.to_owned()),
    }
}

/// The login by which a producing service reads: an account owns streams or reads, never both.
#[must_use]
pub fn consumer_login(service: &str) -> String {
    format!("{service}-consumer")
}

/// Every durable consumer that a service of the fleet always has, as this release asks for it.
#[must_use]
pub fn consumers() -> Vec<Config> {
    services::durables().filter(|durable| !durable.on_demand).map(|durable| durable.config(String::new())).collect()
}

/// A producing service: its own stream, and the hints between its processes. It has no consumer of its own stream and does
/// not fetch from it: an answer of its own making, sent to a subject of JetStream's, would be obeyed there.
#[must_use]
pub fn producer(service: &str) -> Login {
    Login {
        name: service.to_owned(),
        publishes: vec![subject::all(service)],
        reads: vec![subject::stream(service)],
        local: vec![format!("hint.outbox.{service}")],
        ..Login::default()
    }
}

/// A consumer: the durable consumers of each of these configurations, its dead letters, and the outcomes of its replays.
#[must_use]
pub fn reader(name: &str, durables: &[(&str, &str)]) -> Login {
    let owned = |stream: &str, durable: &str| (stream.to_owned(), durable.to_owned());
    let streams = || durables.iter().map(|(stream, _)| (*stream).to_owned());
    Login {
        name: name.to_owned(),
        publishes: durables
            .iter()
            .flat_map(|(_, durable)| [format!("dlq.{durable}.>"), format!("replayed.{durable}")])
            .collect(),
        reads: streams().collect(),
        asks: RECORD_STREAMS.iter().filter(|stream| **stream != "AUDIT").map(|&stream| stream.to_owned()).collect(),
        pulls: durables
            .iter()
            .flat_map(|(stream, durable)| {
                let backstop = RecordStreams::backstop(stream, durable);
                [owned(stream, durable), owned("REPLAY", durable), owned("ADVISORIES", &backstop)]
            })
            .collect(),
        takes_back: durables
            .iter()
            .flat_map(|(stream, durable)| [owned(stream, durable), owned("REPLAY", durable)])
            .collect(),
        ..Login::default()
    }
}

/// Every service's login.
#[must_use]
pub fn logins() -> Vec<Login> {
    let kept = |stream: &str| (stream.to_owned(), OPERATIONS.to_owned());
    let operations = Login {
        name: OPERATIONS.to_owned(),
        publishes: vec!["replay.>".to_owned(), "audit.>".to_owned()],
        // It replays a range of a stream from there, and queries how far a replay is.
        reads: producers().into_iter().map(subject::stream).chain(["REPLAY".to_owned()]).collect(),
        asks: vec!["DLQ".to_owned()],
        asks_consumers: vec!["REPLAY".to_owned()],
        pulls: vec![kept("DLQ"), kept("REPLAY")],
        // It reads letters again that a restored database has lost.
        takes_back: vec![kept("DLQ")],
        ..Login::default()
    };
    let mut logins: Vec<Login> = producers().into_iter().map(producer).collect();
    for service in SERVICES {
        let Some(login) = service.reads_as() else { continue };
        let durables: Vec<_> =
            service.durables.iter().map(|durable| (subject::stream(durable.of), durable.name)).collect();
        let durables: Vec<_> = durables.iter().map(|(stream, durable)| (stream.as_str(), *durable)).collect();
        let mut login = reader(&login, &durables);
        let identitys = subject::stream(identity::SERVICE);
        // Whoever takes calls follows what identity takes away.
        if !service.serves.is_empty() && !login.reads.contains(&identitys) {
            login.reads.push(identitys);
        }
        if service.watched {
            let own = subject::stream(service.name);
            if !login.reads.contains(&own) {
                login.reads.push(own);
            }
            login.watches.push(service.name.to_owned());
        }
        logins.push(login);
    }
    logins.push(operations);
    logins
}

/// The login of an event consumer that is no service of the fleet: one durable consumer with one tenant's events, and
/// no information about its stream.
#[must_use]
pub fn team(name: &str, tenant: &TenantId, service: &str) -> Login {
    Login {
        name: team_durable(name, tenant),
        pulls: vec![(subject::stream(service), team_durable(name, tenant))],
        ..Login::default()
    }
}

/// The durable consumer of [`team`], and the name of its login. Neither a tenant nor a name contains the line between them.
#[must_use]
pub fn team_durable(name: &str, tenant: &TenantId) -> String {
    format!("team-{tenant}_{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_producers_login_can_neither_fetch_from_its_own_stream_nor_have_a_consumer_of_it() {
        for login in logins().iter().filter(|login| login.owns()) {
            for asked in login.asked() {
                assert!(asked.owner == login.account(), "an owner reads no one else's stream: {asked:?}");
                let fetches = ["DIRECT.GET", "MSG.NEXT", ".CONSUMER.", "$JS.ACK"];
                assert!(!fetches.iter().any(|word| asked.subject.contains(word)), "{asked:?}");
            }
        }
    }

    #[test]
    fn whoever_takes_calls_reads_what_identity_takes_away() {
        let identitys = subject::stream(identity::SERVICE);
        for service in SERVICES.iter().filter(|service| !service.serves.is_empty()) {
            let mine = [service.name.to_owned(), consumer_login(service.name)];
            let reads = logins().iter().any(|login| mine.contains(&login.name) && login.reads.contains(&identitys));
            assert!(reads, "{}: a durable consumer gives it the login", service.name);
        }
    }

    #[test]
    fn no_two_programs_share_an_account() {
        let of = |tenant: &str, name: &str| team(name, &tenant.parse().expect("a tenant"), "todo");
        let all = [of("acme", "corp-x"), of("acme-corp", "x"), of("acme-corp-x", "y"), of("acme", "corp-x-y")];
        for (number, one) in all.iter().enumerate() {
            assert!(all[..number].iter().all(|other| other.account() != one.account() && other.name != one.name));
        }
    }

    #[test]
    fn nobody_makes_changes_or_removes_a_stream_or_a_consumer() {
        let team = team("reporting", &"acme".parse().expect("a tenant"), "todo");
        for asked in logins().iter().chain([&team]).flat_map(Login::asked) {
            let words = ["CREATE", "UPDATE", "DELETE", "PURGE", "PAUSE", "SNAPSHOT", "RESTORE", "STEPDOWN", "REMOVE"];
            assert!(!words.iter().any(|word| asked.subject.contains(word)), "{asked:?}");
        }
        assert!(
            team.asked().iter().all(|asked| !asked.subject.contains("API.STREAM.")),
            "it learns nothing of streams"
        );
    }
}
