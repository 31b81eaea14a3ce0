//! Nobody sees or changes another tenant's todos: by the service, and by the database alone.

use proto::todo::{ListTodosRequest, Todo};
use service::{Call, Db};
use sqlx::{Connection as _, Executor as _, PgConnection};
use testkit::catalog;
use tonic::Code;

use crate::harness::{Client, Harness, database, reason};

/// Every RPC of the service.
pub fn rpcs() -> Vec<String> {
    let service = proto::POOL.get_service_by_name("flotilla.todo.v1.TodoService").unwrap();
    service.methods().map(|rpc| rpc.name().to_owned()).collect()
}

/// Calls an RPC about a todo; how many todos its answer shows.
pub async fn call(client: &Client, rpc: &str, id: &str) -> Result<usize, tonic::Status> {
    let todo = || Todo { title: "mine now".to_owned(), ..Todo::default() };
    match rpc {
        "CreateTodo" => client.create(todo()).await.map(|_| 0),
        "GetTodo" => client.get(id).await.map(|_| 1),
        "ListTodos" => client.list(ListTodosRequest::default()).await.map(|page| page.todos.len()),
        // Its first message says where it is.
        "WatchTodos" => client.watch("").await?.message().await.map(|_| 0),
        "UpdateTodo" => client.update(id, todo(), &[]).await.map(|_| 1),
        "DeleteTodo" => client.delete(id, "").await.map(|()| 1),
        "CompleteTodo" => client.complete(id, "").await.map(|_| 1),
        "ReopenTodo" => client.reopen(id).await.map(|_| 1),
        other => panic!("{other} has no denial test: say here how it is called"),
    }
}

#[tokio::test]
async fn another_tenant_finds_nothing_by_any_call() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let todo = ann.titled("secret").await;
    // The same user name in another tenant is another user.
    let other = harness.client("globex", "ann");
    for rpc in rpcs() {
        let result = call(&other, &rpc, &todo.id).await;
        match rpc.as_str() {
            "CreateTodo" | "ListTodos" | "WatchTodos" => {
                assert!(result.unwrap() <= 1, "{rpc} shows only what globex wrote")
            }
            _ => assert_eq!(reason(result), "TODO_NOT_FOUND", "{rpc}"),
        }
    }
    assert_eq!(ann.get(&todo.id).await.unwrap(), todo);
}

#[tokio::test]
async fn no_call_is_answered_without_a_good_token() {
    let harness = Harness::start().await;
    let todo = harness.client("acme", "ann").titled("secret").await;
    for bearer in harness.issuer.refused() {
        for rpc in rpcs() {
            let result = call(&harness.client_with(bearer.clone()), &rpc, &todo.id).await;
            assert_eq!(result.unwrap_err().code(), Code::Unauthenticated, "{rpc} with {bearer:?}");
        }
    }
    assert_eq!(harness.count("todo").await, 1);
}

/// A connection as the service's own role, acting as a tenant, with no service in between.
async fn as_tenant(harness: &Harness, tenant: Option<&str>) -> PgConnection {
    let mut connection = PgConnection::connect(&harness.database.app).await.unwrap();
    if let Some(tenant) = tenant {
        sqlx::query("select set_config('app.tenant', $1, false)").bind(tenant).execute(&mut connection).await.unwrap();
    }
    connection
}

#[tokio::test]
async fn row_level_security_alone_keeps_tenants_apart() {
    let harness = Harness::start().await;
    let todo = Todo { title: "secret".to_owned(), labels: vec!["x".to_owned()], ..Todo::default() };
    harness.client("acme", "ann").create(todo).await.unwrap();
    for tenant in [Some("globex"), Some(""), None] {
        let mut connection = as_tenant(&harness, tenant).await;
        for sql in ["select count(*) from todo", "select count(*) from todo_label", "select count(*) from idempotency"]
        {
            let seen: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
            assert_eq!(seen, 0, "{sql} as {tenant:?}");
        }
        for sql in ["update todo set title = 'mine'", "delete from todo_label"] {
            assert_eq!(connection.execute(sql).await.unwrap().rows_affected(), 0, "{sql} as {tenant:?}");
        }
    }
    let mut connection = as_tenant(&harness, Some("globex")).await;
    for sql in [
        "insert into todo_label (tenant, label, todo_id) values ('acme', 'x', gen_random_uuid())",
        "insert into outbox (event_id, tenant, aggregate_id, subject, payload) \
         values (gen_random_uuid(), 'acme', 'a', 'evt.todo.created.v1.acme', '')",
        "insert into idempotency (tenant, principal, method, key, fingerprint, response) values ('acme', 'a', 'b', 'c', '', '')",
    ] {
        let error = connection.execute(sql).await.unwrap_err().to_string();
        assert!(error.contains("row-level security"), "{sql}: {error}");
    }
}

