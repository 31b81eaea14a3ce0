//! The accounts of nats-server, generated from the fleet's table: keys that are made once, JWTs that are made again at each
//! start, and a credentials file for each login.

use std::fs;
use std::path::Path;

use fleet::{Login, RECORDS};
use nkeys::{KeyPair, KeyPairType};
use serde_json::Value;

use super::claims::{self, Import, Kind, Limits};
use super::keys::{credentials_file, forget_user, key, retire, retiring, revoked, user_key};
use super::team;
use crate::stack_dir::{StackDir, write_secret};
use crate::supervisor::now;

/// Offers the same as JetStream's totals, and nothing is behind it. An account without JetStream that does not take that
/// from somewhere hears the server answer twice, and first that JetStream is not enabled.
const EMPTY: &str = "EMPTY";
const TOTALS: &str = "$JS.API.INFO";
/// What owners export of their streams; an importer needs a token for exactly that export.
const OFFERED: [(&str, Kind); 7] = [
    ("$JS.API.STREAM.INFO.*", Kind::Answer),
    ("$JS.API.STREAM.MSG.GET.*", Kind::Answer),
    ("$JS.API.DIRECT.GET.*", Kind::Answers),
    ("$JS.API.CONSUMER.INFO.*.*", Kind::Answer),
    ("$JS.API.CONSUMER.RESET.*.*", Kind::Answer),
    ("$JS.API.CONSUMER.MSG.NEXT.*.*", Kind::Answers),
    ("$JS.ACK.*.*.>", Kind::Answer),
];
const RECORDED: [&str; 4] = ["dlq.>", "replay.>", "replayed.*", "audit.>"];

const GIB: i64 = 1 << 30;
const MIB: i64 = 1 << 20;
/// The limits of an owner of streams.
const OWNER: Limits = Limits {
    connections: 100,
    subscriptions: 1_000,
    max_payload: MIB,
    disk: 16 * GIB,
    memory: 64 * MIB,
    streams: 16,
    consumers: 1_000,
    revoked: None,
};
/// The limits of a reader.
const READER: Limits =
    Limits { connections: 20, subscriptions: 200, disk: 0, memory: 0, streams: 0, consumers: 0, ..OWNER };
/// The limits of the system account: its only client is the administration.
const SYSTEM: Limits = Limits { connections: -1, subscriptions: -1, max_payload: -1, ..READER };
/// The server's limit on disk; it exceeds all owners' together, so that none takes another's share.
#[must_use]
pub fn max_file() -> i64 {
    (i64::try_from(fleet::owners().len()).unwrap_or(0) + 1) * OWNER.disk
}

/// The keys and JWTs that nats-server starts with.
pub struct Accounts {
    operator: String,
    /// The system account's key and JWT.
    system: (String, String),
    /// Each account's key and JWT.
    all: Vec<(String, String)>,
}

/// The login of the administration in the account of an owner.
#[must_use]
pub fn administration(owner: &str) -> String {
    format!("{}-admin", owner.to_ascii_lowercase().replace('_', "-"))
}

/// Makes the JWTs of all accounts, and the credentials of all logins; `more` are logins beside those of the table.
///
/// # Errors
/// A key cannot be read, or a file cannot be written.
pub fn make(home: &StackDir, more: &[Login]) -> Result<Accounts, anyhow::Error> {
    let operator = key(home, KeyPairType::Operator, "operator")?;
    let system = key(home, KeyPairType::Account, "SYS")?;
    let (mut all, revoked) = (Vec::new(), revoked(home)?);
    let empty = key(home, KeyPairType::Account, EMPTY)?;
    let offered = [claims::export(TOTALS, Kind::Answer)];
    all.push((empty.public_key(), claims::account(&operator, &empty, EMPTY, READER, &offered, &[])?));
    let logins: Vec<Login> = fleet::logins().iter().chain(more).cloned().collect();
    for owner in fleet::owners() {
        all.push(make_owner(home, &operator, &owner, (&logins, revoked))?);
    }
    for login in &logins {
        if !login.owns() {
            all.push(make_reader(home, &operator, login, revoked)?);
        }
        make_login(home, login)?;
    }
    for team in team::all(home)? {
        // Its one credential is revoked by itself.
        all.push(make_reader(home, &operator, &team.login(), None)?);
    }
    let system_jwt = claims::account(&operator, &system, "SYS", Limits { revoked, ..SYSTEM }, &[], &[])?;
    make_user(home, &system, "sys", (&[">".to_owned()], &[">".to_owned()]))?;
    Ok(Accounts { operator: claims::operator(&operator, &system)?, system: (system.public_key(), system_jwt), all })
}

