//! The outbox's tables, in steps, with a history of their own beside the service's.

use std::borrow::Cow;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, SqlSafeStr as _};

/// The table that holds which steps have run.
const HISTORY: &str = "_outbox_migrations";

/// The steps in their order; `{app}` and `{relay}` stand for roles.
const STEPS: [(&str, &str); 7] = [
    ("outbox", include_str!("../schema/outbox.sql")),
    ("access", include_str!("../schema/outbox_access.sql")),
    ("operations", include_str!("../schema/outbox_operations.sql")),
    ("access to operations", include_str!("../schema/outbox_operations_access.sql")),
    ("retention", include_str!("../schema/outbox_retention.sql")),
    ("access to retention", include_str!("../schema/outbox_retention_access.sql")),
    ("access for acts", include_str!("../schema/outbox_acts_access.sql")),
];

/// Makes the outbox's tables for these roles: `app` appends, `relay` publishes. Run it as their owner, before the migrations of your
/// own tables; a release that knows fewer steps may run on what a newer one has made.
#[must_use]
pub fn migrations(app: &str, relay: &str) -> Migrator {
    let step = |(number, (name, sql)): (i64, &(&'static str, &'static str))| {
        let step = Migration::new(number, Cow::Borrowed(*name), MigrationType::Simple, (*sql).into_sql_str(), false);
        // Its checksum is that of the step, for whatever roles.
        Migration {
            sql: AssertSqlSafe(sql.replace("{app}", &quoted(app)).replace("{relay}", &quoted(relay))).into_sql_str(),
            ..step
        }
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