#[tokio::test]
async fn the_service_s_role_can_do_no_more_than_the_service() {
    let harness = Harness::start().await;
    let mut connection = as_tenant(&harness, Some("acme")).await;
    let partition: String = {
        let mut admin = harness.database.admin().await;
        sqlx::query_scalar("select min(inhrelid::regclass::text) from pg_inherits where inhparent = 'outbox'::regclass")
            .fetch_one(&mut admin)
            .await
            .unwrap()
    };
    for sql in [
        "select * from outbox".to_owned(),
        format!("select * from {partition}"),
        format!(
            "insert into {partition} (event_id, tenant, aggregate_id, subject, payload) values (gen_random_uuid(), 'globex', 'a', 'b', '')"
        ),
        "delete from todo".to_owned(),
        "select todo_timer_claim('DUE', 0, '', 1)".to_owned(),
        "alter table todo disable row level security".to_owned(),
        "select outbox_create_partitions(1)".to_owned(),
        "update outbox_relay set epoch = 0".to_owned(),
        "create table mine (x int)".to_owned(),
    ] {
        let refused = connection.execute(sqlx::AssertSqlSafe(sql.clone())).await;
        let code = refused.unwrap_err().as_database_error().and_then(|error| error.code().map(|code| code.to_string()));
        assert_eq!(code.as_deref(), Some("42501"), "{sql}");
    }
    let bypass: bool = sqlx::query_scalar("select rolbypassrls or rolsuper from pg_roles where rolname = current_user")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert!(!bypass);
}

#[tokio::test]
async fn what_runs_as_the_owner_cannot_be_led_to_a_callers_own_tables() {
    let harness = Harness::start().await;
    catalog::no_function_is_led_to_a_callers_tables(&harness.database).await;
    let mut admin = harness.database.admin().await;
    // The attack itself, where the role may have temporary tables.
    harness.client("acme", "ann").titled("secret").await;
    let grant = format!("grant temporary on database {} to todo_app", harness.database.name);
    admin.execute(sqlx::AssertSqlSafe(grant)).await.unwrap();
    let mut connection = as_tenant(&harness, Some("globex")).await;
    connection
        .execute(
            "create temp table idempotency (tenant text, principal text, method text, key text, created_at timestamptz); \
             insert into idempotency values ('globex', 'a', 'b', 'c', '2000-01-01'); \
             create function pg_temp.own() returns trigger language plpgsql as $$ begin \
             execute 'alter table public.todo disable row level security'; return old; end $$; \
             create trigger own before delete on pg_temp.idempotency for each row execute function pg_temp.own(); \
             grant all on pg_temp.idempotency to public; select public.idempotency_sweep(10)",
        )
        .await
        .unwrap();
    let seen: i64 = sqlx::query_scalar("select count(*) from todo").fetch_one(&mut connection).await.unwrap();
    assert_eq!(seen, 0, "row-level security is still on");
}

#[tokio::test]
async fn an_older_release_starts_on_a_newer_schema() {
    let harness = Harness::start().await;
    let mut admin = harness.database.admin().await;
    let newer = "insert into _sqlx_migrations (version, description, success, checksum, execution_time) \
                 values (9999, 'of a newer release', true, '\\x00', 1)";
    admin.execute(newer).await.unwrap();
    let owner = service::secret::SecretString::from(harness.database.superuser.clone());
    todo::MIGRATIONS.run("todo", &owner).await.unwrap();
    admin.execute("update _sqlx_migrations set checksum = '\\x00' where version = 1").await.unwrap();
    let changed = todo::MIGRATIONS.run("todo", &owner).await.unwrap_err();
    assert!(changed.to_string().contains("has been modified"), "{changed}");
}

#[tokio::test]
async fn the_operator_s_role_asks_of_all_tenants_and_sees_none() {
    let harness = Harness::start().await;
    harness.client("acme", "ann").titled("secret").await;
    let db = Db::lazy(&harness.database.app.clone().into(), contracts::events::todo::SERVICE, 1).unwrap();
    for sql in ["select from todo", "select from todo_timer", "select from inbox", "insert into outbox default values"]
    {
        let mut tx = db.begin_operator("a test").await.unwrap();
        let refused = tx.execute(sql).await.unwrap_err();
        assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("42501"), "{sql}");
    }
    let mut tx = db.begin_operator("a test").await.unwrap();
    tx.execute("select todo_timer_claim('DUE', 0, '', 1), todo_timer_late('DUE', 0)").await.unwrap();
    tx.commit().await.unwrap();
    // On the same connection.
    let call = Call::of_schedule("acme".parse().unwrap(), "todo".parse().unwrap());
    let mut tx = db.read(&call).await.unwrap();
    let role: String = sqlx::query_scalar("select current_user::text").fetch_one(&mut *tx).await.unwrap();
    assert_eq!(role, "todo_app");
    let mut admin = harness.database.admin().await;
    let (bypass, login): (bool, bool) =
        sqlx::query_as("select rolbypassrls or rolsuper, rolcanlogin from pg_roles where rolname = 'todo_operator'")
            .fetch_one(&mut admin)
            .await
            .unwrap();
    assert_eq!((bypass, login), (false, false));
}

#[tokio::test]
async fn every_table_is_a_tenants_behind_a_policy_or_listed_as_nobodys() {
    let database = database().await;
    let tenants = [
        "idempotency",
        "known_member",
        "known_tenant",
        "outbox",
        "todo",
        "todo_label",
        "todo_occurrence",
        "todo_timer",
    ];
    catalog::every_table_is_a_tenants_or_listed(&database, "todo", &tenants).await;
}
