//! Another tenant's todo does not exist, on any route.

use reqwest::Method;
use serde_json::{Value, json};

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
            let body = match (&method, path.as_str()) {
                (&Method::PATCH, path) if path.starts_with("/v1/members/") => Some(json!({"role": "VIEWER"})),
                (&Method::POST, "/v1/todos") => Some(json!({"title": "mine"})),
                (&Method::POST, "/v1/invitations") => Some(json!({"email": "x@x.example", "role": "VIEWER"})),
                (&Method::POST, "/v1/groups") => Some(json!({"name": "x"})),
                (&Method::POST, "/v1/serviceAccounts") => Some(json!({"name": "x", "role": "VIEWER"})),
                (&Method::POST, "/v1/apiKeys") => {
                    Some(json!({"serviceAccount": account, "name": "x", "scopes": ["todo:read"]}))
                }
                (&Method::PATCH | &Method::POST, _) => Some(json!({})),
                _ => None,
            };
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
