//! Services that act for whoever has called them.

use authz::Verifier;
use authz::exchange::{JWT, TOKEN_EXCHANGE};
use devstack::issuer::{AUDIENCE, ISSUER};
use proto::identity::{DeleteApiKeyRequest, DeleteMemberRequest, ExchangeTokenRequest, GetMeRequest, Me, Role};

use crate::harness::{ACCESS_TOKEN, API_KEY, Client, Harness, reason};

/// What todo sends when it was called with this token.
pub fn carrying(harness: &Harness, token: &str) -> ExchangeTokenRequest {
    ExchangeTokenRequest {
        grant_type: TOKEN_EXCHANGE.to_owned(),
        subject_token: token.to_owned(),
        subject_token_type: ACCESS_TOKEN.to_owned(),
        actor_token: harness.issuer.assertion("todo", "todo"),
        actor_token_type: JWT.to_owned(),
        ..ExchangeTokenRequest::default()
    }
}

async fn me(client: &Client) -> Me {
    client.inner.clone().get_me(client.request(GetMeRequest {})).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_service_acts_for_whoever_has_called_it_with_no_more_than_that_one_may() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let nobody = harness.client_with(None);
    let verifier = Verifier::new(harness.issuer.jwks(), ISSUER, AUDIENCE).unwrap();
    let ends =
        async |token: &str| verifier.verify(Some(&format!("Bearer {token}"))).await.unwrap().expires_unix_seconds;

    let granted = nobody.exchange_by(carrying(&harness, &ann.token())).await.unwrap();
    let todo = harness.with(&granted.access_token);
    let user = ann.user().await;
    let seen = me(&todo).await;
    assert_eq!((seen.actor, seen.role), (format!("service:todo user:{user}"), Role::Owner.into()));
    assert!(ends(&granted.access_token).await <= ends(&ann.token()).await, "it lives no longer");
    assert_eq!(reason(todo.invite("bob@x.example", Role::Member).await), "PERMISSION_DENIED", "it gives no access");
    let (bob, his) = harness.member(&ann, "acme", ("bob", Role::Member)).await;
    let his = harness.with(&nobody.exchange_by(carrying(&harness, &his.token())).await.unwrap().access_token);
    let leave = his.request(DeleteMemberRequest { id: bob.id, ..Default::default() });
    assert_eq!(reason(his.inner.clone().delete_member(leave).await), "PERMISSION_DENIED", "and takes none");

    // On to the next service, as often as a chain of actors may be long; and never to a longer life.
    let mut token = granted.access_token;
    for _ in 0..2 {
        token = nobody.exchange_by(carrying(&harness, &token)).await.unwrap().access_token;
        assert!(ends(&token).await <= ends(&ann.token()).await);
    }
    assert_eq!(me(&harness.with(&token)).await.actor, format!("service:todo service:todo service:todo user:{user}"));
    assert_eq!(reason(nobody.exchange_by(carrying(&harness, &token)).await), "INVALID_REQUEST");

    // Scopes narrow, and do not grow.
    let narrow = harness.issuer.person("ann", "ann@x.example");
    let narrow = nobody.exchange(&narrow, ACCESS_TOKEN, "", "identity:read").await.unwrap().access_token;
    let carried = nobody.exchange_by(carrying(&harness, &narrow)).await.unwrap();
    assert_eq!(carried.scope, "identity:read");
    let wider = ExchangeTokenRequest { scope: "identity:write".to_owned(), ..carrying(&harness, &narrow) };
    assert_eq!(reason(nobody.exchange_by(wider).await), "INVALID_SCOPE");
}

