//! The service's database. The only ways to a transaction are [`Db::begin`] and [`Db::read`], whose [`Call`] says whose it is:
//! row-level security does the rest, with a role that cannot bypass it.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use consumer::NotClaimed;
use contracts::TenantId;
use prost::Message as _;
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool, Postgres, SqlSafeStr as _};
use sqlx_core::transaction::TransactionManager as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Failure;
use crate::call::{Call, Once};
use crate::idempotency::StoredResponse;

/// What every connection of a service is bound by. The relay waits for open writers: none may stay open for long. Whoever
/// waits for a lock holds a connection that others could use. And what was committed must last, or an event could outlive its
/// change.
const LIMITS: [(&str, &str); 4] = [
    ("statement_timeout", "5s"),
    ("lock_timeout", "1s"),
    ("idle_in_transaction_session_timeout", "10s"),
    ("synchronous_commit", "on"),
];

/// The database as the service's own role sees it.
///
/// A connection whose transaction has committed goes straight to the next one: the pool would ask the database whether it
/// is still alive first, a round trip for every transaction. All others go back through the pool, which asks, rolls back, and
/// replaces; so does each that was not used for a second or not in the pool for 30, when the next is asked for.
#[derive(Debug, Clone)]
pub struct Db(Arc<Connections>);

#[derive(Debug)]
struct Connections {
    pool: PgPool,
    /// As many as the pool has connections: whoever has one of these finds one in `warm` or in the pool.
    permits: Arc<Semaphore>,
    warm: Mutex<Vec<Taken>>,
}

/// A connection out of the pool, which counts it among its own all the while.
#[derive(Debug)]
struct Taken {
    connection: PoolConnection<Postgres>,
    since: Instant,
    used: Instant,
}

impl Taken {
    fn may_go_on(&self, now: Instant) -> bool {
        now.duration_since(self.used) < FRESH && now.duration_since(self.since) < TURN
    }
}

impl Db {
    /// A pool of up to `connections`, made when they are needed.
    ///
    /// # Errors
    /// Fails when the address cannot be read.
    pub fn lazy(url: &SecretString, name: &str, connections: u32) -> Result<Self, sqlx::Error> {
        let pool = pool(url, name, connections)?;
        let permits = Arc::new(Semaphore::new(usize::try_from(connections).unwrap_or(Semaphore::MAX_PERMITS)));
        Ok(Self(Arc::new(Connections { pool, permits, warm: Mutex::default() })))
    }

    /// Begins the transaction of a command: its tenant's, with its idempotency key or its event claimed.
    ///
    /// # Errors
    /// No connection is to be had, the key is in use or was used for something else, or the event is not to be handled.
    pub async fn begin(&self, call: &Call) -> Result<TenantTx, Failure> {
        let mut tx = self.tenant("begin", &call.caller.tenant).await?;
        match &call.once {
            Once::No => {}
            Once::Key(attempt) => tx.stored = attempt.claim(&mut tx).await?,
            Once::Event(claim) => claim.take(&mut tx).await.map_err(|error| match error {
                NotClaimed::Database(error) => error.into(),
                refused => Failure::internal(refused),
            })?,
        }
        tx.once = call.once.clone();
        Ok(tx)
    }

    /// Begins a transaction that reads what is its tenant's, and cannot write.
    ///
    /// # Errors
    /// No connection is to be had.
    pub async fn read(&self, call: &Call) -> Result<TenantTx, Failure> {
        Ok(self.tenant("begin read only", &call.caller.tenant).await?)
    }

