//! The service's database. The only way to a transaction is [`Db::begin`], which says whose it is: row-level security
//! does the rest, with a role that cannot bypass it.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use contracts::TenantId;
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool, Postgres, Transaction};

/// What every connection of a service is bound by. The relay waits for open writers: none may stay open for long. And
/// what was committed must last, or an event could outlive its change.
const LIMITS: [(&str, &str); 4] = [
    ("statement_timeout", "5s"),
    ("lock_timeout", "3s"),
    ("idle_in_transaction_session_timeout", "10s"),
    ("synchronous_commit", "on"),
];

/// The database as the service's own role sees it.
#[derive(Debug, Clone)]
pub struct Db(PgPool);

impl Db {
    /// A pool of up to `connections`, made when they are needed.
    ///
    /// # Errors
    /// Fails when the address cannot be read.
    pub fn lazy(url: &SecretString, name: &str, connections: u32) -> Result<Self, sqlx::Error> {
        pool(url, name, connections).map(Self)
    }

    /// Begins the transaction of one tenant.
    ///
    /// # Errors
    /// Fails when no connection can be had.
    #[tracing::instrument(target = "service::trace", name = "begin", skip_all, err(level = "debug"),
        fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "BEGIN"))]
    pub async fn begin(&self, tenant: &TenantId) -> Result<TenantTx, sqlx::Error> {
        // One round trip. A tenant id holds nothing but a-z, 0-9 and -.
        let begin = format!("begin; set local app.tenant = '{tenant}'");
        self.0.begin_with(AssertSqlSafe(begin)).await.map(TenantTx)
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// Fails when it does not.
    pub async fn ping(&self) -> Result<(), sqlx::Error> {
        self.0.acquire().await?.ping().await
    }

    /// Forgets idempotency records that are older than a day.
    ///
    /// # Errors
    /// Fails as any statement does.
    pub async fn sweep_idempotency(&self) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar("select idempotency_sweep(1000)").fetch_one(&self.0).await
    }
}

/// A transaction of one tenant; rolled back unless committed.
#[derive(Debug)]
pub struct TenantTx(Transaction<'static, Postgres>);

impl TenantTx {
    /// Makes it so.
    ///
    /// # Errors
    /// Fails when the outcome is a rollback, or is not known.
    #[tracing::instrument(target = "service::trace", name = "commit", skip_all, err(level = "debug"),
        fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "COMMIT"))]
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.0.commit().await
    }
}

impl Deref for TenantTx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0
    }
}

impl DerefMut for TenantTx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}

/// A connection that was used so recently is taken to be alive.
const FRESH: Duration = Duration::from_secs(1);

/// A pool for another role of the service, such as the relay's.
///
/// # Errors
/// Fails when the address cannot be read.
pub fn pool(url: &SecretString, name: &str, connections: u32) -> Result<PgPool, sqlx::Error> {
    let options: PgConnectOptions = url.expose_secret().parse()?;
    Ok(PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(5))
        // A question before each use is a round trip for each transaction; one after a rest finds what a restart of the
        // database left dead.
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move { Ok(meta.idle_for < FRESH || connection.ping().await.is_ok()) })
        })
        .connect_lazy_with(options.application_name(name).options(LIMITS)))
}

/// Runs a service's migrations as their owner, on a connection of their own.
///
/// # Errors
/// Fails when a migration does, or when one that has run was changed since.
pub async fn migrate(owner_url: &SecretString, migrator: &Migrator) -> Result<(), anyhow::Error> {
    let mut connection = PgConnection::connect(owner_url.expose_secret()).await?;
    sqlx::query("set lock_timeout = '5s'").execute(&mut connection).await?;
    migrator.run(&mut connection).await?;
    connection.close().await?;
    Ok(())
}
