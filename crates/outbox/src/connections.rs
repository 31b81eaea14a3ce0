//! Options for the connections of writers and relays: how soon each notices a server that is gone, or one that only reads.

use std::time::Duration;

use async_nats::ConnectOptions;
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection as _, Row as _};

/// Settings for every connection that writes to the outbox. The relay waits for open writers, so none may stay open for long. A
/// transaction that waits for a lock holds a connection that others could use. A commit must last, or an event could outlive its
/// change.
pub const LIMITS: [(&str, &str); 4] = [
    ("statement_timeout", "5s"),
    ("lock_timeout", "1s"),
    ("idle_in_transaction_session_timeout", "5s"),
    ("synchronous_commit", "on"),
];

/// A connection that was used this recently counts as alive.
pub const FRESH: Duration = Duration::from_secs(1);
/// How long to wait for a connection of the pool.
pub const ACQUIRE: Duration = Duration::from_secs(5);
/// Replaces a connection after this time: after a switchover its server may be read-only, which only a writer notices.
const LIFETIME: Duration = Duration::from_secs(20);
/// How long the server of a returned connection may take to report whether it is writable.
const RELEASE: Duration = Duration::from_secs(2);

/// A pool of up to so many connections. A relay needs three: its session, its lease, and its parked rows.
#[must_use]
pub fn pool_options(connections: u32) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE)
        .max_lifetime(LIFETIME)
        // A check before each use costs each transaction a round trip; a check after idle time finds connections that a restart of the
        // database broke.
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move { Ok(meta.idle_for < FRESH || connection.ping().await.is_ok()) })
        })
        // Two things that the next user must not get. After a switchover a connection may lead to a read-only server; a new connection
        // to such a server is no better than the next one. And whoever is dropped while a transaction begins leaves it open, of which sqlx
        // knows nothing: what came next would be part of it, and lost with it.
        .after_release(|connection, meta| {
            Box::pin(async move {
                let state = sqlx::raw_sql(STATE).fetch_one(connection);
                let state = tokio::time::timeout(RELEASE, state).await.map_err(|_| sqlx::Error::PoolTimedOut)??;
                let (only_reads, is_alone): (&str, bool) = (state.try_get(0)?, state.try_get(1)?);
                Ok(is_alone && (meta.age < FRESH || only_reads == "off"))
            })
        })
}

/// Whether a connection may write, and whether a statement of it is a transaction of its own: that began with the statement. As text,
/// because a prepared statement begins before it is executed.
const STATE: &str = "select current_setting('transaction_read_only'), transaction_timestamp() = statement_timestamp()";

/// A connection to NATS that waits for an unavailable server in the background, now and later. It notices a dead peer within 10
/// seconds.
#[must_use]
pub fn nats_options(options: ConnectOptions) -> ConnectOptions {
    options
        // A dead peer is noticed after two of these.
        .ping_interval(Duration::from_secs(5))
        // Large enough that a burst of the relay never waits for the writer task.
        .client_capacity(8_192)
        .retry_on_initial_connect()
        .reconnect_delay_callback(|attempt| Duration::from_millis((attempt as u64 * 50).min(1_000)))
}