    #[tracing::instrument(target = "service::trace", name = "begin", skip_all, err(level = "debug"),
        fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "BEGIN"))]
    async fn tenant(&self, begin: &str, tenant: &TenantId) -> Result<TenantTx, sqlx::Error> {
        let (taken, permit) = self.take().await?;
        // From here on a drop rolls back, should this not come to its end.
        let mut tx = TenantTx {
            taken: Some(taken),
            begun: false,
            home: Arc::clone(&self.0),
            _permit: permit,
            tenant: tenant.clone(),
            once: Once::No,
            stored: None,
        };
        // One round trip. A tenant id holds nothing but a-z, 0-9 and -.
        let begin = format!("{begin}; set local app.tenant = '{tenant}'");
        Transactions::begin(&mut tx, Some(AssertSqlSafe(begin).into_sql_str())).await?;
        tx.begun = true;
        Ok(tx)
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// Fails when it does not.
    pub async fn ping(&self) -> Result<(), sqlx::Error> {
        let (mut taken, _permit) = self.take().await?;
        taken.connection.ping().await
    }

    /// Forgets up to 1,000 idempotency records that are older than a day, the oldest at or behind `from` first; how many it
    /// forgot, and when the last of them was made.
    ///
    /// # Errors
    /// Fails as any statement does.
    pub async fn sweep_idempotency(
        &self,
        from: Option<DateTime<Utc>>,
    ) -> Result<(i64, Option<DateTime<Utc>>), sqlx::Error> {
        let (mut taken, _permit) = self.take().await?;
        sqlx::query_as("select swept, up_to from idempotency_sweep(1000, $1)")
            .bind(from)
            .fetch_one(&mut *taken.connection)
            .await
    }

    async fn take(&self) -> Result<(Taken, OwnedSemaphorePermit), sqlx::Error> {
        let take = async {
            let permit = Arc::clone(&self.0.permits).acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
            let now = Instant::now();
            let (fresh, stale) = self.0.warm(|warm| {
                let stale: Vec<Taken> = warm.extract_if(.., |taken| !taken.may_go_on(now)).collect();
                (warm.pop(), stale)
            });
            // Back to the pool.
            drop(stale);
            let taken = match fresh {
                Some(taken) => taken,
                None => Taken { connection: self.0.pool.acquire().await?, since: now, used: now },
            };
            Ok((taken, permit))
        };
        tokio::time::timeout(ACQUIRE, take).await.map_err(|_| sqlx::Error::PoolTimedOut)?
    }
}

impl Connections {
    fn warm<T>(&self, with: impl FnOnce(&mut Vec<Taken>) -> T) -> T {
        with(&mut self.warm.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

type Transactions = <Postgres as sqlx::Database>::TransactionManager;

/// A transaction of one tenant; rolled back unless committed.
#[derive(Debug)]
pub struct TenantTx {
    /// There until the commit.
    taken: Option<Taken>,
    begun: bool,
    home: Arc<Connections>,
    _permit: OwnedSemaphorePermit,
    tenant: TenantId,
    pub(crate) once: Once,
    /// The answer that an earlier call with the same key was given.
    stored: Option<Vec<u8>>,
}

impl TenantTx {
    /// Whose it is.
    #[must_use]
    pub fn tenant(&self) -> TenantId {
        self.tenant.clone()
    }

    /// The answer of an earlier call with the same key: the command returns it and does nothing. A command that does not ask
    /// cannot commit.
    ///
    /// # Errors
    /// What is stored cannot be read.
    pub fn replayed<A: StoredResponse>(&mut self) -> Result<Option<A>, Failure> {
        let Some(stored) = self.stored.take() else { return Ok(None) };
        // Whatever the command does with it: nothing is stored a second time.
        self.once = Once::No;
        let message = A::Message::decode(stored.as_slice()).map_err(Failure::internal)?;
        A::from_message(message).map(Some)
    }

    /// Ends a transaction that has only read. Dropped instead, it costs its connection a question of the pool's.
    ///
    /// # Errors
    /// The database does not answer, or the call has a key or an event that would be lost.
    pub async fn end(self) -> Result<(), sqlx::Error> {
        if !matches!(self.once, Once::No) {
            return Err(sqlx::Error::Protocol("a command that takes effect once ends by its outbox".to_owned()));
        }
        self.commit().await
    }

    /// Makes it so, unless a statement of it has failed: the database answers the COMMIT of such a transaction with a
    /// rollback, which is no error here. So whoever goes on after a failed statement must not call this.
    ///
    /// # Errors
    /// Fails when it is not known to have happened.
    #[tracing::instrument(target = "service::trace", name = "commit", skip_all, err(level = "debug"),
        fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "COMMIT"))]
    pub(crate) async fn commit(mut self) -> Result<(), sqlx::Error> {
        if self.stored.is_some() {
            return Err(sqlx::Error::Protocol("a command went on although its key has an answer".to_owned()));
        }
        Transactions::commit(&mut self).await?;
        if let Once::Event(claim) = &self.once {
            claim.committed();
        }
        // The end of a savepoint, should one have been left open, is not that of the transaction.
        if Transactions::get_transaction_depth(&self) == 0
            && let Some(taken) = self.taken.take()
        {
            self.home.warm(|warm| warm.push(Taken { used: Instant::now(), ..taken }));
        }
        Ok(())
    }
}

