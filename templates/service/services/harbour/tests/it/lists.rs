//! Lists page through everything once, and no call reads a table from end to end.

use proto::harbour::{ListLogbooksRequest, ListVesselsRequest};
use sqlx::{Connection as _, Executor as _};

use crate::harness::{Harness, reason};
use crate::tenancy::{call, rpcs};

#[tokio::test]
async fn pages_have_everything_once_newest_first() {
    let harness = Harness::start().await;
    let ann = harness.client("acme", "ann");
    let mut written = Vec::new();
    for number in 0..7 {
        written.insert(0, ann.named(&format!("{number}")).await.id);
    }
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = ann.list_vessels(ListVesselsRequest { page_size: 3, page_token, ..Default::default() }).await.unwrap();
        listed.extend(page.vessels.into_iter().map(|vessel| vessel.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, written);
    let list = async |filter: &str, order_by: &str| {
        let (filter, order_by) = (filter.to_owned(), order_by.to_owned());
        let page = ann.list_vessels(ListVesselsRequest { filter, order_by, ..Default::default() }).await;
        page.map(|page| page.vessels.into_iter().map(|vessel| vessel.id).collect::<Vec<_>>())
    };
    let some = list("name = \"2\" OR NOT name != \"5\"", "updateTime").await.unwrap();
    assert_eq!(some, [written[4].clone(), written[1].clone()]);
    assert_eq!(reason(list("colour = red", "").await), "INVALID_ARGUMENT");
    assert_eq!(reason(list("", "name").await), "INVALID_ARGUMENT");
    harness.settled().await;
    let page = ann.list_logbooks(ListLogbooksRequest { page_size: 3, ..Default::default() }).await.unwrap();
    assert_eq!(page.logbooks.len(), 3);
    // A page token of one query is not valid for another.
    let other = ListVesselsRequest { page_token: page.next_page_token, ..Default::default() };
    assert_eq!(reason(ann.list_vessels(other).await), "INVALID_ARGUMENT");
    let negative = ListVesselsRequest { page_size: -1, ..Default::default() };
    assert_eq!(reason(ann.list_vessels(negative).await), "INVALID_ARGUMENT");
}

#[tokio::test]
async fn no_call_scans_a_table() {
    let harness = Harness::start().await;
    let mut admin = harness.database.admin().await;
    // Large enough that PostgreSQL chooses a scan for none of them.
    admin
        .execute(
            "insert into vessel (tenant, id, name, notes, create_time, update_time, created_by, version) \
             select 'tenant-' || n % 50, gen_random_uuid(), 'name', '', now(), now(), 'ann', 1 from generate_series(1, 50000) n; \
             insert into logbook (tenant, id, vessel_id, notes, create_time, update_time, created_by, version) \
             select tenant, gen_random_uuid(), id, '', now(), now(), 'ann', 1 from vessel; \
             analyze vessel, logbook",
        )
        .await
        .unwrap();
    // PostgreSQL's counts of a connection are complete once it has ended.
    admin.close().await.unwrap();
    let mut admin = harness.database.admin().await;
    admin.execute("select pg_stat_reset()").await.unwrap();
    let ann = harness.client("tenant-7", "ann");
    let vessel = ann.named("x").await;
    let logbook = ann.logbook_of(&vessel).await;
    for rpc in rpcs() {
        call(&ann, &rpc, &vessel.id, &logbook.id).await.ok();
    }
    for page_size in [1, 200] {
        for order_by in ["", "updateTime"] {
            let list = ListVesselsRequest { page_size, order_by: order_by.to_owned(), ..Default::default() };
            let page_token = ann.list_vessels(list.clone()).await.unwrap().next_page_token;
            ann.list_vessels(ListVesselsRequest { page_token, ..list }).await.unwrap();
        }
    }
    // By their own connections, not by counting rows: that would be a scan.
    harness.stop().await;
    let close = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'harbour_app' and datname = current_database()";
    testkit::until("its connections are closed", || async {
        let mut admin = harness.database.admin().await;
        sqlx::query_scalar::<_, bool>(close).fetch_all(&mut admin).await.unwrap().is_empty()
    })
    .await;
    let counted: Vec<(String, i64, i64)> = sqlx::query_as(
        "select relname::text, coalesce(seq_scan, 0), coalesce(idx_scan, 0) from pg_stat_user_tables \
         where relname = any('{vessel,logbook}')",
    )
    .fetch_all(&mut admin)
    .await
    .unwrap();
    assert!(counted.len() == 2 && counted.iter().all(|(_, scans, by_index)| *scans == 0 && *by_index > 0), "{counted:?}");
}
