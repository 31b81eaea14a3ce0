//! No tenant sees or changes another's data, through the service or through the database alone.

use proto::harbour::{ListLogbooksRequest, ListVesselsRequest, Logbook, Vessel};
use sqlx::{Connection as _, Executor as _, PgConnection};
use testkit::catalog;
use tonic::Code;

use crate::harness::{Client, Harness, database, reason};

/// Every RPC of the service.
pub fn rpcs() -> Vec<String> {
    let service = proto::POOL.get_service_by_name("flotilla.harbour.v1.HarbourService").unwrap();
    service.methods().map(|rpc| rpc.name().to_owned()).collect()
}

/// Calls an RPC about a vessel or a logbook; returns how many its answer shows.
pub async fn call(client: &Client, rpc: &str, vessel: &str, logbook: &str) -> Result<usize, tonic::Status> {
    let new = || Vessel { name: "mine now".to_owned(), ..Vessel::default() };
    match rpc {
        "CreateVessel" => client.create_vessel(new()).await.map(|_| 0),
        "GetVessel" => client.get_vessel(vessel).await.map(|_| 1),
        "ListVessels" => client.list_vessels(ListVesselsRequest::default()).await.map(|page| page.vessels.len()),
        "UpdateVessel" => client.update_vessel(vessel, new(), &[]).await.map(|_| 1),
        "DeleteVessel" => client.delete_vessel(vessel, "").await.map(|()| 1),
        "GetLogbook" => client.get_logbook(logbook).await.map(|_| 1),
        "ListLogbooks" => client.list_logbooks(ListLogbooksRequest::default()).await.map(|page| page.logbooks.len()),
        "UpdateLogbook" => {
            let logbook_now = Logbook { notes: "mine now".to_owned(), ..Logbook::default() };
            client.update_logbook(logbook, logbook_now, &[]).await.map(|_| 1)
        }
        other => panic!("{other} has no denial test: say here how it is called"),
    }
}

#[tokio::test]
async fn another_tenant_finds_nothing_by_any_call() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let vessel = ann.named("secret").await;
    let logbook = ann.logbook_of(&vessel).await;
    // The same user name in another tenant is another user.
    let other = harness.client("globex", "ann");
    for rpc in rpcs() {
        let result = call(&other, &rpc, &vessel.id, &logbook.id).await;
        match rpc.as_str() {
            "CreateVessel" | "ListVessels" | "ListLogbooks" => {
                assert!(result.unwrap() <= 1, "{rpc} shows only what globex wrote");
            }
            rpc if rpc.ends_with("Logbook") => assert_eq!(reason(result), "LOGBOOK_NOT_FOUND", "{rpc}"),
            _ => assert_eq!(reason(result), "VESSEL_NOT_FOUND", "{rpc}"),
        }
    }
    assert_eq!(ann.get_vessel(&vessel.id).await.unwrap(), vessel);
    assert_eq!(ann.get_logbook(&logbook.id).await.unwrap(), logbook);
}

#[tokio::test]
async fn no_call_is_answered_without_a_good_token() {
    let harness = Harness::start().await;
    let vessel = harness.client("acme", "ann").named("secret").await;
    for bearer in harness.issuer.refused() {
        for rpc in rpcs() {
            let result = call(&harness.client_with(bearer.clone()), &rpc, &vessel.id, &vessel.id).await;
            assert_eq!(result.unwrap_err().code(), Code::Unauthenticated, "{rpc} with {bearer:?}");
        }
    }
    assert_eq!(harness.count("vessel").await, 1);
}

#[tokio::test]
async fn row_level_security_alone_keeps_tenants_apart() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    ann.logbook_of(&ann.named("secret").await).await;
    for tenant in ["globex", ""] {
        let mut connection = PgConnection::connect(&harness.database.app).await.unwrap();
        sqlx::query("select set_config('app.tenant', $1, false)").bind(tenant).execute(&mut connection).await.unwrap();
        for table in ["vessel", "logbook", "idempotency"] {
            let sql = sqlx::AssertSqlSafe(format!("select count(*) from {table}"));
            let seen: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
            assert_eq!(seen, 0, "{table} as {tenant:?}");
        }
        for sql in ["update vessel set name = 'mine'", "update logbook set notes = 'mine'"] {
            assert_eq!(connection.execute(sql).await.unwrap().rows_affected(), 0, "{sql} as {tenant:?}");
        }
        let foreign = "insert into vessel (tenant, id, name, notes, create_time, update_time, created_by, version) \
                       values ('acme', gen_random_uuid(), 'x', '', now(), now(), 'x', 1)";
        let refused = connection.execute(foreign).await.unwrap_err().to_string();
        assert!(refused.contains("row-level security"), "{refused}");
        for sql in ["delete from vessel", "select payload from outbox", "create table mine (x int)", "set role harbour_owner"] {
            let refused = connection.execute(sql).await.unwrap_err();
            assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("42501"), "{sql}");
        }
    }
}

#[tokio::test]
async fn every_table_is_a_tenants_behind_a_policy_or_listed_as_nobodys() {
    let database = database().await;
    catalog::every_table_is_a_tenants_or_listed(&database, "harbour", &["idempotency", "known_member", "known_tenant", "outbox", "vessel", "logbook"])
        .await;
    catalog::no_function_is_led_to_a_callers_tables(&database).await;
}
