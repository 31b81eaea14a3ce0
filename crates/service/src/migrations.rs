//! The schema of a service: the tables that crates ship, each with a history of its own, and the service's own migrations.

use std::borrow::Cow;
use std::time::Duration;

use anyhow::Context as _;
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::migrate::{Migrate as _, MigrateError, Migration, Migrator};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqlSafeStr as _};

use crate::failure::{DEADLOCK, LOCK_NOT_AVAILABLE};
use crate::{idempotency, login, secret, tenants};

/// How often a migration tries to get its locks, and the pause between.
const TRIES: u32 = 60;
const PAUSE: Duration = Duration::from_millis(500);
/// How often the build of an index is tried, each for minutes.
const BUILDS: u32 = 3;
const LOCK_TIMEOUT: &str = "set lock_timeout = '500ms'";

/// What lets a process see whether its schema is there.
const READS_HISTORY: &str = "grant select (version, success) on {table} to \"{service}_app\"";
/// How long a connection may take, and a question: without it, a server that is gone with its address is waited for without an end.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// A connection of its own, by the first login that the database takes.
///
/// # Errors
/// The database does not let us in, or does not answer in time.
pub(crate) async fn connect(url: &SecretString) -> Result<PgConnection, anyhow::Error> {
    let mut refused = anyhow::anyhow!("there is no address of the database");
    for line in secret::lines(url.expose_secret()) {
        let connection = tokio::time::timeout(ANSWERS_WITHIN, PgConnection::connect(line)).await;
        match connection.context("the database does not answer in time")? {
            Ok(connection) => return Ok(connection),
            Err(error) if login::is_refused(&error) => refused = error.into(),
            Err(error) => return Err(error.into()),
        }
    }
    Err(refused)
}

/// The migrations of a service.
#[derive(Debug, Clone, Copy)]
pub struct Migrations {
    /// Those of its own tables.
    pub own: &'static Migrator,
    /// Whether it has an outbox.
    pub outbox: bool,
    /// Whether it has an inbox.
    pub inbox: bool,
    /// Whether it keeps answers to idempotency keys.
    pub idempotency: bool,
    /// Whether it follows which tenants are suspended ([`crate::tenants`]).
    pub tenants: bool,
    /// What a new database has instead of its oldest ones.
    pub squashed: Option<Squashed>,
}

/// The result of a service's oldest migrations. A database that began with them still runs them all.
#[derive(Debug, Clone, Copy)]
pub struct Squashed {
    /// The last of them.
    pub to: i64,
    /// Their result, without the tables that crates ship.
    pub sql: &'static str,
    /// How many steps of outbox, inbox and idempotency records they had made.
    pub shipped: [i64; 3],
}

impl Migrations {
    /// Migrations of a service's own tables alone.
    #[must_use]
    pub const fn own(own: &'static Migrator) -> Self {
        Self { own, outbox: false, inbox: false, idempotency: false, tenants: false, squashed: None }
    }

    /// Brings the database of a service up to date, as its owner, on a connection of its own. It skips what a newer release has made: a
    /// migration keeps the release before it running, so this release may be a rollback.
    ///
    /// # Errors
    /// A migration fails, or one that has run was changed afterwards.
    pub async fn run(&self, service: &str, owner_url: &SecretString) -> Result<(), anyhow::Error> {
        let mut connection = connect(owner_url).await?;
        alone(&mut connection).await.context("waiting for another migration of this database to end")?;
        // All users of a table wait behind a migration that waits for it: so it waits a short time, and tries again.
        sqlx::query(LOCK_TIMEOUT).execute(&mut connection).await?;
        let (own, shipped) = (copy(self.own, None), self.shipped(service));
        if let Some(squashed) = self.squashed {
            anyhow::ensure!(own.version_exists(squashed.to), "there is no migration {} to squash to", squashed.to);
            if has_begun(&mut connection, &own).await? {
                run(&mut connection, &own, Some(squashed.to)).await?;
                for (migrator, made) in &shipped {
                    skip(&mut connection, migrator, *made).await?;
                }
            } else {
                for (migrator, _) in &shipped {
                    run(&mut connection, migrator, None).await?;
                }
                run(&mut connection, &copy(self.own, Some(squashed)), None).await?;
            }
        }
        for (migrator, _) in &shipped {
            run(&mut connection, migrator, None).await?;
        }
        run(&mut connection, &own, None).await?;
        for table in shipped.iter().map(|(migrator, _)| &migrator.table_name).chain([&own.table_name]) {
            let grant = READS_HISTORY.replace("{table}", table).replace("{service}", service);
            sqlx::query(AssertSqlSafe(grant)).execute(&mut connection).await?;
        }
        if self.outbox {
            // A database without a write for days has no partition for today.
            sqlx::query("select outbox_create_partitions(8)").execute(&mut connection).await?;
        }
        connection.close().await?;
        Ok(())
    }

