//! A fleet whose secrets are rotated under load, twice: no request fails, what was before is taken for as long as it may be, and refused
//! afterwards.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::PathBuf;
use std::sync::Arc;

use devstack::StackDir;
use devstack::rotation::{self, Kind};
use e2e::load::Load;
use e2e::{Caller, Fleet};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use testkit::until;

/// What was handed out before a rotation.
struct Before {
    logins: Vec<String>,
    credentials: Vec<PathBuf>,
    /// Where the machine lets OpenSearch have a login.
    search: Option<Value>,
    caller: Caller,
    pages: Vec<String>,
}

const LOGINS: [&str; 4] =
    ["todo-database-url", "todo-relay-database-url", "todo-owner-database-url", "operations-database-url"];
const CREDENTIALS: [&str; 5] = ["todo", "todo-consumer", "search-projector", "todo-admin", "sys"];
const LISTS: [&str; 2] = ["/v1/todos?pageSize=1", "/v1/todos:search?query=hull&pageSize=1"];

fn secret(fleet: &Fleet, name: &str) -> String {
    std::fs::read_to_string(fleet.home.join("secrets").join(name)).unwrap()
}

impl Before {
    async fn of(fleet: &Fleet, label: &str) -> Self {
        let caller = fleet.caller("acme", "eve").await;
        let mut pages = Vec::new();
        for list in LISTS {
            until("there is a second page", || async { !next(&caller, list).await.is_empty() }).await;
            pages.push(next(&caller, list).await);
        }
        let copied = |login: &str| {
            let copy = fleet.home.join(format!("{label}-{login}.creds"));
            std::fs::copy(fleet.home.join(format!("secrets/nats/{login}.creds")), &copy).unwrap();
            copy
        };
        Self {
            logins: LOGINS.map(|name| secret(fleet, name).lines().next().unwrap().to_owned()).into(),
            credentials: CREDENTIALS.map(copied).into(),
            search: fleet.unit("opensearch").creds_file.map(|_| fleet.login("opensearch")),
            caller,
            pages,
        }
    }

    /// Nobody logs in any more by what the servers took before.
    async fn is_refused_by_the_servers(&self, fleet: &Fleet) {
        for login in &self.logins {
            let refused = PgConnection::connect(login).await.unwrap_err();
            assert_eq!(refused.as_database_error().unwrap().code().unwrap(), "28P01");
        }
        for file in &self.credentials {
            let options = async_nats::ConnectOptions::new().credentials_file(file).await.unwrap();
            let refused = options.connect(fleet.unit("nats").url.unwrap()).await.unwrap_err().to_string();
            assert!(refused.contains("authorization violation"), "{}: {refused}", file.display());
        }
    }

    /// What callers hold: a token, and the tokens of pages.
    async fn is_taken_of_callers(&self) {
        for (list, page) in LISTS.iter().zip(&self.pages) {
            let answer = self.caller.send(Method::GET, &format!("{list}&pageToken={page}"), None).await;
            assert_eq!(answer.status, 200, "{list}: {}", answer.body);
        }
    }

    async fn is_refused_of_callers(&self, now: &Caller) {
        assert_eq!(self.caller.send(Method::GET, LISTS[0], None).await.status, 401);
        // Each process looks at its files by itself, some seconds after they have changed.
        for (list, page) in LISTS.iter().zip(&self.pages) {
            let path = format!("{list}&pageToken={page}");
            until("pages by the first key are refused", || async {
                now.send(Method::GET, &path, None).await.status == 400
            })
            .await;
        }
    }

    async fn search(&self, fleet: &Fleet) -> u16 {
        let login = self.search.as_ref().unwrap();
        let text = |field: &str| login[field].as_str().unwrap().to_owned();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = http.get(fleet.unit("opensearch").url.unwrap());
        request.basic_auth(text("user"), Some(text("password"))).send().await.unwrap().status().as_u16()
    }
}

async fn next(caller: &Caller, list: &str) -> String {
    let answer = caller.send(Method::GET, list, None).await;
    assert_eq!(answer.status, 200, "{list}: {}", answer.body);
    answer.body["nextPageToken"].as_str().unwrap().to_owned()
}

async fn rotate(fleet: &Fleet) {
    let rotated = fleet.json(&["secrets", "rotate"]).await;
    assert_eq!(rotated["rotated"].as_array().unwrap().len(), devstack::rotation::ALL.len(), "{rotated}");
}

