//! Another tenant's todo does not exist, on any route; and a tenant that is suspended writes nothing, on any route.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::http::routes;
use crate::with_fleet;

#[test]
fn every_route_answers_another_tenant_with_404_or_nothing() {
    with_fleet(|fleet, _| async {
        // Both have signed up, so that nothing but the tenant differs.
        let (ann, eve) = (fleet.person("tenants-ann").await, fleet.person("tenants-eve").await);
        ann.sign_up("tenants-a").await;
        eve.sign_up("tenants-b").await;
        let todo = ann.create(json!({"title": "hidden treasure", "labels": ["gold"]})).await;
        testkit::until("its own tenant finds it", || async { ann.search("treasure").await.len() == 1 }).await;
        let made = async |path: &str, body: Value| ann.send(Method::POST, path, Some(body)).await.body["id"].clone();
        let member = ann.send(Method::GET, "/v1/members", None).await.body["members"][0]["id"].clone();
        let invitation = made("/v1/invitations", json!({"email": "treasure@x.example", "role": "MEMBER"})).await;
        let group = made("/v1/groups", json!({"name": "treasure", "members": [member]})).await;
        let account = made("/v1/serviceAccounts", json!({"name": "treasure", "role": "VIEWER"})).await;
        let key = json!({"serviceAccount": account, "name": "treasure", "scopes": ["todo:read"]});
        let key = made("/v1/apiKeys", key).await;
        let hers = [
            ("/v1/todos/", &todo["id"], "TODO_NOT_FOUND"),
            ("/v1/members/", &member, "MEMBER_NOT_FOUND"),
            ("/v1/invitations/", &invitation, "INVITATION_NOT_FOUND"),
            ("/v1/groups/", &group, "GROUP_NOT_FOUND"),
            ("/v1/serviceAccounts/", &account, "SERVICE_ACCOUNT_NOT_FOUND"),
            ("/v1/apiKeys/", &key, "API_KEY_NOT_FOUND"),
        ];
        let routes = routes("{id}");
        assert!(routes.len() >= 20, "{routes:?}");
        for (method, path) in routes {
            let named = hers.iter().find(|(of, ..)| path.starts_with(of));
            let body =
                [Method::POST, Method::PATCH].contains(&method).then(|| complete(&path, account.as_str().unwrap()));
            let path = named.map_or_else(|| path.clone(), |(_, id, _)| path.replace("{id}", id.as_str().unwrap()));
            let answer = eve.send(method.clone(), &path, body).await;
            match named.map(|(.., code)| *code) {
                None if path == "/v1/apiKeys" && method == Method::POST => {
                    assert_eq!((answer.status, answer.code()), (404, "SERVICE_ACCOUNT_NOT_FOUND"));
                }
                Some(code) => assert_eq!((answer.status, answer.code()), (404, code), "{method} {path}"),
                None => {
                    assert_eq!(answer.status, 200, "{method} {path}: {}", answer.body);
                    assert!(!answer.body.to_string().contains("treasure"), "{method} {path}: {}", answer.body);
                }
            }
        }
        for query in ["treasure", "", "gold", "tenant:tenants-a"] {
            assert!(!eve.search(query).await.contains(&"hidden treasure".to_owned()), "{query}");
        }
        let path = format!("/v1/todos/{}", todo["id"].as_str().unwrap());
        assert_eq!(ann.send(Method::GET, &path, None).await.body, todo);
    });
}

#[test]
fn a_tenant_of_before_is_adopted_with_its_owner_and_nobody_signs_it_up() {
    with_fleet(|fleet, _| async {
        // As in a release before identity: whatever a token says is a tenant.
        let home = devstack::StackDir::open(&fleet.home).unwrap();
        let issuer = devstack::issuer::Issuer::open(&home).unwrap();
        let token = issuer.token("of-before", "ada", chrono::TimeDelta::minutes(10)).unwrap();
        let of_before = fleet.caller("of-today", "ann").await.with_token(&token);
        let todo = of_before.create(json!({"title": "Tar the hull"})).await;
        testkit::until("it is in the index", || async { of_before.search("hull").await.len() == 1 }).await;
        let operator = String::from_utf8(fleet.run(&["token", "--operator", "--user", "olga"]).await.stdout).unwrap();
        let adopt = async |more: &[&str]| {
            let args = ["identity", "adopt", "--yes", "--reason", "they were here before", "--json"];
            let mut command = fleet.command(&[&args[..], more].concat());
            command.env("FLOTILLA_OPERATOR_TOKEN", operator.trim()).output().await.unwrap()
        };
        let asked = adopt(&[]).await;
        assert!(String::from_utf8_lossy(&asked.stderr).contains("--country"), "{asked:?}");
        let where_they_are = ["--country", "DE", "--currency", "EUR"];
        let adopted = async || {
            let output = adopt(&where_they_are).await;
            assert!(output.status.success(), "{output:?}");
            serde_json::from_slice::<Value>(&output.stdout).unwrap()["adopted"].clone()
        };
        assert_eq!(adopted().await["of-before"], "ada");
        assert_eq!(adopted().await, json!({}));

        let eve = fleet.person("adoption-eve").await;
        let taken = json!({"id": "of-before", "name": "Mine", "country": "DE", "currency": "EUR"});
        let taken = eve.send(Method::POST, "/v1/tenants", Some(taken)).await;
        assert_eq!((taken.status, taken.code()), (409, "TENANT_EXISTS"));
        // Whoever made its first todo signs in, and owns it under the same name.
        let ada = fleet.person("ada").await.in_tenant("of-before").await;
        let me = ada.send(Method::GET, "/v1/me", None).await.body;
        assert_eq!((&me["actor"], &me["role"]), (&json!("user:ada"), &json!("OWNER")));
        let path = format!("/v1/todos/{}", todo["id"].as_str().unwrap());
        assert_eq!(ada.send(Method::GET, &path, None).await.body, todo);
        let member = json!({"email": "bob@people.example", "role": "MEMBER"});
        assert_eq!(ada.send(Method::POST, "/v1/invitations", Some(member)).await.status, 200);
    });
}