    /// Checks that the schema is at least this release's, as the service's own role. That of a newer release is.
    ///
    /// # Errors
    /// The database does not answer in time, or lacks a migration.
    pub async fn check(&self, service: &str, url: &SecretString) -> Result<(), anyhow::Error> {
        let check = async {
            let mut connection = connect(url).await?;
            let shipped = self.shipped(service);
            for migrator in shipped.iter().map(|(migrator, _)| migrator).chain([self.own]) {
                let (table, wanted) = (&migrator.table_name, migrator.iter().map(|migration| migration.version).max());
                let newest = format!("select max(version) from {table} where success");
                let newest: Option<i64> = sqlx::query_scalar(AssertSqlSafe(newest)).fetch_one(&mut connection).await?;
                anyhow::ensure!(
                    newest >= wanted,
                    "{table} is at {newest:?}, this release needs {wanted:?}: `migrate` first"
                );
            }
            connection.close().await?;
            Ok(())
        };
        tokio::time::timeout(ANSWERS_WITHIN, check).await.context("the database does not answer in time")?
    }

    /// The same for the same schema.
    #[must_use]
    pub fn fingerprint(&self, service: &str) -> String {
        let shipped = self.shipped(service);
        let all = shipped.iter().map(|(migrator, _)| migrator).chain([self.own]);
        let print = all.flat_map(|migrator| migrator.iter()).flat_map(|migration| migration.checksum.iter());
        let squashed = self.squashed.map_or_else(String::new, |squashed| format!("{squashed:?}"));
        let add = |print: u64, byte: u8| print.wrapping_mul(31).wrapping_add(u64::from(byte));
        let more = READS_HISTORY.bytes().chain(squashed.bytes());
        format!("{:x}", more.fold(print.copied().fold(0, add), add))
    }

    /// The migrations of the tables that crates ship, and how many of them the squashed ones had made.
    fn shipped(&self, service: &str) -> Vec<(Migrator, i64)> {
        let (app, relay, operator) =
            (format!("{service}_app"), format!("{service}_relay"), format!("{service}_operator"));
        let made = self.squashed.map_or([0; 3], |squashed| squashed.shipped);
        let all = [
            (self.outbox, outbox::migrations(&app, &relay), made[0]),
            (self.inbox, consumer::migrations(&app), made[1]),
            (self.idempotency, idempotency::migrations(&app, &operator), made[2]),
            (self.tenants, tenants::migrations(&app), 0),
        ];
        let taken = all.into_iter().filter(|(wanted, ..)| *wanted);
        taken
            .map(|(_, mut migrator, made)| {
                migrator.set_locking(false);
                (migrator, made)
            })
            .collect()
    }
}

/// A service's own migrations; of a new database with the last of the squashed ones for all of them.
fn copy(own: &Migrator, squashed: Option<Squashed>) -> Migrator {
    let first = squashed.map_or(0, |squashed| squashed.to);
    let copied = own.iter().filter(|migration| migration.version >= first).cloned();
    let instead = |migration: Migration| match squashed {
        Some(squashed) if migration.version == squashed.to => Migration {
            sql: AssertSqlSafe(format!("{}\n{}", squashed.sql, history_of(own, squashed.to))).into_sql_str(),
            description: Cow::Borrowed("squashed"),
            no_tx: false,
            ..migration
        },
        _ => migration,
    };
    let mut migrator = Migrator::with_migrations(copied.map(instead).collect());
    migrator.set_ignore_missing(true);
    migrator.set_locking(false);
    migrator
}

/// Notes, in the transaction of the squashed migrations, that all before the last of them have run: an earlier release continues from
/// there.
fn history_of(own: &Migrator, to: i64) -> String {
    let row = |migration: &Migration| {
        let checksum: String = migration.checksum.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("({}, 'squashed', true, '\\x{checksum}', 0)", migration.version)
    };
    let rows: Vec<_> = own.iter().filter(|migration| migration.version < to).map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time) values {};",
        rows.join(", ")
    )
}

/// Whether a database has the first of these migrations.
async fn has_begun(connection: &mut PgConnection, own: &Migrator) -> Result<bool, sqlx::Error> {
    let has_history = "select to_regclass('_sqlx_migrations') is not null";
    if !sqlx::query_scalar::<_, bool>(has_history).fetch_one(&mut *connection).await? {
        return Ok(false);
    }
    let first = own.iter().map(|migration| migration.version).min();
    sqlx::query_scalar("select exists (select from _sqlx_migrations where version = $1)")
        .bind(first)
        .fetch_one(connection)
        .await
}