impl Drop for TenantTx {
    fn drop(&mut self) {
        if let Some(taken) = &mut self.taken {
            if self.begun {
                // Sent when the pool looks whether the connection is alive.
                Transactions::start_rollback(&mut taken.connection);
            } else {
                // Whether the database has begun one is not known to sqlx.
                taken.connection.close_on_drop();
            }
        }
    }
}

#[expect(clippy::expect_used, reason = "only `commit` takes it, and that ends the transaction")]
impl Deref for TenantTx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.taken.as_ref().expect("a transaction has its connection").connection
    }
}

#[expect(clippy::expect_used, reason = "as above")]
impl DerefMut for TenantTx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.taken.as_mut().expect("a transaction has its connection").connection
    }
}

/// A connection that was used so recently is taken to be alive.
const FRESH: Duration = Duration::from_secs(1);
/// How long a connection may go from transaction to transaction before the pool sees it again.
const TURN: Duration = Duration::from_secs(30);
/// After so long a connection is replaced: after a switchover it may lead to a server that only reads by now, and says so to
/// nobody who does not write.
const LIFETIME: Duration = Duration::from_secs(20);
/// How long to wait for a connection.
const ACQUIRE: Duration = Duration::from_secs(5);

/// A pool for another role of the service, such as the relay's.
///
/// # Errors
/// Fails when the address cannot be read.
pub fn pool(url: &SecretString, name: &str, connections: u32) -> Result<PgPool, sqlx::Error> {
    let options: PgConnectOptions = url.expose_secret().parse()?;
    Ok(PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE)
        .max_lifetime(LIFETIME)
        // A question before each use is a round trip for each transaction; one after a rest finds what a restart of the
        // database left dead.
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move { Ok(meta.idle_for < FRESH || connection.ping().await.is_ok()) })
        })
        .connect_lazy_with(options.application_name(name).options(LIMITS)))
}

/// A lock was not had within `lock_timeout` (SQLSTATE).
pub(crate) const LOCK_NOT_AVAILABLE: &str = "55P03";
/// How often a migration asks for its locks, and the pause between.
const MIGRATION_TRIES: u32 = 60;
const MIGRATION_PAUSE: Duration = Duration::from_millis(500);

/// Runs a service's migrations as their owner, on a connection of their own. Those of a newer release that ran before are
/// passed over: a migration leaves the release before it running, so this one may be rolled back to.
///
/// # Errors
/// Fails when a migration does, or when one that has run was changed since.
pub async fn migrate(owner_url: &SecretString, migrator: &Migrator) -> Result<(), anyhow::Error> {
    let mut connection = PgConnection::connect(owner_url.expose_secret()).await?;
    // All who use a table wait behind a migration that waits for it: so it does not for long, and comes again.
    sqlx::query("set lock_timeout = '500ms'").execute(&mut connection).await?;
    let mut migrator = Migrator::with_migrations(migrator.iter().cloned().collect());
    migrator.set_ignore_missing(true);
    let mut tries = 1;
    while let Err(error) = migrator.run(&mut connection).await {
        let source = match &error {
            MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => source.as_database_error(),
            _ => None,
        };
        let locked = source.and_then(|source| source.code()).as_deref() == Some(LOCK_NOT_AVAILABLE);
        if !locked || tries == MIGRATION_TRIES {
            return Err(error.into());
        }
        tries += 1;
        tokio::time::sleep(MIGRATION_PAUSE).await;
    }
    connection.close().await?;
    Ok(())
}