#[test]
fn an_assignee_is_a_member_whom_todo_knows_by_events_or_asks_identity_about() {
    with_fleet(|fleet, _| async {
        let (ann, bob) = (fleet.caller("of-members", "ann").await, fleet.caller("of-members", "bob").await);
        // Who may ask identity nothing gets no answer of it: what events have said is all that counts.
        let asks_nothing = fleet.caller_as("of-members", "ann", &["--scope", "todo:read todo:write"]).await;
        let assigned = async |by: &e2e::Caller, to: &str| {
            let answer = by.send(Method::POST, "/v1/todos", Some(json!({"title": "x", "assignee": to}))).await;
            (answer.status, answer.body["errors"][0]["pointer"].clone())
        };
        let assign = async |to: &str| assigned(&asks_nothing, to).await;
        testkit::until("he gets a todo", || async { assign("bob").await.0 == 200 }).await;
        assert_eq!(assign("eve").await, (400, json!("#/assignee")));
        assert_eq!(assigned(&ann, "eve").await, (400, json!("#/assignee")));
        let mut database = PgConnection::connect(fleet.login("postgres")["url"].as_str().unwrap()).await.unwrap();
        database.execute("delete from known_member where tenant = 'of-members'").await.unwrap();
        assert_eq!(assign("bob").await.0, 400);
        // Before the event has come, or when it was lost: todo asks identity, as itself and on her behalf.
        assert_eq!(assigned(&ann, "bob").await.0, 200);
        let todo = ann.create(json!({"title": "x"})).await;
        let path = format!("/v1/todos/{}", todo["id"].as_str().unwrap());
        let answer = ann.send(Method::PATCH, &path, Some(json!({"assignee": "bob"}))).await;
        assert_eq!((answer.status, &answer.body["assignee"]), (200, &json!("bob")), "{answer:?}");
        assert_eq!(assigned(&ann, "eve").await, (400, json!("#/assignee")));
        let operator = String::from_utf8(fleet.run(&["token", "--operator", "--user", "olga"]).await.stdout).unwrap();
        let republish =
            ["identity", "republish", "of-members", "--yes", "--reason", "the database was restored", "--json"];
        let republished =
            fleet.command(&republish).env("FLOTILLA_OPERATOR_TOKEN", operator.trim()).output().await.unwrap();
        assert!(republished.status.success(), "{republished:?}");
        assert_eq!(serde_json::from_slice::<Value>(&republished.stdout).unwrap(), json!({"tenants": 1, "members": 2}));
        testkit::until("he gets a todo again", || async { assign("bob").await.0 == 200 }).await;
        // He leaves, and gets no more.
        let members = bob.send(Method::GET, "/v1/members", None).await.body["members"].clone();
        let his = members.as_array().unwrap().iter().find(|member| member["user"] == "bob").unwrap();
        let path = format!("/v1/members/{}", his["id"].as_str().unwrap());
        assert_eq!(bob.send(Method::DELETE, &path, None).await.status, 200);
        testkit::until("he gets no todo", || async { assign("bob").await.0 == 400 }).await;
    });
}

#[test]
fn a_development_token_makes_tenant_and_member_and_identity_takes_it() {
    with_fleet(|fleet, _| async {
        for (user, role, is) in [("ann", "owner", "owner"), ("bob", "viewer", "viewer"), ("ann", "owner", "owner")] {
            let caller = fleet.caller_as("of-a-token", user, &["--role", role]).await;
            let members = caller.send(Method::GET, "/v1/members", None).await.body;
            let own = |member: &&Value| member["user"] == user;
            let role = members["members"].as_array().unwrap().iter().find(own).map(|member| &member["role"]);
            assert_eq!(role, Some(&json!(is.to_ascii_uppercase())), "{user}: {members}");
        }
        let eve = fleet.person("token-eve").await;
        let taken = json!({"id": "of-a-token", "name": "Mine", "country": "DE", "currency": "EUR"});
        assert_eq!(eve.send(Method::POST, "/v1/tenants", Some(taken)).await.code(), "TENANT_EXISTS");
    });
}

