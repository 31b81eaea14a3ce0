//! Lists page through everything once, and no call reads a table from end to end.

use proto::identity::{
    ListApiKeysRequest, ListInvitationsRequest, ListMembersRequest, ListServiceAccountsRequest, Role,
};
use sqlx::{Connection as _, Executor as _};

use crate::harness::{ACCESS_TOKEN, API_KEY, Harness, reason};
use crate::tenancy::{call, furnished, rpcs};

#[tokio::test]
async fn pages_have_everything_once_newest_first() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let mut made = Vec::new();
    for number in 0..7 {
        made.insert(0, ann.invite(&format!("guest-{number}@x.example"), Role::Member).await.unwrap().id);
        ann.create_key(Role::Viewer, &["todo:read"]).await.unwrap();
    }
    let all = ListServiceAccountsRequest { page_size: 5, ..Default::default() };
    let page = ann.inner.clone().list_service_accounts(ann.request(all)).await.unwrap().into_inner();
    assert_eq!((page.service_accounts.len(), page.next_page_token.is_empty()), (5, false));
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ann.request(ListInvitationsRequest { page_size: 3, page_token });
        let page = ann.inner.clone().list_invitations(request).await.unwrap().into_inner();
        listed.extend(page.invitations.into_iter().map(|invitation| invitation.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, made);
    let list = |page_size, page_token: String| {
        let (mut inner, request) = (ann.inner.clone(), ann.request(ListApiKeysRequest { page_size, page_token }));
        async move { inner.list_api_keys(request).await.map(tonic::Response::into_inner) }
    };
    let page = list(3, String::new()).await.unwrap();
    assert_eq!(page.api_keys.len(), 3);
    assert_eq!(list(200, page.next_page_token.clone()).await.unwrap().api_keys.len(), 4);
    assert_eq!(reason(list(-1, String::new()).await), "INVALID_ARGUMENT");
    // A page token of one question is none of another, or of another tenant.
    let other = ListMembersRequest { page_token: page.next_page_token.clone(), ..Default::default() };
    assert_eq!(reason(ann.inner.clone().list_members(ann.request(other)).await), "INVALID_ARGUMENT");
    let eve = harness.owner("globex", "eve").await;
    let foreign = ListApiKeysRequest { page_token: page.next_page_token, ..Default::default() };
    assert_eq!(reason(eve.inner.clone().list_api_keys(eve.request(foreign)).await), "INVALID_ARGUMENT");
}

#[tokio::test]
async fn no_call_scans_a_table() {
    let harness = Harness::start().await;
    let mut admin = harness.database.admin().await;
    // Large enough that PostgreSQL chooses a scan for none of them.
    admin
        .execute(
            "insert into tenant (tenant, id, name, time_zone, country, currency, billing_email, create_time, update_time, created_by, version) \
             select 'tenant-' || n, gen_random_uuid(), 'name', 'UTC', 'DE', 'EUR', '', now() - interval '1 day', now(), 'ann', 1 from generate_series(1, 5000) n; \
             insert into person (id, issuer, subject, create_time) \
             select 'person-' || n, 'https://issuer.example', n::text, now() from generate_series(1, 50000) n; \
             insert into member (tenant, id, user_id, name, email, locale, time_zone, role, create_time, update_time, version) \
             select 'tenant-' || n % 5000 + 1, gen_random_uuid(), 'person-' || n, 'name', 'n@x.example', '', '', 'owner', now(), now(), 1 \
             from generate_series(1, 50000) n; \
             insert into invitation (tenant, id, email, role, expire_time, create_time, update_time, created_by, version) \
             select 'tenant-' || n % 5000 + 1, gen_random_uuid(), 'n@x.example', 'member', now(), now(), now(), 'ann', 1 \
             from generate_series(1, 50000) n; \
             insert into service_account (tenant, id, name, role, create_time, update_time, created_by, version) \
             select 'tenant-' || n % 5000 + 1, gen_random_uuid(), 'name', 'viewer', now(), now(), 'ann', 1 from generate_series(1, 50000) n; \
             insert into api_key (tenant, id, service_account, name, scopes, digest, expire_time, create_time, update_time, created_by, version) \
             select tenant, gen_random_uuid(), id, 'name', '{todo:read}', decode(repeat('00', 32), 'hex'), \
             now(), now(), now(), 'ann', 1 from service_account; \
             insert into member_group (tenant, id, name, members, create_time, update_time, created_by, version) \
             select tenant, gen_random_uuid(), 'name', '{}', now(), now(), 'ann', 1 from service_account; \
             insert into audit (tenant, id, time, actor, action, subject) \
             select tenant, id, now(), 'user:ann', 'api_key_created', id from api_key; \
             analyze audit, tenant, person, member, member_group, invitation, service_account, api_key",
        )
        .await
        .unwrap();
    // PostgreSQL's counts of a connection are complete once it has ended.
    admin.close().await.unwrap();
    let mut admin = harness.database.admin().await;
    admin.execute("select pg_stat_reset()").await.unwrap();
    let ann = harness.owner("acme", "ann").await;
    let ids = furnished(&harness, &ann, "acme").await;
    for rpc in rpcs() {
        call(&ann, &rpc, &ids).await.unwrap();
    }
    for page_size in [1, 200] {
        for rpc in ["members", "invitations", "keys"] {
            let mut inner = ann.inner.clone();
            match rpc {
                "members" => {
                    let request = ListMembersRequest { page_size, ..Default::default() };
                    let page_token =
                        inner.list_members(ann.request(request)).await.unwrap().into_inner().next_page_token;
                    let next = ListMembersRequest { page_size, page_token, user: String::new() };
                    inner.list_members(ann.request(next)).await.unwrap();
                    let one = ListMembersRequest { user: ann.user().await, ..Default::default() };
                    inner.list_members(ann.request(one)).await.map(drop)
                }
                "invitations" => {
                    let request = ListInvitationsRequest { page_size, ..Default::default() };
                    inner.list_invitations(ann.request(request)).await.map(drop)
                }
                _ => inner
                    .list_api_keys(ann.request(ListApiKeysRequest { page_size, ..Default::default() }))
                    .await
                    .map(drop),
            }
            .unwrap();
        }
    }
    let key = ann.create_key(Role::Viewer, &["todo:read"]).await.unwrap().key;
    harness.client_with(None).exchange(&key, API_KEY, "", "").await.unwrap();
    let token = harness.issuer.person("ann", "ann@x.example");
    harness.client_with(None).exchange(&token, ACCESS_TOKEN, "", "").await.unwrap();
    // By their own connections, not by counting rows: that would be a scan.
    harness.stop().await;
    let close = "select pg_terminate_backend(pid) from pg_stat_activity where usename in ('identity_app', 'identity_operator') and datname = current_database()";
    testkit::until("its connections are closed", || async {
        let mut admin = harness.database.admin().await;
        sqlx::query_scalar::<_, bool>(close).fetch_all(&mut admin).await.unwrap().is_empty()
    })
    .await;
    let counted: Vec<(String, i64, i64)> = sqlx::query_as(
        "select relname::text, coalesce(seq_scan, 0), coalesce(idx_scan, 0) from pg_stat_user_tables \
         where relname = any('{audit,tenant,person,member,member_group,invitation,service_account,api_key}')",
    )
    .fetch_all(&mut admin)
    .await
    .unwrap();
    assert!(
        counted.len() == 8 && counted.iter().all(|(_, scans, by_index)| *scans == 0 && *by_index > 0),
        "{counted:?}"
    );
}
