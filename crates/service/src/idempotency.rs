//! Idempotency keys: the answer of a command is a row in the command's own transaction, so the same key finds it if
//! and only if the command has happened.
//!
//! Rules: draft-ietf-httpapi-idempotency-key-header-07. A key belongs to the caller: per tenant, actor (with the chain it acts for) and
//! method. While the first request runs, a second gets ABORTED. The key with another request gets INVALID_ARGUMENT; after the first
//! request, a repeat gets its answer. Only committed answers are kept, for 24 hours: after an error, a repeat runs again.

use std::time::Duration;

use http::HeaderMap;
use prost::Message;
use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;
use sqlx::migrate::Migrator;

use crate::{Code, Failure, notes, shipped};
use authz::Caller;

/// The metadata entry (HTTP: `Idempotency-Key`).
pub const METADATA: &str = "idempotency-key";

/// A key as the caller sent it: 1 to 255 printable ASCII characters, with or without quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// The key of a request, if present.
    ///
    /// # Errors
    /// INVALID_ARGUMENT when it is malformed.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, Failure> {
        let Some(value) = headers.get(METADATA) else { return Ok(None) };
        let malformed = || {
            Failure::new(
                Code::InvalidArgument,
                "IDEMPOTENCY_KEY_MALFORMED",
                "Idempotency-Key must be 1 to 255 printable ASCII characters, for example a UUID",
            )
        };
        let text = value.to_str().map_err(|_| malformed())?.trim();
        let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
        let printable = text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'"' && b != b'\\');
        ((1..=255).contains(&text.len()) && printable).then(|| Some(Self(text.to_owned()))).ok_or_else(malformed)
    }

    /// The key of a request that must have one.
    ///
    /// # Errors
    /// INVALID_ARGUMENT when it is missing or malformed.
    pub fn required(headers: &HeaderMap) -> Result<Self, Failure> {
        Self::of(headers)?.ok_or_else(|| {
            Failure::new(
                Code::InvalidArgument,
                "IDEMPOTENCY_KEY_REQUIRED",
                "this call needs an Idempotency-Key (a new UUID per intent, the same one for each retry of it)",
            )
        })
    }
}

/// The metadata, and the header, of an answer that repeats an earlier request's with the same key: `true`.
pub const REPLAYED_METADATA: &str = "idempotency-replayed";

#[derive(sqlx::FromRow)]
struct Stored {
    fingerprint: Vec<u8>,
    response: Vec<u8>,
}

/// What a command answers, as it is stored with its key: a message that every release of the service reads.
pub trait StoredResponse: Sized {
    /// The message.
    type Message: Message + Default;

    /// The answer as a message.
    fn to_message(&self) -> Self::Message;

    /// # Errors
    /// The bytes are not a message of this service.
    fn from_message(message: Self::Message) -> Result<Self, Failure>;
}

impl StoredResponse for () {
    type Message = ();

    fn to_message(&self) {}

    fn from_message((): ()) -> Result<Self, Failure> {
        Ok(())
    }
}

/// One use of a key: by this caller, for this method and this exact request.
#[derive(Debug)]
pub struct Attempt {
    tenant: String,
    principal: String,
    method: &'static str,
    key: Key,
    fingerprint: Vec<u8>,
}

impl Attempt {
    /// What is attempted.
    pub fn new(caller: &Caller, method: &'static str, key: Key, request: &impl Message) -> Self {
        let fingerprint = Sha256::digest(request.encode_to_vec()).to_vec();
        Self { tenant: caller.tenant.to_string(), principal: caller.key(), method, key, fingerprint }
    }