/// Waits until each role has logged in to PostgreSQL since the rotation; the session of a relay stays for as long as it leads.
async fn all_have_logged_in_anew(fleet: &Fleet) {
    let mut admin = PgConnection::connect(fleet.login("postgres")["url"].as_str().unwrap()).await.unwrap();
    let since: chrono::DateTime<chrono::Utc> = sqlx::query_scalar("select now()").fetch_one(&mut admin).await.unwrap();
    let admin = tokio::sync::Mutex::new(admin);
    let newer = "select array_agg(distinct usename::text order by usename::text) from pg_stat_activity \
                 where usename ~ '_(app|relay)$' and backend_start > $1";
    let rows = fleet::SERVICES.iter().filter(|service| service.database.is_some());
    let mut all: Vec<_> = rows.clone().map(|service| format!("{}_app", service.name)).collect();
    all.extend(rows.filter(|service| service.produces).map(|service| format!("{}_relay", service.name)));
    all.sort();
    until("each role has a newer connection", || async {
        let roles: Option<Vec<String>> =
            sqlx::query_scalar(newer).bind(since).fetch_one(&mut *admin.lock().await).await.unwrap();
        roles.unwrap_or_default() == all
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_secret_is_rotated_under_load_and_no_request_fails() {
    let fleet = Arc::new(Fleet::start(None).await);
    let load = Load::start(&fleet);
    load.goes_on().await;
    let first = Before::of(&fleet, "first").await;
    rotate(&fleet).await;
    first.is_refused_by_the_servers(&fleet).await;
    first.is_taken_of_callers().await;
    if let Some(login) = &first.search {
        assert_ne!(secret(&fleet, "opensearch-url"), login["url"].as_str().unwrap());
    }
    all_have_logged_in_anew(&fleet).await;
    load.goes_on().await;

    let second = Before::of(&fleet, "second").await;
    rotate(&fleet).await;
    second.is_refused_by_the_servers(&fleet).await;
    second.is_taken_of_callers().await;
    load.goes_on().await;
    let now = fleet.caller("acme", "eve").await;
    now.create(json!({"title": "Tar the hull"})).await;
    until("the first key is not trusted any more", || async {
        first.caller.send(Method::GET, LISTS[0], None).await.status == 401
    })
    .await;
    first.is_refused_of_callers(&now).await;
    if first.search.is_some() {
        until("the first password is refused", || async { first.search(&fleet).await == 401 }).await;
        assert_eq!(second.search(&fleet).await, 200);
    }

    // Identity signs by what is the first key now, and takes todo for itself by what is todo's.
    let ann = fleet.person("ann").await;
    ann.sign_up("rotated").await;
    let bob = fleet.caller("rotated", "bob").await.send(Method::GET, "/v1/me", None).await;
    assert_eq!(bob.status, 200, "{bob:?}");
    let mut database = PgConnection::connect(fleet.login("postgres")["url"].as_str().unwrap()).await.unwrap();
    let database = tokio::sync::Mutex::new(&mut database);
    until("todo knows him by the event", || async {
        let forget = "delete from known_member where tenant = 'rotated' and user_id = 'bob'";
        sqlx::query(forget).execute(&mut **database.lock().await).await.unwrap().rows_affected() == 1
    })
    .await;
    ann.create(json!({"title": "Mend the sails", "assignee": "bob"})).await;

    let written = load.end().await;

    // Whoever starts between the two steps logs in by what is still taken, and goes over when it is not.
    rotation::stage(&StackDir::open(&fleet.home).unwrap(), Kind::Databases).unwrap();
    fleet.kill("todo").await;
    fleet.json(&["secrets", "rotate", "databases"]).await;
    // Whoever starts afterwards has nothing but what is new.
    for unit in ["todo", "search-projector", "operations"] {
        fleet.kill(unit).await;
    }
    let title = "Caulk the seams";
    now.create(json!({"title": title})).await;
    until("it is found", || async { now.search("seams").await == [title] }).await;
    let report = fleet.json(&["verify"]).await;
    assert_eq!(report["todos"], written + 3, "{report}");
    for kind in ["lost", "duplicated", "outOfOrder", "foreign", "diverged"] {
        assert_eq!(report[kind]["count"], 0, "{report}");
    }
    Arc::into_inner(fleet).unwrap().stop().await;
}
