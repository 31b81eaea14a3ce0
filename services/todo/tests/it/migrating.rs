//! The schema: a new database, and one that an older release has made, come to the same.

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use testkit::TestDatabase;

use crate::harness::{Harness, database};

/// Every table, column, constraint, index, policy, trigger, function, sequence and privilege, a line for each; no partition of a day.
const CATALOG: &str = "
    with of_ours as (
        select oid, relname::text as name from pg_class
        where relnamespace = 'public'::regnamespace and not relispartition
            and not exists (select from pg_inherits join pg_class part on part.oid = inhrelid and part.relispartition
                            where inhrelid = pg_class.oid)
    )
    select line from (
        select 'relation ' || name || ' ' || relkind::text || ' ' || relrowsecurity || relforcerowsecurity || ' '
            || coalesce(reloptions::text, '') || ' ' || coalesce(pg_get_partkeydef(oid), '') || ' ' || pg_get_userbyid(relowner) || ' '
            || coalesce((select string_agg(acl::text, ',' order by acl::text) from unnest(relacl) acl), '')
        from of_ours join pg_class using (oid)
        union all
        select 'column ' || name || '.' || attname || ' ' || attnum || ' ' || format_type(atttypid, atttypmod) || ' '
            || attnotnull || attidentity::text || attgenerated::text || ' ' || attcollation::regcollation::text || ' '
            || coalesce(pg_get_expr(adbin, adrelid), '') || ' ' || coalesce(attacl::text, '')
        from of_ours join pg_attribute on attrelid = of_ours.oid left join pg_attrdef on adrelid = attrelid and adnum = attnum
        where attnum > 0 and not attisdropped
        union all
        select 'constraint ' || name || '.' || conname || ' ' || pg_get_constraintdef(pg_constraint.oid)
        from of_ours join pg_constraint on conrelid = of_ours.oid
        union all
        select 'index ' || pg_get_indexdef(indexrelid) from of_ours join pg_index on indrelid = of_ours.oid
        union all
        select 'policy ' || name || '.' || polname || ' ' || polcmd::text || polpermissive || ' ' || polroles::regrole[]::text || ' '
            || coalesce(pg_get_expr(polqual, polrelid), '') || ' ' || coalesce(pg_get_expr(polwithcheck, polrelid), '')
        from of_ours join pg_policy on polrelid = of_ours.oid
        union all
        select 'trigger ' || pg_get_triggerdef(pg_trigger.oid) || ' ' || tgenabled::text
        from of_ours join pg_trigger on tgrelid = of_ours.oid where not tgisinternal
        union all
        select 'function ' || pg_get_functiondef(oid) || ' '
            || coalesce((select string_agg(acl::text, ',' order by acl::text) from unnest(proacl) acl), '')
        from pg_proc where pronamespace = 'public'::regnamespace
        union all
        select 'sequence ' || name || ' ' || seqtypid::regtype || ' ' || seqstart || ' ' || seqincrement || ' ' || seqcache || seqcycle
        from of_ours join pg_sequence on seqrelid = of_ours.oid
        union all
        select 'default ' || defaclobjtype::text || ' ' || defaclacl::text from pg_default_acl
        union all
        select 'schema ' || nspacl::text from pg_namespace where nspname = 'public'
        union all
        select 'database ' || coalesce((select string_agg(acl::text, ',' order by acl::text) from unnest(datacl) acl
                                        where acl::text like '=%'), '')
        from pg_database where datname = current_database()
    ) lines (line) order by line";

async fn catalog(database: &TestDatabase) -> Vec<String> {
    sqlx::query_scalar(CATALOG).fetch_all(&mut database.admin().await).await.unwrap()
}

fn assert_same(was: &[String], is: &[String]) {
    let differ: Vec<_> =
        was.iter().filter(|line| !is.contains(line)).chain(is.iter().filter(|line| !was.contains(line))).collect();
    assert!(differ.is_empty(), "{differ:#?}");
}

/// A database as an older release has left it.
async fn of_before() -> TestDatabase {
    let restore = async |owner: String| {
        let mut owner = PgConnection::connect(&owner).await.unwrap();
        owner.execute(include_str!("before.sql")).await.unwrap();
    };
    TestDatabase::of("todo", &format!("before_{}", include_str!("before.sql").len()), restore).await
}

async fn migrate(database: &TestDatabase) {
    todo::MIGRATIONS.run("todo", &database.owner.clone().into()).await.unwrap();
}

#[tokio::test]
async fn a_database_of_before_comes_to_the_schema_of_a_new_one_and_back_to_it_each_time() {
    let (old, new) = tokio::join!(of_before(), database());
    migrate(&old).await;
    let is = catalog(&new).await;
    assert_same(&catalog(&old).await, &is);
    assert!(is.len() > 100, "the catalog is read: {}", is.len());
    // Once more, as each start of a stack does.
    for database in [&old, &new] {
        migrate(database).await;
        assert_same(&catalog(database).await, &is);
    }
}