    /// Claims the key for this transaction; returns the stored answer, as its bytes, if the command has happened already.
    ///
    /// # Errors
    /// ABORTED while another request with this key runs; INVALID_ARGUMENT when it was used for another request.
    #[tracing::instrument(target = "service::trace", name = "idempotency", skip_all, err(level = "debug"),
        fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT"))]
    pub(crate) async fn claim(&self, tx: &mut PgConnection) -> Result<Option<Vec<u8>>, Failure> {
        let lock = i64::from_be_bytes(self.lock());
        let locked: bool =
            sqlx::query_scalar("select pg_try_advisory_xact_lock($1)").bind(lock).fetch_one(&mut *tx).await?;
        let stored: Option<Stored> = sqlx::query_as(
            "select fingerprint, response from idempotency \
             where tenant = $1 and principal = $2 and method = $3 and key = $4",
        )
        .bind(&self.tenant)
        .bind(&self.principal)
        .bind(self.method)
        .bind(&self.key.0)
        .fetch_optional(&mut *tx)
        .await?;
        match stored {
            Some(stored) if stored.fingerprint != self.fingerprint => Err(Failure::new(
                Code::InvalidArgument,
                "IDEMPOTENCY_KEY_REUSED",
                "this Idempotency-Key was used for another request: use a new key for a new request",
            )),
            Some(stored) => {
                notes::replayed();
                Ok(Some(stored.response))
            }
            None if locked => Ok(None),
            None => Err(Failure::new(
                Code::Aborted,
                "IDEMPOTENCY_KEY_IN_USE",
                "the first request with this Idempotency-Key is still running: try again with the same key",
            )
            .retry_after(Duration::from_secs(1))),
        }
    }

    /// Stores the answer, to be committed with the command.
    ///
    /// # Errors
    /// Fails like any insert.
    #[tracing::instrument(target = "service::trace", name = "store answer", skip_all, err(level = "debug"),
        fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "INSERT"))]
    pub(crate) async fn store(&self, tx: &mut PgConnection, response: Vec<u8>) -> Result<(), sqlx::Error> {
        sqlx::query(
            "insert into idempotency (tenant, principal, method, key, fingerprint, response) values ($1, $2, $3, $4, $5, $6)",
        )
        .bind(&self.tenant)
        .bind(&self.principal)
        .bind(self.method)
        .bind(&self.key.0)
        .bind(&self.fingerprint)
        .bind(response)
        .execute(tx)
        .await
        .map(drop)
    }

    fn lock(&self) -> [u8; 8] {
        let mut hash = Sha256::new();
        for part in [self.tenant.as_str(), self.principal.as_str(), self.method, &self.key.0] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let digest = hash.finalize();
        [digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7]]
    }
}

/// The steps of the table of answers; `{app}` and `{operator}` stand for roles.
const STEPS: [(&str, &str); 5] = [
    ("idempotency", include_str!("../schema/idempotency.sql")),
    ("access", include_str!("../schema/idempotency_access.sql")),
    ("search path", include_str!("../schema/idempotency_search_path.sql")),
    ("sweep", include_str!("../schema/idempotency_sweep.sql")),
    ("access to the sweep", include_str!("../schema/idempotency_sweep_access.sql")),
];

/// Makes the table of answers, for the service's role and its operator's.
pub(crate) fn migrations(app: &str, operator: &str) -> Migrator {
    shipped::migrations("_idempotency_migrations", &STEPS, &[("app", app), ("operator", operator)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(value: &str) -> Result<Option<Key>, Failure> {
        Key::of(&HeaderMap::from_iter([(METADATA.parse().unwrap(), value.parse().unwrap())]))
    }

    #[test]
    fn a_key_is_taken_with_and_without_quotes() {
        assert_eq!(key("abc-1").unwrap(), Some(Key("abc-1".to_owned())));
        assert_eq!(key("\"abc-1\"").unwrap(), Some(Key("abc-1".to_owned())));
        assert_eq!(Key::of(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn a_malformed_key_is_refused() {
        let long = "x".repeat(256);
        for value in ["", "\"\"", "a\"b", &long] {
            assert_eq!(key(value).unwrap_err().reason, "IDEMPOTENCY_KEY_MALFORMED", "{value}");
        }
        assert_eq!(Key::required(&HeaderMap::new()).unwrap_err().reason, "IDEMPOTENCY_KEY_REQUIRED");
    }
}
