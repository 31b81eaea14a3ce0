//! Migrations of the tables that this crate ships.

use std::borrow::Cow;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, SqlSafeStr as _};

/// Runs these steps, by their names, with a history of their own. In their SQL `{role}` stands for the name of that role.
pub(crate) fn migrations(
    history: &'static str,
    steps: &[(&'static str, &'static str)],
    roles: &[(&str, &str)],
) -> Migrator {
    let step = |(number, (name, sql)): (i64, &(&'static str, &'static str))| {
        let step = Migration::new(number, Cow::Borrowed(*name), MigrationType::Simple, (*sql).into_sql_str(), false);
        let named =
            |sql: String, (role, name): &(&str, &str)| sql.replace(&format!("{{{role}}}"), &format!("\"{name}\""));
        let sql = roles.iter().fold((*sql).to_owned(), named);
        // Its checksum is the step's, whatever the roles.
        Migration { sql: AssertSqlSafe(sql).into_sql_str(), ..step }
    };
    let mut migrator = Migrator::with_migrations((1..).zip(steps).map(step).collect());
    migrator.dangerous_set_table_name(history);
    migrator.set_ignore_missing(true);
    migrator
}