/// Notes that these have run, up to that version.
async fn skip(connection: &mut PgConnection, migrator: &Migrator, to: i64) -> Result<(), MigrateError> {
    if to > 0 { migrator.skip(connection, Some(to)).await } else { Ok(()) }
}

/// Waits until no other process migrates this database. It asks again and again: a build of an index beside its table's users waits for
/// every statement that has begun, also for one that waits for it.
async fn alone(connection: &mut PgConnection) -> Result<(), anyhow::Error> {
    let lock = "select pg_try_advisory_lock(hashtext('flotilla.migrations'))";
    let mut tries = 10 * TRIES;
    while !sqlx::query_scalar::<_, bool>(lock).fetch_one(&mut *connection).await? {
        tries -= 1;
        anyhow::ensure!(
            tries > 0,
            "another process has migrated for five minutes: wait for its end, and run migrate again"
        );
        tokio::time::sleep(PAUSE).await;
    }
    // sqlx's lock, which earlier releases take for each history: one process at a time holds it from here to the end.
    sqlx::query("set lock_timeout = '5min'").execute(&mut *connection).await?;
    Ok(connection.lock().await?)
}

/// Runs the migrations that have not run. Those without a transaction, which build an index beside its table's users, run each by itself.
async fn run(connection: &mut PgConnection, migrator: &Migrator, to: Option<i64>) -> Result<(), MigrateError> {
    let mut before = None;
    for migration in migrator.iter().filter(|migration| to.is_none_or(|to| migration.version <= to)) {
        if migration.no_tx {
            if before.is_some() {
                run_some(connection, migrator, before).await?;
            }
            let ran = format!("select exists (select from {} where version = $1 and success)", migrator.table_name);
            let ran = sqlx::query_scalar(AssertSqlSafe(ran)).bind(migration.version);
            if !ran.fetch_one(&mut *connection).await? {
                build(connection, migrator, migration).await?;
            }
        }
        before = Some(migration.version);
    }
    run_some(connection, migrator, to).await
}

/// Builds an index beside its table's users, and nobody waits for it.
async fn build(connection: &mut PgConnection, migrator: &Migrator, migration: &Migration) -> Result<(), MigrateError> {
    // It waits for every statement that has begun. One of an earlier release, which waits for sqlx's lock, would wait for it.
    connection.unlock().await?;
    sqlx::query("set lock_timeout = '5min'").execute(&mut *connection).await?;
    let mut tries = 1;
    let built = loop {
        drop_unfinished(connection, migration).await?;
        match migrator.run_to(migration.version, &mut *connection).await {
            Err(error) if tries < BUILDS && is_in_the_way(&error) => tries += 1,
            built => break built,
        }
    };
    sqlx::query(LOCK_TIMEOUT).execute(&mut *connection).await?;
    connection.lock().await?;
    built
}

/// Drops what a build of this migration's index has left that did not end: it costs every write, and nothing is read by it.
async fn drop_unfinished(connection: &mut PgConnection, migration: &Migration) -> Result<(), sqlx::Error> {
    let Some((_, name)) = migration.sql.as_str().split_once(" index concurrently if not exists ") else {
        return Ok(());
    };
    let unfinished = "select format('drop index concurrently %I.%I', nspname, relname) from pg_index \
                      join pg_class c on c.oid = indexrelid join pg_namespace n on n.oid = relnamespace \
                      where not indisvalid and nspname = current_schema() and relname = $1";
    let unfinished = sqlx::query_scalar::<_, String>(unfinished).bind(name.split(' ').next());
    for drop in unfinished.fetch_all(&mut *connection).await? {
        sqlx::query(AssertSqlSafe(drop)).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Runs the migrations that have not run, and retries locks that it does not get.
async fn run_some(connection: &mut PgConnection, migrator: &Migrator, to: Option<i64>) -> Result<(), MigrateError> {
    let mut tries = 1;
    loop {
        let ran = match to {
            Some(to) => migrator.run_to(to, &mut *connection).await,
            None => migrator.run(&mut *connection).await,
        };
        let Err(error) = ran else { return Ok(()) };
        if !is_in_the_way(&error) || tries == TRIES {
            return Err(error);
        }
        tries += 1;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether a migration has failed for another user of the database.
fn is_in_the_way(error: &MigrateError) -> bool {
    let source = match error {
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => source.as_database_error(),
        _ => None,
    };
    let code = source.and_then(|source| source.code());
    [Some(LOCK_NOT_AVAILABLE), Some(DEADLOCK)].contains(&code.as_deref())
}