/// The same logins with the same permissions, the administration's too, in one account.
pub fn make_in_one(home: &StackDir) -> Result<Accounts, anyhow::Error> {
    let made = make(home, &[])?;
    let operator = key(home, KeyPairType::Operator, "operator")?;
    let one = key(home, KeyPairType::Account, "ONE")?;
    for login in fleet::logins() {
        let (publish, subscribe) = permissions(&login);
        make_user(home, &one, &login.name, (&publish, &subscribe))?;
    }
    let all = [">".to_owned()];
    for owner in fleet::owners() {
        make_user(home, &one, &administration(&owner), (&all, &all))?;
    }
    let jwt = claims::account(&operator, &one, "ONE", OWNER, &[], &[])?;
    Ok(Accounts { all: vec![(one.public_key(), jwt)], ..made })
}

fn make_owner(
    home: &StackDir,
    operator: &KeyPair,
    owner: &str,
    (logins, revoked): (&[Login], Option<i64>),
) -> Result<(String, String), anyhow::Error> {
    let account = key(home, KeyPairType::Account, owner)?;
    let mut exports: Vec<Value> = OFFERED.iter().map(|(subject, kind)| claims::export(subject, *kind)).collect();
    let mut imports = Vec::new();
    if owner == RECORDS {
        exports.extend(RECORDED.map(|subject| claims::export(subject, Kind::Answer)));
        // For services alone: a program could publish anything about its own durable consumer.
        for (stream, durable) in logins.iter().flat_map(|login| &login.pulls) {
            let producer = fleet::owner(stream);
            for subject in advisories(stream, durable).into_iter().filter(|_| producer != RECORDS) {
                imports.push(import(home, &producer, &account, subject, Kind::Messages)?);
            }
        }
    } else {
        for producer in fleet::producers().iter().filter(|producer| fleet::account(producer) == owner) {
            let of = advisories(&contracts::subject::stream(producer), "*");
            exports.extend(of.map(|subject| claims::export(&subject, Kind::Messages)));
            exports.push(claims::export(&contracts::subject::live(producer), Kind::Messages));
        }
    }
    let all = [">".to_owned()];
    make_user(home, &account, &administration(owner), (&all, &all))?;
    let jwt = claims::account(operator, &account, owner, Limits { revoked, ..OWNER }, &exports, &imports)?;
    Ok((account.public_key(), jwt))
}

/// What JetStream publishes about a durable consumer of an owner's stream. The subject holds the stream's name, so that no owner
/// publishes about another's.
fn advisories(stream: &str, durable: &str) -> [String; 2] {
    ["MAX_DELIVERIES", "MSG_TERMINATED"].map(|kind| format!("$JS.EVENT.ADVISORY.CONSUMER.{kind}.{stream}.{durable}"))
}

/// The JWT of an account that only reads others' streams.
pub fn make_reader(
    home: &StackDir,
    operator: &KeyPair,
    login: &Login,
    revoked: Option<i64>,
) -> Result<(String, String), anyhow::Error> {
    let account = key(home, KeyPairType::Account, &login.account())?;
    let mut imports = vec![import(home, EMPTY, &account, TOTALS.to_owned(), Kind::Answer)?];
    for asked in login.asked() {
        let kind = if asked.stream { Kind::Answers } else { Kind::Answer };
        imports.push(import(home, &asked.owner, &account, asked.subject, kind)?);
    }
    for (owner, subject) in login.heard() {
        imports.push(import(home, &owner, &account, subject, Kind::Messages)?);
    }
    let limits = Limits { revoked, ..READER };
    let jwt = claims::account(operator, &account, &login.account(), limits, &[], &imports)?;
    Ok((account.public_key(), jwt))
}

fn import(home: &StackDir, owner: &str, to: &KeyPair, subject: String, kind: Kind) -> Result<Import, anyhow::Error> {
    let owner = key(home, KeyPairType::Account, owner)?;
    let token = claims::activation(&owner, to, &subject, kind)?;
    Ok(Import { owner: owner.public_key(), subject, kind, token })
}

