//! A role's login at the database, whose password may change while the process runs. The secret has an address
//! on each line, and the pool logs in by the first that the database takes: a password may be made known to the processes before it counts,
//! and no connection is refused in between.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use outbox::connections::{LIMITS, pool_options};
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection, PgPool, Postgres};
use tokio::sync::Mutex;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::secret::{self, Secret};

/// How often an address is tried that the database does not take yet.
const TRIES_EVERY: Duration = Duration::from_secs(1);
/// How long the database may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);
/// After how long an address is named that it does not take.
const TAKES_WITHIN: Duration = Duration::from_secs(300);
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
    limits: Limits,
    pool: PgPool,
    /// Locked while something else is tried.
    state: Mutex<State>,
    /// How often the pool has changed to another address.
    changes: AtomicU64,
}

type Limits = [(&'static str, &'static str); LIMITS.len()];

#[derive(Debug)]
struct State {
    /// By what the pool logs in.
    used: SecretString,
    /// Since when the database does not take what comes before it, and whether that was said.
    waits: Option<(Instant, bool)>,
}

/// Parses the addresses of a database, a line each: later ones that are none do not take their place.
pub(crate) fn urls(text: &str) -> Result<Secret, String> {
    Secret::given(text, |text| {
        for line in secret::lines(text) {
            line.parse::<PgConnectOptions>()?;
        }
        Ok(())
    })
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

    fn open(secret: &Secret, name: &str, connections: u32, limits: Limits) -> Result<Self, sqlx::Error> {
        let used = secret.lines().into_iter().next().unwrap_or_default();
        let pool = pool_options(connections).connect_lazy_with(options(&used, name, limits)?);
        let state = Mutex::new(State { used, waits: None });
        Ok(Self { secret: secret.clone(), name: name.to_owned(), limits, pool, state, changes: AtomicU64::new(0) })
    }

    /// The pool.
    pub(crate) const fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// A connection of the pool. Where the database refuses the login, by another line of the secret, as it is now.
    pub(crate) async fn acquire(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        let changes = self.changes.load(Ordering::SeqCst);
        match self.pool.acquire().await {
            Err(error) if is_refused(&error) => {
                let mut state = self.state.lock().await;
                // Another caller may have done it while this one waited.
                let has_changed = || changes != self.changes.load(Ordering::SeqCst);
                if !has_changed() && !self.change(&mut state, true).await {
                    self.secret.look_now().await;
                    if !self.change(&mut state, true).await {
                        return Err(error);
                    }
                }
                drop(state);
                self.pool.acquire().await
            }
            acquired => acquired,
        }
    }

    /// Lets the pool log in by the first line of the secret that the database takes, until `stop`.
    pub(crate) async fn follow(&self, stop: &CancellationToken) {
        let tries = async {
            let mut tick = tokio::time::interval(TRIES_EVERY);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while stop.run_until_cancelled(tick.tick()).await.is_some() {
                let mut state = self.state.lock().await;
                self.change(&mut state, false).await;
            }
        };
        tokio::join!(self.secret.look_until(stop), tries);
    }

    /// Tries the lines before the one that is used, and those behind it where that was refused. Whether the pool logs in by another now.
    async fn change(&self, state: &mut State, is_refused: bool) -> bool {
        for (place, line) in self.secret.lines().into_iter().enumerate() {
            if line.expose_secret() == state.used.expose_secret() {
                if place == 0 {
                    state.waits = None;
                }
                if is_refused {
                    continue;
                }
                break;
            }
            // One that cannot be read was refused when the secret was.
            let Ok(options) = options(&line, &self.name, self.limits) else { continue };
            let connected = tokio::time::timeout(ANSWERS_WITHIN, PgConnection::connect_with(&options)).await;
            let is_taken = match connected {
                Ok(Ok(connection)) => Some(connection),
                Ok(Err(error)) if self::is_refused(&error) => None,
                // It does not answer: that says nothing of the login.
                Ok(Err(_)) | Err(_) => continue,
            };
            if let Some(connection) = is_taken {
                connection.close().await.ok();
                self.pool.set_connect_options(options);
                *state = State { used: line, waits: None };
                self.changes.fetch_add(1, Ordering::SeqCst);
                info!(pool = self.name, "logs in at the database by another line of its secret");
                return true;
            }
            let (since, is_said) = state.waits.get_or_insert((Instant::now(), false));
            if !*is_said && since.elapsed() > TAKES_WITHIN {
                *is_said = true;
                warn!(
                    pool = self.name,
                    "the database does not take the first line of its secret: was the rotation finished?"
                );
            }
        }
        false
    }
}

pub(crate) fn is_refused(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| REFUSED.contains(&&*code))
}

fn options(url: &SecretString, name: &str, limits: Limits) -> Result<PgConnectOptions, sqlx::Error> {
    let options: PgConnectOptions = url.expose_secret().parse()?;
    Ok(options.application_name(name).options(limits))
}
