//! The JWTs of nats-server's operator mode: claims, version 2, signed by nkeys. The format is that of the Go package
//! `github.com/nats-io/jwt/v2`; of its claims only what the fleet uses is here.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use nkeys::KeyPair;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::supervisor::now;

/// What an account exports to holders of a token of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Requests, each answered once.
    Answer,
    /// Requests, each answered by several messages.
    Answers,
    /// Messages.
    Messages,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Answer | Self::Answers => "service",
            Self::Messages => "stream",
        }
    }
}

/// The limits of an account; -1 is no limit.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub connections: i64,
    /// Of each connection.
    pub subscriptions: i64,
    pub max_payload: i64,
    /// Bytes of its streams on disk, and how many streams; 0 without JetStream.
    pub disk: i64,
    pub memory: i64,
    pub streams: i64,
    pub consumers: i64,
    /// The server refuses users whose JWT was signed then or before, in seconds since 1970.
    pub revoked: Option<i64>,
}

/// An import: what another account exports, under the same name.
pub struct Import {
    pub owner: String,
    pub subject: String,
    pub kind: Kind,
    /// Signed by the owner's key: who may import exactly this.
    pub token: String,
}

/// The time in the operator's JWT, in seconds since 1970.
const FOUNDED: i64 = 1_764_201_600;

pub fn operator(key: &KeyPair, system: &KeyPair) -> Result<String, anyhow::Error> {
    let nats = json!({"type": "operator", "version": 2, "system_account": system.public_key()});
    // The same each time: a server whose operator's text has changed reloads nothing, not even a certificate.
    sign_at(key, &key.public_key(), "flotilla", (FOUNDED, None), nats)
}

/// An export that nobody imports without a token.
pub fn export(subject: &str, kind: Kind) -> Value {
    let mut export = json!({"name": subject, "subject": subject, "type": kind.name(), "token_req": true});
    // The server drops a request without an answer after this; for a pull that is longer than any of ours waits.
    let seconds = match kind {
        Kind::Answer if subject.starts_with("$JS.") => 10,
        Kind::Answer => 30,
        Kind::Answers => 90,
        Kind::Messages => return export,
    };
    export["response_type"] = (if kind == Kind::Answers { "Stream" } else { "Singleton" }).into();
    export["response_threshold"] = (seconds * 1_000_000_000_u64).into();
    export
}

pub fn account(
    operator: &KeyPair,
    key: &KeyPair,
    name: &str,
    limits: Limits,
    exports: &[Value],
    imports: &[Import],
) -> Result<String, anyhow::Error> {
    let import = |import: &Import| {
        json!({
            "name": format!("{} {}", import.owner, import.subject), "subject": import.subject, "account": import.owner,
            "token": import.token, "type": import.kind.name(),
        })
    };
    let imports: Vec<Value> = imports.iter().map(import).collect();
    let mut nats = json!({
        "type": "account", "version": 2, "exports": exports, "imports": imports, "default_permissions": {}, "authorization": {},
        "limits": {
            "subs": limits.subscriptions, "data": -1, "payload": limits.max_payload,
            "imports": -1, "exports": -1, "wildcards": true, "conn": limits.connections, "leaf": 0,
            "mem_storage": limits.memory, "disk_storage": limits.disk, "streams": limits.streams,
            "consumer": limits.consumers, "max_ack_pending": -1,
        },
    });
    if let Some(revoked) = limits.revoked {
        nats["revocations"] = json!({"*": revoked});
    }
    sign(operator, &key.public_key(), name, None, nats)
}

/// The token that lets an account import exactly this from an owner.
pub fn activation(owner: &KeyPair, importer: &KeyPair, subject: &str, kind: Kind) -> Result<String, anyhow::Error> {
    let nats = json!({"type": "activation", "version": 2, "subject": subject, "kind": kind.name()});
    sign(owner, &importer.public_key(), subject, None, nats)
}

pub fn user(
    account: &KeyPair,
    key: &KeyPair,
    name: &str,
    (publish, subscribe): (&[String], &[String]),
    times: (i64, Option<DateTime<Utc>>),
) -> Result<String, anyhow::Error> {
    let nats = json!({
        "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1,
        "pub": {"allow": publish}, "sub": {"allow": subscribe},
    });
    sign_at(account, &key.public_key(), name, times, nats)
}

/// When the JWT of these credentials was signed, in seconds since 1970.
pub fn issued(credentials: &str) -> Option<i64> {
    claims_of(credentials)?["iat"].as_i64()
}

/// Whether the JWT of these credentials is of this key.
pub fn is_of(credentials: &str, key: &KeyPair) -> bool {
    claims_of(credentials).is_some_and(|claims| claims["sub"] == key.public_key())
}

fn claims_of(credentials: &str) -> Option<Value> {
    let jwt = credentials.lines().nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1)?).ok()?).ok()
}

/// A client's credentials: the JWT and the seed of its key.
pub fn credentials(jwt: &str, key: &KeyPair) -> Result<String, anyhow::Error> {
    let seed = key.seed()?;
    Ok(format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    ))
}

/// Asks the server to forget accounts, as the operator.
pub fn removal(operator: &KeyPair, accounts: &[String]) -> Result<String, anyhow::Error> {
    sign(
        operator,
        &operator.public_key(),
        "removal",
        None,
        json!({"accounts": accounts, "type": "generic", "version": 2}),
    )
}

fn sign(
    issuer: &KeyPair,
    subject: &str,
    name: &str,
    expires: Option<DateTime<Utc>>,
    nats: Value,
) -> Result<String, anyhow::Error> {
    sign_at(issuer, subject, name, (now().timestamp(), expires), nats)
}

fn sign_at(
    issuer: &KeyPair,
    subject: &str,
    name: &str,
    (at, expires): (i64, Option<DateTime<Utc>>),
    nats: Value,
) -> Result<String, anyhow::Error> {
    let mut claims = json!({"iat": at, "iss": issuer.public_key(), "name": name, "sub": subject, "nats": nats});
    if let Some(expires) = expires {
        claims["exp"] = expires.timestamp().into();
    }
    let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, claims.to_string().as_bytes());
    claims["jti"] = id.simple().to_string().into();
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({"typ": "JWT", "alg": "ed25519-nkey"})), part(&claims));
    let signature = issuer.sign(signed.as_bytes())?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}
