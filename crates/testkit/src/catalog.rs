//! The invariants of every service's schema, checked in PostgreSQL's own catalogue.

use std::collections::BTreeSet;

use crate::TestDatabase;

/// The tables that the relay alone reaches.
const OF_THE_RELAY: [&str; 4] = ["outbox_journal", "outbox_parked", "outbox_passed", "outbox_relay"];

/// A table: its name, whether row-level security is forced on it, whether its policy is that of tenants, and whether the service's own
/// role reaches it.
type Table = (String, bool, bool, bool);

/// Each table is a tenant's, behind a policy, and is one of `tenants`; or the row of the service lists it without a tenant; or only the
/// relay and the owner reach it. The operator's role reaches none: it calls functions.
///
/// # Panics
/// A table breaks this rule.
pub async fn every_table_is_a_tenants_or_listed(database: &TestDatabase, service: &str, tenants: &[&str]) {
    let mut admin = database.admin().await;
    // Partitions are reached through their parent alone: the service's role has no grant on one.
    let tables: Vec<Table> = sqlx::query_as(
        "select relname::text, relrowsecurity and relforcerowsecurity, coalesce((select bool_and(coalesce(p.qual, p.with_check) \
         = '(tenant = current_setting(''app.tenant''::text, true))') from pg_policies p \
         where p.tablename = relname and p.roles && array[$1::name, 'public']), false), \
         has_table_privilege($1, oid, 'select, insert, update, delete') \
         from pg_class where relnamespace = current_schema()::regnamespace and relkind in ('r', 'p') and not relispartition",
    )
    .bind(format!("{service}_app"))
    .fetch_all(&mut admin)
    .await
    .unwrap();
    let named = |wanted: fn(&Table) -> bool| -> BTreeSet<&str> {
        tables.iter().filter(|table| wanted(table)).map(|(table, ..)| table.as_str()).collect()
    };
    let set = |names: &[&'static str]| names.iter().copied().collect::<BTreeSet<_>>();
    let listed = fleet::named(service).and_then(|row| row.database).expect("the service's row has a database");
    let kept_apart = named(|(_, forced, policy, _)| *forced && *policy);
    assert_eq!(kept_apart, tenants.iter().copied().collect(), "the tenants' tables: {tables:?}");
    let of_nobody = named(|(_, forced, policy, reached)| *reached && !(*forced && *policy));
    assert_eq!(of_nobody, set(listed.of_no_tenant), "what the row lists as of no tenant: {tables:?}");
    // The histories of migrations are the owner's.
    let others = named(|(name, forced, policy, reached)| {
        !(*reached || *forced && *policy || name.starts_with('_') && name.ends_with("_migrations"))
    });
    assert_eq!(others, set(&OF_THE_RELAY), "nobody's tables: {tables:?}");
    let operators: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_class where relnamespace = current_schema()::regnamespace and relkind in ('r', 'p', 'v', 'm') \
         and (has_any_column_privilege($1, oid, 'select, insert, update') or has_table_privilege($1, oid, 'delete'))",
    )
    .bind(format!("{service}_operator"))
    .fetch_all(&mut admin)
    .await
    .unwrap();
    assert_eq!(operators, [""; 0], "what the operator's role reaches");
}

/// The service declares for each table what becomes of its rows when data are exported or erased.
///
/// # Panics
/// A table is not declared, or a declared table does not exist.
pub async fn every_table_is_answered_for(database: &TestDatabase, answered: impl IntoIterator<Item = String>) {
    let mut admin = database.admin().await;
    let tables: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_class where relnamespace = current_schema()::regnamespace and relkind in ('r', 'p') \
         and not relispartition and relname !~ '^_.*_migrations$'",
    )
    .fetch_all(&mut admin)
    .await
    .unwrap();
    assert_eq!(answered.into_iter().collect::<BTreeSet<_>>(), tables.into_iter().collect());
}

/// A SECURITY DEFINER function searches the caller's temporary schema last.
///
/// # Panics
/// One does not.
pub async fn no_function_is_led_to_a_callers_tables(database: &TestDatabase) {
    let mut admin = database.admin().await;
    let led: Vec<String> = sqlx::query_scalar(
        "select oid::regprocedure::text from pg_proc where prosecdef and pronamespace = current_schema()::regnamespace \
         and not exists (select from unnest(proconfig) setting where setting ~ '^search_path=.*, pg_temp$')",
    )
    .fetch_all(&mut admin)
    .await
    .unwrap();
    assert_eq!(led, [""; 0], "a SECURITY DEFINER function's search_path must end in pg_temp");
}