/// A process may start before the migrations of its release have run: it is ready after them.
#[tokio::test]
async fn a_schema_is_met_once_the_last_migration_of_each_history_has_run() {
    let (empty, database) = tokio::join!(TestDatabase::of("todo", "empty", async |_| {}), database());
    let check = async |database: &TestDatabase| todo::MIGRATIONS.check("todo", &database.app.clone().into()).await;
    check(&empty).await.unwrap_err();
    let mut admin = database.admin().await;
    for history in ["_sqlx_migrations", "_outbox_migrations", "_inbox_migrations", "_idempotency_migrations"] {
        check(&database).await.unwrap();
        let last = format!("where version = (select max(version) from {history})");
        admin.execute(AssertSqlSafe(format!("update {history} set success = false {last}"))).await.unwrap();
        let lacks = check(&database).await.unwrap_err().to_string();
        assert!(lacks.contains(history), "{lacks}");
        admin.execute(AssertSqlSafe(format!("update {history} set success = true {last}"))).await.unwrap();
    }
    // One of a newer release.
    let newer = "insert into _sqlx_migrations (version, description, success, checksum, execution_time) \
                 values (9999, 'newer', true, '\\x00', 0)";
    admin.execute(newer).await.unwrap();
    check(&database).await.unwrap();
}

/// Its migrate command runs again when a stack is started by it.
#[tokio::test]
async fn the_release_before_finds_its_own_history_in_a_new_database() {
    let new = database().await;
    let mut owner = PgConnection::connect(&new.owner).await.unwrap();
    let mut before = sqlx::migrate::Migrator::with_migrations(todo::MIGRATIONS.own.iter().cloned().collect());
    before.set_ignore_missing(true);
    before.run(&mut owner).await.unwrap();
}

/// Two replicas of a release begin together.
#[tokio::test]
async fn of_migrations_that_run_at_once_each_ends_well() {
    let database = TestDatabase::of("todo", "empty", async |_| {}).await;
    let all = (0..4).map(|_| migrate(&database));
    futures::future::join_all(all).await;
    assert_same(&catalog(&database).await, &catalog(&self::database().await).await);
}

/// Such an index costs each write, and nothing is read by it.
#[tokio::test]
async fn an_index_whose_build_was_cut_off_is_built_again() {
    let (cut, new) = tokio::join!(database(), database());
    let mut admin = cut.admin().await;
    // One is not whole, one was not begun, one is whole and was not noted.
    admin
        .execute(
            "update pg_index set indisvalid = false where indexrelid = 'todo_due_idx'::regclass; \
             drop index todo_status_due_idx; delete from _sqlx_migrations where version >= 20",
        )
        .await
        .unwrap();
    migrate(&cut).await;
    assert_same(&catalog(&cut).await, &catalog(&new).await);
    let invalid = "select count(*) from pg_index where not indisvalid";
    assert_eq!(sqlx::query_scalar::<_, i64>(invalid).fetch_one(&mut admin).await.unwrap(), 0);
}

/// Killed after any step, a migration goes on where it was.
#[tokio::test]
async fn a_migration_that_was_cut_off_goes_on() {
    let (new, old) = tokio::join!(database(), of_before());
    migrate(&old).await;
    let whole = catalog(&new).await;
    // The histories of the shipped tables are noted one step after the other in a database of before.
    for left in 0..=6 {
        for (history, noted) in [("_outbox_migrations", 6), ("_inbox_migrations", 2), ("_idempotency_migrations", 5)] {
            let cut = format!("delete from {history} where version > {left} and version <= {noted}");
            old.admin().await.execute(AssertSqlSafe(cut)).await.unwrap();
        }
        migrate(&old).await;
        assert_same(&catalog(&old).await, &whole);
    }
    // A new database has all rows of its own history or none: they are one transaction.
    let rows: Vec<(String, i64)> =
        sqlx::query_as("select xmin::text, count(*) from _sqlx_migrations where version < 18 group by xmin::text")
            .fetch_all(&mut new.admin().await)
            .await
            .unwrap();
    assert_eq!(rows.iter().map(|(_, rows)| *rows).collect::<Vec<_>>(), [17]);
}

#[tokio::test]
async fn a_service_goes_on_with_what_a_database_of_before_holds() {
    let database = of_before().await;
    migrate(&database).await;
    let harness = Harness::on(database).await;
    let (ann, eve) = (harness.client("acme", "ann"), harness.client("globex", "eve"));
    let todo = ann.get("0193a5b0-7a52-7c3e-9b1e-000000000001").await.unwrap();
    assert_eq!((todo.title.as_str(), todo.labels.as_slice()), ("of before", &["rope".to_owned()][..]));
    assert_eq!(ann.rename(&todo.id, "of today").await.unwrap().title, "of today");
    let done = eve.get("0193a5b0-7a52-7c3e-9b1e-000000000002").await.unwrap();
    assert!(done.complete_time.is_some());
    harness.drain().await;
    // Its events of before, the new one, and none twice.
    let stream = harness.stream().await.get_info().await.unwrap().state;
    assert_eq!(stream.messages, 3);
}
