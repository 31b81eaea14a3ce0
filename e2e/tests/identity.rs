//! The fleet while identity is away, and while somebody guesses keys.

use std::collections::BTreeSet;

use devstack::process::signal;
use e2e::{Answer, Caller, Fleet};
use futures::future::join_all;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use testkit::until;

const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

async fn assign(by: &Caller, to: &str) -> Answer {
    by.send(Method::POST, "/v1/todos", Some(json!({"title": "Tar the hull", "assignee": to}))).await
}

#[tokio::test]
async fn while_identity_is_away_tokens_in_hand_live_out_their_minutes_and_nothing_else_is_let_in() {
    let fleet = Fleet::start(None).await;
    let (ann, bob) = (fleet.person("ann").await, fleet.person("bob").await);
    ann.sign_up("acme").await;
    let invitation = json!({"email": "bob@people.example", "role": "MEMBER"});
    let invitation = ann.send(Method::POST, "/v1/invitations", Some(invitation)).await.body;
    let accept = format!("/v1/invitations/{}:accept", invitation["id"].as_str().unwrap());
    let his = bob.send(Method::POST, &accept, None).await.body["user"].as_str().unwrap().to_owned();
    let account = json!({"name": "report", "role": "VIEWER"});
    let account = ann.send(Method::POST, "/v1/serviceAccounts", Some(account)).await.body["id"].clone();
    let key = json!({"serviceAccount": account, "name": "nightly", "scopes": ["todo:read"]});
    let key = ann.send(Method::POST, "/v1/apiKeys", Some(key)).await.body["key"].clone();
    let program = ann.with_token(key.as_str().unwrap());
    let list = async |by: &Caller| by.send(Method::GET, "/v1/todos", None).await;
    assert_eq!(list(&program).await.status, 200);
    // Who may not ask identity shows what todo knows by itself.
    let asks_nothing = fleet.caller_as("acme", "dev", &["--scope", "todo:read todo:write"]).await;
    until("todo knows him", || async { assign(&asks_nothing, &his).await.status == 200 }).await;

    let identity = fleet.unit("identity").pid.unwrap();
    signal(identity, Signal::SIGSTOP).unwrap();
    // In hand: hers and the program's, at the gateway.
    assert_eq!(assign(&ann, &his).await.status, 200);
    assert_eq!(list(&program).await.status, 200);
    // Who is not in hand gets in nowhere, and hears when to try again.
    let stranger = fleet.person("carol").await;
    let refused = list(&stranger).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    let form = [("subject_token", stranger.token().unwrap()), ("subject_token_type", ACCESS_TOKEN)];
    let exchanged = stranger.exchange(&form).await;
    assert!([503, 504].contains(&exchanged.status), "{exchanged:?}");
    let wanted = json!({"serviceAccount": account, "name": "another", "scopes": ["todo:read"]});
    let act = ann.send(Method::POST, "/v1/apiKeys", Some(wanted.clone())).await;
    assert!([503, 504].contains(&act.status), "{act:?}");
    // Whether somebody is a member whom todo does not know, identity alone could say.
    let unknown = assign(&ann, "eve").await;
    assert_eq!(unknown.status, 503, "{unknown:?}");

    signal(identity, Signal::SIGCONT).unwrap();
    until("it answers", || async { assign(&ann, "eve").await.status == 400 }).await;
    assert_eq!(list(&stranger).await.code(), "TENANT_UNCLEAR");
    assert_eq!(ann.send(Method::POST, "/v1/apiKeys", Some(wanted)).await.status, 200);
    // Somebody guesses keys meanwhile, and pays by its address; who has a token in hand goes on.
    let guess = async || {
        let guess = format!("flk_{0}{0}_{1}{1}", "0123456789abcdef", testkit::unique(""));
        let form = [("subject_token_type", "urn:flotilla:token-type:api-key"), ("subject_token", guess.as_str())];
        [ann.exchange(&form).await.status, list(&ann.with_token(&guess)).await.status]
    };
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        seen.extend(join_all((0..100).map(|_| guess())).await.into_iter().flatten());
        if seen.contains(&429) {
            break;
        }
    }
    assert!(seen.contains(&429) && seen.iter().all(|status| [400, 401, 429].contains(status)), "{seen:?}");
    assert_eq!(list(&program).await.status, 200);
    let report: Value = fleet.json(&["verify"]).await;
    for kind in ["lost", "duplicated", "outOfOrder", "foreign", "diverged"] {
        assert_eq!(report[kind]["count"], 0, "{report}");
    }
    fleet.stop().await;
}
