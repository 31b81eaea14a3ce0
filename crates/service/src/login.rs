//! A role's login at the database, whose password may change while the process runs. The pool logs in by the newest text of the secret that
//! the database takes: a password may be made known to the processes before it counts, and no connection is refused in between.

use std::time::Duration;

use outbox::connections::{LIMITS, pool_options};
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection, PgPool, Postgres};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::secret::Secret;

/// How often a text is tried that the database does not take yet.
const TRIES_EVERY: Duration = Duration::from_secs(1);
/// How long the database may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);
/// What it says of a wrong password, and of a role that may not log in.
const REFUSED: [&str; 2] = ["28P01", "28000"];

const STATEMENT_TIMEOUT: &str = "statement_timeout";
/// The same for operators, whose queries read everything.
const OPERATORS: (&str, &str) = (STATEMENT_TIMEOUT, "5min");

/// A pool, and the secret by which it logs in.
#[derive(Debug)]
pub(crate) struct Login {
    secret: Secret,
    name: String,
    limits: [(&'static str, &'static str); LIMITS.len()],
    pool: PgPool,
    /// By what the pool logs in; locked while something newer is tried.
    used: Mutex<SecretString>,
}

impl Login {
    /// A pool whose connections are bound by [`LIMITS`]. `name` is its name in the database.
    ///
    /// # Errors
    /// Fails when the address cannot be read.
    pub(crate) fn of_service(secret: &Secret, name: &str, connections: u32) -> Result<Self, sqlx::Error> {
        Self::open(secret, name, connections, LIMITS)
    }

    /// The same for operators, whose statements may take longer.
    ///
    /// # Errors
    /// Fails when the address cannot be read.
    pub(crate) fn of_operators(secret: &Secret, name: &str, connections: u32) -> Result<Self, sqlx::Error> {
        let limits = LIMITS.map(|limit| if limit.0 == STATEMENT_TIMEOUT { OPERATORS } else { limit });
        Self::open(secret, name, connections, limits)
    }

    fn open(
        secret: &Secret,
        name: &str,
        connections: u32,
        limits: [(&'static str, &'static str); LIMITS.len()],
    ) -> Result<Self, sqlx::Error> {
        let url = secret.get();
        let pool = pool_options(connections).connect_lazy_with(options(&url, name, limits)?);
        Ok(Self { secret: secret.clone(), name: name.to_owned(), limits, pool, used: Mutex::new(url) })
    }

    /// The pool.
    pub(crate) const fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// A connection of the pool. Where the database refuses the login, by what the secret has become.
    pub(crate) async fn acquire(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        match self.pool.acquire().await {
            Err(error) if is_refused(&error) => {
                self.secret.look_now().await;
                self.try_newest().await;
                self.pool.acquire().await
            }
            acquired => acquired,
        }
    }

    /// Lets the pool log in by what the secret has become, as soon as the database takes it, until `stop`.
    pub(crate) async fn follow(&self, stop: &CancellationToken) {
        let tries = async {
            let mut tick = tokio::time::interval(TRIES_EVERY);
            while stop.run_until_cancelled(tick.tick()).await.is_some() {
                self.try_newest().await;
            }
        };
        tokio::join!(self.secret.look_until(stop), tries);
    }

    async fn try_newest(&self) {
        let mut used = self.used.lock().await;
        let newest = self.secret.get();
        if newest.expose_secret() == used.expose_secret() {
            return;
        }
        let options = match options(&newest, &self.name, self.limits) {
            Ok(options) => options,
            Err(error) => {
                warn!(pool = self.name, %error, "the new address of the database cannot be read: that before stays");
                return;
            }
        };
        if let Ok(Ok(connection)) = tokio::time::timeout(ANSWERS_WITHIN, PgConnection::connect_with(&options)).await {
            connection.close().await.ok();
            self.pool.set_connect_options(options);
            *used = newest;
            info!(pool = self.name, "logs in at the database by the new secret");
        }
    }
}

fn is_refused(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| REFUSED.contains(&&*code))
}

fn options(
    url: &SecretString,
    name: &str,
    limits: [(&'static str, &'static str); LIMITS.len()],
) -> Result<PgConnectOptions, sqlx::Error> {
    let options: PgConnectOptions = url.expose_secret().parse()?;
    Ok(options.application_name(name).options(limits))
}