/// What a login may publish and subscribe.
pub fn permissions(login: &Login) -> (Vec<String>, Vec<String>) {
    let mut publish: Vec<String> = login.asked().into_iter().map(|asked| asked.subject).collect();
    let mut subscribe = vec![format!("_INBOX_{}.>", login.name)];
    if !login.owns() {
        // Its account has no other login; an owner's also has the administration.
        publish.push(TOTALS.to_owned());
        subscribe.push("_INBOX.>".to_owned());
    }
    subscribe.extend(login.heard().into_iter().map(|(_, subject)| subject));
    publish.extend(login.local.iter().cloned());
    subscribe.extend(login.local.iter().cloned());
    (publish, subscribe)
}

fn make_login(home: &StackDir, login: &Login) -> Result<(), anyhow::Error> {
    let account = key(home, KeyPairType::Account, &login.account())?;
    let (publish, subscribe) = permissions(login);
    make_user(home, &account, &login.name, (&publish, &subscribe))
}

/// Draws a new key for each login of the table, and for the administration's; writes their credentials. The server takes both the new ones and
/// those before until [`revoke`](super::keys::revoke).
///
/// # Errors
/// A file cannot be read or written.
pub fn renew(home: &StackDir) -> Result<(), anyhow::Error> {
    // What is staged stays: somebody may have it already.
    if retiring(home)?.is_none() {
        let administrations = fleet::owners().into_iter().map(|owner| administration(&owner));
        let logins = fleet::logins().into_iter().map(|login| login.name);
        let logins: Vec<_> = logins.chain(administrations).chain(["sys".to_owned()]).collect();
        let before = logins.iter().filter_map(|login| fs::read_to_string(credentials_file(home, login)).ok());
        let newest = before.filter_map(|before| claims::issued(&before)).max().unwrap_or_default();
        // Also of a clock that was put back since.
        retire(home, now().timestamp().max(newest).max(revoked(home)?.unwrap_or_default()))?;
        for login in &logins {
            forget_user(home, login)?;
        }
    }
    make(home, &[]).map(drop)
}

fn make_user(
    home: &StackDir,
    account: &KeyPair,
    name: &str,
    permissions: (&[String], &[String]),
) -> Result<(), anyhow::Error> {
    let user = key(home, KeyPairType::User, &user_key(name))?;
    let file = credentials_file(home, name);
    // Up to when they are revoked, or will be.
    let revoked = revoked(home)?.max(retiring(home)?).unwrap_or_default();
    // The same text for the same rights: clients connect anew when it changes.
    let before = fs::read_to_string(&file).ok().filter(|before| claims::is_of(before, &user));
    let issued = before.as_deref().and_then(claims::issued).filter(|issued| *issued > revoked);
    let issued = issued.unwrap_or_else(|| now().timestamp().max(revoked + 1));
    let jwt = claims::user(account, &user, name, permissions, (issued, None))?;
    write_secret(&file, claims::credentials(&jwt, &user)?.as_bytes())
}

impl Accounts {
    /// The part of a server's configuration that names the operator and the system account, with the resolver's folder on the server.
    #[must_use]
    pub fn operator_mode(&self, resolver: &Path) -> String {
        let (system, jwt) = &self.system;
        format!(
            "operator: {}\nsystem_account: {system}\n\
             resolver {{ type: full, dir: \"{}\", allow_delete: true, interval: \"2m\" }}\n\
             resolver_preload {{ {system}: {jwt} }}\n",
            self.operator,
            resolver.display()
        )
    }

    /// The JWT of each account, for [`push`](super::push); the system's comes last, whose login pushes the others.
    #[must_use]
    pub fn jwts(self) -> Vec<String> {
        self.all.into_iter().chain([self.system]).map(|(_, jwt)| jwt).collect()
    }

    /// Puts the JWTs where the server's resolver finds them; only while the server does not run.
    pub(super) fn write(&self, folder: &Path) -> Result<(), anyhow::Error> {
        fs::create_dir_all(folder)?;
        for entry in fs::read_dir(folder)? {
            fs::remove_file(entry?.path())?;
        }
        for (key, jwt) in self.all.iter().chain([&self.system]) {
            fs::write(folder.join(format!("{key}.jwt")), jwt)?;
        }
        Ok(())
    }
}
