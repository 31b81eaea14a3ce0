//! Another tenant's todo does not exist, on any route.

use reqwest::Method;
use serde_json::json;

use crate::http::routes;
use crate::with_fleet;

#[test]
fn every_route_answers_another_tenant_with_404_or_nothing() {
    with_fleet(|fleet, _| async {
        let ann = fleet.caller("tenants-a", "ann").await;
        let todo = ann.create(json!({"title": "hidden treasure", "labels": ["gold"]})).await;
        testkit::until("its own tenant finds it", || async { ann.search("treasure").await.len() == 1 }).await;
        let eve = fleet.caller("tenants-b", "ann").await;
        let id = todo["id"].as_str().unwrap();
        let routes = routes(id);
        assert!(routes.len() >= 8, "{routes:?}");
        for (method, path) in routes {
            let body = match method {
                Method::PATCH if path.contains("/members/") => Some(json!({"role": "VIEWER"})),
                Method::POST | Method::PATCH if path.contains(id) => Some(json!({})),
                Method::POST if path == "/v1/todos" => Some(json!({"title": "mine"})),
                _ => None,
            };
            let answer = eve.send(method.clone(), &path, body).await;
            let of_todos = path.starts_with("/v1/todos");
            if path.contains(id) {
                assert_eq!(answer.status, 404, "{method} {path}: {}", answer.body);
                assert!(answer.code().ends_with("_NOT_FOUND"), "{method} {path}: {}", answer.body);
                assert_eq!(of_todos, answer.code() == "TODO_NOT_FOUND", "{method} {path}");
            } else {
                // Her tenant has not signed up, and what it would have is not there.
                let wanted: &[u16] = if of_todos { &[200] } else { &[200, 400, 404] };
                assert!(wanted.contains(&answer.status), "{method} {path}: {}", answer.body);
                assert!(!answer.body.to_string().contains("treasure"), "{method} {path}: {}", answer.body);
            }
        }
        for query in ["treasure", "", "gold", "tenant:tenants-a"] {
            assert!(!eve.search(query).await.contains(&"hidden treasure".to_owned()), "{query}");
        }
        assert_eq!(ann.send(Method::GET, &format!("/v1/todos/{id}"), None).await.body, todo);
    });
}