/// The id of nothing.
const NOBODY: &str = "0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2f00";
/// The bound that `docs/identity.md` states.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(5);

#[test]
fn every_route_refuses_the_writes_of_a_suspended_tenant_and_answers_its_reads() {
    with_fleet(|fleet, _| async {
        let ann = fleet.person("suspended-ann").await;
        ann.sign_up("suspended").await;
        let todo = ann.create(json!({"title": "Sweep the quay"})).await;
        let path = format!("/v1/todos/{}", todo["id"].as_str().unwrap());
        let why = ["--yes", "--reason", "they do not pay"];
        let token = String::from_utf8(fleet.run(&["token", "--operator", "--user", "olga"]).await.stdout).unwrap();
        let operate = async |args: &[&str]| {
            let mut command = fleet.command(&[args, &["--json"]].concat());
            let output = command.env("FLOTILLA_OPERATOR_TOKEN", token.trim()).output().await.unwrap();
            assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
            serde_json::from_slice::<Value>(&output.stdout).unwrap()
        };
        let act = async |what: &str| {
            let begun = Instant::now();
            let set = operate(&[&["identity", what, "suspended"], &why[..]].concat()).await;
            (set["id"].clone(), set["status"].clone(), begun)
        };
        let rename = async || ann.send(Method::PATCH, &path, Some(json!({"title": "Sweep it again"}))).await;
        let invited = json!({"email": "bob@x.example", "role": "VIEWER"});
        let invited = ann.send(Method::POST, "/v1/invitations", Some(invited)).await.body;
        let open = operate(&["identity", "invitations", "suspended"]).await;
        assert_eq!((&open[0]["email"], &open[0]["link"]), (&json!("bob@x.example"), &invited["link"]));
        let (id, status, begun) = act("suspend").await;
        assert_eq!((id, status), (json!("suspended"), json!("suspended")));
        testkit::until("its writes are refused", || async { rename().await.code() == "TENANT_SUSPENDED" }).await;
        let lag = begun.elapsed();
        println!("writes of a suspended tenant are refused {lag:?} after the command began");
        assert!(lag < FOLLOWS_WITHIN, "{lag:?}");
        for (method, route) in routes(todo["id"].as_str().unwrap()) {
            let answer = ann
                .send(
                    method.clone(),
                    &route,
                    [Method::POST, Method::PATCH].contains(&method).then(|| complete(&route, NOBODY)),
                )
                .await;
            match method {
                // The id is the todo's: nothing else has it.
                Method::GET => {
                    let there = route == path || !route.contains(todo["id"].as_str().unwrap());
                    assert_eq!(answer.status, if there { 200 } else { 404 }, "{route}: {}", answer.body);
                }
                _ => assert_eq!((answer.status, answer.code()), (403, "TENANT_SUSPENDED"), "{method} {route}"),
            }
        }
        let tenants = operate(&["identity", "tenants", "--after", "suspende"]).await;
        assert_eq!((&tenants[0]["id"], &tenants[0]["status"]), (&json!("suspended"), &json!("suspended")));
        // It is in the audit, with who did it and why.
        let audit = operate(&["dlq", "audit"]).await.to_string();
        assert!(audit.contains("suspend tenant") && audit.contains("they do not pay"), "{audit}");
        // A database that has lost what it knew of the tenant lets it write, until identity says it again.
        let mut database = PgConnection::connect(fleet.login("postgres")["url"].as_str().unwrap()).await.unwrap();
        database.execute("delete from known_tenant where tenant = 'suspended'").await.unwrap();
        assert_eq!(rename().await.status, 200);
        operate(&["identity", "republish", "suspended", "--yes", "--reason", "the database was restored"]).await;
        testkit::until("its writes are refused again", || async { rename().await.status == 403 }).await;
        let (_, status, _) = act("resume").await;
        assert_eq!(status, json!("active"));
        testkit::until("it writes again", || async { rename().await.status == 200 }).await;
    });
}

/// A body that is right for the route, with this service account where it names one.
fn complete(route: &str, account: &str) -> Value {
    match route {
        "/v1/todos" => json!({"title": "x"}),
        "/v1/invitations" => json!({"email": "x@x.example", "role": "VIEWER"}),
        "/v1/groups" => json!({"name": "x"}),
        "/v1/serviceAccounts" => json!({"name": "x", "role": "VIEWER"}),
        "/v1/apiKeys" => {
            json!({"serviceAccount": account, "name": "x", "scopes": ["todo:read"]})
        }
        route if route.starts_with("/v1/members/") => json!({"role": "VIEWER"}),
        _ => json!({}),
    }
}
