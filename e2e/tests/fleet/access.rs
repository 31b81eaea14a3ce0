//! Access that is given and taken: to persons of the development provider, and to programs.

use std::time::{Duration, Instant};

use e2e::{Answer, Caller, Fleet};
use reqwest::Method;
use serde_json::{Value, json};

use crate::with_fleet;

/// The bound that `docs/identity.md` states.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);

async fn exchanged(credential: &Caller, kind: &str) -> Answer {
    credential.exchange(&[("subject_token_type", kind), ("subject_token", credential.token().unwrap())]).await
}

/// Somebody whom `owner` invites, and the member's path.
pub async fn member(fleet: &Fleet, owner: &Caller, name: &str, role: &str) -> (Caller, String) {
    let person = fleet.person(name).await;
    let invitation = json!({"email": format!("{name}@people.example"), "role": role});
    let invitation = owner.send(Method::POST, "/v1/invitations", Some(invitation)).await.body;
    let accept = format!("/v1/invitations/{}:accept", invitation["id"].as_str().unwrap());
    let made = person.send(Method::POST, &accept, None).await;
    assert_eq!(made.status, 200, "{made:?}");
    let path = format!("/v1/members/{}", made.body["id"].as_str().unwrap());
    (person, path)
}

/// A new program with a key: who acts by it, the program's path, and the key's.
pub async fn program(owner: &Caller, scopes: &[&str]) -> (Caller, String, String) {
    let account = json!({"name": "report", "role": "VIEWER"});
    let account = owner.send(Method::POST, "/v1/serviceAccounts", Some(account)).await.body;
    let key = json!({"serviceAccount": account["id"], "name": "nightly", "scopes": scopes});
    let key = owner.send(Method::POST, "/v1/apiKeys", Some(key)).await.body;
    let path = |of: &str, body: &Value| format!("/v1/{of}/{}", body["id"].as_str().unwrap());
    let (program, its) = (path("serviceAccounts", &account), path("apiKeys", &key));
    (owner.with_token(key["key"].as_str().unwrap()), program, its)
}

#[test]
fn a_person_signs_up_lets_another_in_and_a_key_reads_a_todo() {
    with_fleet(|fleet, _| async {
        let (ann, eve) = (fleet.person("walk-ann").await, fleet.person("walk-eve").await);
        assert_eq!(ann.send(Method::GET, "/v1/todos", None).await.code(), "TENANT_UNCLEAR");
        ann.sign_up("walk").await;
        let todo = ann.create(json!({"title": "Caulk the deck"})).await;
        let path = format!("/v1/todos/{}", todo["id"].as_str().unwrap());

        // The link is the id and no more: it is for one address, and for once.
        let invitation = json!({"email": "walk-bob@people.example", "role": "MEMBER"});
        let invitation = ann.send(Method::POST, "/v1/invitations", Some(invitation)).await.body;
        let accept = format!("/v1/invitations/{}:accept", invitation["id"].as_str().unwrap());
        assert!(invitation["link"].as_str().unwrap().ends_with(&accept), "{invitation}");
        assert_eq!(eve.send(Method::POST, &accept, None).await.code(), "INVITATION_NOT_FOUND");
        let bob = fleet.person("walk-bob").await;
        assert_eq!(bob.send(Method::POST, &accept, None).await.status, 200);
        assert_eq!(bob.send(Method::POST, &accept, None).await.status, 404);
        assert_eq!(eve.send(Method::POST, &accept, None).await.code(), "INVITATION_NOT_FOUND");
        assert_eq!(bob.send(Method::GET, &path, None).await.body, todo);

        // The key reads, and does no more than its scopes say, whoever has it.
        let (report, ..) = program(&ann, &["todo:read"]).await;
        assert_eq!(report.send(Method::GET, &path, None).await.body, todo);
        let refused = report.send(Method::POST, "/v1/todos", Some(json!({"title": "x"}))).await;
        assert_eq!((refused.status, refused.code()), (403, "INSUFFICIENT_SCOPE"));
        assert_eq!(report.send(Method::GET, "/v1/me", None).await.status, 403, "without identity:read");
        let granted = exchanged(&report, "urn:flotilla:token-type:api-key").await;
        assert_eq!((granted.status, &granted.body["scope"]), (200, &json!("todo:read")), "{granted:?}");
        assert_eq!(exchanged(&eve, "urn:flotilla:token-type:api-key").await.body["error"], "invalid_grant");
    });
}

/// Waits until every service knows that a token in hand is void.
async fn is_out(token: &Caller, what: &str) {
    let since = Instant::now();
    for path in ["/v1/todos", "/v1/todos:search?query=x", "/v1/me"] {
        let refused = async || {
            let answer = token.send(Method::GET, path, None).await;
            answer.status == 401 && answer.code() == "TOKEN_REVOKED"
        };
        testkit::until(&format!("{what}: {path} refuses it"), refused).await;
    }
    let took = since.elapsed();
    println!("{what}: void at every service after {took:?}");
    assert!(took < KNOWN_WITHIN, "{what}: it took {took:?}");
}

#[test]
fn whatever_is_taken_away_ends_tokens_in_hand_within_seconds_at_every_service() {
    with_fleet(|fleet, _| async {
        let ann = fleet.person("taken-ann").await;
        ann.sign_up("taken").await;
        let access = "urn:ietf:params:oauth:token-type:access_token";
        let in_hand = async |credential: &Caller, kind: &str| {
            let granted = exchanged(credential, kind).await;
            let token = credential.with_token(granted.body["access_token"].as_str().unwrap());
            for path in ["/v1/todos", "/v1/todos:search?query=x", "/v1/me"] {
                assert_eq!(token.send(Method::GET, path, None).await.status, 200, "{path}");
            }
            token
        };
        let ((bob, his), (kim, hers)) =
            (member(fleet, &ann, "taken-bob", "MEMBER").await, member(fleet, &ann, "taken-kim", "MEMBER").await);
        let (bob, kim, stays) = (in_hand(&bob, access).await, in_hand(&kim, access).await, in_hand(&ann, access).await);
        let scopes = ["todo:read", "identity:read"];
        let key = "urn:flotilla:token-type:api-key";
        let mut programs = Vec::new();
        for _ in 0..3 {
            let (credential, program, its) = program(&ann, &scopes).await;
            programs.push((in_hand(&credential, key).await, program, its));
        }
        let [(revoked, _, its_key), (gone, gone_path, _), (changed, changed_path, _)] = &programs[..] else {
            unreachable!("there are three")
        };
        let role = |role: &str| Some(json!({"role": role}));
        for (what, token, method, path, body) in [
            ("a member who is removed", &bob, Method::DELETE, &his, None),
            ("a member with another role", &kim, Method::PATCH, &hers, role("VIEWER")),
            ("a key that is revoked", revoked, Method::DELETE, its_key, None),
            ("a program that is let in no more", gone, Method::DELETE, gone_path, None),
            ("a program with another role", changed, Method::PATCH, changed_path, role("MEMBER")),
        ] {
            let answer = ann.send(method, path, body).await;
            assert_eq!(answer.status, 200, "{what}: {answer:?}");
            is_out(token, what).await;
        }
        assert_eq!(stays.send(Method::GET, "/v1/todos", None).await.status, 200);
    });
}
