//! The connections of a service's own role, and a transaction on one.
//!
//! A connection whose transaction has committed goes straight to the next transaction. The pool would first ask the database whether it is
//! still alive, a round trip for every transaction. All other connections go back through the pool, which asks, rolls back, and replaces
//! them. So does a connection that was unused for a second or out of the pool for 30, when the next transaction needs one.
//!
//! This saves 9 % of a write's processor time in the service and 8 % in PostgreSQL (docs/performance.md).

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use outbox::connections::{ACQUIRE, FRESH};
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Postgres, SqlSafeStr as _};
use sqlx_core::transaction::TransactionManager as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::login::Login;
use crate::secret::Secret;

/// The connections of one role.
#[derive(Debug)]
pub(crate) struct Connections {
    pub(crate) login: Login,
    /// As many as the pool has connections: a holder of one of these finds a connection in `warm` or in the pool.
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

impl Connections {
    /// Up to so many, made when they are needed.
    pub(crate) fn lazy(url: &Secret, name: &str, connections: u32) -> Result<Arc<Self>, sqlx::Error> {
        let login = Login::of_service(url, name, connections)?;
        let permits = Arc::new(Semaphore::new(usize::try_from(connections).unwrap_or(Semaphore::MAX_PERMITS)));
        Ok(Arc::new(Self { login, permits, warm: Mutex::default() }))
    }

    /// Begins a transaction with this statement and what follows it in the same round trip.
    pub(crate) async fn begin(self: &Arc<Self>, begin: String) -> Result<Transaction, sqlx::Error> {
        let (taken, permit) = self.take().await?;
        // From here on a drop rolls back an unfinished transaction.
        let mut tx = Transaction { taken: Some(taken), begun: false, home: Arc::clone(self), _permit: permit };
        Transactions::begin(&mut tx, Some(AssertSqlSafe(begin).into_sql_str())).await?;
        tx.begun = true;
        Ok(tx)
    }

    /// Whether the database answers.
    pub(crate) async fn ping(self: &Arc<Self>) -> Result<(), sqlx::Error> {
        let (mut taken, _permit) = self.take().await?;
        taken.connection.ping().await
    }

    /// How many connections are in use.
    pub(crate) fn in_use(&self) -> u32 {
        let free = u32::try_from(self.permits.available_permits()).unwrap_or(u32::MAX);
        self.login.pool().options().get_max_connections().saturating_sub(free)
    }

    async fn take(&self) -> Result<(Taken, OwnedSemaphorePermit), sqlx::Error> {
        let take = async {
            let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
            let now = Instant::now();
            let (fresh, stale) = self.warm(|warm| {
                let stale: Vec<Taken> = warm.extract_if(.., |taken| !taken.may_go_on(now)).collect();
                (warm.pop(), stale)
            });
            // Back to the pool.
            drop(stale);
            let taken = match fresh {
                Some(taken) => taken,
                None => Taken { connection: self.login.acquire().await?, since: now, used: now },
            };
            Ok((taken, permit))
        };
        tokio::time::timeout(ACQUIRE, take).await.map_err(|_| sqlx::Error::PoolTimedOut)?
    }

    fn warm<T>(&self, with: impl FnOnce(&mut Vec<Taken>) -> T) -> T {
        with(&mut self.warm.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

type Transactions = <Postgres as sqlx::Database>::TransactionManager;

/// A transaction; rolled back unless committed.
#[derive(Debug)]
pub(crate) struct Transaction {
    /// There until it has ended.
    taken: Option<Taken>,
    begun: bool,
    home: Arc<Connections>,
    _permit: OwnedSemaphorePermit,
}

impl Transaction {
    /// Commits, unless a statement of it has failed: the database answers the COMMIT of such a transaction with a rollback, which is no
    /// error here. A caller that goes on after a failed statement must not call this.
    pub(crate) async fn commit(mut self) -> Result<(), sqlx::Error> {
        Transactions::commit(&mut self).await?;
        self.goes_home();
        Ok(())
    }

    /// Rolls back, and waits until the database has done so.
    pub(crate) async fn rollback(mut self) -> Result<(), sqlx::Error> {
        Transactions::rollback(&mut self).await?;
        self.goes_home();
        Ok(())
    }

    fn goes_home(&mut self) {
        // The end of a savepoint, should one have been left open, is not that of the transaction.
        if Transactions::get_transaction_depth(self) == 0
            && let Some(taken) = self.taken.take()
        {
            self.home.warm(|warm| warm.push(Taken { used: Instant::now(), ..taken }));
        }
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if let Some(taken) = &mut self.taken {
            if self.begun {
                // The pool sends this to check whether the connection is alive.
                Transactions::start_rollback(&mut taken.connection);
            } else {
                // Whether the database has begun one is not known to sqlx.
                taken.connection.close_on_drop();
            }
        }
    }
}

#[expect(clippy::expect_used, reason = "only `commit` and `rollback` take it, and they end the transaction")]
impl Deref for Transaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.taken.as_ref().expect("a transaction has its connection").connection
    }
}

#[expect(clippy::expect_used, reason = "as above")]
impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.taken.as_mut().expect("a transaction has its connection").connection
    }
}

/// How long a connection may go from transaction to transaction before the pool checks it again.
const TURN: Duration = Duration::from_secs(30);
