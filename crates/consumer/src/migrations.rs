//! The inbox's tables, in steps, with a history of their own beside the service's.

use std::borrow::Cow;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, SqlSafeStr as _};

/// The table that holds which steps have run.
const HISTORY: &str = "_inbox_migrations";

/// The steps in their order; `{app}` stands for a role.
const STEPS: [(&str, &str); 2] =
    [("inbox", include_str!("../schema/inbox.sql")), ("access", include_str!("../schema/inbox_access.sql"))];

/// Makes the inbox's tables for the role that handles events. Run it as their owner; a release that knows fewer steps may run on what a
/// newer one has made.
#[must_use]
pub fn migrations(app: &str) -> Migrator {
    let step = |(number, (name, sql)): (i64, &(&'static str, &'static str))| {
        let step = Migration::new(number, Cow::Borrowed(*name), MigrationType::Simple, (*sql).into_sql_str(), false);
        // Its checksum is that of the step, for whatever roles.
        Migration { sql: AssertSqlSafe(sql.replace("{app}", &quoted(app))).into_sql_str(), ..step }
    };
    let mut migrator = Migrator::with_migrations((1..).zip(&STEPS).map(step).collect());
    migrator.dangerous_set_table_name(HISTORY);
    migrator.set_ignore_missing(true);
    migrator
}

/// A name as an identifier of SQL.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