#[tokio::test]
async fn nobody_is_a_service_without_its_key_and_no_service_is_somebody_who_has_not_called_it() {
    let harness = Harness::start().await;
    let (ann, _) = (harness.owner("acme", "ann").await, harness.owner("globex", "eve").await);
    let nobody = harness.client_with(None);
    let good = carrying(&harness, &ann.token());
    let change = |change: &dyn Fn(&mut ExchangeTokenRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    let (user, key) = (ann.user().await, ann.create_key(Role::Viewer, &["identity:read"]).await.unwrap().key);
    let stranger = testkit::TestIssuer::new();
    for (request, why) in [
        // Who says that it is todo, or another service.
        (change(&|it| it.actor_token = String::new()), "INVALID_REQUEST"),
        (change(&|it| it.actor_token = "nonsense".to_owned()), "INVALID_REQUEST"),
        (change(&|it| it.actor_token = ann.token()), "INVALID_REQUEST"),
        (change(&|it| it.actor_token = stranger.assertion("todo", "todo")), "INVALID_REQUEST"),
        (change(&|it| it.actor_token = harness.issuer.assertion("todo", "identity")), "INVALID_REQUEST"),
        (change(&|it| it.actor_token.truncate(it.actor_token.len() - 90)), "INVALID_REQUEST"),
        // Whom it says that it acts for: none of these is a token of the fleet's.
        (change(&|it| it.subject_token = user.clone()), "INVALID_GRANT"),
        (change(&|it| it.subject_token = harness.issuer.person("ann", "ann@x.example")), "INVALID_GRANT"),
        (change(&|it| it.subject_token = it.actor_token.clone()), "INVALID_GRANT"),
        (change(&|it| it.subject_token = stranger.bearer("acme", &user).replace("Bearer ", "")), "INVALID_GRANT"),
        (
            change(&|it| it.subject_token = harness.issuer.expired("acme", &user).replace("Bearer ", "")),
            "INVALID_GRANT",
        ),
        (change(&|it| it.subject_token = harness.issuer.operator("olga").replace("Bearer ", "")), "INVALID_GRANT"),
        (
            change(&|it| (it.subject_token, it.subject_token_type) = (key.clone(), API_KEY.to_owned())),
            "INVALID_REQUEST",
        ),
        (
            change(&|it| (it.subject_token, it.subject_token_type) = (it.actor_token.clone(), JWT.to_owned())),
            "INVALID_REQUEST",
        ),
        // Of somebody who is no member, or is another there.
        (
            change(&|it| it.subject_token = harness.issuer.bearer("globex", &user).replace("Bearer ", "")),
            "INVALID_GRANT",
        ),
        (change(&|it| it.tenant = "globex".to_owned()), "INVALID_TARGET"),
        (change(&|it| it.task = "triage:42".to_owned()), "INVALID_REQUEST"),
    ] {
        assert_eq!(reason(nobody.exchange_by(request.clone()).await), why, "{request:?}");
    }
    // Taken for another moment where clocks differ, it is exchanged for no further one.
    let now = chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now()).timestamp();
    let ending = serde_json::json!({"role": "owner", "exp": now - 5});
    let ending = harness.client_as("acme", &user, &ending);
    assert_eq!(me(&ending).await.tenant, "acme");
    assert_eq!(reason(nobody.exchange_by(carrying(&harness, &ending.token())).await), "INVALID_GRANT");
    nobody.exchange_by(good).await.unwrap();
    // Without a service that says who it is, a token of the fleet's is exchanged for nothing.
    assert_eq!(reason(nobody.exchange(&ann.token(), ACCESS_TOKEN, "", "").await), "INVALID_GRANT");
}

#[tokio::test]
async fn who_was_taken_away_is_carried_nowhere_from_that_moment() {
    let harness = Harness::start().await;
    let ann = harness.owner("acme", "ann").await;
    let nobody = harness.client_with(None);
    let carried = async |token: &str| nobody.exchange_by(carrying(&harness, token)).await;

    let (bob, his) = harness.member(&ann, "acme", ("bob", Role::Member)).await;
    carried(&his.token()).await.unwrap();
    // Another role than the token says: its bearer exchanges anew.
    let as_admin = serde_json::json!({"role": "admin"});
    assert_eq!(reason(carried(&harness.client_as("acme", &bob.user, &as_admin).token()).await), "INVALID_GRANT");
    let request = ann.request(DeleteMemberRequest { id: bob.id, ..Default::default() });
    ann.inner.clone().delete_member(request).await.unwrap();
    assert_eq!(reason(carried(&his.token()).await), "INVALID_GRANT");
    // Who comes back is another member.
    let (_, again) = harness.member(&ann, "acme", ("bob", Role::Member)).await;
    assert_eq!(reason(carried(&his.token()).await), "INVALID_GRANT");
    carried(&again.token()).await.unwrap();
    // Of a program, and of an agent, a token says by which key it acts.
    for claims in [
        serde_json::json!({"role": "owner", "kind": "service_account"}),
        serde_json::json!({"role": "owner", "act": {"sub": "planner", "kind": "agent"}}),
    ] {
        let says_nothing = harness.client_as("acme", &ann.user().await, &claims);
        assert_eq!(reason(carried(&says_nothing.token()).await), "INVALID_GRANT", "{claims}");
    }

    let key = ann.create_key(Role::Viewer, &["identity:read"]).await.unwrap();
    let program = nobody.exchange(&key.key, API_KEY, "", "").await.unwrap().access_token;
    let granted = carried(&program).await.unwrap();
    let actor = format!("service:todo service_account:{}", key.service_account);
    assert_eq!(me(&harness.with(&granted.access_token)).await.actor, actor);
    let agent = Client::agent(&harness.issuer.person("ann", "ann@x.example"), &key.key, "triage:42");
    let agent = nobody.exchange_by(agent).await.unwrap().access_token;
    let seen = me(&harness.with(&carried(&agent).await.unwrap().access_token)).await;
    let actor = format!("service:todo agent:{} user:{}", key.service_account, ann.user().await);
    assert_eq!((seen.actor, seen.task.as_str(), seen.scopes), (actor, "triage:42", vec!["identity:read".to_owned()]));
    let request = ann.request(DeleteApiKeyRequest { id: key.id });
    ann.inner.clone().delete_api_key(request).await.unwrap();
    for token in [&program, &agent] {
        assert_eq!(reason(carried(token).await), "INVALID_GRANT");
    }
    carried(&ann.token()).await.unwrap();
}
